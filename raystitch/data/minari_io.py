"""Minari datasets in and out.

Writing goes through Minari's own storage class into a hidden folder that is renamed into place. Reading goes straight
to the HDF5 file, which is several times faster than through Minari and leaves the recorded ``infos`` alone.

Legend: T transitions of one episode, O observation size, A action size.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from raystitch.data.checks import check_finite
from raystitch.data.episodes import Episode, EpisodeDataset
from raystitch.data.minari_root import (
    VERSION,
    check_dataset_id,
    dataset_path,
    download,
    local_ids,
    minari_root,
    nearest,
    resolve,
    versioned,
)
from raystitch.data.minari_spec import (
    OWN_METADATA,
    dataset_env,
    evaluation_metadata,
    open_storage,
    read_spaces,
    with_keys,
)
from raystitch.data.stream import EpisodeStream, stream_of
from raystitch.envs.spec import EnvSpec
from raystitch.errors import RunError, UserError
from raystitch.files import make_folder, require_space, sync, sync_tree, write_json

EPISODE_OVERHEAD = 16_000
"""Bytes that HDF5 takes for the groups and headers of one episode, at most."""


def _read_metadata(data_path: Path) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    try:
        metadata = json.loads((data_path / "metadata.json").read_text(encoding="utf-8"))
        complete = isinstance(metadata["total_episodes"], int) and isinstance(metadata["data_format"], str)
    except (OSError, ValueError, KeyError, TypeError):
        complete = False
    if not complete:
        raise UserError(f"{data_path} is not a complete Minari dataset: metadata.json is missing or damaged")
    return metadata


def _flat(values: Any, keys: tuple[str, ...] | None) -> NDArray[Any]:
    """Observations or actions of one episode, [rows, size]; ``values`` holds arrays or HDF5 datasets."""
    if keys is None:
        array = np.asarray(values)
        return array.reshape(len(array), -1)
    return np.concatenate([_flat(values[key], None) for key in keys], axis=1)


def _hdf5_episodes(data_path: Path, num_episodes: int) -> Iterator[Any]:
    with h5py.File(data_path / "main_data.hdf5") as file:
        for index in range(num_episodes):
            yield file[f"episode_{index}"]


def _stored_episodes(data_path: Path, metadata: Mapping[str, Any], spaces: tuple[Any, Any]) -> Iterable[Any]:
    if metadata["data_format"] == "hdf5":
        return _hdf5_episodes(data_path, metadata["total_episodes"])
    return open_storage(data_path, metadata, spaces).get_episodes(range(metadata["total_episodes"]))


def _check_lengths(parts: Mapping[str, NDArray[Any]], index: int, where: str) -> None:
    steps = len(parts["actions"])
    for name, values in parts.items():
        if len(values) != steps + (name == "observations"):
            raise UserError(
                f"{where}: episode {index} has {steps} actions but {len(values)} {name}; the dataset is damaged"
            )


def _read(data_path: Path, dataset_id: str, allow_nan: bool, named: EnvSpec | None) -> EpisodeDataset:
    from gymnasium import spaces

    from raystitch.envs.make import flat_size, observation_keys_of

    where = f"minari:{dataset_id}"
    metadata = _read_metadata(data_path)
    env = dataset_env(metadata, named, where)
    observation_space, action_space = read_spaces(metadata, env, where)
    if not isinstance(action_space, spaces.Box):
        raise UserError(
            f"{where}: the action space must be a Box, got {action_space}; actions have to be continuous: "
            "record discrete ones as a Box, for example one-hot"
        )
    keys = observation_keys_of(observation_space)
    flat_size(observation_space, keys, where)
    env = None if env is None else with_keys(env, keys)

    columns: dict[str, list[NDArray[Any]]] = {"observations": [], "actions": [], "rewards": []}
    terminated: list[bool] = []
    truncated: list[bool] = []
    try:
        for index, stored in enumerate(_stored_episodes(data_path, metadata, (observation_space, action_space))):
            parts = {
                "observations": _flat(stored["observations"], keys),
                "actions": _flat(stored["actions"], None),
                **{name: np.asarray(stored[name]) for name in ("rewards", "terminations", "truncations")},
            }
            _check_lengths(parts, index, where)
            for name, values in columns.items():
                values.append(parts[name].astype(np.float32))
            terminated.append(bool(parts["terminations"][-1:].any()))
            truncated.append(bool(parts["truncations"][-1:].any()))
    except UserError:
        raise
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise UserError(f"{where} is damaged and cannot be read from {data_path}: {error}") from error
    if not terminated:
        raise UserError(f"{where} holds no episodes")
    joined = {name: np.concatenate(values) for name, values in columns.items()}
    if not allow_nan:
        check_finite(joined, where)
    lengths = np.array([len(values) for values in columns["rewards"]], np.int64)
    final_observed = np.ones(len(lengths), np.bool_)
    final_observed[(metadata.get(OWN_METADATA) or {}).get("unobserved_final", [])] = False
    ended = np.array(terminated, np.bool_)
    return EpisodeDataset(
        name=where,
        observations=joined["observations"],
        actions=joined["actions"],
        rewards=joined["rewards"],
        terminated=ended,
        truncated=np.array(truncated, np.bool_) | ~ended,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        action_low=action_space.low.reshape(-1).astype(np.float32),
        action_high=action_space.high.reshape(-1).astype(np.float32),
        env=env,
        final_observed=final_observed,
    )


def read_minari(dataset_id: str, allow_nan: bool = False, env: EnvSpec | None = None) -> EpisodeDataset:
    """Reads a local Minari dataset; one with a version that is not there is downloaded first.

    An id without a version means the latest one.

    Args:
        allow_nan: keep NaN and infinities, for ``data inspect``.
        env: the environment that a user has named, in place of the recorded one.

    Raises:
        UserError: when there is no such dataset, it is damaged, has spaces raystitch cannot use, or holds a NaN.
    """
    dataset_id = resolve(check_dataset_id(dataset_id))
    data_path = dataset_path(dataset_id) / "data"
    if not data_path.is_dir():
        why = f"not found in {minari_root()}"
        if VERSION.search(dataset_id):
            why = download(dataset_id) or ""
        if why:
            raise UserError(f"minari:{dataset_id}: {why}; {nearest(dataset_id, local_ids())}")
    return _read(data_path, dataset_id, allow_nan, env)


def _buffer(episode: Episode) -> Any:
    from minari.data_collector import EpisodeBuffer

    steps = len(episode.actions)
    ends = np.arange(steps) == steps - 1
    columns: dict[str, Any] = {
        "observations": episode.observations,
        "actions": episode.actions,
        "rewards": episode.rewards,
        "terminations": ends & episode.terminated,
        "truncations": ends & episode.truncated,
    }
    return EpisodeBuffer(**columns)


def _write_data(dataset: EpisodeStream, data_path: Path, dataset_id: str, description: str) -> None:
    import minari
    from gymnasium.spaces import Box
    from minari.dataset.minari_storage import MinariStorage

    from raystitch.envs.make import gymnasium_spec

    storage = MinariStorage.new(
        data_path,
        observation_space=Box(-np.inf, np.inf, (dataset.obs_dim,), np.float32),
        action_space=Box(dataset.action_low, dataset.action_high, dtype=np.float32),
        env_spec=gymnasium_spec(dataset.env) if dataset.env is not None else None,
        data_format="hdf5",
    )
    storage.update_metadata(
        {
            "dataset_id": dataset_id,
            "minari_version": minari.__version__,
            "algorithm_name": "",
            "author": {"raystitch"},
            "code_permalink": "",
            "description": description,
            **evaluation_metadata(dataset.env),
            OWN_METADATA: {
                "env": dataset.env.to_json() if dataset.env is not None else None,
                "unobserved_final": np.flatnonzero(~dataset.final_observed).tolist(),
            },
        }
    )
    storage.update_episodes(_buffer(episode) for piece, _ in dataset.pieces() for episode in piece)


@contextmanager
def _hidden_folder(parent: Path) -> Iterator[Path]:
    """A folder that Minari's listings skip; removed at the end with whatever is still in it."""
    make_folder(parent)
    folder = Path(tempfile.mkdtemp(prefix=".raystitch-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_minari(
    episodes: EpisodeDataset | EpisodeStream, dataset_id: str, overwrite: bool = False, description: str | None = None
) -> str:
    """Writes a local Minari dataset, whole or not at all; returns its id, with ``-v0`` where none was given.

    Raises:
        UserError: for an id that Minari would not accept or that exists already.
        RunError: when the folder cannot be written or the disk is full.
    """
    dataset = stream_of(episodes)
    dataset_id = versioned(check_dataset_id(dataset_id))
    final = dataset_path(dataset_id)
    if final.exists() and not overwrite:
        raise UserError(
            f"minari:{dataset_id} exists already in {minari_root()}; use another id "
            "(`data make` and `data import` take --overwrite)"
        )
    require_space(minari_root(), dataset.num_bytes + dataset.num_episodes * EPISODE_OVERHEAD)
    try:
        with _hidden_folder(minari_root()) as folder:
            (folder / "new").mkdir()
            _write_data(dataset, folder / "new" / "data", dataset_id, description or f"made from {dataset.name}")
            for namespace in list(final.relative_to(minari_root()).parents)[:-1]:
                marker = minari_root() / namespace / "namespace_metadata.json"
                if not marker.exists():
                    write_json(marker, {})
            sync_tree(folder / "new")
            if final.exists():
                os.rename(final, folder / "old")
            os.rename(folder / "new", final)
            sync(final.parent)  # before the old one is removed
    except (OSError, RuntimeError) as error:
        raise RunError(f"minari:{dataset_id} cannot be written to {minari_root()}: {error}") from error
    return dataset_id
