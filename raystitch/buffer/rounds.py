"""The end of a round: the smallest prefix of its shards with enough bridges is closed, and the next round builds on it.

Shards are numbered through all rounds. A shard names the manifest that its round builds on, so a shard that was made on
top of anything else than what is there now is told apart by itself and made again.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from raystitch.buffer.config import bridges_of_round
from raystitch.buffer.meta import update_meta
from raystitch.buffer.removal import remove_unnamed
from raystitch.buffer.schema import BufferMeta, ClosedRound, Complete
from raystitch.buffer.shard_file import SHARDS, ShardStats, part_name
from raystitch.buffer.survey import list_shards, shards_of, survey
from raystitch.io.holders import is_temporary
from raystitch.io.storage import Storage, StrPath


def prefix_length(stats: Mapping[int, ShardStats], num_bridges: int, first_shard: int = 0) -> int | None:
    """Return where the smallest gapless run of shards from ``first_shard`` on with ``num_bridges`` accepted ends.

    Returns:
        The shard after the last one; None while there is no such run.
    """
    return prefix_end({shard: found.accepted for shard, found in stats.items()}, num_bridges, first_shard)


def prefix_end(
    accepted_of: Mapping[int, int], wanted: int, first_shard: int, without: Collection[int] = ()
) -> int | None:
    """Return where the smallest gapless run of shards from ``first_shard`` on with ``wanted`` accepted bridges ends.

    Args:
        accepted_of: accepted bridges of each shard there is.
        without: shards that are not there and are passed over.
    """
    accepted, shard = 0, first_shard
    while shard in accepted_of or shard in without:
        accepted += accepted_of.get(shard, 0)
        shard += 1
        if accepted >= wanted:
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


def close_round(
    path: StrPath, rounds: Sequence[ClosedRound], num_bridges: int, end: int | None = None
) -> ClosedRound | None:
    """Fixes the smallest prefix of the round after ``rounds`` with ``num_bridges`` accepted, records it in
    ``buffer.json`` and, on a local disk, removes what the next round cannot use (elsewhere it is written over).

    What another run on the same buffer closed on top of this very round stays.

    Args:
        end: close the shards before this one instead, however few bridges they hold.

    Returns:
        None, and nothing is changed, where the shards do not hold that many (any more).
    """
    storage, fixed = Storage(path), end
    first, before = (rounds[-1].end, rounds[-1].hash) if rounds else (0, "")
    won = list[tuple[ClosedRound, BufferMeta, dict[int, ShardStats]]]()

    def close(meta: BufferMeta) -> BufferMeta | None:
        won.clear()
        everything = survey(path, thorough=False).stats
        stats = current_round(everything, rounds)
        end = prefix_length(stats, num_bridges, first) if fixed is None else fixed
        if end is None or any(shard not in stats for shard in range(first, end)):
            return None
        closed = ClosedRound(
            chain_round=len(rounds),
            first_shard=first,
            num_shards=end - first,
            num_accepted=sum(stats[shard].accepted for shard in range(first, end)),
            hash=manifest_hash(stats, range(first, end), before),
        )
        # Rounds that were closed on top of this very one stay: a damaged shard may have come back as it was.
        later = meta.rounds[len(rounds) + 1 :] if closed in meta.rounds else ()
        wanted = replace(meta, rounds=(*rounds, closed, *later))
        _settle(storage, end)
        won.append((closed, wanted, everything))
        return wanted

    with storage.lock():
        update_meta(storage, close)
        if not won:
            return None
        ((closed, meta, everything),) = won
        if storage.local is not None:
            _remove_stale(storage, meta, everything, closed)
    return closed


def _settle(storage: Storage, end: int) -> None:
    """Waits until the shards below ``end`` are on the disk: nothing may name them before."""
    files = list_shards(storage.uri)
    storage.settle(dict.fromkeys(f"{SHARDS}/{files[shard]}" for shard in range(end)))


def _remove_stale(storage: Storage, meta: BufferMeta, stats: Mapping[int, ShardStats], closed: ClosedRound) -> None:
    """Removes shards after a closed round that were made on top of something else."""
    known = {other.hash for other in meta.rounds[closed.chain_round :]}
    stale = [shard for shard, s in stats.items() if shard >= closed.end and s.manifest not in known]
    files = list_shards(storage.uri)
    remove_unnamed(storage, meta, [files[n] for n in stale if files.get(n) == part_name(n)])


def finish(path: StrPath, num_bridges: int) -> Complete | None:
    """Closes the last round and removes what is over, unless a run has begun that wants more bridges.

    A buffer that another run finished with more bridges keeps them.

    Args:
        num_bridges: accepted bridges asked for, of all rounds together.

    Returns:
        What the buffer holds now; None, and nothing is changed, where the shards do not hold that many (any more).
    """
    storage = Storage(path)
    won = list[tuple[Complete, BufferMeta]]()

    def close(meta: BufferMeta) -> BufferMeta | None:
        won.clear()
        everything = survey(path, thorough=False).stats
        first = meta.rounds[-1].end if meta.rounds else 0
        stats = current_round(everything, meta.rounds)
        share = num_bridges - sum(closed.num_accepted for closed in meta.rounds)
        if meta.augment.chain_rounds != "auto":
            share = bridges_of_round(num_bridges, meta.augment.chain_rounds, len(meta.rounds))
        end = prefix_length(stats, share, first)
        if end is None or any(shard not in everything for shard in range(first)):
            return None
        complete = meta.complete
        if complete is None or complete.num_bridges <= num_bridges:
            complete = Complete(
                num_bridges=num_bridges,
                num_shards=end,
                num_accepted=sum(everything[shard].accepted for shard in range(end)),
                num_candidates=sum(everything[shard].rows for shard in range(end)),
            )
        wanted = replace(meta, complete=complete)
        _settle(storage, end)
        won.append((complete, wanted))
        return wanted

    with storage.lock():
        update_meta(storage, close)
        if not won:
            return None
        ((complete, meta),) = won
        _remove_leftovers(storage, meta, complete)
    return complete


def _remove_leftovers(storage: Storage, meta: BufferMeta, complete: Complete) -> None:
    """Removes temporary files of dead processes and, unless a run has begun that wants more, shards past the complete
    ones. What a merged file has replaced is left to ``compact``, which reads the merged one first."""
    over = list[str]()
    for name in storage.names(SHARDS):
        shards = shards_of(name)
        if shards and shards.start >= complete.num_shards:
            over.append(name)
        elif is_temporary(name) and storage.is_leftover(f"{SHARDS}/{name}"):
            storage.delete(f"{SHARDS}/{name}")
    if meta.augment.num_bridges <= complete.num_bridges:
        remove_unnamed(storage, meta, over)
