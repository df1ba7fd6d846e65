"""What states are worth after rounds of bridges, against trajectories that are followed one step at a time."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raystitch.data.episodes import Episode, EpisodeDataset, from_episodes
from raystitch.stitching.links import CYCLE, RECORD, Links, depths
from raystitch.stitching.values import StateValues

GAMMA = 0.9
seeds = st.integers(0, 2**32 - 1)
Piece = tuple[int, int, int]
"""Part of a trajectory: real episode, step entered, step left (its last one at the end)."""


def random_episodes(rng: np.random.Generator, most: int = 6) -> EpisodeDataset:
    """A few short episodes with whole rewards."""
    episodes = []
    for _ in range(int(rng.integers(2, most + 1))):
        length = int(rng.integers(1, 7))
        terminated = bool(rng.random() < 0.5)
        episodes.append(
            Episode(
                observations=rng.normal(size=(length + 1, 2)).astype(np.float32),
                actions=np.zeros((length, 1), np.float32),
                rewards=rng.integers(-2, 3, length).astype(np.float32),
                terminated=terminated,
                truncated=not terminated,
            )
        )
    bound = np.ones(1, np.float32)
    return from_episodes(episodes, name="random", action_low=-bound, action_high=bound)


def by_records(dataset: EpisodeDataset, rng: np.random.Generator) -> StateValues:
    """Values of the records, with ends worth something where they are time-outs."""
    value = np.zeros(len(dataset.observations))
    for number in range(dataset.num_episodes):
        first, last = dataset.obs_offsets[number], dataset.obs_offsets[number + 1] - 1
        value[last] = 0.0 if dataset.terminated[number] else rng.normal()
        rewards = dataset.rewards[dataset.offsets[number] : dataset.offsets[number + 1]]
        for step in range(len(rewards) - 1, -1, -1):
            value[first + step] = rewards[step] + GAMMA * value[first + step + 1]
    return StateValues.without_bridges(dataset, value, float(value.min()))


def random_links(known: StateValues, rng: np.random.Generator, count: int) -> Links:
    """Bridges of a round between states whose trajectory has not been in the source's episode."""
    dataset, rows = known.dataset, list[tuple[int, int, int, int, float, float]]()
    for _ in range(count):
        source, target = rng.integers(0, dataset.num_episodes, 2).tolist()
        leave, enter = int(rng.integers(0, dataset.lengths[source] + 1)), int(rng.integers(0, dataset.lengths[target]))
        entered = known.dataset.obs_offsets[target] + enter
        if source == target or known.pass_through(np.array([source]), np.array([entered]))[0]:
            continue
        rows.append((source, leave, target, enter, float(rng.normal()), GAMMA ** int(rng.integers(1, 4))))
    columns = list(zip(*rows, strict=True)) if rows else [()] * 6
    source, leave, target, enter = (np.array(column, np.int64) for column in columns[:4])
    reward, discount = (np.array(column, np.float64) for column in columns[4:])
    entered = known.rows(target, enter)
    return Links(
        ids=np.array([f"{known.num_rounds}-{n}" for n in range(len(rows))], np.str_),
        source_episode=source,
        source_step=leave,
        target_episode=target,
        target_step=enter,
        parent=known.bridge[entered],
        next=known.bridge[entered],
        reward=reward,
        discount=discount,
        value=reward + discount * known.value[entered],
    )


def played(seed: int, rounds: int = 3, count: int = 8) -> list[StateValues]:
    """Values before the first of some rounds of random bridges and after each."""
    rng = np.random.default_rng(seed)
    found = [by_records(random_episodes(rng), rng)]
    for _ in range(rounds):
        found.append(found[-1].after(random_links(found[-1], rng, count), np.zeros(0, np.int64), GAMMA))
    return found


