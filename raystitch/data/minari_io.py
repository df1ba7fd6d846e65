"""Minari datasets in and out.

Writing goes through Minari's own storage class into a hidden folder that is renamed into place. Reading goes straight
to the files (see ``minari_episodes``), which is several times faster than through Minari and opens nothing else.

Legend: T transitions of one episode, O observation size, A action size.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raystitch.data.bounds import usable_bounds
from raystitch.data.checks import Resolution, as_column, check_finite, check_magnitudes
from raystitch.data.episodes import Bools, Episode, EpisodeDataset
from raystitch.data.goals import GoalsLeftOut, has_goals, mend_first_goals, with_position
from raystitch.data.minari_episodes import DatasetFolder, StoredEpisode, read_metadata, stored_episodes
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
from raystitch.data.minari_spec import OWN_METADATA, dataset_env, evaluation_metadata, read_spaces, with_keys
from raystitch.data.spaces import KEYS_MARK, check_action_space, layout_note, observation_keys, split_keys
from raystitch.data.stream import EpisodeStream, stream_of
from raystitch.envs.spec import EnvSpec
from raystitch.errors import RunError, UserError
from raystitch.io.files import make_folder, require_space, sync, sync_tree, write_json

if TYPE_CHECKING:
    from minari import MinariDataset

EPISODE_OVERHEAD = 16_000
"""Upper limit on the bytes that HDF5 takes for the groups and headers of one episode."""


def _flat(stored: StoredEpisode, column: str, keys: tuple[str, ...] | None) -> NDArray[Any]:
    """Observations or actions of one episode, [rows, size].

    Raises:
        KeyError: for a column that is not there.
    """
    if keys is None:
        array = _column(stored, column)
        return array.reshape(len(array), -1)
    return np.concatenate([_flat(stored, f"{column}/{key}", None) for key in keys], axis=1)


def _column(stored: StoredEpisode, name: str) -> NDArray[Any]:
    values = stored.numbers(name)
    if values is None:
        raise KeyError(f"there is no array {name}")
    return values


class _Columns:
    """The episodes read so far; number arrays are float32."""

    def __init__(self, keys: tuple[str, ...] | None, where: str) -> None:
        self.keys, self.where = keys, where
        self.values: dict[str, list[NDArray[np.float32]]] = {"observations": [], "actions": [], "rewards": []}
        self.terminated: list[bool] = []
        self.truncated: list[bool] = []
        self.unobserved: list[int] = []
        self.resolution = Resolution()

    def add(self, index: int, stored: StoredEpisode) -> None:
        """Raises:
        UserError: when the arrays of the episode do not fit together.
        """
        observations, actions = _flat(stored, "observations", self.keys), _flat(stored, "actions", None)
        steps = len(actions)
        if len(observations) == steps > 0:  # some recorders leave out the last one
            observations = np.concatenate([observations, observations[-1:]])
            self.unobserved.append(len(self.terminated))
        if len(observations) != steps + 1:
            raise self._damaged(index, steps, f"{len(observations)} observations")
        flat = {}
        for name in ("rewards", "terminations", "truncations"):
            stored_column = _column(stored, name)
            column = as_column(stored_column, steps)
            if column is None:
                raise self._damaged(index, steps, f"{name} of shape {stored_column.shape}")
            flat[name] = column
        self.resolution.add(observations)
        for name, values in (("observations", observations), ("actions", actions), ("rewards", flat["rewards"])):
            self.values[name].append(values.astype(np.float32, copy=False))
        self.terminated.append(bool(flat["terminations"][-1:].any()))
        self.truncated.append(bool(flat["truncations"][-1:].any()))

    def _damaged(self, index: int, steps: int, what: str) -> UserError:
        return UserError(f"{self.where}: episode {index} has {steps} actions but {what}; the dataset is damaged")

    def joined(self) -> dict[str, NDArray[np.float32]]:
        """All episodes one after another; can be called once."""
        joined = {}
        for name in list(self.values):
            joined[name] = np.concatenate(self.values.pop(name))
        return joined


def _read(
    folder: DatasetFolder,
    dataset_id: str,
    allow_nan: bool,
    asked_keys: tuple[str, ...] | None,
    named: EnvSpec | None,
    indices: Sequence[int] | None = None,
) -> EpisodeDataset:
    """The episodes of those numbers, all of them by default."""
    where = folder.where
    metadata = read_metadata(folder)
    env = dataset_env(metadata, named, where)
    observation_space, action_space = read_spaces(metadata, env, where)
    check_action_space(action_space, where)
    keys = observation_keys(observation_space, asked_keys, dataset_id, where)
    if indices is None:
        indices = range(metadata["total_episodes"])
    if not len(indices):
        raise UserError(f"{where} holds no episodes")
    goals = GoalsLeftOut.of(observation_space, asked_keys)
    try:
        if asked_keys is None and has_goals(observation_space):
            for stored in stored_episodes(folder, metadata, indices[:1]):
                keys = with_position(keys, observation_space, stored)
        columns = _Columns(keys, where)
        for index, stored in zip(indices, stored_episodes(folder, metadata, indices), strict=True):
            columns.add(index, stored)
            goals.add(stored)
    except (OSError, KeyError, RuntimeError) as error:
        raise UserError(f"{where} is damaged and cannot be read from {folder.path}: {error}") from error
    lengths = np.array([len(values) for values in columns.values["rewards"]], np.int64)
    joined = columns.joined()
    if not allow_nan:
        check_finite(joined, where)
        check_magnitudes(joined, where)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    obs_offsets = offsets + np.arange(len(offsets))
    late_goals = mend_first_goals(joined["observations"], obs_offsets, observation_space, keys)
    low, high, found = usable_bounds(action_space.low, action_space.high, joined["actions"], where)
    final_observed = np.ones(len(lengths), np.bool_)
    final_observed[columns.unobserved] = False
    final_observed[np.isin(indices, (metadata.get(OWN_METADATA) or {}).get("unobserved_final", []))] = False
    ended = np.array(columns.terminated, np.bool_)
    return EpisodeDataset(
        name=where,
        observations=joined["observations"],
        actions=joined["actions"],
        rewards=joined["rewards"],
        terminated=ended,
        truncated=np.array(columns.truncated, np.bool_) | ~ended,
        offsets=offsets,
        action_low=low,
        action_high=high,
        env=None if env is None else with_keys(env, keys),
        final_observed=final_observed,
        found=(*found, *late_goals, *goals.problems(dataset_id, keys), *columns.resolution.problems()),
    )


def read_minari(reference: str, allow_nan: bool = False, env: EnvSpec | None = None) -> EpisodeDataset:
    """Read a local Minari dataset; one with a version that is not there is downloaded first.

    An id without a version means the latest one.

    Args:
        reference: the id; ``ID#observation,desired_goal`` reads those entries of a Dict observation, in that order.
        allow_nan: keep NaN and infinities, for ``data inspect``.
        env: the environment that a user has named, in place of the recorded one.

    Raises:
        UserError: when there is no such dataset, it is damaged, has spaces raystitch cannot use, or holds a NaN.
    """
    dataset_id, keys = split_keys(reference)
    dataset_id = resolve(check_dataset_id(dataset_id))
    data_path = dataset_path(dataset_id) / "data"
    if not data_path.is_dir():
        why = f"not found in {minari_root()}"
        if VERSION.search(dataset_id):
            why = download(dataset_id) or ""
        if why:
            raise UserError(f"minari:{dataset_id}: {why}; {nearest(dataset_id, local_ids())}")
    return _read(_folder(data_path, dataset_id, keys), dataset_id, allow_nan, keys, env)


def _folder(data_path: Path, dataset_id: str, keys: tuple[str, ...] | None, part: str = "") -> DatasetFolder:
    chosen = "" if keys is None else KEYS_MARK + ",".join(keys)
    return DatasetFolder(
        path=data_path,
        where=f"minari:{dataset_id}{chosen}{part}",
        remedy=f"remove {data_path.parent} and get it again, as with `minari download {dataset_id}`",
    )


def read_minari_dataset(
    dataset: "MinariDataset", allow_nan: bool = False, env: EnvSpec | None = None
) -> EpisodeDataset:
    """Read the episodes of a ``minari.MinariDataset``, all of them or those that a filter or a split left.

    Raises:
        UserError: as ``read_minari`` does.
    """
    indices = [int(index) for index in dataset.episode_indices]
    total = dataset.storage.total_episodes
    part = "" if indices == list(range(total)) else f" ({len(indices)} of its {total} episodes)"
    folder = _folder(Path(dataset.storage.data_path), dataset.id, None, part)
    return _read(folder, dataset.id, allow_nan, None, env, indices)


def _buffer(episode: Episode, is_synthetic: Bools | None) -> Any:
    """One episode as Minari takes it. What is known of a step is in the row of the state that it leads to, as ever."""
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
    if is_synthetic is not None:
        columns["infos"] = {"is_synthetic": np.append(False, is_synthetic)}
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
    storage.update_episodes(_buffers(dataset))


def _buffers(dataset: EpisodeStream) -> Iterator[Any]:
    for piece, is_synthetic in dataset.pieces():
        for index, episode in enumerate(piece):
            steps = slice(int(piece.offsets[index]), int(piece.offsets[index + 1]))
            yield _buffer(episode, None if is_synthetic is None else is_synthetic[steps])


@contextmanager
def _hidden_folder(parent: Path) -> Iterator[Path]:
    """A folder that Minari's listings skip; it is removed at the end with everything that is still in it."""
    make_folder(parent)
    folder = Path(tempfile.mkdtemp(prefix=".raystitch-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def new_id(dataset_id: str, overwrite: bool = False) -> str:
    """Return the id as a dataset would be written under it, with ``-v0`` where no version is given.

    Raises:
        UserError: for an id that Minari would not accept or that exists already.
    """
    dataset_id = versioned(check_dataset_id(dataset_id))
    if dataset_path(dataset_id).exists() and not overwrite:
        raise UserError(
            f"minari:{dataset_id} exists already in {minari_root()}; use another id "
            "(`data make`, `data import` and `data select` take --overwrite)"
        )
    return dataset_id


def write_minari(
    episodes: EpisodeDataset | EpisodeStream, dataset_id: str, overwrite: bool = False, description: str | None = None
) -> str:
    """Write a local Minari dataset, whole or not at all; return its id as ``new_id`` does.

    Raises:
        UserError: as ``new_id``.
        RunError: when the folder cannot be written or the disk is full.
    """
    dataset = stream_of(episodes)
    dataset_id = new_id(dataset_id, overwrite)
    final = dataset_path(dataset_id)
    require_space(minari_root(), dataset.num_bytes + dataset.num_episodes * EPISODE_OVERHEAD)
    try:
        with _hidden_folder(minari_root()) as folder:
            (folder / "new").mkdir()
            about = ". ".join([description or f"made from {dataset.name}", *layout_note(dataset.env)])
            _write_data(dataset, folder / "new" / "data", dataset_id, about)
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
