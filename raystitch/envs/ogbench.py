"""OGBench's environments: the goal of a maze, random numbers of their own, and the files that they leave behind.

``envs/make.py`` calls ``settle`` for each of them; nothing here imports the package.

Legend: N positions, W wall cells.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from raystitch.errors import UserError

PACKAGE = "ogbench"
INSTALL = "pip install 'raystitch[ogbench]'"
EXAMPLE = "ogbench:pointmaze-medium-singletask-task1-v0"
# Resets with different seeds that must agree on the goal for it to belong to the task.
GOAL_SEEDS = (0, 1, 2, 3)


@dataclass(frozen=True, kw_only=True, eq=False)
class MazeGoal:
    """Where the task of a maze ends.

    Attributes:
        position: float64 [2], in the units of the first two numbers of an observation.
        tolerance: the distance from it at which it counts as reached.
        free: bool [rows, columns], the cells of the maze without a wall.
        cell: the side of a cell. offset: float64 [2], minus the position (x, y) of the centre of the first cell.
        start: float64 [2], around which the task starts; None where it does not say.
    """

    position: NDArray[np.float64]
    tolerance: float
    free: NDArray[np.bool_]
    cell: float
    offset: NDArray[np.float64]
    start: NDArray[np.float64] | None = None

    @property
    def walls(self) -> NDArray[np.float64]:
        """The wall cells: x, y of the lower left corner, width, height; float64 [W, 4]."""
        row, column = np.nonzero(~self.free)
        corner = (np.stack([column, row], 1) - 0.5) * self.cell - self.offset
        return np.column_stack([corner, np.full((len(corner), 2), self.cell)])

    def distances(self, positions: NDArray[np.float32]) -> NDArray[np.float64]:
        """Distance of positions [N, 2] from the goal, float64 [N]."""
        return np.linalg.norm(positions.astype(np.float64) - self.position, axis=1)

    def in_maze(self, positions: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Mark the positions [N, 2] that lie in a cell without a wall, bool [N]."""
        column, row = np.floor((np.nan_to_num(positions) + self.offset) / self.cell + 0.5).astype(np.int64).T
        known = (row >= 0) & (row < self.free.shape[0]) & (column >= 0) & (column < self.free.shape[1])
        return known & self.free[np.where(known, row, 0), np.where(known, column, 0)]


def maze_goal(env: gym.Env[Any, Any], env_id: str) -> MazeGoal:
    """Read the goal of an environment with flat observations; it is reset for that.

    Raises:
        UserError: when it has no goal position, draws another one at every reset, or observes no position first.
    """
    raw: Any = env.unwrapped
    maze = all(hasattr(raw, name) for name in ("cur_goal_xy", "_goal_tol", "maze_map", "get_xy"))
    if not maze or hasattr(raw, "get_agent_ball_xy"):
        raise UserError(
            f"environment {env_id} has no goal position for its agent, so it cannot say when a state is worth "
            f"anything; name the task of a maze, such as --env {EXAMPLE}"
        )
    goals = []
    for seed in GOAL_SEEDS:
        observation, _ = env.reset(seed=seed)
        goals.append(np.asarray(raw.cur_goal_xy, np.float64))
        if not np.allclose(observation[:2], raw.get_xy(), atol=1e-4):
            raise UserError(f"environment {env_id}: an observation does not begin with the agent's position")
    if not all(np.array_equal(goal, goals[0]) for goal in goals):
        raise UserError(
            f"environment {env_id} draws another goal for every episode; name one of its tasks (--env "
            f"{_single_task(env_id)})"
        )
    start = (getattr(raw, "cur_task_info", None) or {}).get("init_xy")
    return MazeGoal(
        start=None if start is None else np.asarray(start, np.float64),
        position=goals[0],
        tolerance=float(raw._goal_tol),
        free=np.asarray(raw.maze_map) == 0,
        cell=float(raw._maze_unit),
        offset=np.array([raw._offset_x, raw._offset_y], np.float64),
    )


def _single_task(env_id: str) -> str:
    name, separator, version = env_id.rpartition("-v")
    return f"{name}-singletask-task1-v{version}" if separator else EXAMPLE


@contextmanager
def own_random_numbers(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Let NumPy's global random numbers continue from ``state``, which is brought up to date; restore them after."""
    before: Any = np.random.get_state(legacy=False)  # noqa: NPY002  OGBench draws from these
    np.random.set_state(state)  # noqa: NPY002
    try:
        yield state
    finally:
        after: Any = np.random.get_state(legacy=False)  # noqa: NPY002
        state.update(after)
        np.random.set_state(before)  # noqa: NPY002


class OwnRandomNumbers(gym.Wrapper[Any, Any, Any, Any]):
    """Gives an environment that draws from NumPy's global random numbers a stream of its own.

    A reset with a seed starts it anew, so equal seeds give equal episodes, whatever else draws in the process.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.state = seeded(None)
        self.draws_in_steps = getattr(env.unwrapped, "_teleport_info", None) is not None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.state = seeded(seed)
        with own_random_numbers(self.state):
            return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if not self.draws_in_steps:
            return self.env.step(action)
        with own_random_numbers(self.state):
            return self.env.step(action)


def seeded(seed: int | None) -> dict[str, Any]:
    """Return the state of NumPy's old random numbers after this seed; None takes one from the machine."""
    state: Any = np.random.RandomState(seed).get_state(legacy=False)
    return state


def settle(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """Give an environment of OGBench its own random numbers and free what making it left open; others pass unchanged.

    A maze writes its model to a file in the temporary folder and leaves it there, open: after a thousand environments
    a process could open no other file. MuJoCo has compiled it by now.
    """
    if type(env.unwrapped).__module__.partition(".")[0] != PACKAGE:
        return env
    model = Path(str(getattr(env.unwrapped, "fullpath", "")))
    if model.parent == Path(tempfile.gettempdir()) and model.suffix == ".xml":
        _close(model)
        model.unlink(missing_ok=True)
    return OwnRandomNumbers(env)


def _close(path: Path) -> None:
    """Close this process's open handles of a file, on systems that list them."""
    handles = Path("/proc/self/fd")
    if not handles.is_dir():
        return
    for handle in os.listdir(handles):
        with contextlib.suppress(OSError):
            if os.readlink(handles / handle) == str(path):
                os.close(int(handle))
