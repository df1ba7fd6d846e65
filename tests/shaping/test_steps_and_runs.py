"""The columns of stored steps, and values of steps laid out over the runs of episodes."""

import numpy as np

from raystitch.shaping.returns import EpisodeReturns, PooledEpisodes, concatenate, pool_rows, step_returns
from raystitch.shaping.rewards import generated_steps, recorded_steps

REWARDS = np.arange(5, dtype=np.float32)


def test_generated_steps_know_their_bridge() -> None:
    steps = generated_steps(REWARDS, np.array([1, 2]), REWARDS + 1, REWARDS + 2)
    assert steps.gap.tolist() == [1, 1, 2, 2, 2]
    assert steps.position.tolist() == [0, 1, 0, 1, 2]
    assert steps.generated.all()
    assert steps.residual.tolist() == [1, 2, 3, 4, 5]
    assert steps.spread.tolist() == [2, 3, 4, 5, 6]


def test_what_is_not_kept_is_unknown() -> None:
    for steps in (generated_steps(REWARDS, np.array([4])), recorded_steps(REWARDS)):
        assert len(steps) == 5
        assert np.isnan(steps.residual).all()
        assert np.isnan(steps.spread).all()
    recorded = recorded_steps(REWARDS)
    assert not recorded.generated.any()
    assert (recorded.gap.tolist(), recorded.position.tolist()) == ([0] * 5, [-1] * 5)


def episodes(start: list[list[int]], length: list[list[int]]) -> PooledEpisodes:
    rows = np.zeros(20, np.float32)
    return PooledEpisodes(
        start=np.array(start),
        length=np.array(length),
        rewards=rows,
        dones=rows,
        rest=rows,
        observations=np.zeros((20, 1), np.float32),
        obs_row=np.arange(20),
    )


def test_values_of_steps_lie_one_episode_after_the_other() -> None:
    some = episodes([[3, 0, 7], [0, 5, 0]], [[2, 0, 3], [1, 0, 0]])
    assert pool_rows(some).tolist() == [3, 4, 7, 8, 9, 0]
    found = step_returns(np.arange(6, dtype=np.float32), some)
    assert found.start is not None
    assert found.start[0, [0, 2]].tolist() == [0, 2]
    assert found.start[1, 0] == 5
    assert not found.offset.any()


def test_two_sets_of_episodes_are_one() -> None:
    some, more = episodes([[3], [0]], [[2], [1]]), episodes([[9]], [[4]])
    both = concatenate(step_returns(np.arange(3.0, dtype=np.float32), some), step_returns(np.full(4, 9.0), more))
    assert both.start is not None
    assert both.start.tolist() == [[0], [2], [3]]
    assert both.values.tolist() == [0, 1, 2, 9, 9, 9, 9]
    rows = np.arange(20, dtype=np.float32)
    offsets = [np.full((count, 1), count, np.float32) for count in (2, 1)]
    pool = concatenate(*(EpisodeReturns(values=rows, offset=offset) for offset in offsets))
    assert pool.start is None
    assert pool.values is rows
    assert pool.offset.tolist() == [[2], [2], [1]]
