"""The plane in which states are drawn: the floor of a maze, or the two main directions of the data.

Legend: N states, D active dimensions, W wall cells.
"""

import re
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from raystitch.envs.make import make_env
from raystitch.envs.ogbench import maze_goal
from raystitch.envs.spec import EnvSpec
from raystitch.errors import UserError

Floats64 = NDArray[np.float64]

OGBENCH_MAZE = re.compile(r"(point|ant|humanoid)maze-")
"""Beginning of the names of OGBench's mazes, whose observations begin with the position."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MazeFloor:
    """A maze from above. The first two dimensions of a state are its x and y.

    Attributes:
        walls: float64 [W, 4], the wall cells: x, y of the lower left corner, width, height.
        marks: (text, x, y) of the start and the goal, where the map fixes them.
    """

    walls: Floats64
    marks: list[tuple[str, float, float]]


def maze_floor(spec: EnvSpec | None) -> MazeFloor | None:
    """Return the floor of an environment, or None when it is not a maze of Gymnasium-Robotics or OGBench.

    Raises:
        UserError: when the environment cannot be made here.
    """
    if spec is None:
        return None
    read = None
    if "PointMaze" in spec.env_id:
        read = _gymnasium_floor
    elif OGBENCH_MAZE.match(spec.env_id.rpartition(":")[2]):
        read = _ogbench_floor
    if read is None:
        return None
    env = make_env(spec)
    try:
        return read(env, spec.env_id)
    finally:
        env.close()


def _gymnasium_floor(env: gym.Env[Any, Any], env_id: str) -> MazeFloor:
    unwrapped: Any = env.unwrapped
    maze = unwrapped.maze
    size = float(maze.maze_size_scaling)
    walls: list[tuple[float, float, float, float]] = []
    marks: list[tuple[str, float, float]] = []
    for row, cells in enumerate(maze.maze_map):
        for column, cell in enumerate(cells):
            x, y = (float(value) for value in maze.cell_rowcol_to_xy(np.array([row, column])))
            if cell == 1:
                walls.append((x - size / 2, y - size / 2, size, size))
            elif cell in ("g", "r"):
                marks.append(("goal" if cell == "g" else "start", x, y))
    return MazeFloor(walls=np.array(walls, np.float64).reshape(-1, 4), marks=marks)


def _ogbench_floor(env: gym.Env[Any, Any], env_id: str) -> MazeFloor | None:
    """Return the floor of a maze whose task has one goal position; None for another."""
    try:
        goal = maze_goal(env, env_id)
    except UserError:
        return None
    marks = [("goal", *map(float, goal.position))]
    if goal.start is not None:
        marks.append(("start", *map(float, goal.start)))
    return MazeFloor(walls=goal.walls, marks=[(text, x, y) for text, x, y in marks])


def principal_axes(standardised_ND: Floats64) -> Floats64:
    """Return the two directions in which the states vary most, [D, 2]; the second is zero when D is 1."""
    _, vectors = np.linalg.eigh(standardised_ND.T @ standardised_ND)
    axes = vectors[:, ::-1][:, :2]
    return axes if axes.shape[1] == 2 else np.concatenate([axes, np.zeros((len(axes), 1))], axis=1)
