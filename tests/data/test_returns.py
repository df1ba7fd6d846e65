"""Returns against a plain loop, and where rewards are sparse."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.signal import lfilter

from raystitch.data.episodes import EpisodeDataset
from raystitch.data.returns import (
    discounted_before,
    discounted_returns,
    has_sparse_rewards,
    is_goal_task,
    returns_to_go,
)

OFFSETS = np.array([0, 4, 4, 5, 12], np.int64)
REWARDS = np.random.default_rng(0).normal(size=12).astype(np.float32)
BOOTSTRAP = np.array([2.0, 3.0, 0.0, -1.0], np.float32)


def plain_loop(gamma: float, bootstrap: np.ndarray) -> np.ndarray:
    result = np.zeros(len(REWARDS))
    for start, stop, value in zip(OFFSETS[:-1], OFFSETS[1:], bootstrap, strict=True):
        running = float(value)
        for row in range(stop - 1, start - 1, -1):
            running = REWARDS[row] + gamma * running
            result[row] = running
    return result


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("bootstrap", [None, BOOTSTRAP])
def test_discounted_returns(gamma: float, bootstrap: np.ndarray | None) -> None:
    expected = plain_loop(gamma, np.zeros(4) if bootstrap is None else bootstrap)
    result = discounted_returns(REWARDS, OFFSETS, gamma, bootstrap)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=1e-6)


@pytest.mark.parametrize("lengths", [[60, *range(40)], [2000] * 3, [0, 0]])
def test_discounted_returns_are_those_of_a_filter(lengths: list[int]) -> None:
    """To the bit, whether many episodes are left or few."""
    rng = np.random.default_rng(1)
    offsets = np.append(0, np.cumsum(lengths)).astype(np.int64)
    rewards, ends = rng.normal(size=offsets[-1]).astype(np.float32), rng.normal(size=len(lengths))
    result = discounted_returns(rewards, offsets, 0.97, ends)
    for start, stop, end in zip(offsets[:-1], offsets[1:], ends, strict=True):
        if start < stop:
            backwards, _ = lfilter([1.0], [1.0, -0.97], rewards[start:stop][::-1].astype(np.float64), zi=[0.97 * end])
            np.testing.assert_array_equal(result[start:stop], backwards[::-1].astype(np.float32))


def test_returns_to_go() -> None:
    result = returns_to_go(REWARDS, OFFSETS)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, plain_loop(1.0, np.zeros(4)), atol=1e-6)


def test_one_bootstrap_value_per_episode() -> None:
    with pytest.raises(ValueError, match="got 3 for 4 episodes"):
        discounted_returns(REWARDS, OFFSETS, 0.9, BOOTSTRAP[:3])


def test_discounted_before_is_what_was_collected() -> None:
    collected, discounts = discounted_before(np.array([1.0, 2.0, 4.0], np.float32), 0.5)
    np.testing.assert_allclose(collected, [0, 1, 2, 3])
    np.testing.assert_allclose(discounts, [1, 0.5, 0.25, 0.125])


def test_termination_is_a_goal_where_it_ends_with_the_rare_best_reward(drift: EpisodeDataset) -> None:
    last = drift.offsets[1:][drift.terminated] - 1
    rewards = np.full_like(drift.rewards, -1)
    rewards[last] = 0
    reached = replace(drift, rewards=rewards)
    assert is_goal_task(reached) and has_sparse_rewards(reached)
    assert not is_goal_task(replace(reached, terminated=reached.terminated & False))
    assert not is_goal_task(replace(reached, rewards=np.ones_like(rewards)))
    fallen = rewards.copy()
    fallen[last] = -5
    assert not is_goal_task(replace(reached, rewards=fallen))


def test_rewards_are_sparse_where_few_are_better_than_the_usual_one(drift: EpisodeDataset) -> None:
    assert not has_sparse_rewards(drift)
    rewards = np.zeros_like(drift.rewards)
    cut = replace(drift, terminated=drift.terminated & False, rewards=rewards)
    assert not has_sparse_rewards(cut), "nothing is aimed at"
    costly = replace(drift, rewards=rewards - 1)
    assert has_sparse_rewards(costly) and not has_sparse_rewards(replace(costly, terminated=cut.terminated))
    for usual, other, share, sparse in (
        (0, 1, 0.05, True),
        (0, 1, 0.2, False),
        (1, 0, 0.05, False),
        (0, -1, 0.05, False),
    ):
        rewards = np.full_like(drift.rewards, usual)
        rewards[: int(share * len(rewards))] = other
        assert has_sparse_rewards(replace(cut, rewards=rewards)) == sparse, (usual, other, share)
