"""Chained and repaired bridges of random content: which count, and what their episodes are, against plain recursion."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raystitch.buffer.chain import chained_trajectories
from raystitch.buffer.episodes import rebuild
from raystitch.buffer.export import export
from raystitch.buffer.maintain import compact, verify
from raystitch.buffer.meta import create_buffer
from raystitch.buffer.opening import open_buffer
from raystitch.buffer.reader import Buffer
from raystitch.buffer.rounds import close_round, finish
from raystitch.buffer.rows import rows_that_count
from raystitch.buffer.schema import BufferMeta, candidates_to_table
from raystitch.buffer.shard_file import write_shard
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.load import load_dataset
from raystitch.shaping.config import RewardConfig
from raystitch.shaping.rewards import REWARDS
from raystitch.stitching.candidates import Candidates

MakeMeta = Callable[..., BufferMeta]
MakeCandidates = Callable[..., Candidates]
NUM_PAIRS = 12

Steps = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Observations, actions, rewards of an episode, and whether each state is real."""


def plain(dataset: EpisodeDataset, rows: dict[str, dict[str, Any]], bridge_id: str) -> Steps:
    """The stitched episode of a bridge, uncut, one part after the other."""

    def side(name: str) -> Steps:
        row = rows[bridge_id]
        if row[f"{name}_bridge"] is not None:
            return plain(dataset, rows, row[f"{name}_bridge"])
        episode = dataset.episode(row[f"{name}_episode"])
        real = np.ones(len(episode.observations), np.bool_)
        return episode.observations, episode.actions, episode.rewards, real

    row = rows[bridge_id]
    source, target = side("source"), side("target")
    leave, enter = row["source_step"], row["target_step"]
    states = np.asarray(row["observations"], np.float32)
    np.testing.assert_array_equal(states[[0, -1]], [source[0][leave], target[0][enter]])
    middle = (states[1:-1], np.asarray(row["actions"], np.float32), np.asarray(row["rewards"], np.float32))
    return (
        np.concatenate([source[0][: leave + 1], middle[0], target[0][enter:]]),
        np.concatenate([source[1][:leave], middle[1], target[1][enter:]]),
        np.concatenate([source[2][:leave], middle[2], target[2][enter:]]),
        np.concatenate([source[3][: leave + 1], np.zeros(len(middle[0]), np.bool_), target[3][enter:]]),
    )


def chain_onto(candidates: Candidates, dataset: EpisodeDataset, path: Path, shard: int, closed: int) -> Candidates:
    """Gives most pairs a stitched parent, left and entered at real states; a pair's attempts share them."""
    buffer = open_buffer(path, num_shards=closed)
    rows = {row["bridge_id"]: row for row in buffer.table.to_pylist()}
    ids = buffer.bridges().ids.tolist()
    rng = np.random.default_rng([3, shard])
    parents = np.full((2, len(candidates)), "", "<U20")
    for pair in np.unique(candidates.first_row):
        attempts = np.flatnonzero(candidates.first_row == pair)
        for side, name in enumerate(("source", "target")):
            if rng.random() < 0.3:
                continue
            parent = str(rng.choice(ids))
            states, _, _, real = plain(dataset, rows, parent)
            step = int(rng.choice(np.flatnonzero(real[:-1])))
            parents[side, attempts] = parent
            getattr(candidates, f"{name}_step")[attempts] = step
            getattr(candidates, f"{name}_episode")[attempts] = rows[parent][f"{name}_episode"]
            at = 0 if name == "source" else candidates.gap[attempts] + 1
            candidates.observations[attempts, at] = states[step]
    candidates.source_bridge, candidates.target_bridge = parents
    return candidates


@pytest.fixture
def chained(dataset: EpisodeDataset, tmp_path: Path, make_meta: MakeMeta, make_candidates: MakeCandidates) -> Buffer:
    """Three rounds of two shards; every pair has a repaired attempt."""
    path, everyone = tmp_path / "chained", tuple(range(NUM_PAIRS))
    create_buffer(path, make_meta(num_bridges=3, chain_rounds=2))
    rounds = ()
    for chain_round in range(3):
        for shard in (2 * chain_round, 2 * chain_round + 1):
            made = make_candidates(shard, NUM_PAIRS, repaired=everyone)
            if rounds:
                made = chain_onto(made, dataset, path, shard, rounds[-1].end)
            table = candidates_to_table(made, shard, chain_round)
            write_shard(path, shard, table, rounds[-1].hash if rounds else "")
        if chain_round < 2:
            closed = close_round(path, rounds, 10)
            assert closed is not None
            rounds = (*rounds, closed)
    # 10 bridges take both shards of each of the first two rounds, 1 of 3 only one of the last.
    assert [(closed.first_shard, closed.num_shards) for closed in rounds] == [(0, 2), (2, 2)]
    finish(path, 3)
    return open_buffer(path)