def follow(known: StateValues, row: int) -> tuple[list[Piece], float]:
    """The pieces of the best trajectory from an observation row on, and its pessimistic discounted return."""
    dataset, links = known.dataset, known.links
    episode = int(dataset.episodes_of_rows(np.array([row]))[0])
    step, link = row - int(dataset.obs_offsets[episode]), int(known.bridge[row])
    pieces, worth, discount = list[Piece](), 0.0, 1.0
    while True:
        end = int(dataset.lengths[episode]) if link == RECORD else int(links.source_step[link])
        assert step <= end
        for at in range(step, end):
            worth += discount * float(dataset.rewards[dataset.offsets[episode] + at])
            discount *= GAMMA
        pieces.append((episode, step, end))
        if link == RECORD:
            return pieces, worth + discount * float(known.record[dataset.obs_offsets[episode] + end])
        assert links.source_episode[link] == episode
        worth += discount * float(links.reward[link])
        discount *= float(links.discount[link])
        episode, step, link = int(links.target_episode[link]), int(links.target_step[link]), int(links.next[link])
        assert len(pieces) <= len(links), "a trajectory leads back to itself"


@settings(deadline=None, max_examples=60)
@given(seeds)
def test_a_state_is_worth_what_its_trajectory_returns(seed: int) -> None:
    for known in played(seed):
        for row in range(len(known.value)):
            assert follow(known, row)[1] == pytest.approx(known.value[row], abs=1e-4)


@settings(deadline=None, max_examples=60)
@given(seeds)
def test_no_trajectory_passes_an_episode_twice(seed: int) -> None:
    for known in played(seed):
        for row in range(len(known.value)):
            episodes = [episode for episode, _, _ in follow(known, row)[0]]
            assert len(set(episodes)) == len(episodes)


@settings(deadline=None, max_examples=40)
@given(seeds)
def test_what_is_said_of_a_trajectory_is_so(seed: int) -> None:
    known = played(seed)[-1]
    links = known.links
    assert not (links.depth == CYCLE).any()
    for link in range(len(links)):
        source = int(known.rows(links.source_episode[link : link + 1], links.source_step[link : link + 1])[0])
        pieces = follow(
            replace(known, bridge=np.where(np.arange(len(known.value)) == source, link, known.bridge)), source
        )[0]
        passed = [episode for episode, _, _ in pieces]
        assert set(known.fragments[link][known.fragments[link] >= 0].tolist()) == set(passed)
        assert links.last_episode[link] == passed[-1]
        assert links.depth[link] == len(passed) - 2
    assert known.longest_chain == max((int(depth) + 1 for depth in links.depth), default=0)
    row = np.arange(len(known.value))
    own = known.dataset.episodes_of_rows(row)
    last = known.last_step(row, known.dataset.lengths[own])
    for at in row.tolist():
        pieces, _ = follow(known, at)
        assert last[at] == pieces[0][2]
        through = known.pass_through(np.arange(known.dataset.num_episodes), np.full(known.dataset.num_episodes, at))
        expected = {episode for episode, _, _ in pieces} if len(pieces) > 1 else set[int]()
        assert set(np.flatnonzero(through).tolist()) == expected


@settings(deadline=None, max_examples=60)
@given(seeds)
def test_value_only_grows_and_says_when(seed: int) -> None:
    for before, known in pairwise(played(seed)):
        grown = known.value > before.value
        assert (known.value >= before.value).all()
        assert (known.arrived[grown] == known.num_rounds).all()
        assert (known.arrived[~grown] == before.arrived[~grown]).all()
        assert known.news == pytest.approx([now - then for now, then in zip(known.worth, before.worth, strict=True)])
        assert known.best_news == tuple(map(max, known.news, before.best_news or known.news))


@settings(deadline=None, max_examples=60)
@given(seeds)
def test_a_state_is_worth_at_least_every_way_that_its_record_offers(seed: int) -> None:
    """The brute force: the record, and each bridge that is left later in the same record, carried back to the state."""
    known = played(seed)[-1]
    dataset, links = known.dataset, known.links
    best = known.record.copy()
    for link in range(len(links)):
        episode, worth = int(links.source_episode[link]), float(links.value[link])
        for step in range(int(links.source_step[link]), -1, -1):
            if step < links.source_step[link]:
                worth = float(dataset.rewards[dataset.offsets[episode] + step]) + GAMMA * worth
            row = int(dataset.obs_offsets[episode]) + step
            best[row] = max(best[row], worth)
    np.testing.assert_allclose(known.value, best, atol=1e-4)


