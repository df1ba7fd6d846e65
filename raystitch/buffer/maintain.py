"""Looking after a buffer on disk: finding damage, merging small files."""

import os
import re

import numpy as np
import pyarrow as pa

from raystitch.buffer.rounds import sound_rounds
from raystitch.buffer.schema import PARENTS, BufferMeta, flat_steps, make_schema
from raystitch.buffer.storage import Storage
from raystitch.buffer.writer import (
    SHARDS,
    ShardFile,
    ShardStats,
    checksum,
    decisions,
    list_shards,
    read_meta,
    read_shard_file,
    remove_leftovers,
    shard_stats,
    write_merged,
)
from raystitch.errors import UserError

MERGED_BYTES = 256 << 20


def verify(path: str | os.PathLike[str]) -> list[str]:
    """Checks a buffer; returns one line per problem, none when all is well.

    Raises:
        UserError: when the folder is not a buffer at all.
    """
    storage = Storage(path)
    meta = read_meta(storage)
    shards = list_shards(path)
    problems = [
        f"{SHARDS}/{name}: not a shard file" for name in storage.names(SHARDS) if not re.search(r"\.(arrow|tmp)$", name)
    ]
    if meta.complete is None:
        problems.append(f"generation has not finished: {len(shards)} shards so far")
    else:
        problems += [f"shard {n} is missing" for n in range(meta.complete.num_shards) if n not in shards]
        shards = {n: name for n, name in shards.items() if n < meta.complete.num_shards}
    ids, known = list[pa.ChunkedArray](), dict[int, ShardStats]()
    parents: list[pa.ChunkedArray] = []
    for name in dict.fromkeys(shards.values()):
        try:
            file = read_shard_file(storage, name)
        except UserError as error:
            problems.append(str(error))
            continue
        found = [f"{SHARDS}/{name}: {problem}" for problem in _file_problems(file, meta)]
        problems += found
        if not found:
            ids.append(pa.chunked_array([file.batch["bridge_id"]]))
            parents += [pa.chunked_array([file.batch[name]]) for name in PARENTS]
        known.update({stats.shard: stats for stats in file.stats})
    sound = len(sound_rounds(known, meta.rounds))
    problems += [
        f"the shards of round {closed.chain_round} are not those that the next one was made from"
        for closed in meta.rounds[sound : sound + 1]
        if all(shard in known for shard in range(closed.end))
    ]
    problems += [
        f"shard {shard} was made on top of other shards than those there are now"
        for shard, stats in known.items()
        if sound == len(meta.rounds) and stats.manifest != _builds_on(meta, shard)
    ]
    together = pa.chunked_array([chunk for column in ids for chunk in column.chunks], pa.string())
    if len(together.unique()) != len(together):
        problems.append("some bridge_id occurs more than once")
    named = {parent for column in parents for parent in column.unique().to_pylist() if parent is not None}
    lost = named.difference(together.to_pylist()) if named and not problems else set[str]()
    problems += [f"bridge {parent}, which others are chained onto, is not in the buffer" for parent in sorted(lost)]
    return problems


def _builds_on(meta: BufferMeta, shard: int) -> str:
    """The hash of the closed round that a shard has to be made on top of."""
    before = [closed.hash for closed in meta.rounds if closed.end <= shard]
    return before[-1] if before else ""


def _file_problems(file: ShardFile, meta: BufferMeta) -> list[str]:
    batch = file.batch.replace_schema_metadata(None)
    if not batch.schema.equals(make_schema(meta.obs_dim, meta.act_dim)):
        return ["its columns are not those that buffer.json describes"]
    if checksum(batch) != file.checksum:
        return ["its checksum differs: the file was changed after it was written"]
    problems: list[str] = []
    gap = batch["gap"].to_numpy()
    for name, extra in (("observations", 2), ("actions", 1), ("rewards", 1)):
        if not np.array_equal(batch[name].value_lengths().to_numpy(zero_copy_only=False), gap + extra):
            problems.append(f"the length of {name} is not gap + {extra}")
    if batch.num_rows != sum(stats.rows for stats in file.stats):
        problems.append("its number of rows is not the one recorded")
    whole, first = pa.Table.from_batches([batch]), 0
    for stats in file.stats:
        if decisions(whole.slice(first, stats.rows)) != stats.decisions:
            problems.append(f"what it decided in shard {stats.shard} is not what was recorded")
        first += stats.rows
    accepted = whole.filter(batch["accepted"])
    if shard_stats(accepted, 0).accepted != sum(stats.accepted for stats in file.stats):
        problems.append("its number of accepted bridges is not the one recorded")
    return problems + [
        f"an accepted bridge has a value in {name} that is not finite"
        for name in ("observations", "actions", "rewards")
        if len(accepted) and not np.isfinite(flat_steps(accepted[name].combine_chunks())).all()
    ]


def compact(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Merges consecutive shard files up to 256 MiB; returns the number of files before and after.

    Raises:
        UserError: when generation has not finished, or a file is damaged.
    """
    storage = Storage(path)
    meta = read_meta(storage)
    if meta.complete is None:
        raise UserError(
            f"{path} is unfinished; run `raystitch augment` with the same arguments again before compacting"
        )
    shards = list_shards(path)
    names = list(dict.fromkeys(name for n, name in shards.items() if n < meta.complete.num_shards))
    groups: list[list[str]] = [[]]
    size = 0
    for name in names:
        size += storage.size(f"{SHARDS}/{name}")
        if groups[-1] and size > MERGED_BYTES:
            groups.append([])
            size = storage.size(f"{SHARDS}/{name}")
        groups[-1].append(name)
    for group in groups:
        if len(group) > 1:
            files = [read_shard_file(storage, name) for name in group]
            for file in files:
                if checksum(file.batch) != file.checksum:
                    raise UserError(f"{path}/{SHARDS}/{file.name} is damaged: its checksum differs; run verify")
            write_merged(storage, files)
    remove_leftovers(storage, meta.complete.num_shards)
    return len(names), len(dict.fromkeys(list_shards(path).values()))
