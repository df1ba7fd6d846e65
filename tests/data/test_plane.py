"""The floor of a maze as pictures draw it: walls that no position lies in, the start and the goal of the task."""

import numpy as np
import pytest

from raystitch.data.plane import maze_floor
from raystitch.envs.make import make_env, spec_from_id

pytest.importorskip("ogbench")

TASK_ID = "ogbench:pointmaze-medium-singletask-task1-v0"


def test_the_floor_of_an_ogbench_task() -> None:
    spec = spec_from_id(TASK_ID)
    floor = maze_floor(spec)
    assert floor is not None
    assert sorted(floor.marks) == [("goal", 20.0, 20.0), ("start", 0.0, 0.0)]
    np.testing.assert_array_equal(floor.walls[0], [-6, -6, 4, 4])  # cell (0, 0), 4 wide, its centre at -4
    env = make_env(spec)
    positions = np.array([env.reset(seed=seed)[0] for seed in range(20)])
    env.close()
    low, high = floor.walls[:, :2], floor.walls[:, :2] + floor.walls[:, 2:]
    inside = ((positions[:, None] > low) & (positions[:, None] < high)).all(-1)
    assert not inside.any()


def test_environments_without_one_goal_have_no_floor() -> None:
    assert maze_floor(spec_from_id("ogbench:pointmaze-large-v0")) is None
