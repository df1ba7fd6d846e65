"""Looking after a buffer on disk: finding damage, merging small files."""

import os
import re
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raystitch.buffer.meta import read_meta
from raystitch.buffer.rounds import sound_rounds
from raystitch.buffer.schema import PARENTS, BufferMeta, flat_steps, make_schema
from raystitch.buffer.shard_file import (
    SHARDS,
    ShardFile,
    ShardStats,
    decisions,
    num_accepted,
    read_shard_file,
)
from raystitch.buffer.storage import Storage
from raystitch.buffer.survey import list_shards, survey
from raystitch.errors import UserError

NAMED = 20
"""Missing parents that are named one by one."""


def verify(path: str | os.PathLike[str]) -> list[str]:
    """Checks a buffer; returns one line per problem, none when all is well.

    One file after the other is read; what stays in memory is the ids, about 100 bytes per candidate.

    Raises:
        UserError: when the folder is not a buffer at all.
        StorageError: when the storage does not answer.
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
    ids, parents, known = list[pa.Array](), list[pa.Array](), dict[int, ShardStats]()
    for name in dict.fromkeys(shards.values()):
        try:
            file = read_shard_file(storage, name)
        except UserError as error:
            problems.append(str(error))
            continue
        found = [f"{SHARDS}/{name}: {problem}" for problem in _file_problems(file, meta)]
        problems += found
        if not found:
            ids.append(_copy(file.batch["bridge_id"]))
            parents += [_copy(file.batch[column].drop_null()).unique() for column in PARENTS]
        known.update({stats.shard: stats for stats in file.stats})
    problems += _round_problems(known, meta)
    together = pa.chunked_array(ids, pa.string())
    if pc.call_function("count_distinct", [together]).as_py() != len(together):
        problems.append("some bridge_id occurs more than once")
    named = pa.chunked_array(parents, pa.string())
    if len(named) and not problems:
        there = pc.call_function("is_in", [named], pc.SetLookupOptions(value_set=together.combine_chunks()))
        lost = sorted(named.filter(pc.call_function("invert", [there])).unique().to_pylist())
        problems += [f"bridge {id_}, which others are chained onto, is not in the buffer" for id_ in lost[:NAMED]]
        if len(lost) > NAMED:
            problems.append(f"{len(lost) - NAMED} more bridges, which others are chained onto, are not in the buffer")
    return problems


def failed_shards(path: str | os.PathLike[str]) -> dict[int, str]:
    """The shards that the buffer does without, as they could not be made: number -> why."""
    return {shard: stats.error for shard, stats in survey(path, thorough=False).stats.items() if stats.error}


def _copy(column: pa.Array) -> pa.Array:
    """Lets go of the mapped file that the column lies in."""
    return pa.concat_arrays([column, column.slice(0, 0)])


def _round_problems(known: dict[int, ShardStats], meta: BufferMeta) -> Iterator[str]:
    sound = len(sound_rounds(known, meta.rounds))
    for closed in meta.rounds[sound : sound + 1]:
        if all(shard in known for shard in range(closed.end)):
            yield f"the shards of round {closed.chain_round} are not those that the next one was made from"
    for shard, stats in known.items():
        if sound == len(meta.rounds) and stats.manifest != _builds_on(meta, shard):
            yield f"shard {shard} was made on top of other shards than those there are now"


def _builds_on(meta: BufferMeta, shard: int) -> str:
    """The hash of the closed round that a shard has to be made on top of."""
    before = [closed.hash for closed in meta.rounds if closed.end <= shard]
    return before[-1] if before else ""


def _file_problems(file: ShardFile, meta: BufferMeta) -> list[str]:
    batch = file.batch.replace_schema_metadata(None)
    if not batch.schema.equals(make_schema(meta.obs_dim, meta.act_dim)):
        return ["its columns are not those that buffer.json describes"]
    damaged = file.damaged_shards()
    if damaged:
        which = ", ".join(map(str, damaged))
        return [f"its checksum differs (shard {which}): the file was changed after it was written"]
    problems: list[str] = []
    gap = batch["gap"].to_numpy()
    for name, extra in (("observations", 2), ("actions", 1), ("rewards", 1)):
        if not np.array_equal(batch[name].value_lengths().to_numpy(zero_copy_only=False), gap + extra):
            problems.append(f"the length of {name} is not gap + {extra}")
    for stats, rows in file.shards():
        whole = pa.Table.from_batches([rows])
        if decisions(whole) != stats.decisions:
            problems.append(f"what it decided in shard {stats.shard} is not what was recorded")
        if num_accepted(whole) != stats.accepted:
            problems.append(f"the number of accepted bridges of shard {stats.shard} is not the one recorded")
    return problems + [
        f"an accepted bridge has a value in {name} that is not finite"
        for name in ("observations", "actions", "rewards")
        if not _finite(batch, name)
    ]


def _finite(batch: pa.RecordBatch, name: str) -> bool:
    """Whether the accepted rows have finite values only; of those of other rows nothing is asked."""
    if np.isfinite(flat_steps(batch[name])).all():
        return True
    accepted = batch[name].filter(batch["accepted"])
    return bool(np.isfinite(flat_steps(accepted)).all())
