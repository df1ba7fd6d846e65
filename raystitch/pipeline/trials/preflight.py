"""Checks that run before a sweep changes any file; ``--dry-run`` runs the same ones.

Nothing here writes. Checks that depend on a cluster are in ``cluster/``.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from raystitch.buffer.meta import META_FILE, check_buffer, read_meta
from raystitch.buffer.schema import SCHEMA_VERSION
from raystitch.config import RunConfig
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.normalise import Normalizer
from raystitch.errors import DamagedError, UserError
from raystitch.io.files import is_remote, require_space
from raystitch.io.storage import Storage
from raystitch.models.bundle import Bundle
from raystitch.models.calibration import Delta
from raystitch.models.fit import existing_fit, rehearse_fit
from raystitch.pipeline.generate.opening import pairs_of, planned_meta
from raystitch.pipeline.generate.pilot import usable_modes
from raystitch.pipeline.trials.checks import check_evaluation, check_suitable
from raystitch.pipeline.trials.loggers import check_loggers
from raystitch.pipeline.trials.search import check_search, read_search
from raystitch.pipeline.trials.trial import STITCHER
from raystitch.pipeline.trials.trial_folder import finished
from raystitch.report.files import BUFFER, TRIALS
from raystitch.shaping.config import ShapingConfig
from raystitch.shaping.rewards import check_rewards
from raystitch.shaping.weights import EpisodeFacts, episode_weights
from raystitch.trainers.config import DataSpec
from raystitch.trainers.data import check_trainable
from raystitch.trainers.ratio import parse_ratio
from raystitch.trainers.registry import find_algorithm
from raystitch.trainers.segments import original_segments
from raystitch.trainers.shaped import GENERATED_ONLY


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A run that nothing refuses.

    Attributes:
        config: its settings, with what is ``auto`` decided for the dataset.
        notes: what is odd, one line each.
    """

    config: RunConfig
    dataset: EpisodeDataset
    notes: list[str]


def check_run(config: RunConfig, folder: Path, buffer: str | None = None) -> Checked:
    """Load the dataset and ask everything that may refuse the run; changes nothing.

    Args:
        buffer: where it is, if not in the folder.

    Raises:
        UserError: for the first thing that cannot work, as the stage that needs it would say it.
        RunError: when the disk has no room.
    """
    check_search(config.search)
    check_loggers(config.logging, folder)
    selected = config.dataset_ref.load_selected()
    dataset = selected.dataset
    asked, config = config, config.for_dataset(dataset)
    check_evaluation(dataset, config.evaluation)
    notes = [*selected.lines, *check_suitable(dataset), *_weight_notes(config, dataset)]
    if asked.stitch.pairs.split == "auto":
        notes.append(asked.stitch.pairs.split_text(config.stitch.pairs))
    for shaping in _shapings(config):
        check_rewards(shaping.rewards, dataset)
    _check_algorithms(config, dataset)
    check_stages(config, folder, dataset, buffer)
    if buffer is None or not is_remote(buffer):
        require_space(folder, buffer_bytes(config.augment.num_bridges, config.fit.diffusion.gap_min, dataset))
    return Checked(config=config, dataset=dataset, notes=notes)


def check_stages(config: RunConfig, folder: Path, dataset: EpisodeDataset, buffer: str | None = None) -> None:
    """Check that the folder's contents belong to these settings and that every stage up to the trials can start.

    Args:
        buffer: where it is, if not in the folder.

    Raises:
        UserError: naming what does not fit.
    """
    with suppress(DamagedError):  # a damaged file is set aside and the search starts again
        read_search(folder)
    for trial_dir in (folder / TRIALS).glob("*/"):
        finished(trial_dir)  # raises if a result cannot be read: it must not be trained again
    bundle = existing_fit(folder / STITCHER, dataset, config.fit, "cpu")
    at = folder / BUFFER if buffer is None else buffer
    begun = replace(config, stitch=replace(config.stitch, pairs=pairs_of(Storage(at), config.stitch.pairs)))
    _check_buffer(begun, at, dataset, bundle)
    check_judged(config, at)
    if bundle is not None:
        bundle.calibration.check(asked_deltas(config))
        if config.stitch.pairs.needs_pilot and not Storage(at).exists(META_FILE):
            bundle.calibration.believed()
    stand_in = bundle or rehearse_fit(dataset, config.fit)
    planned_meta(dataset, stand_in, begun.stitch, config.augment, config.seed)
    next(usable_modes(dataset, stand_in, config.stitch))


def asked_deltas(config: RunConfig) -> list[Delta]:
    """Return every delta that bridges are made or read at."""
    of_search = config.search.delta if config.search.algorithm != "none" else ()
    return [config.stitch.qualify.delta, *(delta for cell in config.grid for delta in cell.delta), *of_search]


