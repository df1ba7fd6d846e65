"""Digests (XXH3, 128 bits) that find damage in bytes, JSON files and Arrow tables; no protection against forgery.

pyarrow and xxhash are imported where they are used: models are fitted and policies trained
where they are not installed.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raystitch.errors import DamagedError, UserError

if TYPE_CHECKING:
    import pyarrow as pa
    import xxhash

KEY = "digest"


def digest(*parts: bytes | memoryview) -> str:
    """``xxh3:...`` of the parts, one after the other."""
    import xxhash

    state = xxhash.xxh3_128()
    for part in parts:
        state.update(part)
    return "xxh3:" + state.hexdigest()


def json_digest(value: Any) -> str:
    """The digest of a JSON value, however it is laid out in a file."""
    return digest(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with the digest of everything else in it under ``digest``."""
    content = json.loads(json.dumps({key: item for key, item in value.items() if key != KEY}, allow_nan=False))
    return {**content, KEY: json_digest(content)}


def read_sealed(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a JSON object that ``sealed`` made, or that an older raystitch wrote without a digest.

    Raises:
        DamagedError: when it is not what was written.
        UserError: when it is missing or cannot be read.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if not content.strip(b"\0 \n"):
        raise DamagedError(f"{path} is damaged: it is empty")
    try:
        value = json.loads(content)
    except ValueError as error:
        raise DamagedError(f"{path} is damaged: it cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise DamagedError(f"{path} is damaged: it holds no JSON object")
    try:
        sound = KEY not in value or sealed(value)[KEY] == value[KEY]
    except ValueError:  # a number that JSON has no text for
        sound = False
    if not sound:
        raise DamagedError(f"{path} is damaged: its digest is not that of its content")
    return value


def checksum(batch: "pa.RecordBatch") -> str:
    """Compute ``xxh3:...`` over the names, types and content of every column.

    Raises:
        ValueError: for a column type that no buffer has.
    """
    return _columns_digest(zip(batch.schema.names, batch.columns, strict=True))


def checksum_of(table: "pa.Table", names: Iterable[str]) -> str:
    """Compute the checksum of some columns of a table; those that do not lie in one piece are copied."""
    return _columns_digest((name, _in_one_piece(table[name])) for name in names)


def checksum_text(text: str) -> str:
    """Compute the digest of a text."""
    return digest(text.encode())


def _in_one_piece(column: "pa.ChunkedArray") -> "pa.Array":
    import pyarrow as pa

    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.array([], column.type)])


def _columns_digest(columns: Iterable[tuple[str, "pa.Array"]]) -> str:
    import xxhash

    state = xxhash.xxh3_128()
    for name, column in columns:
        state.update(f"{name}:{column.type}:{len(column)};".encode())
        _add(state, column)
    return "xxh3:" + state.hexdigest()


def _add(state: "xxhash.xxh3_128", column: "pa.Array") -> None:
    import pyarrow as pa

    if column.null_count:
        state.update(b"nulls")
        state.update(np.packbits(column.is_valid().to_numpy(zero_copy_only=False)).data)
    kind, length = column.type, len(column)
    if not length:
        return
    if pa.types.is_boolean(kind):
        state.update(np.packbits(column.fill_null(False).to_numpy(zero_copy_only=False)).data)
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        state.update(_bytes(column.buffers()[1], column.offset * kind.byte_width, length * kind.byte_width))
    elif pa.types.is_string(kind):
        offsets = np.frombuffer(_bytes(column.buffers()[1], 4 * column.offset, 4 * (length + 1)), np.int32)
        state.update(_from_zero(offsets).data)
        state.update(_bytes(column.buffers()[2], int(offsets[0]), int(offsets[-1] - offsets[0])))
    elif pa.types.is_list(kind):
        offsets = column.offsets.to_numpy()
        state.update(_from_zero(offsets).data)
        _add(state, column.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0])))
    elif pa.types.is_fixed_size_list(kind):
        _add(state, column.values.slice(column.offset * kind.list_size, length * kind.list_size))
    else:
        raise ValueError(f"a buffer has no column of type {kind}")


def _from_zero(offsets: np.ndarray) -> np.ndarray:
    return offsets if offsets[0] == 0 else offsets - offsets[0]


def _bytes(buffer: "pa.Buffer | None", start: int, size: int) -> memoryview:
    return memoryview(b"" if buffer is None else buffer)[start : start + size]
