"""OGBench's .npz files: flat arrays ``observations, actions, terminals``, without rewards.

The rewards come from the task of an environment that the user names: -1 for every step, 0 for the one that reaches the
goal, which ends the episode.

Legend: N rows, O observation size, A action size, E episodes.
"""

import os
import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from raystitch.data.bounds import usable_bounds
from raystitch.data.checks import Problem, Resolution, check_finite, check_magnitudes, check_shapes, problem
from raystitch.data.episodes import Bools, EpisodeDataset
from raystitch.data.npz import NpzArchive, open_npz
from raystitch.envs.ogbench import EXAMPLE, MazeGoal, maze_goal
from raystitch.envs.spec import EnvSpec
from raystitch.errors import UserError

COLUMNS = ("observations", "actions", "terminals")
LAYOUT = "OGBench's files have observations, actions and terminals (1 on the last row of an episode)"
OUTSIDE_SHARE = 0.01
"""With a larger share of the states inside walls, the data come from another maze."""


def read_ogbench(
    path: str | os.PathLike[str],
    env_id: str | None = None,
    allow_nan: bool = False,
    default_env: EnvSpec | None = None,
) -> EpisodeDataset:
    """Read a file in OGBench's layout with the rewards of a task.

    The last row of a recorded episode has no next state; its action is not used. A transition into the goal has
    reward 0 and terminates its episode; the next one begins with the first state outside of the goal again. Where the
    environment itself notices success one step later (``success_timing='pre'``, as the registered single tasks do),
    its episodes are one step longer than these.

    Args:
        path: float32 or float64 arrays; ``qpos`` and others are ignored.
        env_id: the environment with the task, named by the user.
        allow_nan: keep NaN and infinities, for ``data inspect``.
        default_env: what a bundle or buffer of this file says; counts where the user names none.

    Raises:
        UserError: when the file is missing, no .npz, lacks an array, holds images or rewards, or its arrays do not fit
            together; when no environment is named, it has no goal position, or no state comes near its goal.
    """
    path = Path(path)
    resolution = Resolution()
    arrays = _read_arrays(path, resolution)
    ends = arrays["terminals"] != 0
    ends[-1] = True
    if ends.all():
        raise UserError(f"{path}: terminals are 1 in every row, so there is no transition; {LAYOUT}")
    arrays["actions"][ends] = 0.0
    if not allow_nan:
        check_finite(arrays, str(path))
        check_magnitudes(arrays, str(path))
    env, goal, low, high = _task(path, env_id, default_env, arrays)
    reached = _reached(path, env, goal, arrays["observations"][:, :2], ends)
    return _episodes(path, env, arrays, ends, reached, (low, high), resolution)


def _read_arrays(path: Path, resolution: Resolution) -> dict[str, NDArray[Any]]:
    with open_npz(path) as archive:
        _check_layout(path, archive)
        found = {name: archive.numbers(name) for name in COLUMNS}
    arrays: dict[str, NDArray[Any]] = {name: values for name, values in found.items() if values is not None}
    if arrays["observations"].ndim == 2:
        resolution.add(arrays["observations"])
    for name in ("observations", "terminals"):
        arrays[name] = arrays[name].astype(np.float32, copy=False)
    check_shapes(arrays, path)
    odd = ~np.isin(arrays["terminals"], (0, 1))
    if odd.any():
        row = int(np.argmax(odd))
        raise UserError(f"{path}: terminals must be 0 or 1, got {arrays['terminals'][row]:g} in row {row}; {LAYOUT}")
    if not arrays["terminals"].any():
        raise UserError(f"{path}: terminals are 0 in every row, so nothing marks where an episode ends; {LAYOUT}")
    return arrays


def _check_layout(path: Path, archive: NpzArchive) -> None:
    shape = archive.shape("observations")
    if shape is not None and len(shape) > 2:
        raise UserError(
            f"{path}: observations are images, shape {shape}; raystitch needs vectors: take the file of the states "
            "(its name is without visual-), or write what an encoder makes of the images"
        )
    names = archive.names()
    if "rewards" in names:
        raise UserError(
            f"{path} has rewards, which OGBench's files have not, so its rows may mean something else; write its "
            "arrays to HDF5 under D4RL's names (docs/data.md shows how)"
        )
    for name in COLUMNS:
        if name not in names:
            shown = ", ".join(other[:40] for other in sorted(names)[:8]) or "none"
            raise UserError(f"{path} has no array {name!r}; it has {shown}; {LAYOUT}")


