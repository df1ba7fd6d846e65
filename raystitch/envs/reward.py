"""Rewards that follow exactly from the observations: where they are known, no model has to guess a sparse reward."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from raystitch.envs.spec import EnvSpec

Reward = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Next observations [N, O], raw units, to rewards float32 [N]."""

GOAL_RADIUS = 0.45


def known_reward(spec: EnvSpec | None) -> Reward | None:
    """The environment's own reward function, or None where the observation does not determine it.

    PointMaze with one fixed goal: 1 within 0.45 m of it. Other point mazes draw their goal anew, and the locomotion
    environments pay for a displacement that their observations leave out.
    """
    if spec is None or spec.env_id != "raystitch/PointMaze-v0" or spec.kwargs or spec.wrappers:
        return None
    from raystitch.envs.make import register_environments

    register_environments()
    from raystitch.envs.pointmaze import goal_position

    goal = goal_position()

    def reward(next_observations: NDArray[np.float32]) -> NDArray[np.float32]:
        distance = np.linalg.norm(next_observations[:, :2].astype(np.float64) - goal, axis=1)
        return (distance <= GOAL_RADIUS).astype(np.float32)

    return reward