def test_depths_count_generations_and_find_cycles() -> None:
    assert depths(np.array([-1, 0, 1, 1, -1])).tolist() == [0, 1, 2, 2, 0]
    assert depths(np.array([3, -1, 1, 0])).tolist() == [CYCLE, 0, 1, CYCLE]
    assert depths(np.array([-1, -1, 0]), np.array([-1, 0, 1])).tolist() == [0, 1, 2]
    assert depths(np.zeros(0, np.int64)).tolist() == []


def test_a_link_goes_on_differently_only_where_no_trajectory_repeats_an_episode() -> None:
    none = np.zeros(3)
    chain = Links(
        ids=np.array(["0", "1", "2"]),
        source_episode=np.array([0, 1, 2]),
        source_step=np.array([1, 1, 1]),
        target_episode=np.array([1, 3, 0]),
        target_step=np.array([0, 0, 0]),
        parent=np.array([1, RECORD, RECORD]),
        next=np.array([1, RECORD, RECORD]),
        reward=none,
        discount=none + 1,
        value=none,
    )
    # 0 -> 1 -> 3 may not become 0 -> 1 -> 2 -> 0 although link 1 alone could.
    entering = replace(chain, target_episode=np.array([1, 2, 0]))
    assert entering.switched(np.array([1]), np.array([2])).next.tolist() == [1, RECORD, RECORD]
    alone = replace(entering, next=np.array([RECORD, RECORD, RECORD]))
    assert alone.switched(np.array([1]), np.array([2])).next.tolist() == [RECORD, 2, RECORD]
    # Nor may two links that go on with each other.
    facing = replace(alone, source_episode=np.array([0, 1, 2]), target_episode=np.array([1, 0, 3]))
    assert facing.switched(np.array([0, 1]), np.array([1, 0])).next.tolist() == [RECORD] * 3


def test_a_state_left_in_vain_is_not_left_again_until_it_gains() -> None:
    rng = np.random.default_rng(0)
    known = by_records(random_episodes(rng), rng)
    tried = known.after(random_links(known, rng, 0), np.array([0, 3]), GAMMA)
    assert np.flatnonzero(tried.failed).tolist() == [0, 3]
    links = random_links(tried, rng, 40)
    again = tried.after(links, np.zeros(0, np.int64), GAMMA)
    gained = again.value > tried.value
    assert gained.any()
    assert (again.failed == (tried.failed & ~gained)).all()


def test_rounds_are_settled_when_the_starts_gain_little() -> None:
    rng = np.random.default_rng(1)
    known = by_records(random_episodes(rng), rng)
    assert not known.is_settled
    for best, news, settled in (
        ((), (), False),
        ((0.0,), (0.0,), True),
        ((2.0,), (2.0,), False),
        ((2.0,), (0.3,), False),
        ((2.0,), (0.1,), True),
        ((2.0, 1.0), (0.1, 0.5), False),  # the starts still gain
        ((2.0, 1.0), (0.5, 0.0), False),  # other states still gain
        ((2.0, 1.0), (0.1, 0.0), True),
        ((2.0, 0.0), (0.1, 0.0), False),  # value has not come to the starts yet
        ((2.0, 0.0), (0.01, 0.0), True),  # nor will it: they are worth the most there is
        ((0.0, 0.0), (0.0, 0.0), True),
    ):
        after = replace(known, num_rounds=2, best_news=best, news=news, value=known.record + 1)
        assert after.is_settled == settled
        assert (after.own == (known.record if settled else after.value)).all()
    starts = replace(known, start=np.array([0, 0]), start_row=np.array([0, 1]))
    assert starts.worth == pytest.approx((known.value.mean(), known.value[:2].mean()))
    assert known.worth == pytest.approx((known.value.mean(),))
    assert np.flatnonzero(starts.at_start).tolist() == [0, 1]
    assert not known.at_start.any()
