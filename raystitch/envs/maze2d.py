"""Maze2D (D4RL, Fu et al. 2020, arXiv 2004.07219) on gymnasium-robotics' PointMaze: one fixed goal, no end at it.

The walls, the cells of the goals and the time limits are D4RL's; the point, its actuators and the goal's radius
(0.45 m, D4RL 0.5) are gymnasium-robotics'. The reward is 1 for every step within the radius. Episodes start anywhere
else. Normalised scores of D4RL are of its own simulator, so none are given.
"""

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium_robotics.envs.maze.maps import LARGE_MAZE, MEDIUM_MAZE, U_MAZE
from numpy.typing import NDArray

from raystitch.envs.pointmaze import FixedGoalPointMaze
from raystitch.envs.spec import EnvSpec

Cell = tuple[int, int]
"""Row and column."""


@dataclass(frozen=True, kw_only=True)
class MazeLayout:
    """A maze of D4RL: ``walls``, rows of cells with 1 for a wall, the ``goal``'s cell and the time limit."""

    env_id: str
    walls: list[list[int]]
    goal: Cell
    max_episode_steps: int

    def free_cells(self) -> list[Cell]:
        return [(i, j) for i, row in enumerate(self.walls) for j, wall in enumerate(row) if not wall]

    def centre(self, cell: Cell) -> NDArray[np.float64]:
        """Return the centre of a cell in metres, [2]."""
        return np.array([cell[1] + 0.5 - len(self.walls[0]) / 2, len(self.walls) / 2 - cell[0] - 0.5])

    def cell_at(self, position: NDArray[np.floating]) -> Cell:
        """Return the cell that a position [2] lies in."""
        return int(len(self.walls) / 2 - position[1]), int(position[0] + len(self.walls[0]) / 2)


LAYOUTS = {
    "umaze": MazeLayout(env_id="raystitch/Maze2D-UMaze-v0", walls=U_MAZE, goal=(1, 1), max_episode_steps=300),
    "medium": MazeLayout(env_id="raystitch/Maze2D-Medium-v0", walls=MEDIUM_MAZE, goal=(6, 6), max_episode_steps=600),
    "large": MazeLayout(env_id="raystitch/Maze2D-Large-v0", walls=LARGE_MAZE, goal=(7, 9), max_episode_steps=800),
}


def make_maze(layout: str, **kwargs: Any) -> gym.Env[Any, Any]:
    """Make a maze; the entry point of its id."""
    maze = LAYOUTS[layout]
    cells: list[list[int | str]] = [list(row) for row in maze.walls]
    cells[maze.goal[0]][maze.goal[1]] = "g"
    return FixedGoalPointMaze(maze_map=cells, reward_type="sparse", continuing_task=True, reset_target=False, **kwargs)


def register() -> None:
    """Register the three mazes with Gymnasium; may be called any number of times."""
    for name, maze in LAYOUTS.items():
        if maze.env_id not in gym.registry:
            gym.register(
                id=maze.env_id,
                entry_point="raystitch.envs.maze2d:make_maze",
                kwargs={"layout": name},
                max_episode_steps=maze.max_episode_steps,
                disable_env_checker=True,
                order_enforce=False,
            )


def maze_spec(layout: str) -> EnvSpec:
    """Return a maze as plain data."""
    maze = LAYOUTS[layout]
    return EnvSpec(env_id=maze.env_id, max_episode_steps=maze.max_episode_steps, observation_keys=("observation",))
