"""A checksum over what a table holds, not over how it lies in memory.

The same rows give the same checksum fresh from the pipeline, read back from a file, or as a slice of a larger file: of
every column the logical content counts (validity, booleans as bits, offsets from 0). Bulk data is hashed where it lies.
XXH3 finds damage, at about the speed of reading memory; it is no protection against forgery.
"""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import xxhash


def checksum(batch: pa.RecordBatch) -> str:
    """``xxh3:...`` over the names, types and content of every column.

    Raises:
        ValueError: for a column type that no buffer has.
    """
    return _digest(zip(batch.schema.names, batch.columns, strict=True))


def checksum_of(table: pa.Table, names: Iterable[str]) -> str:
    """The same over some columns of a table, which need not lie in one piece: they are copied if they do not."""
    return _digest((name, _in_one_piece(table[name])) for name in names)


def checksum_text(text: str) -> str:
    """The same over a text."""
    return "xxh3:" + xxhash.xxh3_128_hexdigest(text.encode())


def _in_one_piece(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.array([], column.type)])


def _digest(columns: Iterable[tuple[str, pa.Array]]) -> str:
    state = xxhash.xxh3_128()
    for name, column in columns:
        state.update(f"{name}:{column.type}:{len(column)};".encode())
        _add(state, column)
    return "xxh3:" + state.hexdigest()


def _add(state: xxhash.xxh3_128, column: pa.Array) -> None:
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


def _bytes(buffer: pa.Buffer | None, start: int, size: int) -> memoryview:
    return memoryview(b"" if buffer is None else buffer)[start : start + size]
