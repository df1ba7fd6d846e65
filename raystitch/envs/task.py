"""The tasks of known environments: reward functions, where observations determine them, and reference returns."""

import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from raystitch.envs.spec import EnvSpec

Reward = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""A function of next observations [N, O] (raw units) that returns rewards, float32 [N]."""

GOAL_RADIUS = 0.45
# (random, expert) returns as D4RL defines them (infos.py: hopper, walker2d, halfcheetah, pen).
REFERENCE_RETURNS: dict[str, tuple[float, float]] = {
    "Hopper": (-20.272305, 3234.3),
    "Walker2d": (1.629008, 4592.3),
    "HalfCheetah": (-280.178953, 12135.0),
    "AdroitHandPen": (96.262799, 3076.8331),
}


def known_reward(spec: EnvSpec | None) -> Reward | None:
    """Return the environment's own reward function; None where the observation does not determine the reward.

    With it, no model has to guess a sparse reward. It is known for the demo's point maze with its fixed goal: 1 within
    0.45 m of it. Other point mazes draw a new goal each time, and the locomotion environments reward a displacement
    that their observations leave out.
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


def normalised_score(env_id: str, raw: float, recorded: tuple[float, float] | None = None) -> float | None:
    """Return 100 * (return - random) / (expert - random); None where no reference is known.

    Args:
        recorded: (lowest, highest) return that the data name; used where D4RL defines none.
    """
    reference = REFERENCE_RETURNS.get(_family(env_id), recorded)
    if reference is None:
        return None
    random, expert = reference
    return 100.0 * (raw - random) / (expert - random)


def _family(env_id: str) -> str:
    """Return the family of an id: ``PointMaze`` of ``raystitch/PointMaze-v0`` and ``PointMaze_UMaze-v3``.

    A dense variant is another family.
    """
    name = re.sub(r"-v\d+$", "", env_id.rsplit("/", 1)[-1].rsplit(":", 1)[-1])
    return name.split("_", 1)[0]
