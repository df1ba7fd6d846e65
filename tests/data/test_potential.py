"""Stitch potential against a plain computation of its definition, and what it concludes."""

from dataclasses import replace

import numpy as np
import pytest

from raystitch.data.episodes import Episode, EpisodeDataset, from_episodes
from raystitch.data.normalise import NearStates
from raystitch.data.potential import BridgeEdges, potential
from raystitch.errors import UserError
from raystitch.pipeline.potential import potential_with

GAMMA = 0.9


def line(*paths: tuple[list[float], list[float]], terminated: bool = True) -> EpisodeDataset:
    """Episodes of positions on a line, and their rewards."""
    episodes = [
        Episode(
            np.array(states, np.float32)[:, None],
            np.zeros((len(rewards), 1), np.float32),
            np.array(rewards, np.float32),
            terminated,
            not terminated,
        )
        for states, rewards in paths
    ]
    return from_episodes(episodes, name="line", action_low=-1, action_high=1)


def defined(dataset: EpisodeDataset, gamma: float, bridges: BridgeEdges | None, joins: bool) -> float:
    """The definition, by value iteration over every pair of states."""
    near = NearStates(dataset)
    apart = np.linalg.norm(near.points[:, None] - near.points, axis=-1)
    departs = np.zeros(len(near.points), np.bool_)
    departs[dataset.obs_index] = True
    may = (apart <= near.radius * (1 + 1e-9)) & (near.episode_of_row[:, None] != near.episode_of_row) & departs
    if not joins:
        may[:] = False
    value = np.zeros(len(near.points))
    for _ in range(150):
        new = np.zeros_like(value)
        for number, row in enumerate(dataset.obs_index):
            options = value[may[row + 1]] if not dataset.transition_terminal[number] else np.zeros(0)
            new[row] = dataset.rewards[number] + gamma * max([value[row + 1], *options])
        if bridges is not None:
            for source, target, reward, discount in zip(
                bridges.source, bridges.target, bridges.reward, bridges.discount, strict=True
            ):
                new[source] = max(new[source], reward + discount * value[target])
        value = new
    return float(value[dataset.obs_offsets[:-1]].mean())


def test_it_is_what_is_defined(drift: EpisodeDataset) -> None:
    small = drift.subset(np.array([0, 1, 2, 4]))
    rng = np.random.default_rng(0)
    rows = rng.choice(small.obs_index, (2, 12))
    bridges = BridgeEdges(
        source=rows[0],
        target=rows[1],
        reward=rng.normal(size=12),
        discount=np.float_power(GAMMA, rng.integers(2, 6, 12)),
    )
    found = potential(small, GAMMA, bridges)
    assert found.recorded == pytest.approx(defined(small, GAMMA, None, joins=False), abs=1e-5)
    assert found.join_any == pytest.approx(defined(small, GAMMA, None, joins=True), abs=1e-4)
    assert found.bridge_any == pytest.approx(defined(small, GAMMA, bridges, joins=False), abs=1e-4)
    assert found.both_any == pytest.approx(defined(small, GAMMA, bridges, joins=True), abs=1e-4)
    assert found.bridge_one is not None
    assert found.bridge_any is not None
    assert found.both_any is not None
    assert found.recorded < found.join_one <= found.join_any + 1e-9 <= found.both_any + 2e-9
    assert found.recorded < found.bridge_one <= found.bridge_any + 1e-9
    assert found.top > found.recorded


def test_one_join_leads_from_a_poor_fragment_into_the_rich_one() -> None:
    data = line(([0, 1, 2], [0, 0]), ([2.1, 3, 4], [0, 10]), ([30, 31, 32], [0, 1]), terminated=False)
    found = potential(data, GAMMA)
    # 0 -> 1 -> 2, which is within a step of 3 -> 4: the reward of 10 comes with the third step
    assert found.recorded == pytest.approx((0 + 9 + 0.9) / 3, abs=1e-5)
    assert found.join_one == pytest.approx((10 * 0.9**2 + 9 + 0.9) / 3, abs=1e-5)
    assert found.join_any == pytest.approx(found.join_one, abs=1e-5)
    assert found.worth_trying == "weighting"  # the best start alone is worth more
    returns = np.array([0, 10, 1])
    assert found.rpsv == pytest.approx((np.maximum(returns - returns.mean(), 0) ** 2).mean())
    assert "a tool cannot help, never that it will" in " ".join(found.text)
    assert "unknown without a buffer" in " ".join(found.text)


