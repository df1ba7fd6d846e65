"""The plane in which states are drawn: the floor of a point maze, or the two main directions of the data.

Legend: N states, D active dimensions, W wall cells.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raystitch.envs.make import make_env
from raystitch.envs.spec import EnvSpec

Floats64 = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class MazeFloor:
    """A point maze from above. The first two dimensions of a state are its x and y.

    Attributes:
        walls: float64 [W, 4], the wall cells: x, y of the lower left corner, width, height.
        marks: (text, x, y) of the start and the goal, where the map fixes them.
    """

    walls: Floats64
    marks: list[tuple[str, float, float]]


def maze_floor(spec: EnvSpec | None) -> MazeFloor | None:
    """Return the floor of an environment, or None when it is not a point maze.

    Raises:
        UserError: when the environment cannot be made here.
    """
    if spec is None or "PointMaze" not in spec.env_id:
        return None
    env = make_env(spec)
    try:
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
    finally:
        env.close()


def principal_axes(standardised_ND: Floats64) -> Floats64:
    """Return the two directions in which the states vary most, [D, 2]; the second is zero when D is 1."""
    _, vectors = np.linalg.eigh(standardised_ND.T @ standardised_ND)
    axes = vectors[:, ::-1][:, :2]
    return axes if axes.shape[1] == 2 else np.concatenate([axes, np.zeros((len(axes), 1))], axis=1)