def _check_buffer(config: RunConfig, path: Path | str, dataset: EpisodeDataset, bundle: Bundle | None) -> None:
    if bundle is not None:
        check_buffer(path, planned_meta(dataset, bundle, config.stitch, config.augment, config.seed))
        return
    storage = Storage(path)
    if not storage.exists(META_FILE):
        return
    # The bundle is not there to compare with; compare the rest.
    check_buffer(
        path,
        replace(
            read_meta(storage),
            dataset_fingerprint=dataset.fingerprint,
            obs_dim=dataset.obs_dim,
            act_dim=dataset.act_dim,
            stitch=config.stitch,
            augment=config.augment.resolved(config.stitch.pairs.split == "value"),
            seed=config.seed,
        ),
    )


def _shapings(config: RunConfig) -> list[ShapingConfig]:
    """Return what is done to the data of all cells."""
    return [config.search.shaping, *(shaping for line in config.grid for shaping in line.shapings)]


def check_judged(config: RunConfig, path: Path | str) -> None:
    """Check that a buffer that is there keeps what the run's rules for rewards go by.

    Raises:
        UserError: where it is of an earlier schema.
    """
    shapings = _shapings(config)
    asked = [shaping.rewards.name for shaping in shapings if shaping.rewards.name in GENERATED_ONLY]
    storage = Storage(path)
    if asked and storage.exists(META_FILE) and read_meta(storage).schema_version < SCHEMA_VERSION:
        raise UserError(
            f"rewards: {asked[0]} needs the judges' numbers of every generated step, which {path} does not keep "
            "(schema 2: no per-step residuals); use another --out, where bridges are generated again"
        )


def _weight_notes(config: RunConfig, dataset: EpisodeDataset) -> list[str]:
    """Return a line for each weighting of the original data that has nothing to go by.

    Raises:
        UserError: for a share that selects no episode.
    """
    first = Normalizer.fit(dataset.observations).encode(dataset.observations[dataset.obs_offsets[:-1]])
    facts = EpisodeFacts(
        returns=dataset.returns,
        lengths=dataset.lengths,
        first_observations=first,
        sources=np.arange(dataset.num_episodes),
    )
    cells = [cell for line in config.grid for cell in line.cells if cell.data == "weighted"]
    notes: list[str] = []
    for shaping in dict.fromkeys(cell.shaping for cell in cells):
        weights = DataSpec(kind="transitions", data="weighted", shaping=shaping).weights
        episode_weights(weights, facts, lambda line: notes.append(f"{dataset.name}: {line}"))
    return notes


def _check_algorithms(config: RunConfig, dataset: EpisodeDataset) -> None:
    """Check that every algorithm of the run can draw its batches from the dataset."""
    check_trainable(dataset)
    unknown_next = ~dataset.next_observed & ~dataset.transition_terminal
    usable = len(original_segments(dataset).without(unknown_next).drawable())
    for algo, ratio in _shares(config):
        if not usable and find_algorithm(algo).kind == "transitions":
            raise UserError(f"{dataset.name} has no transition with a recorded next state, which {algo} trains on")
        parse_ratio(ratio).counts(config.algorithms.of(algo).batch_size)


def _shares(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Yield algorithm and ratio of every cell."""
    for cell in config.grid:
        yield from ((cell.algo, ratio) for ratio, _ in cell.combinations)
    if config.search.algorithm != "none" and isinstance(config.search.ratio, tuple):
        yield from ((config.search.algo, ratio) for ratio in config.search.ratio)


def buffer_bytes(num_bridges: int, gap: int, dataset: EpisodeDataset) -> int:
    """Return the least that the buffer takes: every candidate accepted, and every gap the smallest."""
    floats = (gap + 2) * dataset.obs_dim + (gap + 1) * (dataset.act_dim + 1)
    return 4 * floats * num_bridges


def check_out(out: str | os.PathLike[str]) -> Path:
    """Return the run's folder as an absolute path, checked to be one that can be made and written; makes nothing.

    Raises:
        UserError: when it is no folder, or cannot be one.
    """
    if "://" in str(out):
        raise UserError(f"--out {out}: name a folder by its path, or an object store such as s3://bucket/runs/name")
    folder = Path(out).expanduser().absolute()
    there = nearest(folder)
    if not there.is_dir():
        raise UserError(f"--out {out} cannot be made: {there} is a file; choose another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"--out {out} cannot be {'written' if there == folder else 'made'}; choose another folder")
    return folder


def nearest(folder: Path) -> Path:
    """Return the folder, or the nearest above it that is there."""
    while not os.path.lexists(folder):
        folder = folder.parent
    return folder
