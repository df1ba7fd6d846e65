"""One file of shards: an Arrow IPC file of one record batch, with statistics and checksum of every shard in it.

The schema's metadata holds, under ``raystitch``, JSON: ``schema_version``, ``shards`` (a list of ``ShardStats``, in the
order of their rows) and ``checksum``, which is over that list. A file cut short does not open, because the footer is at
its end; a changed byte shows in a shard's checksum or in the list's.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from raystitch.buffer.schema import INTEGERS, PARENTS, SCHEMA_VERSION, make_schema, schema_version_of
from raystitch.errors import StorageError, UserError
from raystitch.io.digest import checksum, checksum_of, checksum_text
from raystitch.io.storage import Storage

SHARDS = "shards"
PART = re.compile(r"part-(\d{6,})\.arrow")
MERGED = re.compile(r"merged-(\d{6,})-(\d{6,})\.arrow")
DECIDED = ("bridge_id", *PARENTS, *INTEGERS, "accepted")
BROKEN = (OSError, pa.ArrowException, LookupError, TypeError, ValueError, OverflowError)
"""Exceptions that reading damaged bytes may raise."""
AGAIN = "run `raystitch augment` with the same arguments to generate it again"
_KEY = b"raystitch"


@dataclass(frozen=True, kw_only=True)
class ShardStats:
    """Statistics and checksums of a shard.

    Attributes:
        accepted: pairs of which an attempt is accepted.
        residual_min: the smallest finite largest-residual of its candidates.
        decisions: checksum over what was decided (ids, references, gaps, acceptance); the same on every machine.
        manifest: hash of the closed round that its round builds on, empty in round 0.
        checksum: over all its columns; the same in whatever file it lies.
        error: why it could not be made; such a shard is empty.
    """

    shard: int
    rows: int
    accepted: int
    residual_min: float | None
    reasons: Mapping[str, int]
    decisions: str = ""
    manifest: str = ""
    checksum: str = ""
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """One file of shards as read: ``batch`` lies in the memory map."""

    name: str
    batch: pa.RecordBatch
    stats: tuple[ShardStats, ...]

    @property
    def checksum(self) -> str:
        """Over the checksums of its shards."""
        return checksum_text(" ".join(stats.checksum for stats in self.stats))

    def shards(self) -> Iterator[tuple[ShardStats, pa.RecordBatch]]:
        """Each shard with its rows, a view."""
        first = 0
        for stats in self.stats:
            yield stats, self.batch.slice(first, stats.rows)
            first += stats.rows

    def damaged_shards(self) -> list[int]:
        """The shards whose rows are not what was written."""
        return [stats.shard for stats, rows in self.shards() if not _sound(rows, stats)]

    def check(self, where: str) -> None:
        """Raises: UserError when a shard's checksum differs."""
        damaged = self.damaged_shards()
        if damaged:
            raise UserError(f"{where} is damaged: its checksum differs (shard {', '.join(map(str, damaged))}); {AGAIN}")


def _sound(rows: pa.RecordBatch, stats: ShardStats) -> bool:
    try:
        return rows.num_rows == stats.rows and checksum(rows) == stats.checksum
    except BROKEN:
        return False


def decisions(table: pa.Table) -> str:
    """A digest over what was decided about the candidates; floats, which machines round differently, take no part."""
    return checksum_of(table, DECIDED)


def shard_stats(table: pa.Table, shard: int, manifest: str = "") -> ShardStats:
    """The statistics of a shard's rows, which lie in one piece (its checksum is taken without copying them)."""
    residual = table["residual_max"].to_numpy()
    finite = residual[np.isfinite(residual)]
    return ShardStats(
        shard=shard,
        rows=table.num_rows,
        accepted=num_accepted(table),
        residual_min=float(finite.min()) if finite.size else None,
        reasons={str(e["values"]): int(e["counts"]) for e in table["reason"].value_counts().to_pylist()},
        decisions=decisions(table),
        manifest=manifest,
        checksum=checksum(as_batch(table)),
    )


def num_accepted(table: pa.Table) -> int:
    """Pairs of which an attempt is accepted."""
    return len(table["first_id"].filter(table["accepted"]).unique())


def as_batch(table: pa.Table) -> pa.RecordBatch:
    """All rows as one batch; a copy only where they lie in several pieces."""
    batches = table.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], schema=table.schema)]
    assert len(batches) == 1
    return batches[0]


def part_name(shard: int) -> str:
    return f"part-{shard:06d}.arrow"


def merged_name(first: int, last: int) -> str:
    return f"merged-{first:06d}-{last:06d}.arrow"


