"""HDF5 files in the D4RL layout: flat arrays ``observations, actions, rewards, terminals`` and, where there are any,
``timeouts`` and ``next_observations``.

Legend: N transitions, O observation size, A action size.
"""

import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import ArrayLike, NDArray

from raystitch.data.bounds import usable_bounds
from raystitch.data.checks import Resolution, check_finite, check_magnitudes, check_shapes
from raystitch.data.episodes import Bools, EpisodeDataset, Floats, Ints
from raystitch.data.hdf5 import open_hdf5
from raystitch.data.layouts import check_file, other_layout
from raystitch.data.stream import EpisodeStream, stream_of
from raystitch.envs.spec import EnvSpec
from raystitch.errors import UserError
from raystitch.io.files import atomic_path, require_space

REQUIRED = ("observations", "actions", "rewards")
OPTIONAL = ("terminals", "timeouts", "next_observations")
ATTRIBUTES = ("env_id", "env_spec", "action_low", "action_high")
# A next observation further than this many standard deviations from the following row starts a new episode.
SEAM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class _File:
    """A file's contents: its known arrays in their own number types, its known attributes, and steps that are lost."""

    arrays: dict[str, NDArray[Any]]
    attributes: dict[str, Any]
    resolution: Resolution


def _read_file(path: Path) -> _File:
    if path.is_dir():
        raise UserError(f"{path} is a folder, not an HDF5 file")
    if not path.exists():
        raise UserError(f"{path} does not exist")
    check_file(path)
    with open_hdf5(path) as root:
        found = {name: root.numbers(name) for name in (*REQUIRED, *OPTIONAL)}
        for name in REQUIRED:
            if found[name] is None:
                raise UserError(other_layout(path, root, name))
        attributes = {name: value for name in ATTRIBUTES if (value := root.attribute(name)) is not None}
    resolution = Resolution()
    arrays: dict[str, NDArray[Any]] = {}
    for name, values in found.items():
        if values is None:
            continue
        if name == "observations" and values.ndim == 2:
            resolution.add(values)
        arrays[name] = values.astype(np.float32, copy=False) if name != "actions" else values
    return _File(arrays, attributes, resolution)


def _discontinuities(observations: Floats, next_observations: Floats) -> Bools:
    """Rows whose next observation is not the following row, bool [N]; the last row is one."""
    ends = np.ones(len(observations), np.bool_)
    with np.errstate(invalid="ignore"):
        tolerance = SEAM_TOLERANCE * np.nanstd(observations, axis=0) + 1e-6
        ends[:-1] = (np.abs(next_observations[:-1] - observations[1:]) > tolerance).any(1)
    return ends


def _cut_at_limit(ends: Bools, limit: int) -> Bools:
    """End an episode after every ``limit`` steps without an end."""
    ends = ends.copy()
    stops = np.flatnonzero(ends)
    for start, stop in zip(np.concatenate([[0], stops[:-1] + 1]), stops, strict=True):
        ends[start + limit - 1 : stop : limit] = True
    return ends


