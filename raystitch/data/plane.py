"""The plane in which states are drawn: the floor of a maze, the two main directions of the data, or two dimensions.

Legend: N states, O observation size, D active dimensions, W wall cells.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from raystitch.data.episodes import EpisodeDataset, Floats
from raystitch.data.normalise import Normalizer
from raystitch.envs.make import make_env
from raystitch.envs.ogbench import maze_goal
from raystitch.envs.spec import EnvSpec
from raystitch.errors import UserError

Floats64 = NDArray[np.float64]

OGBENCH_MAZE = re.compile(r"(point|ant|humanoid)maze-")
"""Beginning of the names of OGBench's mazes, whose observations begin with the position."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Ground:
    """What a picture of states stands on.

    Attributes:
        xlabel, ylabel: of the axes.
        walls: float64 [W, 4], x, y of the lower left corner, width, height; empty outside mazes.
        marks: (text, x, y) of places with a name.
    """

    xlabel: str
    ylabel: str
    walls: Floats64 = field(default_factory=lambda: np.zeros((0, 4)))
    marks: Sequence[tuple[str, float, float]] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Plane:
    """How states are looked at: ``project`` takes states [N, O] to points, float64 [N, 2], on the ground."""

    project: Callable[[Floats], Floats64]
    ground: Ground


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


def plane_of(dataset: EpisodeDataset) -> Plane:
    """Return the plane of the maze, else of the two main directions of the standardised data; those also where the
    environment cannot be made here."""
    maze: MazeFloor | None = None
    with suppress(UserError):
        maze = maze_floor(dataset.env)
    if maze is not None:
        ground = Ground(xlabel="x", ylabel="y", walls=maze.walls, marks=maze.marks)
        return Plane(project=lambda states: states[:, :2].astype(np.float64), ground=ground)
    normalizer = Normalizer.fit(dataset.observations)
    standardised = normalizer.encode(dataset.observations)[:, normalizer.active].astype(np.float64)
    axes = principal_axes(standardised)

    def project(states: Floats) -> Floats64:
        return normalizer.encode(states)[:, normalizer.active].astype(np.float64) @ axes

    labels = [f"{nth} principal component (standardised)" for nth in ("first", "second")]
    return Plane(project=project, ground=Ground(xlabel=labels[0], ylabel=labels[1]))


def plane_of_dimensions(dims: Sequence[int], obs_dim: int) -> Plane:
    """Return the plane of two dimensions of the observation.

    Raises:
        UserError: when they are not two of 0 .. obs_dim - 1.
    """
    if len(dims) != 2 or not all(0 <= dim < obs_dim for dim in dims):
        asked = ", ".join(str(dim) for dim in dims)
        raise UserError(f"dims=({asked}) must be two dimensions of the observation, which are 0 .. {obs_dim - 1}")
    columns = [int(dim) for dim in dims]
    ground = Ground(xlabel=f"observation[{columns[0]}]", ylabel=f"observation[{columns[1]}]")
    return Plane(project=lambda states: states[:, columns].astype(np.float64), ground=ground)


def two_dimensions(states: Floats) -> tuple[int, int]:
    """Return the first two dimensions of states [N, O] that change; positions come first in most environments."""
    varying = np.flatnonzero(np.ptp(states, axis=0) > 1e-6)
    first = int(varying[0]) if len(varying) else 0
    if len(varying) > 1:
        return first, int(varying[1])
    return first, first + 1 if first + 1 < states.shape[1] else max(first - 1, 0)
