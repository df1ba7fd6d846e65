"""Loads the data of a trial from its paths; they stay open between the trials of a process."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from raystitch.buffer.episodes import ChainedJoins, Joins, on_dataset
from raystitch.buffer.opening import open_buffer
from raystitch.buffer.reader import Buffer, MappedBridges
from raystitch.data.episodes import EpisodeDataset, wrong_dataset
from raystitch.data.ref import DatasetRef
from raystitch.device import give_memory_back
from raystitch.envs.starts import start_observations
from raystitch.errors import RunError
from raystitch.models.fit import load_once
from raystitch.pipeline.generate.augment import shard_seeds
from raystitch.pipeline.generate.knowledge import recorded_values
from raystitch.pipeline.trials.trial import JoinedSettings, LoadedInputs, Trial
from raystitch.stitching.candidates import Pairs
from raystitch.stitching.joining import chained_joins
from raystitch.stitching.pairs import SourceIndex

LoadDataset = Callable[[DatasetRef], EpisodeDataset]


@lru_cache(maxsize=1)
def load_dataset_once(ref: DatasetRef) -> EpisodeDataset:
    """Return ``ref.load()``, which a process does again only for another reference."""
    return ref.load()


def load_inputs(trial: Trial, load: LoadDataset = load_dataset_once) -> LoadedInputs:
    """Load what a planned trial names.

    Args:
        load: gets the trial's dataset.

    Raises:
        RunError: when the dataset is not the one the run began with.
        UserError: when dataset, bundle or buffer cannot be read.
    """
    assert trial.dataset is not None and trial.inputs is not None
    dataset = load(trial.dataset)
    if dataset.fingerprint != trial.inputs.dataset:
        raise RunError(
            wrong_dataset("the run", trial.dataset.ref, trial.inputs.dataset, dataset, "start the run again")
        )
    bridges = joined = None
    if trial.data == "stitched":
        assert trial.buffer is not None
        bridges = open_bridges(dataset, _buffer(trial.buffer, trial.inputs.buffer), trial.delta)
    if trial.data == "joined":
        assert trial.bundle is not None and trial.pairs is not None
        joined = _joined(dataset, trial.bundle, trial.inputs.bundle, trial.pairs)
        give_memory_back()
    return LoadedInputs(dataset=dataset, bridges=bridges, joined=joined)


def open_bridges(dataset: EpisodeDataset, buffer: Buffer | str | Path, delta: float | str | None) -> MappedBridges:
    """Return the bridges of a buffer that pass ``delta``, left in the mapped files.

    Raises:
        UserError: when the buffer cannot be read or was made from another dataset.
    """
    opened = buffer if isinstance(buffer, Buffer) else open_buffer(str(buffer))
    return on_dataset(opened, dataset).mapped(delta)


@lru_cache(maxsize=1)
def _buffer(path: str, content_hash: str) -> Buffer:
    """Return the open buffer; the hash makes one that was generated anew in this folder another."""
    return open_buffer(path)


@lru_cache(maxsize=1)
def _joined(dataset: EpisodeDataset, bundle: str, bundle_hash: str, asked: JoinedSettings) -> Joins:
    """Return the nearest real pairs, shard by shard because ``max_target_reuse`` counts per shard; in rounds where
    pairs are split by value.

    Args:
        bundle: its folder; the hash makes one that was fitted anew in this folder another.
    """
    fitted = load_once(bundle, "cpu")
    if asked.stitch.pairs.split == "value":
        starts = None if dataset.env is None else start_observations(dataset.env, dataset.obs_dim)
        links = chained_joins(
            dataset,
            fitted,
            asked.stitch,
            recorded_values(dataset, fitted, starts),
            lambda shard: shard_seeds(asked.seed, shard, asked.pairs_per_shard),
            count=asked.num_pairs,
            per_round=asked.per_round or asked.num_pairs,
        )
        return ChainedJoins(
            source_episode=links.source_episode,
            source_step=links.source_step,
            target_episode=links.last_episode,
            target_step=links.target_step,
            parent=links.next,
        )
    index = SourceIndex(dataset, fitted, asked.stitch)
    shards: list[Pairs] = []
    for shard, first in enumerate(range(0, asked.num_pairs, asked.pairs_per_shard)):
        count = min(asked.pairs_per_shard, asked.num_pairs - first)
        shards.append(index.nearest(shard_seeds(asked.seed, shard, asked.pairs_per_shard)[:count]))
    return Pairs.concatenate(shards)