def test_what_cannot_help_is_said() -> None:
    apart = line(([0, 1, 2], [0, 1]), ([10, 11, 12], [0, 1]), ([20, 21, 22], [0, 1]), terminated=False)
    found = potential(apart, GAMMA)
    assert found.worth_trying is None
    said = " ".join(found.text)
    assert "weighting cannot help" in said
    assert "joining cannot help" in said
    assert "time-outs (3 of 3 episodes)" in said
    rich = line(([0, 1, 2], [0, 0]), ([0.5, 1.5, 2.5], [0, 0]), ([10, 11, 12], [0, 5]), ([20, 21, 22], [0, 0]))
    over = BridgeEdges(
        source=np.array([0, 3, 9]), target=np.array([6, 6, 6]), reward=np.zeros(3), discount=np.full(3, 0.9**2)
    )
    bridged = potential(rich, GAMMA, over)
    assert bridged.num_bridges == 3
    assert bridged.bridge_one == pytest.approx((4.5 + 3 * 0.81 * 4.5) / 4, abs=1e-5)
    useless = potential(rich, GAMMA, replace(over, target=np.array([1, 1, 1])))
    assert "these bridges cannot help" in " ".join(useless.text)
    said = " ".join(potential(rich, GAMMA, replace(over, target=np.array([1, 1, 1]), left_out=7)).text)
    assert "these bridges cannot help" not in said and "7 bridges of chain rounds are left out" in said


def test_no_step_is_no_place_to_join_within_the_own_episode() -> None:
    """A loop within one episode would be worth an endless reward."""
    found = potential(line(([0, 1, 0.9, 1, 0.9], [1, 1, 1, 1]), ([50, 51], [1])), GAMMA)
    assert found.join_any == pytest.approx(found.recorded)


def test_values_that_are_not_finite_are_refused(drift: EpisodeDataset) -> None:
    rewards = drift.rewards.copy()
    rewards[7] = np.nan
    with pytest.raises(UserError, match="not finite; add --select clean"):
        potential(replace(drift, rewards=rewards))
    with pytest.raises(UserError, match="gamma must be between 0 and 1, got gamma=1"):
        potential(drift, 1)
    assert potential_with(drift.subset(np.arange(3)), 1).notes == ("gamma 1 is taken as 0.999",)


def test_records_count_from_where_the_task_starts() -> None:
    """Fragments near the goal are worth most, but a policy does not begin there."""
    data = line(([0, 1, 2], [0, 0]), ([2.1, 3, 4], [0, 1]), ([4.1, 5, 6], [0, 10]), ([0.1, 1.1], [0]), terminated=False)
    start = np.array([[0.0], [-0.2]], np.float32)
    found = potential(data, GAMMA, None, start)
    assert found.task_starts and found.recorded == found.top == 0
    assert potential(data, GAMMA).top > 0
    assert "weighting cannot help: no record from where the task starts" in " ".join(found.text)
    assert 0 < found.join_one < found.join_any
    assert found.worth_trying == "joining"
    far = potential(data, GAMMA, None, np.array([[-30.0]], np.float32))
    assert far.recorded == 0 and far.join_any > 0, "the nearest record stands for a start that nothing passes"


def test_what_no_single_use_reaches_is_said_to_take_many() -> None:
    data = line(([0, 1], [0]), ([1.1, 2], [0]), ([2.1, 3], [0]), ([3.1, 4], [1]), terminated=False)
    found = potential(data, GAMMA, None, np.zeros((1, 1), np.float32))
    assert found.join_one == 0 < found.join_any
    assert found.worth_trying == "joining, many times"
