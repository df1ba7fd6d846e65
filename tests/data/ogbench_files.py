"""Small files in OGBench's layout, and a maze for them that needs no simulator."""

from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np

MAZE_ID = "raystitch-tests/Corridor-v0"
GOAL, TOLERANCE = 8.0, 1.0


class CorridorEnv(gym.Env[Any, Any]):
    """A corridor of four cells along x, from (0, 0) to (12, 0), with the attributes of OGBench's mazes."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, random_goal: bool = False, goal: float = GOAL) -> None:
        self.maze_map = np.array([[1] * 6, [1, 0, 0, 0, 0, 1], [1] * 6])
        self._maze_unit, self._offset_x, self._offset_y, self._goal_tol = 4.0, 4, 4, TOLERANCE
        self.random_goal, self.goal = random_goal, goal
        self.cur_goal_xy, self.at = np.zeros(2), np.zeros(2)

    def get_xy(self) -> Any:
        return self.at.copy()

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.at = self.np_random.uniform(-0.5, 0.5, 2)
        self.cur_goal_xy = np.array([self.goal + (self.np_random.random() if self.random_goal else 0.0), 0.0])
        return self.at.copy(), {}

    def step(self, action: Any) -> Any:
        self.at = self.at + np.clip(action, -1, 1) * [1.0, 0.0]
        reached = bool(np.linalg.norm(self.at - self.cur_goal_xy) <= self._goal_tol)
        return self.at.copy(), float(reached) - 1.0, reached, False, {"success": float(reached)}


class NoMazeEnv(CorridorEnv):
    """One of the same sizes without a maze."""

    def __init__(self) -> None:
        super().__init__()
        del self.maze_map


def register() -> None:
    """Register Corridor-v0, RandomGoal-v0, FarGoal-v0 and NoMaze-v0; may be called any number of times."""
    for name, make, kwargs in (
        ("Corridor", CorridorEnv, {}),
        ("RandomGoal", CorridorEnv, {"random_goal": True}),
        ("FarGoal", CorridorEnv, {"goal": 12.0}),
        ("NoMaze", NoMazeEnv, {}),
    ):
        env_id = f"raystitch-tests/{name}-v0"
        if env_id not in gym.registry:
            gym.register(id=env_id, entry_point=cast(Any, make), kwargs=kwargs, max_episode_steps=50)


def along(*positions: float) -> np.ndarray[Any, Any]:
    """Rows (x, 0) of one recorded episode."""
    return np.stack([np.array(positions, np.float32), np.zeros(len(positions), np.float32)], axis=1)


def write(path: Path, *episodes: np.ndarray[Any, Any], **others: Any) -> Path:
    """Write recorded episodes of positions [T, 2]; an action is the way to the next row. ``others`` replaces arrays."""
    observations = np.concatenate(episodes)
    actions = np.diff(observations, axis=0, append=np.zeros((1, 2), np.float32))
    terminals = np.concatenate([np.arange(len(rows)) == len(rows) - 1 for rows in episodes])
    arrays: dict[str, Any] = {
        "observations": observations,
        "actions": actions.astype(np.float32),
        "terminals": terminals.astype(np.float32),
    }
    arrays |= others
    np.savez(path, **{name: values for name, values in arrays.items() if values is not None})
    return path
