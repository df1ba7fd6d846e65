"""When a round has enough bridges: the smallest prefix of its shards is closed, and the next round builds on it.

Shards are numbered through all rounds. A shard names the manifest that its round builds on, so a shard that was made on
top of anything else than what is there now is told apart by itself and made again.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from raystitch.buffer.config import bridges_of_round
from raystitch.buffer.schema import ClosedRound, Complete
from raystitch.buffer.storage import Storage
from raystitch.buffer.writer import (
    SHARDS,
    Path,
    ShardStats,
    existing_stats,
    list_shards,
    read_meta,
    remove_leftovers,
    shard_file_name,
    write_meta,
)
from raystitch.errors import RunError


def prefix_length(stats: Mapping[int, ShardStats], num_bridges: int, first_shard: int = 0) -> int | None:
    """Where the smallest gapless run of shards from ``first_shard`` on with ``num_bridges`` accepted ends; None while
    there is none."""
    accepted, shard = 0, first_shard
    while shard in stats:
        accepted += stats[shard].accepted
        shard += 1
        if accepted >= num_bridges:
            return shard
    return None


def manifest_hash(stats: Mapping[int, ShardStats], shards: range, before: str) -> str:
    """``sha256:...`` of a closed round: number, accepted bridges and checksum of each shard, on top of ``before``."""
    listed = [[shard, stats[shard].accepted, stats[shard].decisions] for shard in shards]
    return "sha256:" + hashlib.sha256(json.dumps([before, listed]).encode()).hexdigest()


def sound_rounds(stats: Mapping[int, ShardStats], rounds: Sequence[ClosedRound]) -> tuple[ClosedRound, ...]:
    """The closed rounds up to the first that misses a shard or whose shards are not those that it was closed with."""
    before, sound = "", list[ClosedRound]()
    for closed in rounds:
        shards = range(closed.first_shard, closed.end)
        if any(shard not in stats or stats[shard].manifest != before for shard in shards):
            break
        if manifest_hash(stats, shards, before) != closed.hash:
            break
        sound.append(closed)
        before = closed.hash
    return tuple(sound)


def current_round(stats: Mapping[int, ShardStats], rounds: Sequence[ClosedRound]) -> dict[int, ShardStats]:
    """The shards of the round after the closed ones: those made on top of exactly these."""
    first, before = (rounds[-1].end, rounds[-1].hash) if rounds else (0, "")
    return {shard: s for shard, s in stats.items() if shard >= first and s.manifest == before}


def close_round(path: Path, rounds: Sequence[ClosedRound], num_bridges: int) -> ClosedRound:
    """Fixes the smallest prefix of the round after ``rounds`` with ``num_bridges`` accepted, records it in
    ``buffer.json`` and removes what the next round cannot use.

    Raises:
        RunError: when the shards do not hold that many.
    """
    storage, everything = Storage(path), existing_stats(path)
    stats = current_round(everything, rounds)
    first, before = (rounds[-1].end, rounds[-1].hash) if rounds else (0, "")
    end = _end(path, stats, num_bridges, first)
    closed = ClosedRound(
        chain_round=len(rounds),
        first_shard=first,
        num_shards=end - first,
        num_accepted=sum(stats[shard].accepted for shard in range(first, end)),
        hash=manifest_hash(stats, range(first, end), before),
    )
    meta = read_meta(storage)
    # Rounds that were closed on top of this very one stay: a damaged shard may have come back as it was.
    later = meta.rounds[len(rounds) + 1 :] if closed in meta.rounds else ()
    write_meta(storage, replace(meta, rounds=(*rounds, closed, *later)))
    known = {closed.hash, *(other.hash for other in later)}
    stale = [shard for shard, s in everything.items() if shard >= end and s.manifest not in known]
    files = list_shards(path)
    for shard in stale:
        if files[shard] == shard_file_name(shard):
            storage.delete(f"{SHARDS}/{files[shard]}")
    return closed


def finish(path: Path, num_bridges: int) -> Complete:
    """Closes the last round and removes what is over.

    Args:
        num_bridges: accepted bridges asked for, of all rounds together.

    Raises:
        RunError: when the shards do not hold that many.
    """
    storage, everything = Storage(path), existing_stats(path)
    meta = read_meta(storage)
    first = meta.rounds[-1].end if meta.rounds else 0
    stats = current_round(everything, meta.rounds)
    share = bridges_of_round(num_bridges, meta.augment.chain_rounds, len(meta.rounds))
    end = _end(path, stats, share, first)
    missing = [shard for shard in range(first) if shard not in everything]
    if missing:
        raise RunError(f"{path}: shard {missing[0]} is damaged or missing; run `raystitch augment` again")
    complete = Complete(
        num_bridges=num_bridges,
        num_shards=end,
        num_accepted=sum(everything[shard].accepted for shard in range(end)),
        num_candidates=sum(everything[shard].rows for shard in range(end)),
    )
    write_meta(storage, replace(meta, complete=complete))
    remove_leftovers(storage, complete.num_shards)
    return complete


def _end(path: Path, stats: Mapping[int, ShardStats], num_bridges: int, first: int) -> int:
    end = prefix_length(stats, num_bridges, first)
    if end is None:
        held = sum(s.accepted for s in stats.values())
        raise RunError(f"{path} holds {held} accepted bridges in {len(stats)} shards, not the {num_bridges} asked for")
    return end
