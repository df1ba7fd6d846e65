"""The maze of three regions: nothing that is recorded leads from one to the next."""

import numpy as np
import pytest

from raystitch.data.gap import LINES, WIDTHS, gap_name, make_gap
from raystitch.data.made import MAKERS, make_dataset
from raystitch.data.returns import has_sparse_rewards
from raystitch.envs.make import make_env
from raystitch.envs.pointmaze import GAP_GOAL
from raystitch.envs.starts import start_observations

STEPS = 2500


@pytest.mark.parametrize("width", [0.0, 1.0])
def test_every_fragment_lies_in_one_region_and_away_from_the_gaps(width: float) -> None:
    dataset = make_dataset(gap_name(width), STEPS)
    regions: set[int] = set()
    for number in range(dataset.num_episodes):
        x = dataset.episode(number).observations[:, 0]
        (region,) = np.unique(np.searchsorted(LINES, x))
        regions.add(int(region))
        assert np.abs(x[:, None] - LINES).min() >= width / 2
    assert regions == {0, 1, 2}
    goals = np.flatnonzero(dataset.terminated)
    assert len(goals) and (dataset.returns[goals] == 1).all() and dataset.returns.sum() == len(goals)
    ends = dataset.observations[dataset.obs_offsets[1:][goals] - 1, :2]
    assert (np.linalg.norm(ends - [GAP_GOAL[1] - 5.5, 4 - GAP_GOAL[0]], axis=1) < 0.5).all()
    assert has_sparse_rewards(dataset)


def test_widths_differ_in_what_is_taken_away_alone() -> None:
    narrow, wide = make_gap(0.0, STEPS, seed=3), make_gap(1.5, STEPS, seed=3)
    assert narrow.fingerprint == make_gap(0.0, STEPS, seed=3).fingerprint != make_gap(0.0, STEPS, seed=4).fingerprint
    rows = {row.tobytes() for row in narrow.observations}
    assert wide.num_transitions < narrow.num_transitions
    assert all(row.tobytes() in rows for row in wide.observations)


def test_the_task_starts_in_the_west() -> None:
    dataset = make_gap(0.5, STEPS)
    assert dataset.env is not None
    starts = start_observations(dataset.env, dataset.obs_dim)
    assert starts is not None and (starts[:, 0] < LINES[0] - 2).all()
    env = make_env(dataset.env)
    assert env.spec is not None and env.spec.max_episode_steps == 300
    env.close()
    assert {gap_name(width) for width in WIDTHS} <= set(MAKERS)