def _episode_ends(arrays: dict[str, NDArray[Any]], limit: int | None, path: Path) -> Bools:
    """Last row of every episode, bool [N].

    Flags count where there are any. Without ``timeouts``, an episode also ends where the next observation is not the
    following row or, lacking that, at the environment's time limit.
    """
    ends = np.zeros(len(arrays["observations"]), np.bool_)
    for name in ("terminals", "timeouts"):
        if name in arrays:
            ends |= arrays[name] != 0
    ends[-1] = True
    if "next_observations" in arrays:
        return ends | _discontinuities(arrays["observations"], arrays["next_observations"])
    if "timeouts" in arrays:
        return ends
    if limit is not None:
        return _cut_at_limit(ends, limit)
    if not ends[:-1].any():
        raise UserError(
            f"{path}: nothing marks where an episode ends (no timeouts, no next_observations, no terminal row); "
            "name the environment (--env ENV_ID) to use its time limit, or add timeouts"
        )
    warnings.warn(
        f"{path} has neither timeouts nor next_observations: episodes are taken to end at terminals only; "
        "name the environment (--env ENV_ID) to cut them at its time limit too",
        stacklevel=2,
    )
    return ends


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _environment(
    attributes: dict[str, Any], env_id: str | None, default_env: EnvSpec | None, path: Path
) -> EnvSpec | None:
    """Return the environment asked for, else the one that the file names, which need not be installed to train offline.

    No module is imported for an id that the file names.
    """
    from raystitch.envs.make import recorded_spec, spec_from_id

    if env_id is not None:
        return spec_from_id(env_id)
    if default_env is not None and default_env.env_id != _text(attributes.get("env_id", "")):
        return default_env
    if "env_spec" in attributes:
        try:
            return EnvSpec.from_json(json.loads(_text(attributes["env_spec"])))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: the attribute env_spec is not an environment: {error}") from error
    if "env_id" not in attributes:
        return None
    named = _text(attributes["env_id"])
    if ":" in named:
        warnings.warn(
            f"{path} names the environment {named}; no module is imported because a file names it: if you trust it, "
            f"name it yourself (--env {named})",
            stacklevel=2,
        )
    try:
        return recorded_spec(named)
    except UserError:
        return EnvSpec(env_id=named)


def _bounds(
    arrays: dict[str, NDArray[Any]], attributes: dict[str, Any], env: EnvSpec | None, asked: bool, path: Path
) -> tuple[ArrayLike, ArrayLike]:
    """Action bounds as recorded: of the environment asked for, else the file's attributes, else the environment that it
    names, else D4RL's -1 and 1, widened to the data.

    Raises:
        UserError: when the environment's sizes differ from the data's.
    """
    actions = arrays["actions"]
    if "action_low" in attributes and "action_high" in attributes and not asked:
        return attributes["action_low"], attributes["action_high"]
    if env is not None:
        from raystitch.envs.make import action_bounds

        try:
            obs_dim, low, high = action_bounds(env)
        except UserError:
            if asked:
                raise
        else:
            found = (arrays["observations"].shape[1], actions.shape[1])
            if found != (obs_dim, len(low)):
                raise UserError(
                    f"{path}: observations have {found[0]} and actions {found[1]} dimensions, but {env.env_id} has "
                    f"{obs_dim} and {len(low)}; name the environment it was recorded in (--env ENV_ID)"
                )
            return low, high
    return np.fmin(np.nanmin(actions, 0), -1.0), np.fmax(np.nanmax(actions, 0), 1.0)


def _layout(ends: Bools) -> tuple[Ints, Ints]:
    """Offsets int64 [E + 1] of the episodes, and the row of the observations [N + E] of each transition, int64 [N]."""
    stops = np.flatnonzero(ends) + 1
    offsets = np.concatenate([[0], stops]).astype(np.int64)
    return offsets, np.arange(len(ends)) + np.repeat(np.arange(len(stops)), np.diff(offsets))


def read_d4rl(
    path: str | os.PathLike[str],
    env_id: str | None = None,
    allow_nan: bool = False,
    default_env: EnvSpec | None = None,
) -> EpisodeDataset:
    """Read a file in the D4RL layout.

    Without ``next_observations`` the observation after an episode's last action is unknown: ``final_observed`` is
    False. With them, a row whose next observation is not the following row ends its episode as a time-out.

    Args:
        path: float32 or float64, compressed or not.
        env_id: the environment it was recorded in, named by the user; default the file's ``env_spec`` or ``env_id``
            attribute.
        allow_nan: keep NaN and infinities, for ``data inspect``.
        default_env: what a bundle or buffer of this file says; counts as asked for where the file names
            another or none.

    Raises:
        UserError: when the file is missing, not HDF5, lacks an array, or its arrays do not fit together.
    """
    path = Path(path)
    file = _read_file(path)
    arrays, attributes = file.arrays, file.attributes
    check_shapes(arrays, path)
    if not allow_nan:
        check_finite(arrays, str(path))
        check_magnitudes(arrays, str(path))
    if env_id is not None and ":" not in env_id and env_id == _text(attributes.get("env_id", "")):
        env_id = None  # the same as in the file, so it need not be installed
    env = _environment(attributes, env_id, default_env, path)
    asked = env_id is not None or (env is not None and env is default_env)
    low, high = _bounds(arrays, attributes, env, asked, path)
    action_low, action_high, found = usable_bounds(low, high, arrays["actions"], str(path))
    ends = _episode_ends(arrays, env.max_episode_steps if env else None, path)
    offsets, rows = _layout(ends)
    last = offsets[1:] - 1
    num_episodes = len(last)
    observations = np.empty((len(ends) + num_episodes, arrays["observations"].shape[1]), np.float32)
    observations[rows] = arrays["observations"]
    observations[rows[last] + 1] = arrays.get("next_observations", arrays["observations"])[last]
    terminated = arrays["terminals"][last] != 0 if "terminals" in arrays else np.zeros(num_episodes, np.bool_)
    timed_out = arrays["timeouts"][last] != 0 if "timeouts" in arrays else np.zeros(num_episodes, np.bool_)
    return EpisodeDataset(
        name=f"d4rl:{path}",
        observations=observations,
        actions=arrays["actions"],
        rewards=arrays["rewards"],
        terminated=terminated,
        truncated=timed_out | ~terminated,
        offsets=offsets,
        action_low=action_low,
        action_high=action_high,
        env=env,
        final_observed=np.full(num_episodes, "next_observations" in arrays),
        found=(*found, *file.resolution.problems()),
    )


