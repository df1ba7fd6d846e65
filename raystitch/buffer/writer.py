"""Writing a buffer: settings first, then shards that exist whole or not at all."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raystitch.buffer.schema import INTEGERS, PARENTS, SCHEMA_VERSION, BufferMeta
from raystitch.buffer.storage import Storage
from raystitch.errors import UserError
from raystitch.files import differences

META_FILE = "buffer.json"
SHARDS = "shards"
_KEY = b"raystitch"
_PART = re.compile(r"part-(\d{6,})\.arrow")
_MERGED = re.compile(r"merged-(\d{6,})-(\d{6,})\.arrow")

Path = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class ShardStats:
    """What a shard holds.

    Attributes:
        accepted: pairs of which an attempt is accepted.
        residual_min: the smallest finite largest-residual of its candidates.
        decisions: checksum over what was decided (ids, references, gaps, acceptance); the same on every machine.
        manifest: hash of the closed round that its round builds on, empty in round 0.
    """

    shard: int
    rows: int
    accepted: int
    residual_min: float | None
    reasons: Mapping[str, int]
    decisions: str = ""
    manifest: str = ""


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """One file of shards as read: ``batch`` lies in the memory map."""

    name: str
    batch: pa.RecordBatch
    stats: tuple[ShardStats, ...]
    checksum: str


def checksum(batch: pa.RecordBatch) -> str:
    """A digest over the buffers of every column."""
    digest = hashlib.blake2b(digest_size=16)
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        digest.update(f"{name}:{column.type}:{len(column)}".encode())
        for buffer in column.buffers():
            digest.update(b"-" if buffer is None else memoryview(buffer))
    return "blake2b:" + digest.hexdigest()


def decisions(table: pa.Table) -> str:
    """A digest over what was decided about the candidates; floats, which machines round differently, take no part."""
    digest = hashlib.blake2b(digest_size=16)
    for name in ("bridge_id", *PARENTS, *INTEGERS, "accepted"):
        digest.update(repr(table[name].to_pylist()).encode())
    return "blake2b:" + digest.hexdigest()


def shard_stats(table: pa.Table, shard: int, manifest: str = "") -> ShardStats:
    residual = table["residual_max"].to_numpy()
    finite = residual[np.isfinite(residual)]
    accepted = table.filter(table["accepted"])
    return ShardStats(
        shard=shard,
        rows=table.num_rows,
        accepted=len(accepted["first_id"].unique()),
        residual_min=float(finite.min()) if finite.size else None,
        reasons={str(e["values"]): int(e["counts"]) for e in table["reason"].value_counts().to_pylist()},
        decisions=decisions(table),
        manifest=manifest,
    )


def _encode(table: pa.Table, stats: list[ShardStats]) -> pa.Buffer:
    """The bytes of a shard file: one record batch, statistics and checksum in the schema's metadata."""
    batches = table.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], schema=table.schema)]
    assert len(batches) == 1
    # A batch that went through IPC once has the exact buffers that a reader will see.
    batch = pa.ipc.read_record_batch(batches[0].serialize(), table.schema)
    info = {"schema_version": SCHEMA_VERSION, "checksum": checksum(batch), "shards": [asdict(s) for s in stats]}
    batch = batch.replace_schema_metadata({_KEY: json.dumps(info).encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def read_shard_file(storage: Storage, name: str) -> ShardFile:
    """Opens one file of shards, memory-mapped.

    Raises:
        UserError: when it is damaged or not a shard.
    """
    try:
        with pa.ipc.open_file(storage.read(f"{SHARDS}/{name}")) as reader:
            info: dict[str, Any] = json.loads((reader.schema.metadata or {})[_KEY])
            if reader.num_record_batches != 1:
                raise ValueError(f"{reader.num_record_batches} record batches instead of one")
            batch = reader.get_batch(0)
        stats = tuple(ShardStats(**entry) for entry in info["shards"])
        return ShardFile(name=name, batch=batch, stats=stats, checksum=info["checksum"])
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{storage.uri}/{SHARDS}/{name} is damaged: {error}; run `raystitch buffer verify`") from error


def read_meta(storage: Storage) -> BufferMeta:
    """Raises: UserError when the folder is not a buffer."""
    where = f"{storage.uri}/{META_FILE}"
    try:
        value = json.loads(storage.read(META_FILE).to_pybytes())
    except FileNotFoundError as error:
        raise UserError(f"{storage.uri} is not a buffer: it has no {META_FILE}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{where} cannot be read as JSON: {error}") from error
    return BufferMeta.from_json(value, where)


def write_meta(storage: Storage, meta: BufferMeta) -> None:
    storage.write(META_FILE, (json.dumps(meta.to_json(), indent=2, allow_nan=False) + "\n").encode())


def create_buffer(path: Path, meta: BufferMeta) -> BufferMeta:
    """Starts a buffer, or takes up one that was started with the same settings; returns what is on disk.

    Raises:
        UserError: when the folder holds something else, or a buffer of other settings (says which differ).
    """
    storage = Storage(path)
    if not storage.exists(META_FILE):
        if storage.names():
            raise UserError(f"{path} is not empty and not a buffer (no {META_FILE}); give another --out")
        write_meta(storage, meta)
        return meta
    existing = read_meta(storage)
    differing = differences(existing.settings(), meta.settings())
    if differing:
        reads_anyway = all(key.startswith("stitch.qualify.delta ") for key in differing)
        hint = "; it can be read at any --delta by train, export and buffer info" if reads_anyway else ""
        raise UserError(f"{path} was generated with other settings: {', '.join(differing)}; give another --out{hint}")
    if existing.complete is not None and existing.complete.num_bridges > meta.augment.num_bridges:
        raise UserError(
            f"{path} was generated for {existing.complete.num_bridges} bridges, more than the "
            f"{meta.augment.num_bridges} asked for; ask for at least as many or give another --out"
        )
    return existing


def shard_file_name(shard: int) -> str:
    return f"part-{shard:06d}.arrow"


def write_shard(path: Path, shard: int, table: pa.Table, manifest: str = "") -> ShardStats:
    """Writes one shard whole or not at all, over an older file of the same number.

    Args:
        manifest: hash of the closed round that this one builds on.
    """
    stats = shard_stats(table, shard, manifest)
    Storage(path).write(f"{SHARDS}/{shard_file_name(shard)}", _encode(table, [stats]))
    return stats


def list_shards(path: Path) -> dict[int, str]:
    """Shard number -> file in ``shards/``, from the names alone; a merged file replaces the parts it holds."""
    names = Storage(path).names(SHARDS)
    found = {int(match[1]): match[0] for name in names if (match := _PART.fullmatch(name))}
    spans = [(int(match[1]), int(match[2]), match[0]) for name in names if (match := _MERGED.fullmatch(name))]
    for first, last, name in sorted(spans, key=lambda span: span[1] - span[0]):
        found.update(dict.fromkeys(range(first, last + 1), name))
    return dict(sorted(found.items()))


def existing_stats(path: Path) -> dict[int, ShardStats]:
    """Statistics of the shards that are there and undamaged; a damaged part counts as missing and is made again.

    Raises:
        UserError: when a merged file is damaged.
    """
    storage, found = Storage(path), dict[int, ShardStats]()
    for name in dict.fromkeys(list_shards(path).values()):
        try:
            file = read_shard_file(storage, name)
            if checksum(file.batch) != file.checksum:
                raise UserError(f"{path}/{SHARDS}/{name} is damaged: its checksum differs; generate the buffer again")
        except UserError:
            if _PART.fullmatch(name):
                continue
            raise
        found.update({stats.shard: stats for stats in file.stats})
    return dict(sorted(found.items()))


def remove_leftovers(storage: Storage, num_shards: int) -> None:
    """Removes temporary files, shards past ``num_shards`` and parts that a merged file holds as well."""
    used = {name for shard, name in list_shards(storage.uri).items() if shard < num_shards}
    for name in storage.names(SHARDS):
        if name not in used:
            storage.delete(f"{SHARDS}/{name}")


def write_merged(storage: Storage, files: list[ShardFile]) -> str:
    """Writes consecutive files as one; returns its name. The files merged are left where they are."""
    stats = [s for file in files for s in file.stats]
    assert [s.shard for s in stats] == list(range(stats[0].shard, stats[0].shard + len(stats)))
    table = pa.Table.from_batches([file.batch.replace_schema_metadata(None) for file in files])
    name = f"merged-{stats[0].shard:06d}-{stats[-1].shard:06d}.arrow"
    storage.write(f"{SHARDS}/{name}", _encode(table, stats))
    return name
