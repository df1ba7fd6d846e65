"""Known rewards against what the simulator paid."""

import numpy as np

from raystitch.data.demo import make_pointmaze
from raystitch.envs.pointmaze import demo_spec, goal_position
from raystitch.envs.spec import EnvSpec
from raystitch.envs.task import known_reward


def test_the_mazes_reward_is_the_simulators() -> None:
    dataset = make_pointmaze(num_steps=2000, seed=1)
    reward = known_reward(demo_spec())
    assert reward is not None
    assert dataset.rewards.sum() > 10
    np.testing.assert_array_equal(reward(dataset.observations[dataset.obs_index + 1]), dataset.rewards)
    assert reward(np.array([[*goal_position(), 0, 0]], np.float32)).tolist() == [1.0]


def test_it_is_not_known_elsewhere() -> None:
    for spec in (None, EnvSpec(env_id="Hopper-v5"), EnvSpec(env_id="PointMaze_UMaze-v3")):
        assert known_reward(spec) is None