def _task(
    path: Path, env_id: str | None, default_env: EnvSpec | None, arrays: dict[str, NDArray[Any]]
) -> tuple[EnvSpec, MazeGoal, NDArray[np.float32], NDArray[np.float32]]:
    """The environment, its goal, and the bounds of its actions [A]."""
    from raystitch.envs.make import make_env, spec_from_id

    spec = default_env if env_id is None else spec_from_id(env_id)
    if spec is None:
        raise UserError(
            f"{path} has no rewards: in OGBench the task gives them; name the environment of one (--env "
            f"{_example(path)}, env: in a configuration)"
        )
    env = make_env(spec)
    try:
        space = env.action_space
        assert isinstance(space, gym.spaces.Box) and env.observation_space.shape is not None
        sizes = (env.observation_space.shape[0], space.shape[0])
        found = (arrays["observations"].shape[1], arrays["actions"].shape[1])
        if found != sizes:
            raise UserError(
                f"{path}: observations have {found[0]} and actions {found[1]} dimensions, but {spec.env_id} has "
                f"{sizes[0]} and {sizes[1]}; name the environment it was recorded in (--env ENV_ID)"
            )
        return spec, maze_goal(env, spec.env_id), space.low.astype(np.float32), space.high.astype(np.float32)
    finally:
        env.close()


def _example(path: Path) -> str:
    """The first task of the environment that a file is named after: pointmaze-large-stitch-v0-val.npz."""
    named = re.fullmatch(r"(\w+maze-[a-z]+)-[a-z]+-(v\d+)(-val)?", path.stem)
    return f"ogbench:{named[1]}-singletask-task1-{named[2]}" if named else EXAMPLE


def _reached(path: Path, env: EnvSpec, goal: MazeGoal, positions: NDArray[np.float32], ends: Bools) -> Bools:
    """Mark the rows whose state lies in the goal, bool [N]."""
    place = f"the goal of {env.env_id}, ({goal.position[0]:g}, {goal.position[1]:g})"
    remedy = "name another task, or collect data there"
    outside = ~goal.in_maze(positions)
    if outside.mean() > OUTSIDE_SHARE:
        raise UserError(
            f"{path}: {outside.mean():.0%} of the states lie in walls of {env.env_id} or outside of it, the first in "
            f"row {int(np.argmax(outside))}; name the environment it was recorded in (--env ENV_ID)"
        )
    distances = goal.distances(positions)
    reached = distances <= goal.tolerance
    if not reached.any():
        nearest = int(np.argmin(np.where(np.isnan(distances), np.inf, distances)))
        raise UserError(
            f"{path}: no state comes near {place}: the nearest, in row {nearest}, is {distances[nearest]:.3g} away, "
            f"and {goal.tolerance:g} counts as reached; {remedy}"
        )
    if not (reached[1:] & ~reached[:-1] & ~ends[:-1]).any():
        raise UserError(
            f"{path}: no step leads into {place}: the {reached.sum():,} states there, the first in row "
            f"{int(np.argmax(reached))}, only begin their episodes; {remedy}"
        )
    return reached


def _episodes(
    path: Path,
    env: EnvSpec,
    arrays: dict[str, NDArray[Any]],
    ends: Bools,
    reached: Bools,
    bounds: tuple[NDArray[np.float32], NDArray[np.float32]],
    resolution: Resolution,
) -> EpisodeDataset:
    """Cut the rows into episodes.

    Args:
        ends: bool [N], rows without a next state. reached: bool [N], rows whose state lies in the goal.
    """
    kept = ~ends & ~reached  # a transition out of the goal belongs to no episode
    rows = np.flatnonzero(kept)
    first = rows[np.diff(rows, prepend=-2) > 1]  # runs of kept rows are the episodes
    last = rows[np.diff(rows, append=len(kept) + 1) > 1]
    observed = kept.copy()
    observed[last + 1] = True
    actions = arrays["actions"][rows]
    low, high, found = usable_bounds(*bounds, actions, str(path))
    terminated = reached[last + 1]
    return EpisodeDataset(
        name=f"ogbench:{path}",
        observations=arrays["observations"][observed],
        actions=actions,
        rewards=np.where(reached[rows + 1], 0, -1).astype(np.float32),
        terminated=terminated,
        truncated=~terminated,
        offsets=np.concatenate([[0], np.cumsum(last - first + 1)]).astype(np.int64),
        action_low=low,
        action_high=high,
        env=env,
        found=(*found, *_lone_rows(ends), *resolution.problems()),
    )


def _lone_rows(ends: Bools) -> list[Problem]:
    """The problem of recorded episodes of one row, which hold no transition."""
    lone = np.flatnonzero(ends & np.concatenate([[True], ends[:-1]]))
    if not len(lone):
        return []
    message = f"{len(lone)} recorded episodes have a single row, the first row {lone[0]}; they hold no step"
    return [problem("one_row_episode", message, len(lone))]
