"""A buffer of pairs split by value, made of arrays: its stitched episodes are those that its states are worth."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from raystitch.buffer.chain import values_after
from raystitch.buffer.config import AugmentConfig
from raystitch.buffer.episodes import ChainedJoins, joined, joined_index, joined_runs, rebuild, stitched_index
from raystitch.buffer.maintain import compact, verify
from raystitch.buffer.meta import create_buffer
from raystitch.buffer.opening import open_buffer
from raystitch.buffer.reader import Buffer
from raystitch.buffer.rounds import close_round, finish
from raystitch.buffer.schema import BufferMeta, ClosedRound, candidates_to_table
from raystitch.buffer.shard_file import write_shard
from raystitch.buffer.ways import WAYS_FILE
from raystitch.data.episodes import EpisodeDataset
from raystitch.errors import UserError
from raystitch.io.storage import Storage
from raystitch.pipeline.generate.knowledge import known_ways
from raystitch.pipeline.generate.reach import measure_reach
from raystitch.stitching.candidates import Candidates
from raystitch.stitching.links import RECORD
from raystitch.stitching.values import StateValues

MakeMeta = Callable[..., BufferMeta]
MakeCandidates = Callable[..., Candidates]
GAMMA = 0.99
ROUNDS, NUM_PAIRS = 3, 24
GAMMA_ALONE: Any = SimpleNamespace(gamma=GAMMA)
"""All that is read of the bundle where values come from candidates."""


def by_records(dataset: EpisodeDataset) -> StateValues:
    """Values of the records; time-outs are worth -1."""
    value = np.zeros(len(dataset.observations))
    for number, episode in enumerate(dataset):
        row = int(dataset.obs_offsets[number + 1]) - 1
        value[row] = 0.0 if episode.terminated else -1.0
        for reward in episode.rewards[::-1]:
            row -= 1
            value[row] = float(reward) + GAMMA * value[row + 1]
    return StateValues.without_bridges(dataset, value, float(value.min()))


def of_a_round(known: StateValues, made: Candidates) -> Candidates:
    """Random candidates, between states that may be joined and with the return that they promise."""
    dataset, rng = known.dataset, np.random.default_rng([5, known.num_rounds])
    for pair in np.unique(made.first_row):
        at = np.flatnonzero(made.first_row == pair)
        while True:
            source, target = rng.integers(0, dataset.num_episodes, 2)
            leave, enter = rng.integers(0, dataset.lengths[source] + 1), rng.integers(0, dataset.lengths[target])
            row = dataset.obs_offsets[target] + enter
            if source != target and not known.pass_through(np.array([source]), np.array([row]))[0]:
                break
        made.source_episode[at], made.source_step[at] = source, leave
        made.target_episode[at], made.target_step[at] = target, enter
        made.observations[at, 0] = dataset.observations[dataset.obs_offsets[source] + leave]
        made.observations[at, made.gap[at] + 1] = dataset.observations[row]
    discounts = GAMMA ** np.arange(made.rewards.shape[1])
    worth = known.value[known.rows(made.target_episode, made.target_step)]
    promised = (made.rewards * discounts).sum(1) + GAMMA ** (made.gap + 1.0) * worth
    return known.refer(replace(made, return_stitched=promised.astype(np.float32)))


@pytest.fixture
def made(
    dataset: EpisodeDataset, tmp_path: Path, make_meta: MakeMeta, make_candidates: MakeCandidates
) -> tuple[Buffer, StateValues]:
    """Rounds of one shard with repairs, and what states are worth after all of them."""
    path = tmp_path / "made"
    meta = make_meta(num_bridges=1, split="value")
    meta = replace(meta, augment=AugmentConfig(num_bridges=1000, chain_rounds="auto", bridges_per_round=1))
    meta = replace(meta, stitch=replace(meta.stitch, qualify=replace(meta.stitch.qualify, value_check=False)))
    create_buffer(path, meta)
    rounds, known = tuple[ClosedRound, ...](), by_records(dataset)
    for number in range(ROUNDS):
        candidates = of_a_round(known, make_candidates(number, NUM_PAIRS, repaired=tuple(range(NUM_PAIRS))))
        write_shard(path, number, candidates_to_table(candidates, number, number), rounds[-1].hash if rounds else "")
        if number < ROUNDS - 1:
            closed = close_round(path, rounds, 1)
            assert closed is not None
            rounds = (*rounds, closed)
        known = values_after(known, GAMMA_ALONE, open_buffer(path, num_shards=number + 1))
    finish(path, sum(closed.num_accepted for closed in rounds) + 1)
    with pytest.raises(UserError, match=r"ways\.arrow is missing; run `raystitch augment` with the same arguments"):
        open_buffer(path)
    known_ways(known, open_buffer(path, num_shards=ROUNDS).accepted_rows()).write(Storage(str(path)))
    return open_buffer(path), known


def chained_rows(known: StateValues) -> Iterator[tuple[int, int, int]]:
    """Observation row, its step and the bridge that its best trajectory takes, of every state that takes one."""
    for row in np.flatnonzero(known.bridge != RECORD).tolist():
        episode = int(known.dataset.episodes_of_rows(np.array([row]))[0])
        yield row, row - int(known.dataset.obs_offsets[episode]), int(known.bridge[row])


def test_states_are_worth_what_their_stitched_episodes_return(
    dataset: EpisodeDataset, made: tuple[Buffer, StateValues]
) -> None:
    buffer, known = made
    bridges = buffer.bridges()
    assert len(bridges) == len(known.links)
    episodes = rebuild(dataset, bridges, max_episode_steps=None).episodes
    seen = 0
    for row, step, bridge in chained_rows(known):
        seen += 1
        rewards = episodes.episode(bridge).rewards[step:].astype(np.float64)
        last = int(known.links.last_episode[bridge])
        end = known.record[dataset.obs_offsets[last + 1] - 1]
        worth = rewards @ GAMMA ** np.arange(len(rewards)) + GAMMA ** len(rewards) * end
        assert worth == pytest.approx(known.value[row], abs=2e-3)
        assert known.value[row] > known.record[row]
    assert seen > 50
    assert (known.links.next != known.links.parent).any()
    assert known.longest_chain >= 3


def test_stitched_episodes_pass_the_fragments_that_are_named(
    dataset: EpisodeDataset, made: tuple[Buffer, StateValues]
) -> None:
    buffer, known = made
    bridges = buffer.bridges()
    index = stitched_index(dataset, bridges, None)
    for bridge in range(len(bridges)):
        rows = index.transition[index.offsets[bridge] : index.offsets[bridge + 1]]
        real = np.where(rows < dataset.num_transitions, np.searchsorted(dataset.offsets, rows, side="right") - 1, -1)
        changes = real[np.flatnonzero(np.diff(real, prepend=-2))]
        passed = changes[changes >= 0].tolist()  # each run of real steps once
        named = known.fragments[bridge][known.fragments[bridge] >= 0].tolist()
        assert len(set(passed)) == len(passed)
        assert len(set(named)) == len(named)
        assert set(passed) <= set(named)
        untouched = set(named) - set(passed)  # left in the very state that was entered, or at its start
        assert len(untouched) <= len(named) - 1
        np.testing.assert_array_equal(
            rebuild(dataset, bridges, np.array([bridge]), None).episodes.observations[0],
            dataset.observations[dataset.obs_offsets[known.links.source_episode[bridge]]]
            if known.links.source_step[bridge]
            else bridges.observations[bridges.obs_offsets[bridge]],
        )


def test_values_carried_on_are_those_computed_anew(dataset: EpisodeDataset, made: tuple[Buffer, StateValues]) -> None:
    buffer, known = made
    again = values_after(by_records(dataset), GAMMA_ALONE, open_buffer(buffer.uri))
    for name in ("value", "bridge", "arrived", "failed", "fragments"):
        np.testing.assert_array_equal(getattr(again, name), getattr(known, name))
    bridges = buffer.bridges()
    before = rebuild(dataset, bridges, None, None).episodes.fingerprint
    compact(buffer.uri)
    assert verify(buffer.uri) == []
    merged = open_buffer(buffer.uri).bridges()
    assert merged.target_parent.tolist() == bridges.target_parent.tolist()
    assert rebuild(dataset, merged, None, None).episodes.fingerprint == before


def test_at_a_stricter_delta_episodes_go_on_as_they_were_made(
    dataset: EpisodeDataset, made: tuple[Buffer, StateValues]
) -> None:
    buffer, _ = made
    rows = {row["bridge_id"]: row for row in buffer.table.to_pylist()}
    assert buffer.ways is not None
    checked = 0
    for delta in (0.1, 0.2, 0.3, 0.4):
        bridges = buffer.bridges(delta)
        rebuild(dataset, bridges)
        if buffer.ways.among(buffer.accepted_rows(delta)) is not None:
            continue
        checked += 1
        names = dict(zip(bridges.rows.tolist(), bridges.ids.tolist(), strict=True))
        parents = [names.get(parent) for parent in bridges.target_parent.tolist()]
        assert parents == [rows[name]["target_bridge"] for name in bridges.ids.tolist()]
    assert checked


def test_states_that_were_left_in_vain_are_known(dataset: EpisodeDataset, made: tuple[Buffer, StateValues]) -> None:
    buffer, known = made
    episode, step = buffer.column("source_episode"), buffer.column("source_step")
    accepted = np.isin(buffer.pairs, buffer.pairs[buffer.accepted_rows()])
    row = dataset.obs_offsets[episode] + step
    assert not known.failed[row[accepted]].any()
    never = np.setdiff1d(row[~accepted], row[accepted])
    expected = never[known.arrived[never] == 0]
    assert known.failed[expected].all()
    assert set(np.flatnonzero(known.failed)) <= set(never)


def test_what_is_reached_is_what_the_episodes_do(dataset: EpisodeDataset, made: tuple[Buffer, StateValues]) -> None:
    buffer, known = made
    bridges = buffer.bridges()
    episodes = rebuild(dataset, bridges, max_episode_steps=None).episodes
    returns, steps, own = list[float](), list[int](), list[float]()
    for number, episode in enumerate(dataset):
        bridge = int(known.bridge[dataset.obs_offsets[number]])
        best = episode if bridge == RECORD else episodes.episode(bridge)
        returns.append(float(best.rewards.sum()))
        steps.append(len(best.rewards))
        own.append(float(episode.rewards.sum()))
    bar = np.quantile(own, 0.9) - 1e-4
    reached = np.array(returns) >= bar
    found = measure_reach(known, buffer.mapped())
    assert found.goal == "top decile of returns"
    assert (found.num_rounds, found.num_starts) == (ROUNDS, dataset.num_episodes)
    assert found.share == pytest.approx(reached.mean())
    assert found.own_share == pytest.approx((np.array(own) >= bar).mean())
    counted = reached if reached.any() else np.ones(len(reached), np.bool_)
    assert found.promised == pytest.approx(np.median(np.array(returns)[counted]), abs=1e-3)
    assert found.steps == np.median(np.array(steps)[counted])
    assert found.own == pytest.approx(np.median(own), abs=1e-3)
    assert found.longest_chain == known.longest_chain
    assert found.num_sources == len(np.unique(bridges.source_episode))


def test_equal_returns_reach_the_bar(dataset: EpisodeDataset) -> None:
    """Sums of 0.1 differ in their last digits; they are equal all the same."""
    ends = np.arange(dataset.num_episodes + 1) * 7
    same = replace(
        dataset,
        observations=dataset.observations[: 8 * dataset.num_episodes],
        actions=dataset.actions[: ends[-1]],
        rewards=np.full(ends[-1], 0.1, np.float32),
        offsets=ends,
    )
    known = by_records(same)
    nothing: Any = None
    found = measure_reach(known, nothing)
    assert found.share == found.own_share == 1


def test_damaged_ways_are_named(made: tuple[Buffer, StateValues]) -> None:
    path = Path(made[0].uri) / WAYS_FILE
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"ways\.arrow is damaged .*run `raystitch augment` again"):
        open_buffer(made[0].uri)


def test_bridges_of_some_rows_go_on_as_told(made: tuple[Buffer, StateValues]) -> None:
    buffer, known = made
    ways = buffer.ways
    assert ways is not None
    everything = buffer.mapped()
    assert everything.all_references.target_episode.tolist() == known.links.last_episode.tolist()
    position = np.flatnonzero(known.links.next != RECORD)[:1]
    needed = everything.all_references.with_ancestors(position)
    assert int(known.links.next[position[0]]) in needed.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_chained_joins_follow_one_another(dataset: EpisodeDataset, seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = 25
    source, step = rng.integers(0, 4, count), np.zeros(count, np.int64)
    step[:] = rng.integers(1, dataset.lengths[source] + 1)
    target, enter, parent = rng.integers(4, 8, count), np.zeros(count, np.int64), np.full(count, -1)
    last = target.copy()
    order = rng.permutation(count)  # which joins are made of which need not be their order
    for place, number in enumerate(order.tolist()):
        if place and rng.random() < 0.7:
            parent[number] = order[rng.integers(0, place)]
            enter[number] = rng.integers(0, step[parent[number]] + 1)
            last[number] = last[parent[number]]
        else:
            enter[number] = rng.integers(0, dataset.lengths[target[number]])
    joins = ChainedJoins(source_episode=source, source_step=step, target_episode=last, target_step=enter, parent=parent)

    def transitions(number: int) -> list[int]:
        begin = int(dataset.offsets[source[number]])
        own = list(range(begin, begin + int(step[number])))
        if parent[number] >= 0:
            return own + transitions(int(parent[number]))[enter[number] :]
        target_range = range(int(dataset.offsets[last[number]]), int(dataset.offsets[last[number] + 1]))
        return own + list(target_range)[enter[number] :]

    index, runs = joined_index(dataset, joins, None), joined_runs(dataset, joins)
    for number in range(count):
        expected = transitions(number)
        assert index.transition[index.offsets[number] : index.offsets[number + 1]].tolist() == expected
        assert runs.start[number, 0] == dataset.offsets[source[number]]
        assert runs.length[number, 0] == step[number]
    cut = joined(dataset, joins, 10).episodes
    assert (cut.lengths == np.minimum(index.offsets[1:] - index.offsets[:-1], 10)).all()
    assert (joined(dataset, joins, None).episodes.terminated == dataset.terminated[last]).all()
