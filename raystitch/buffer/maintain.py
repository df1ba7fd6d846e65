"""Maintenance of a buffer on disk: ``verify`` finds damage, ``compact`` merges small files, ``describe`` sums it up."""

import os
import re
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raystitch.buffer.meta import read_meta
from raystitch.buffer.opening import open_buffer
from raystitch.buffer.reach_file import read_reach
from raystitch.buffer.reader import AtDelta
from raystitch.buffer.removal import remove_unnamed
from raystitch.buffer.rounds import sound_rounds
from raystitch.buffer.schema import JUDGED_STEPS, PARENTS, BufferMeta, Complete, flat_steps, make_schema
from raystitch.buffer.shard_file import (
    SHARDS,
    ShardFile,
    ShardStats,
    as_batch,
    decisions,
    merged_name,
    num_accepted,
    read_shard_file,
    write_file,
)
from raystitch.buffer.survey import by_shard, list_shards, shards_of, survey
from raystitch.data.episodes import Floats
from raystitch.errors import UserError
from raystitch.io.storage import Storage

NAMED = 20
"""Missing parents that are named one by one."""
MERGED_BYTES = 64 << 20
"""Size of merged files, at most."""


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
    """Return the shards that could not be made, so that the buffer does without: number -> why."""
    return {shard: stats.error for shard, stats in survey(path, thorough=False).stats.items() if stats.error}


def _copy(column: pa.Array) -> pa.Array:
    """Return a copy, which keeps no mapped file open."""
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
    """Return the hash of the closed round that a shard has to be made on top of."""
    before = [closed.hash for closed in meta.rounds if closed.end <= shard]
    return before[-1] if before else ""


def _file_problems(file: ShardFile, meta: BufferMeta) -> list[str]:
    batch = file.batch.replace_schema_metadata(None)
    schema = make_schema(meta.obs_dim, meta.act_dim, meta.schema_version)
    if not batch.schema.equals(schema):
        return ["its columns are not those that buffer.json describes"]
    damaged = file.damaged_shards()
    if damaged:
        which = ", ".join(map(str, damaged))
        return [f"its checksum differs (shard {which}): the file was changed after it was written"]
    problems: list[str] = []
    gap = batch["gap"].to_numpy()
    lists = [name for name in ("actions", "rewards", *JUDGED_STEPS) if name in schema.names]
    for name, extra in (("observations", 2), *((name, 1) for name in lists)):
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
    """Return True if the accepted rows have finite values only; other rows may have any."""
    if np.isfinite(flat_steps(batch[name])).all():
        return True
    accepted = batch[name].filter(batch["accepted"])
    return bool(np.isfinite(flat_steps(accepted)).all())


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
    """Return the files that are not read because a merged one holds the same: name -> the merged one."""
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
    """Removes files that a merged one replaces: those that had to wait for the grace period, and those of a run that
    was killed before it removed them."""
    with storage.lock():
        by_holder: dict[str, list[str]] = {}
        for name, holder in superseded(storage.uri).items():
            by_holder.setdefault(holder, []).append(name)
        for holder, names in by_holder.items():
            _sound_file(storage, holder)
            remove_unnamed(storage, meta, names, since=f"{SHARDS}/{holder}")


def describe(uri: str | os.PathLike[str], delta: AtDelta = "generation") -> dict[str, Any]:
    """Return plain data for JSON; for an unfinished or damaged buffer, what there is of it.

    Returns:
        ``buffer, complete, shards, files, bytes`` (on disk), ``missing`` (numbers of shards that a finished buffer
        lacks), ``damaged`` (file -> what is wrong with it, as far as opening shows; ``verify`` looks at every byte),
        ``failed`` (shard -> why it could not be made), ``candidates, accepted, transitions, delta, reasons`` (counts),
        ``rounds`` (list of ``RoundCounts``), ``reach`` (list of ``Reach``, after each round, at the settings of
        generation; empty where pairs are split by return), ``reach_problem`` (why it cannot be read; None where it
        can), ``pilot`` (list of ``PilotResult``, by which pairs were chosen; empty without one),
        ``residual_median, gap_mean`` (of the accepted; None without any),
        ``dataset, bundle, seed, gamma, schema_version, stitch, augment``.

    Raises:
        UserError: when it is not a buffer.
    """
    found = survey(uri, thorough=False)
    buffer = open_buffer(uri, allow_partial=True, without=found.damaged)
    meta = buffer.meta
    rows = buffer.accepted_rows(delta)
    gap, residual = buffer.column("gap")[rows], buffer.column("residual_max")[rows]
    wanted = range(meta.complete.num_shards) if meta.complete is not None else range(0)
    reach, problem = _reach(uri)
    return {
        "buffer": os.fspath(uri),
        "complete": meta.complete is not None,
        "shards": len(buffer.stats),
        "files": buffer.num_files,
        "bytes": buffer.num_bytes,
        "missing": [shard for shard in wanted if shard not in buffer.stats],
        "damaged": found.damaged,
        "failed": {shard: stats.error for shard, stats in buffer.stats.items() if stats.error},
        "candidates": buffer.num_candidates,
        "accepted": len(rows),
        "transitions": int((gap + 1).sum()),
        "delta": meta.stitch.qualify.delta if delta == "generation" else delta,
        "reasons": buffer.reasons(delta),
        "rounds": [asdict(counts) for counts in buffer.rounds(delta)],
        "reach": reach,
        "reach_problem": problem,
        "pilot": [asdict(result) for result in meta.pilot],
        "residual_median": _median(residual),
        "gap_mean": float(gap.mean()) if len(gap) else None,
        "dataset": meta.dataset_name,
        "bundle": meta.bundle_hash,
        "seed": meta.seed,
        "gamma": meta.gamma,
        "schema_version": meta.schema_version,
        "stitch": asdict(meta.stitch),
        "augment": asdict(meta.augment),
    }


def _reach(uri: str | os.PathLike[str]) -> tuple[list[dict[str, Any]], str | None]:
    """Return what ``reach.json`` says, and what is wrong with it."""
    try:
        return [found.to_json() for found in read_reach(uri)], None
    except UserError as error:
        return [], str(error)


def _median(values: Floats) -> float | None:
    return float(np.median(values)) if len(values) else None