def write_file(storage: Storage, name: str, batch: pa.RecordBatch, stats: Sequence[ShardStats], durable: bool) -> None:
    """Writes a file of shards whole or not at all, over an older one of that name.

    Raises:
        StorageError: when it cannot be written.
    """
    shards = [asdict(s) for s in stats]
    version = schema_version_of(batch.schema)
    info = {"schema_version": version, "shards": shards, "checksum": checksum_text(json.dumps(shards))}
    schema = batch.schema.with_metadata({_KEY: json.dumps(info).encode()})
    with storage.create(f"{SHARDS}/{name}", durable=durable) as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(batch.replace_schema_metadata(schema.metadata))


def read_shard_file(storage: Storage, name: str) -> ShardFile:
    """Opens one file of shards, memory-mapped; the rows are not looked at.

    Raises:
        UserError: when it is missing, damaged or not a shard.
        StorageError: when it cannot be read, and so not be judged.
    """
    where = f"{SHARDS}/{name}"
    try:
        try:
            return parse_shard_file(name, storage.read(where))
        except OSError as error:  # Arrow's for a file that is cut short, and the storage's
            if isinstance(error, FileNotFoundError):
                raise
            return parse_shard_file(name, storage.read_whole(where))
    except (UserError, StorageError):
        raise
    except BROKEN as error:
        raise UserError(f"{storage.where(where)} is damaged: {_line(error)}; {AGAIN}") from error


def parse_shard_file(name: str, content: pa.Buffer) -> ShardFile:
    """A file of shards from its bytes; the rows are not looked at.

    Raises:
        One of ``BROKEN``, when it is damaged or not a shard.
    """
    with pa.ipc.open_file(content) as reader:
        stats = _stats(reader)
        if reader.num_record_batches != 1:
            raise ValueError(f"{reader.num_record_batches} record batches instead of one")
        batch = reader.get_batch(0)
    if batch.num_rows != sum(s.rows for s in stats):
        raise ValueError("its number of rows is not the one recorded")
    return ShardFile(name=name, batch=batch, stats=stats)


def read_stats(storage: Storage, name: str) -> tuple[ShardStats, ...]:
    """Return what a shard file says it holds, from its footer alone.

    A file that looks damaged is read whole before it is called damaged: the read itself may have failed.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is damaged: cut short, or the statistics changed.
        StorageError: when it cannot be read, and so not be judged.
    """
    where = f"{SHARDS}/{name}"
    try:
        with storage.open(where) as source, pa.ipc.open_file(source) as reader:
            return _stats(reader)
    except (FileNotFoundError, UserError, StorageError):
        raise
    except BROKEN:
        content = storage.read_whole(where)
    try:
        with pa.ipc.open_file(content) as reader:
            return _stats(reader)
    except BROKEN as error:
        raise ValueError(_line(error)) from error


def _stats(reader: pa.ipc.RecordBatchFileReader) -> tuple[ShardStats, ...]:
    info: dict[str, Any] = json.loads((reader.schema.metadata or {})[_KEY])
    if checksum_text(json.dumps(info["shards"])) != info["checksum"]:
        raise ValueError("the checksum of its statistics differs")
    return tuple(ShardStats(**entry) for entry in info["shards"])


def _line(error: BaseException) -> str:
    """An error's text in one line; pyarrow's have several."""
    return " ".join(str(error).split()) or type(error).__name__


def write_shard(path: str | os.PathLike[str], shard: int, table: pa.Table, manifest: str = "") -> ShardStats:
    """Writes one shard whole or not at all, over an older file of the same number.

    It does not wait until the data is on the disk: should the machine lose power, the checksum shows a torn file and
    the shard is made again.

    Args:
        manifest: hash of the closed round that this one builds on.

    Raises:
        StorageError: when it cannot be written.
    """
    batch = as_batch(table)
    stats = shard_stats(pa.Table.from_batches([batch]), shard, manifest)
    write_file(Storage(path), part_name(shard), batch, [stats], durable=False)
    return stats


def write_failed(
    path: str | os.PathLike[str],
    shard: int,
    obs_dim: int,
    act_dim: int,
    manifest: str,
    error: str,
    schema_version: int = SCHEMA_VERSION,
) -> ShardStats:
    """Writes an empty shard in the place of one that cannot be made, so that the buffer can do without it.

    Args:
        error: why it cannot be made.

    Raises:
        StorageError: when it cannot be written.
    """
    empty = make_schema(obs_dim, act_dim, schema_version).empty_table()
    stats = replace(shard_stats(empty, shard, manifest), error=error)
    write_file(Storage(path), part_name(shard), as_batch(empty), [stats], durable=False)
    return stats