def expected_ids(buffer: Buffer, delta: float) -> list[str]:
    """Pair by pair and round by round."""
    rows, counting = buffer.table.to_pylist(), list[str]()
    for row in sorted(rows, key=lambda row: (row["chain_round"], row["attempt"])):
        parents = [row[name] for name in ("source_bridge", "target_bridge") if row[name] is not None]
        earlier = any(other.startswith(row["first_id"][:-1]) for other in counting)
        if row["residual_max"] < delta and not earlier and all(parent in counting for parent in parents):
            counting.append(row["bridge_id"])
    return sorted(counting)


def test_a_chained_bridge_counts_where_its_parents_do(chained: Buffer) -> None:
    lost_parents = 0
    for delta in (0.05, 0.3, 0.5, 0.7, 0.95):
        ids = chained.bridges(delta).ids.tolist()
        assert sorted(ids) == expected_ids(chained, delta)
        counts = chained.rounds(delta)
        assert sum(counts_of.accepted for counts_of in counts) == len(ids)
        assert sum(counts_of.rescued for counts_of in counts) == sum(not i.endswith("-0") for i in ids)
        passing = chained.passing(delta)[0]
        lost_parents += len(np.unique(chained.pairs[passing])) - len(ids)
    # With a larger delta another attempt of the parent's pair may be the first: the chained bridge is not its child.
    assert lost_parents > 0
    generated = chained.rounds()
    assert [counts.accepted for counts in generated] == [
        sum(chained.stats[shard].accepted for shard in shards) for shards in ((0, 1), (2, 3), (4,))
    ]
    assert [counts.candidates for counts in generated] == [48, 48, 24]
    assert generated[0].chained == 0
    assert all(counts.chained > 0 and counts.rescued == counts.by_attempt[1] > 0 for counts in generated[1:])


def test_another_attempt_of_the_parent_is_not_the_parent() -> None:
    passing, pair = np.array([False, True, True]), np.array([0, 0, 1])
    attempt, chain_round = np.array([0, 1, 0]), np.array([0, 0, 1])
    for parent, counted in ((1, [1, 2]), (0, [1]), (-2, [1]), (-1, [1, 2])):
        parents = np.array([-1, -1, parent]), np.full(3, -1)
        assert rows_that_count(passing, pair, attempt, chain_round, parents).tolist() == counted
    parents = np.array([-1, -1, 1]), np.full(3, -1)
    assert rows_that_count(np.ones(3, np.bool_), pair, attempt, chain_round, parents).tolist() == [0]


@pytest.mark.parametrize("limit", [None, 30])
def test_chained_episodes_are_rebuilt_bit_for_bit(dataset: EpisodeDataset, chained: Buffer, limit: int | None) -> None:
    bridges = chained.bridges()
    rows = {row["bridge_id"]: row for row in chained.table.to_pylist()}
    stitched = rebuild(dataset, bridges, max_episode_steps=limit)
    deepest = 0
    for number, (bridge_id, episode) in enumerate(zip(bridges.ids.tolist(), stitched.episodes, strict=True)):
        observations, actions, rewards, _ = plain(dataset, rows, bridge_id)
        steps = len(actions) if limit is None else min(limit, len(actions))
        np.testing.assert_array_equal(episode.observations, observations[: steps + 1])
        np.testing.assert_array_equal(episode.actions, actions[:steps])
        np.testing.assert_array_equal(episode.rewards, rewards[:steps])
        target = dataset.episode(int(bridges.target_episode[number]))
        assert episode.terminated == (target.terminated and steps == len(actions))
        steps = slice(stitched.episodes.offsets[number], stitched.episodes.offsets[number + 1])
        marks = stitched.is_synthetic[steps]
        deepest = max(deepest, int((np.diff(np.concatenate([[False], marks]).astype(int)) == 1).sum()))
    assert deepest >= (3 if limit is None else 2)
    # Any of them alone is the same, given all bridges; without its parents a chained one cannot be rebuilt.
    some = np.flatnonzero(bridges.source_parent >= 0)[:3]
    alone = rebuild(dataset, bridges, some, max_episode_steps=limit).episodes
    for episode, number in zip(alone, some.tolist(), strict=True):
        np.testing.assert_array_equal(episode.observations, stitched.episodes.episode(number).observations)
    with pytest.raises(ValueError, match="is chained onto another"):
        rebuild(dataset, bridges.take(some))


