"""One reference, one dataset: ``minari:ID``, ``d4rl:FILE.hdf5``, ``ogbench:FILE.npz``, ``demo:pointmaze``."""

import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from raystitch.data.episodes import EpisodeDataset
from raystitch.envs.spec import EnvSpec
from raystitch.errors import UserError

if TYPE_CHECKING:
    from minari import MinariDataset

HDF5_SUFFIXES, NPZ_SUFFIX = (".hdf5", ".h5"), ".npz"
FILE_KINDS = ("d4rl", "ogbench")
"""Kinds whose name is a path."""
EXAMPLES = "minari:mujoco/hopper/medium-v0, d4rl:FILE.hdf5, ogbench:FILE.npz or demo:pointmaze"


class DatasetWarning(UserWarning):
    """A warning about something odd in a dataset and how it was read; ``inspect`` lists it too."""


def parse_ref(ref: str) -> tuple[str, str]:
    """Return the kind (``minari``, ``d4rl``, ``ogbench`` or ``demo``) and the name of a dataset reference; finds a bare
    one's kind.

    Raises:
        UserError: for anything that is none of them.
    """
    kind, separator, name = ref.partition(":")
    if separator and kind in ("minari", "demo", *FILE_KINDS):
        if not name:
            raise UserError(f"dataset {ref!r} names nothing after {kind}:")
        return kind, name
    if ref.endswith(NPZ_SUFFIX):
        return "ogbench", ref
    if ref.endswith(HDF5_SUFFIXES) or Path(ref).is_file():
        return "d4rl", ref
    if separator or not ref:
        raise UserError(f"dataset {ref!r}: use {EXAMPLES}")
    if Path(ref).is_dir() and (ref.startswith((".", "/")) or (Path(ref) / "data" / "metadata.json").exists()):
        raise UserError(f"dataset {ref!r} is a folder; for a Minari root set MINARI_DATASETS_PATH and give minari:ID")
    return "minari", ref


def load_dataset(
    ref: "str | os.PathLike[str] | MinariDataset",
    env_id: str | None = None,
    allow_nan: bool = False,
    default_env: EnvSpec | None = None,
) -> EpisodeDataset:
    """Load the dataset that ``ref`` names.

    Args:
        ref: ``minari:mujoco/hopper/medium-v0`` or a bare id, ``d4rl:FILE.hdf5`` or a bare path ending in .hdf5,
            ``ogbench:FILE.npz`` or a bare path ending in .npz, ``demo:pointmaze``; a path object; or a
            ``minari.MinariDataset``, also one that was filtered or split.
            ``minari:D4RL/pointmaze/umaze-v2#observation,desired_goal`` reads those entries of a Dict observation.
        env_id: the environment that you name, in place of the recorded one; ``package:ID`` imports the package. Never
            pass an id that was found in a file. OGBench's files need one: its task gives the rewards.
        allow_nan: keep NaN and infinities, for ``data inspect``.
        default_env: what a bundle or buffer of this dataset says; counts where the data name another or none.

    Returns:
        All episodes in memory, in raw units, in the order of the file; observations flattened to float32 [.., O].

    Raises:
        UserError: when there is no such dataset, it cannot be read, or (without ``allow_nan``) holds a NaN.

    Examples:
        >>> rs.load_dataset("mine.hdf5")  # of docs/data.md; the same as d4rl:mine.hdf5
        EpisodeDataset(d4rl:mine.hdf5: 20 episodes, 1,000 transitions, observation 4, action 2)
    """
    if isinstance(ref, str | os.PathLike):
        kind, name = parse_ref(os.fspath(ref))
        dataset = _READERS[kind](name, env_id, allow_nan, default_env)
    else:
        kind, dataset = "minari", _from_object(ref, env_id, allow_nan)
    if kind not in FILE_KINDS:  # whose readers have them for the bounds of the actions
        dataset = _with_environment(dataset, env_id, default_env)
    for problem in dataset.found:
        warnings.warn(f"{dataset.name}: {problem['message']}", DatasetWarning, stacklevel=2)
    return dataset


def _demo(name: str, env_id: str | None, allow_nan: bool, default_env: EnvSpec | None) -> EpisodeDataset:
    if name != "pointmaze":
        raise UserError(f"no demo dataset is called {name!r}; there is: demo:pointmaze")
    from raystitch.data.demo import load_or_make_pointmaze

    dataset, named = load_or_make_pointmaze(), _named(env_id)
    return dataset if named is None else replace(dataset, env=named)


def _d4rl(name: str, env_id: str | None, allow_nan: bool, default_env: EnvSpec | None) -> EpisodeDataset:
    from raystitch.data.d4rl import read_d4rl

    return read_d4rl(name, env_id=env_id, allow_nan=allow_nan, default_env=default_env)


def _ogbench(name: str, env_id: str | None, allow_nan: bool, default_env: EnvSpec | None) -> EpisodeDataset:
    from raystitch.data.ogbench import read_ogbench

    return read_ogbench(name, env_id=env_id, allow_nan=allow_nan, default_env=default_env)


def _minari(name: str, env_id: str | None, allow_nan: bool, default_env: EnvSpec | None) -> EpisodeDataset:
    from raystitch.data.minari_io import read_minari

    return read_minari(name, allow_nan=allow_nan, env=_named(env_id))


_READERS = {"demo": _demo, "d4rl": _d4rl, "ogbench": _ogbench, "minari": _minari}


def _from_object(given: object, env_id: str | None, allow_nan: bool) -> EpisodeDataset:
    from minari import MinariDataset

    from raystitch.data.minari_io import read_minari_dataset

    if not isinstance(given, MinariDataset):
        raise UserError(
            f"a dataset is a reference such as minari:mujoco/hopper/medium-v0 or d4rl:FILE.hdf5, a path, or a "
            f"minari.MinariDataset, got {type(given).__name__}"
        )
    return read_minari_dataset(given, allow_nan=allow_nan, env=_named(env_id))


def _with_environment(dataset: EpisodeDataset, env_id: str | None, default_env: EnvSpec | None) -> EpisodeDataset:
    if env_id is not None:
        _check_sizes(dataset)
    elif default_env is not None and (dataset.env is None or dataset.env.env_id != default_env.env_id):
        return replace(dataset, env=default_env)
    return dataset


def _named(env_id: str | None) -> EnvSpec | None:
    if env_id is None:
        return None
    from raystitch.envs.make import spec_from_id

    return spec_from_id(env_id)


def _check_sizes(dataset: EpisodeDataset) -> None:
    from raystitch.envs.make import action_bounds

    assert dataset.env is not None
    obs_dim, low, _ = action_bounds(dataset.env)
    if (obs_dim, len(low)) != (dataset.obs_dim, dataset.act_dim):
        raise UserError(
            f"{dataset.name}: observations have {dataset.obs_dim} and actions {dataset.act_dim} dimensions, but "
            f"{dataset.env.env_id} has {obs_dim} and {len(low)}; name the environment it was recorded in (--env ENV_ID)"
        )
