"""One reference, one dataset: ``minari:ID``, ``d4rl:FILE.hdf5``, ``demo:pointmaze``."""

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from raystitch.data.episodes import EpisodeDataset
from raystitch.errors import UserError

if TYPE_CHECKING:
    from minari import MinariDataset

HDF5_SUFFIXES = (".hdf5", ".h5")


class DatasetWarning(UserWarning):
    """What was odd about a dataset, and how it was read; ``inspect`` lists it too."""


def parse_ref(ref: str) -> tuple[str, str]:
    """Kind (``minari``, ``d4rl`` or ``demo``) and name of a dataset reference; a bare id or path has its kind found.

    Raises:
        UserError: for anything that is none of them.
    """
    kind, separator, name = ref.partition(":")
    if separator and kind in ("minari", "d4rl", "demo"):
        if not name:
            raise UserError(f"dataset {ref!r} names nothing after {kind}:")
        return kind, name
    if ref.endswith(HDF5_SUFFIXES) or Path(ref).is_file():
        return "d4rl", ref
    if separator or not ref:
        raise UserError(f"dataset {ref!r}: use minari:ID, d4rl:FILE.hdf5 or demo:pointmaze")
    if Path(ref).is_dir() and (ref.startswith((".", "/")) or (Path(ref) / "data" / "metadata.json").exists()):
        raise UserError(f"dataset {ref!r} is a folder; for a Minari root set MINARI_DATASETS_PATH and give minari:ID")
    return "minari", ref


def load_dataset(
    ref: "str | os.PathLike[str] | MinariDataset", env_id: str | None = None, allow_nan: bool = False
) -> EpisodeDataset:
    """Loads the dataset ``ref`` names.

    Args:
        ref: ``minari:ID`` or a bare id, ``d4rl:FILE.hdf5`` or a bare path ending in .hdf5, ``demo:pointmaze``; a path
            object; or a ``minari.MinariDataset``, also one that was filtered or split. ``minari:ID#KEY,KEY`` reads
            those entries of a Dict observation.
        env_id: the environment a D4RL file was recorded in, where the file does not say.
        allow_nan: keep NaN and infinities, for ``data inspect``.

    Returns:
        All episodes in memory, in raw units, in the order of the file; observations flattened to float32 [.., O].

    Raises:
        UserError: when there is no such dataset, it cannot be read, or (without ``allow_nan``) holds a NaN.

    Example:
        >>> rs.load_dataset("mine.hdf5")  # of docs/data.md; the same as d4rl:mine.hdf5
        EpisodeDataset(d4rl:mine.hdf5: 20 episodes, 1,000 transitions, observation 4, action 2)
    """
    dataset = _load(ref, env_id, allow_nan) if isinstance(ref, str | os.PathLike) else _from_object(ref, allow_nan)
    for problem in dataset.found:
        warnings.warn(f"{dataset.name}: {problem['message']}", DatasetWarning, stacklevel=2)
    return dataset


def _load(ref: "str | os.PathLike[str]", env_id: str | None, allow_nan: bool) -> EpisodeDataset:
    ref = os.fspath(ref)
    kind, name = parse_ref(ref)
    if env_id is not None and kind != "d4rl":
        raise UserError(f"{ref}: the environment is recorded in the dataset; env_id={env_id!r} is for D4RL files only")
    if kind == "demo":
        if name != "pointmaze":
            raise UserError(f"no demo dataset is called {name!r}; there is: demo:pointmaze")
        from raystitch.data.demo import load_or_make_pointmaze

        return load_or_make_pointmaze()
    if kind == "d4rl":
        from raystitch.data.d4rl import read_d4rl

        return read_d4rl(name, env_id=env_id, allow_nan=allow_nan)
    from raystitch.data.minari_io import read_minari

    return read_minari(name, allow_nan=allow_nan)


def _from_object(given: object, allow_nan: bool) -> EpisodeDataset:
    from minari import MinariDataset

    from raystitch.data.minari_io import read_minari_dataset

    if not isinstance(given, MinariDataset):
        raise UserError(
            f"a dataset is a reference such as minari:ID or d4rl:FILE.hdf5, a path, or a minari.MinariDataset, got "
            f"{type(given).__name__}"
        )
    return read_minari_dataset(given, allow_nan=allow_nan)
