"""Checks of Arrow IPC streams and Parquet files from strangers, made before anything in them is decoded."""

import base64
import re
import struct
from pathlib import Path

import pyarrow as pa

EXTENSION = b"ARROW:extension:"
MAX_BATCHES = 1000
"""Limit on batches: decoding one takes a hundred times its bytes."""
_RECORD_BATCH = 3  # MessageHeader in Arrow's Message.fbs
_HEADER_TYPE, _HEADER, _COMPRESSION = 1, 2, 3  # fields of Message and of RecordBatch


class UnsafeArrow(ValueError):
    """A stream that must not be decoded: ``reason`` is extension, compressed or batches."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def check_messages(body: pa.Buffer) -> None:
    """Check the messages of a stream before any of them is decoded.

    Compressed buffers declare their own size. Extension types are decoded by the library that registered them in this
    process; one of Ray's holds pickles.

    Raises:
        UnsafeArrow: for either, and for more than ``MAX_BATCHES`` record batches.
        pa.ArrowInvalid: for messages that have no place in a stream.
    """
    reader = pa.ipc.MessageReader.open_stream(body)
    for _ in range(MAX_BATCHES + 1):
        try:
            message = reader.read_next_message()
        except StopIteration:
            return
        if message.type not in ("schema", "record batch"):
            raise pa.ArrowInvalid(f"a message of type {message.type!r} has no place in it")
        if message.type == "schema" and EXTENSION in message.metadata.to_pybytes():
            raise UnsafeArrow("extension")
        if message.type == "record batch" and _is_compressed(message.metadata.to_pybytes()):
            raise UnsafeArrow("compressed")
    raise UnsafeArrow("batches")


def check_parquet(path: Path) -> None:
    """Check a file's footer before pyarrow opens the file, because opening decodes the Arrow schema in it.

    Raises:
        UnsafeArrow: when any text in it could be an Arrow schema with an extension type.
        pa.ArrowInvalid: when the file is not Parquet.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        file.seek(max(size - 8, 0))
        length, magic = struct.unpack("<I4s", file.read(8))
        if magic != b"PAR1" or length + 8 > size:
            raise pa.ArrowInvalid("it is no Parquet file")
        file.seek(size - 8 - length)
        footer = file.read(length)
    for text in re.findall(rb"[A-Za-z0-9+/]{16,}", footer):
        for start in range(4):  # the bytes before the schema may look like a part of it
            if EXTENSION in base64.b64decode(text[start : start + (len(text) - start) // 4 * 4]):
                raise UnsafeArrow("extension")


def _is_compressed(metadata: bytes) -> bool:
    """Return True if a record batch's flatbuffer has the field ``compression`` (Arrow's Message.fbs)."""
    (message,) = struct.unpack_from("<I", metadata, 0)
    header_type = _field(metadata, message, _HEADER_TYPE)
    header = _field(metadata, message, _HEADER)
    if not header_type or not header or metadata[header_type] != _RECORD_BATCH:
        raise pa.ArrowInvalid("a record batch without its header")
    (offset,) = struct.unpack_from("<I", metadata, header)
    return _field(metadata, header + offset, _COMPRESSION) != 0


def _field(buffer: bytes, table: int, number: int) -> int:
    """Return the position of a field of a flatbuffer's table, 0 where it is left out."""
    (distance,) = struct.unpack_from("<i", buffer, table)
    vtable = table - distance
    (size,) = struct.unpack_from("<H", buffer, vtable)
    at = 4 + 2 * number
    if at + 2 > size:
        return 0
    (offset,) = struct.unpack_from("<H", buffer, vtable + at)
    return table + offset if offset else 0