def write_d4rl(episodes: EpisodeDataset | EpisodeStream, path: str | os.PathLike[str]) -> None:
    """Write the D4RL layout, compressed, whole or not at all.

    ``next_observations`` is left out when any episode's final observation is unknown: the layout has no way to say so
    for a single row. No row is marked in both ``terminals`` and ``timeouts``: other readers drop such a terminal with
    the time-out, or refuse the file. The environment and the action bounds go into the file's attributes. A stream that
    marks generated transitions gives one array more, ``is_synthetic``.

    Raises:
        RunError: when the file cannot be written or the disk is too full.
    """
    stream = stream_of(episodes)
    count = stream.num_transitions
    layout: dict[str, tuple[tuple[int, ...], Any]] = {
        "observations": ((count, stream.obs_dim), np.float32),
        "actions": ((count, stream.act_dim), np.float32),
        "rewards": ((count,), np.float32),
        "terminals": ((count,), np.bool_),
        "timeouts": ((count,), np.bool_),
    }
    if stream.final_observed.all():
        layout["next_observations"] = layout["observations"]
    if stream.marks:
        layout["is_synthetic"] = ((count,), np.bool_)
    sizes = [int(np.prod(shape)) * np.dtype(kind).itemsize for shape, kind in layout.values()]
    require_space(path, sum(sizes))
    with atomic_path(path) as temporary, h5py.File(temporary, "w", locking=False) as file:
        arrays = {
            name: file.create_dataset(name, shape, kind, compression="gzip", compression_opts=4, shuffle=True)
            for name, (shape, kind) in layout.items()
        }
        first = 0
        for piece, is_synthetic in stream.pieces():
            columns = _columns(piece) | {"is_synthetic": is_synthetic}
            for name, array in arrays.items():
                array[first : first + piece.num_transitions] = columns[name]
            first += piece.num_transitions
        assert first == count
        file.attrs["action_low"] = stream.action_low
        file.attrs["action_high"] = stream.action_high
        if stream.env is not None:
            file.attrs["env_id"] = stream.env.env_id
            file.attrs["env_spec"] = json.dumps(stream.env.to_json())


def _columns(dataset: EpisodeDataset) -> dict[str, NDArray[Any] | None]:
    """The layout's arrays of some episodes, [N, .] each."""
    last = dataset.offsets[1:][dataset.lengths > 0] - 1
    timeouts = np.zeros(dataset.num_transitions, np.bool_)
    timeouts[last] = (dataset.truncated & ~dataset.terminated)[dataset.lengths > 0]
    return {
        "observations": dataset.observations[dataset.obs_index],
        "actions": dataset.actions,
        "rewards": dataset.rewards,
        "terminals": dataset.transition_terminal,
        "timeouts": timeouts,
        "next_observations": dataset.observations[dataset.obs_index + 1],
    }
