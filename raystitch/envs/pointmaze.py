"""Point mazes with one fixed goal and a repeated action, on gymnasium-robotics' PointMaze: the demo's and the gap's.

The demo's: a corridor leads east from the start to a wide street that ends blind in the south; across the street is a
blind alley. Two blocks up the street a second corridor leaves it eastwards and then leads south to the goal.

The gap's: D4RL's large maze, from the western end of its straight corridor to the south-eastern corner.
"""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium_robotics.envs.maze.maps import LARGE_MAZE
from gymnasium_robotics.envs.maze.point_maze import PointMazeEnv
from numpy.typing import NDArray

from raystitch.envs.spec import EnvSpec

ENV_ID = "raystitch/PointMaze-v0"
MAZE_MAP: list[list[int | str]] = [
    [1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    [1, 1, 1, 1, 0, 0, 1, 1, 1, 1],
    [1, 1, 1, 1, 0, 0, 0, 0, 0, 1],
    [1, 1, 1, 1, 0, 0, 1, 1, 0, 1],
    [1, "r", 0, 0, 0, 0, 0, 1, 0, 1],
    [1, 1, 1, 1, 0, 0, 1, 1, "g", 1],
    [1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
]
ACTION_REPEAT = 6
MAX_EPISODE_STEPS = 150
GAP_ID = "raystitch/PointMazeGap-v0"
GAP_START, GAP_GOAL = (3, 1), (7, 10)
GAP_MAX_EPISODE_STEPS = 300


class FixedGoalPointMaze(PointMazeEnv):
    """A ``PointMazeEnv`` whose goal is the centre of its cell, without the noise of the base class."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # The base class leaves its generated model file in the temporary folder; MuJoCo has compiled it by now.
        Path(self.tmp_xml_file_path).unlink(missing_ok=True)

    def add_xy_position_noise(self, xy_pos: NDArray[np.float64]) -> NDArray[np.float64]:
        is_goal = any(np.array_equal(xy_pos, cell) for cell in self.maze.unique_goal_locations)
        return xy_pos if is_goal else super().add_xy_position_noise(xy_pos)


class ActionRepeat(gym.Wrapper[Any, Any, Any, Any]):
    """Applies every action ``action_repeat`` times and sums the rewards; stops early when the episode ends."""

    def __init__(self, env: gym.Env[Any, Any], action_repeat: int) -> None:
        super().__init__(env)
        self.action_repeat = action_repeat

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        total = float(reward)
        for _ in range(self.action_repeat - 1):
            if terminated or truncated:
                break
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
        return observation, total, terminated, truncated, info


def make_point_maze(
    maze_map: list[list[int | str]] | None = None, action_repeat: int = ACTION_REPEAT, **kwargs: Any
) -> gym.Env[Any, Any]:
    """Make ``raystitch/PointMaze-v0``, whose entry point this is: Dict observation, sparse reward, ends at the goal."""
    env = FixedGoalPointMaze(
        maze_map=MAZE_MAP if maze_map is None else maze_map, reward_type="sparse", continuing_task=False, **kwargs
    )
    return ActionRepeat(env, action_repeat)


def gap_map() -> list[list[int | str]]:
    """Return the maze of the gap."""
    cells: list[list[int | str]] = [list(row) for row in LARGE_MAZE]
    for (row, column), mark in ((GAP_START, "r"), (GAP_GOAL, "g")):
        cells[row][column] = mark
    return cells


def register() -> None:
    """Register both mazes with Gymnasium; may be called any number of times."""
    mazes: dict[str, tuple[dict[str, Any], int]] = {
        ENV_ID: ({}, MAX_EPISODE_STEPS),
        GAP_ID: ({"maze_map": gap_map()}, GAP_MAX_EPISODE_STEPS),
    }
    for env_id, (kwargs, max_episode_steps) in mazes.items():
        if env_id not in gym.registry:
            gym.register(
                id=env_id,
                entry_point="raystitch.envs.pointmaze:make_point_maze",
                kwargs=kwargs,
                max_episode_steps=max_episode_steps,
                disable_env_checker=True,
                order_enforce=False,
            )


def goal_position() -> NDArray[np.float64]:
    """Return the centre of the goal's cell in metres, [2]."""
    ((row, column),) = [(i, j) for i, cells in enumerate(MAZE_MAP) for j, cell in enumerate(cells) if cell == "g"]
    return np.array([column + 0.5 - len(MAZE_MAP[0]) / 2, len(MAZE_MAP) / 2 - row - 0.5])


def demo_spec() -> EnvSpec:
    """Return the demo's environment as plain data."""
    return EnvSpec(env_id=ENV_ID, max_episode_steps=MAX_EPISODE_STEPS, observation_keys=("observation",))


def gap_spec() -> EnvSpec:
    """Return the gap's environment as plain data."""
    return EnvSpec(env_id=GAP_ID, max_episode_steps=GAP_MAX_EPISODE_STEPS, observation_keys=("observation",))