def test_chained_episodes_export(dataset: EpisodeDataset, chained: Buffer, tmp_path: Path) -> None:
    written = export(chained, dataset, "d4rl", tmp_path / "out.hdf5")
    back, bridges = load_dataset(f"d4rl:{tmp_path}/out.hdf5"), chained.bridges()
    kept = np.flatnonzero(bridges.source_step < 45)
    assert written.num_episodes == len(kept)
    assert back.fingerprint == rebuild(dataset, bridges, kept).episodes.fingerprint


def test_a_chained_buffer_is_verified_and_compacted(chained: Buffer, dataset: EpisodeDataset) -> None:
    assert verify(chained.uri) == []
    before = rebuild(dataset, chained.bridges(0.7)).episodes.fingerprint
    compact(chained.uri)
    merged = open_buffer(chained.uri)
    assert verify(chained.uri) == []
    assert merged.hash == chained.hash
    assert rebuild(dataset, merged.bridges(0.7)).episodes.fingerprint == before


def test_a_shard_made_on_top_of_something_else_is_found(
    chained: Buffer, dataset: EpisodeDataset, make_candidates: MakeCandidates
) -> None:
    write_shard(chained.uri, 1, candidates_to_table(make_candidates(9, NUM_PAIRS), 1))
    assert "the shards of round 0 are not those that the next one was made from" in verify(chained.uri)
    write_shard(chained.uri, 4, candidates_to_table(make_candidates(4, NUM_PAIRS), 4, 2), "sha256:other")
    assert any("shard 4" in problem or "round 0" in problem for problem in verify(chained.uri))


def test_trajectories_of_a_round_count_the_shaped_rewards(
    dataset: EpisodeDataset, chained: Buffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy: Any = "toy"
    registry: Any = REWARDS
    monkeypatch.setitem(registry, toy, lambda config, steps: np.where(steps.generated, 100, steps.rewards))
    recorded = chained_trajectories(dataset, chained, chained.meta.rounds, 15)
    shaped = chained_trajectories(dataset, chained, chained.meta.rounds, 15, RewardConfig(name=toy))
    assert shaped.bridge_ids.tolist() == recorded.bridge_ids.tolist()
    changed = shaped.dataset.rewards != recorded.dataset.rewards
    assert not changed[: dataset.num_transitions].any()
    assert changed.any()
    assert (shaped.dataset.rewards[changed] == 100).all()


def test_trajectories_of_a_round(dataset: EpisodeDataset, chained: Buffer) -> None:
    rounds = chained.meta.rounds
    trajectories = chained_trajectories(dataset, chained, rounds, 15)
    real, stitched = dataset.num_episodes, trajectories.dataset.num_episodes - dataset.num_episodes
    assert stitched == 15
    rows = {row["bridge_id"]: row for row in chained.table.to_pylist()}
    counting = set(chained.bridges().ids.tolist())
    assert (trajectories.bridge_ids[:real] == "").all()
    for number, episode in enumerate(trajectories.dataset):
        states = trajectories.dataset.obs_offsets[number : number + 2]
        leave, enter = trajectories.may_leave[slice(*states)], trajectories.may_enter[slice(*states)]
        if number < real:
            assert leave.all()
            assert enter.all()
            assert trajectories.fragments[number].max() == number
            continue
        bridge_id = str(trajectories.bridge_ids[number])
        assert bridge_id in counting
        assert rows[bridge_id]["chain_round"] < 2
        observations, _, _, is_real = plain(dataset, rows, bridge_id)
        np.testing.assert_array_equal(episode.observations, observations[:46])
        generated = np.flatnonzero(~is_real[: len(leave)])
        steps = np.arange(len(leave))
        # Left after the first bridge, before the time limit; entered up to where the last bridge starts.
        assert leave.tolist() == (is_real[: len(leave)] & (steps > generated[0]) & (steps < 45)).tolist()
        assert enter.tolist() == (is_real[: len(leave)] & (steps < generated[-1])).tolist()
        ends = {rows[bridge_id]["source_episode"], rows[bridge_id]["target_episode"]}
        assert ends <= set(trajectories.fragments[number].tolist())
        assert trajectories.share_fragment(np.array(number), np.array(min(ends)))
    again = chained_trajectories(dataset, open_buffer(chained.uri, num_shards=4), rounds, 15)
    assert again.bridge_ids.tolist() == trajectories.bridge_ids.tolist()
    sources = trajectories.first_episode[real:]
    assert len(np.unique(sources)) == len(np.unique(chained.bridges().source_episode))
