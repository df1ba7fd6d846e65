from collections.abc import Callable
from pathlib import Path

import pytest

from raystitch.buffer.config import AugmentConfig
from raystitch.buffer.meta import create_buffer, read_meta
from raystitch.buffer.rounds import close_round, current_round, finish, manifest_hash, sound_rounds
from raystitch.buffer.schema import BufferMeta, ClosedRound, candidates_to_table
from raystitch.buffer.shard_file import ShardStats, write_shard
from raystitch.buffer.survey import list_shards, survey
from raystitch.errors import RunError
from raystitch.io.storage import Storage
from raystitch.pipeline.generate.ledger import Ledger
from raystitch.pipeline.generate.progress import AugmentProgress
from raystitch.pipeline.generate.tally import Tally
from raystitch.stitching.candidates import Candidates

MakeMeta = Callable[..., BufferMeta]
MakeCandidates = Callable[..., Candidates]


def fill(path: Path, shards: range, make_candidates: MakeCandidates, manifest: str = "", seed: int = 0) -> None:
    for shard in shards:
        write_shard(path, shard, candidates_to_table(make_candidates(shard + 100 * seed), shard), manifest)


def close(path: Path, rounds: tuple[ClosedRound, ...], num_bridges: int) -> ClosedRound:
    closed = close_round(path, rounds, num_bridges)
    assert closed is not None
    return closed


def test_closing_fixes_the_smallest_prefix_and_clears_the_way(
    tmp_path: Path, make_meta: MakeMeta, make_candidates: MakeCandidates
) -> None:
    path = tmp_path / "b"
    create_buffer(path, make_meta(num_bridges=20, chain_rounds=1))
    fill(path, range(6), make_candidates)  # actors work ahead
    closed = close(path, (), 10)
    assert (closed.first_shard, closed.num_shards) == (0, 2)
    assert closed.num_accepted >= 10
    assert read_meta(Storage(path)).rounds == (closed,)
    assert list(list_shards(path)) == [0, 1]
    assert sound_rounds(survey(path).stats, (closed,)) == (closed,)
    # A shard of the round before that is written late does not count in the next round, nor is it kept.
    fill(path, range(2, 4), make_candidates, closed.hash)
    fill(path, range(4, 5), make_candidates)
    assert list(current_round(survey(path).stats, (closed,))) == [2, 3]
    complete = finish(path, 20)
    assert complete is not None
    assert complete.num_shards == len(list_shards(path)) <= 4
    assert finish(path, 800) is None


def test_a_round_is_sound_only_as_it_was_closed(
    tmp_path: Path, make_meta: MakeMeta, make_candidates: MakeCandidates
) -> None:
    path = tmp_path / "b"
    create_buffer(path, make_meta(num_bridges=30, chain_rounds=2))
    fill(path, range(2), make_candidates)
    first = close(path, (), 10)
    fill(path, range(2, 4), make_candidates, first.hash)
    second = close(path, (first,), 10)
    assert sound_rounds(survey(path).stats, (first, second)) == (first, second)
    # The same shard again: closing anew changes nothing and keeps what was built on it.
    fill(path, range(1), make_candidates)
    assert close(path, (), 10) == first
    assert read_meta(Storage(path)).rounds == (first, second)
    assert list(list_shards(path)) == list(range(second.end))
    # Another in its place: what was built on the old one is not sound any more and goes when the round is closed.
    fill(path, range(1), make_candidates, seed=1)
    assert sound_rounds(survey(path).stats, (first, second)) == ()
    other = close(path, (), 10)
    assert other.hash != first.hash
    assert read_meta(Storage(path)).rounds == (other,)
    assert list(list_shards(path)) == list(range(other.end))


def stats(shard: int, accepted: int, manifest: str) -> ShardStats:
    return ShardStats(
        shard=shard, rows=8, accepted=accepted, residual_min=0.25, reasons={"residual": 8}, manifest=manifest
    )


def test_a_round_that_brings_nothing_is_named(tmp_path: Path) -> None:
    made = {0: stats(0, 5, "")}
    config = AugmentConfig(num_bridges=10, chain_rounds=1, patience=2, max_shards=4, pairs_per_shard=8)
    ledger = Ledger(path="b", config=config, tally=Tally(0, made.values()))
    assert ledger.round_done
    assert not ledger.done
    closed = ClosedRound(
        chain_round=0, first_shard=0, num_shards=1, num_accepted=5, hash=manifest_hash(made, range(1), "")
    )
    seen: list[AugmentProgress] = []
    ledger = Ledger(path="b", config=config, rounds=(closed,), tally=Tally(1), progress=seen.append)
    assert ledger.next_shards(9) == [1, 2, 3, 4]
    ledger.add(stats(1, 0, closed.hash))
    assert [at.accepted for at in seen] == [5]
    assert seen[0].text == "1 shards, 0% accepted (residual 100%), chain round 1"
    with pytest.raises(RunError, match=r"chain round 1: none of the first 16 .*smallest residual 0.25; residual 16"):
        ledger.add(stats(2, 0, closed.hash))
    held = [stats(1, 0, closed.hash), *(stats(shard, 1, closed.hash) for shard in (2, 3, 4))]
    ledger = Ledger(path="b", config=config, rounds=(closed,), tally=Tally(1, held))
    with pytest.raises(RunError, match=r"4 shards of 8 pairs hold 3 .*not the 5 asked for in chain round 1"):
        ledger.next_shards(1)
