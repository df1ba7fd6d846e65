"""Merging the many small files of a buffer into few; what it holds, and every shard's checksum, stays the same.

May be killed at any moment: the files merged stay until the merged one is whole and on the disk, and the next run
removes what is over. Memory: one merged file, at most ``MERGED_BYTES`` (twice that on an object store).
"""

import os

import pyarrow as pa

from raystitch.buffer.meta import read_meta
from raystitch.buffer.removal import remove_unnamed
from raystitch.buffer.schema import BufferMeta, Complete
from raystitch.buffer.shard_file import (
    SHARDS,
    ShardFile,
    as_batch,
    merged_name,
    read_shard_file,
    write_file,
)
from raystitch.buffer.storage import Storage
from raystitch.buffer.survey import by_shard, list_shards, shards_of
from raystitch.errors import UserError

MERGED_BYTES = 64 << 20


def compact(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Merges consecutive shard files up to 64 MiB; returns the number of files that are read before and after.

    What was merged goes at once on a disk of this machine, elsewhere after the grace period, by the next call. A run
    that makes more shards of the same buffer meanwhile is not disturbed: shards past the complete ones are left alone,
    and on a local disk it waits at most for one merged file when it finishes.

    Raises:
        UserError: when generation has not finished, or a file is damaged.
        StorageError: when a file cannot be read or written; the buffer is as it was.
    """
    storage = Storage(path)
    meta = read_meta(storage)
    if meta.complete is None:
        raise UserError(
            f"{storage.where()} is unfinished; run `raystitch augment` with the same arguments again before compacting"
        )
    _remove_superseded(storage, meta)
    names = _names(storage, meta.complete)
    for group in _groups(storage, names):
        if len(group) > 1:
            with storage.lock():
                remove_unnamed(storage, meta, group, since=f"{SHARDS}/{_merge(storage, group)}")
    return len(names), len(_names(storage, meta.complete))


def superseded(path: str | os.PathLike[str]) -> dict[str, str]:
    """Files of shards that are not read because a merged one holds the same: name -> the merged one."""
    names = Storage(path).names(SHARDS)
    used, found = by_shard(names), dict[str, str]()
    for name in names:
        holders = {used[shard] for shard in shards_of(name)}
        if len(holders) == 1 and name not in holders:
            found[name] = holders.pop()
    return found


def _names(storage: Storage, complete: Complete) -> list[str]:
    """The files that are read, in the order of their shards."""
    return list(dict.fromkeys(name for n, name in list_shards(storage.uri).items() if n < complete.num_shards))


def _groups(storage: Storage, names: list[str]) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    total = 0
    for name in names:
        size = storage.size(f"{SHARDS}/{name}")
        total += size
        if groups[-1] and total > MERGED_BYTES:
            groups.append([])
            total = size
        groups[-1].append(name)
    return groups


def _merge(storage: Storage, group: list[str]) -> str:
    """Writes the files as one; returns its name."""
    files = [_sound_file(storage, name) for name in group]
    stats = [s for file in files for s in file.stats]
    first, last = stats[0].shard, stats[-1].shard
    if [s.shard for s in stats] != list(range(first, last + 1)):
        raise UserError(f"{storage.where()}: shards are missing between {first} and {last}; run verify")
    table = pa.Table.from_batches([file.batch.replace_schema_metadata(None) for file in files])
    name = merged_name(first, last)
    write_file(storage, name, as_batch(table), stats, durable=True)
    return name


def _sound_file(storage: Storage, name: str) -> ShardFile:
    file = read_shard_file(storage, name)
    try:
        file.check(storage.where(f"{SHARDS}/{name}"))
    except UserError:
        storage.forget_copy(f"{SHARDS}/{name}")
        raise
    return file


def _remove_superseded(storage: Storage, meta: BufferMeta) -> None:
    """Removes what a run left that was killed between writing a merged file and removing what it was merged from, and
    what had to wait for the grace period."""
    with storage.lock():
        by_holder: dict[str, list[str]] = {}
        for name, holder in superseded(storage.uri).items():
            by_holder.setdefault(holder, []).append(name)
        for holder, names in by_holder.items():
            _sound_file(storage, holder)
            remove_unnamed(storage, meta, names, since=f"{SHARDS}/{holder}")
