"""Fits every model of a bundle, one part after the other, each resumable."""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raystitch.console import say
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.select import holdout_split
from raystitch.device import resolve_device, uses_bf16
from raystitch.errors import DamagedError, UserError
from raystitch.io.checkpoints import CheckpointFile
from raystitch.io.digest import KEY as DIGEST
from raystitch.io.digest import json_digest, read_sealed, sealed
from raystitch.io.files import differences, write_json
from raystitch.models.batches import recorded_stops
from raystitch.models.bundle import PARTS, STITCHER_FILE, Bundle, bundle_plan
from raystitch.models.calibrate import calibrate, calibration_windows
from raystitch.models.calibration import Calibration
from raystitch.models.config import FitConfig
from raystitch.models.loop import FitPart, FitProgress, train_part
from raystitch.models.parts import FitJob
from raystitch.models.scales import finite_bounds
from raystitch.seeding import derive_seed

RESUME_FOLDER = ".fit"
PLAN_FILE = "plan.json"
TIMED_STEPS = 8
"""Steps of a part by which its pace is measured."""


def fit_bundle(
    dataset: EpisodeDataset,
    config: FitConfig,
    out: str | os.PathLike[str] | None = None,
    device: str = "auto",
    progress: Callable[[FitProgress], None] | None = None,
    checkpoint_every: int = 500,
    note: Callable[[str], None] = say,
) -> Bundle:
    """Fits all models on ``dataset`` and saves them in ``out`` (None: in memory only).

    A run that was interrupted continues from its last checkpoint and ends exactly as an uninterrupted one; of a
    damaged checkpoint the one before it counts. A finished ``out`` of the same dataset and config is only loaded.

    Args:
        config: ``rs.FitConfig()`` for the defaults, ``raystitch.presets.PRESETS[name].fit`` for a preset.
        device: ``auto`` (a GPU where there is one), ``cpu``, ``cuda``, ``cuda:1``.
        progress: called now and then with the part, the step, the loss and the seconds left of the part.
        checkpoint_every: steps between checkpoints in ``out``.
        note: gets a line for every damaged file that the fit does without.

    Raises:
        UserError: the dataset does not suit the config, or ``out`` belongs to another dataset or config.
        RunError: a loss that is not finite, or a folder that cannot be written.

    Examples:
        >>> rs.fit(dataset, config, "stitcher", device="cpu").hash == bundle.hash  # finished: only loaded
        True
    """
    _check(dataset, config)
    resolved = resolve_device(device)
    folder = None if out is None else Path(out)
    if folder is not None:
        finished = existing_fit(folder, dataset, config, device, note)
        if finished is not None:
            shutil.rmtree(folder / RESUME_FOLDER, ignore_errors=True)
            return finished
    settings = {} if folder is None else _begin(folder, dataset, config)
    train, holdout = holdout_split(dataset.num_episodes, config.holdout_fraction, derive_seed(config.seed, "holdout"))
    calibration_windows(dataset, config, holdout, resolved)  # before the fit, not after it
    job = FitJob(dataset, config, train, resolved)
    for part in job.parts():
        train_part(
            part,
            seed=config.seed,
            checkpoint=None if folder is None else _checkpoint(folder, part.name, settings, note),
            checkpoint_every=checkpoint_every,
            progress=progress,
            bf16=uses_bf16(config.precision, resolved),
        )
    bundle = _bundle(job, calibrate(dataset, config, job.heads, holdout, resolved))
    if folder is not None:
        bundle.save(folder)
        shutil.rmtree(folder / RESUME_FOLDER, ignore_errors=True)
    return bundle


def _bundle(job: FitJob, calibration: Calibration) -> Bundle:
    dataset = job.dataset
    return Bundle(
        config=job.config,
        dataset_name=dataset.name,
        dataset_fingerprint=dataset.fingerprint,
        env=dataset.env,
        max_episode_steps=None if dataset.env is None else dataset.env.max_episode_steps,
        normalizer=job.normalizer,
        action_low=job.scales.action_low,
        action_high=job.scales.action_high,
        reward_low=job.scales.reward_low,
        reward_high=job.scales.reward_high,
        diffusion=job.unet,
        schedule=job.schedule,
        return_quantiles=job.return_quantiles,
        **vars(job.heads),
        calibration=calibration,
        device=job.device,
        selected_from=None if job.dataset.selected_from is None else job.dataset.whole_fingerprint,
    )


def _check(dataset: EpisodeDataset, config: FitConfig) -> None:
    states = recorded_stops(dataset) - dataset.obs_offsets[:-1]
    longest = int(states.max(initial=0))
    if config.diffusion.horizon > longest:
        raise UserError(
            f"{dataset.name}: diffusion.horizon={config.diffusion.horizon} is longer than every episode "
            f"(the longest has {longest} states); lower diffusion.horizon and diffusion.gap_max"
        )
    if dataset.num_episodes < 2:
        raise UserError(f"{dataset.name} has {dataset.num_episodes} episode; fitting holds whole episodes out, needs 2")
    for column in ("observations", "actions", "rewards"):
        if not np.isfinite(getattr(dataset, column)).all():
            raise UserError(f"{dataset.name}: {column} holds NaN or infinite values; see `raystitch data inspect`")


def _checkpoint(folder: Path, part: str, plan: dict[str, Any], note: Callable[[str], None]) -> CheckpointFile:
    return CheckpointFile(path=folder / RESUME_FOLDER / f"{part}.pt", settings=f"{part} {json_digest(plan)}", note=note)


def load_once(path: str | os.PathLike[str], device: str) -> Bundle:
    """Return ``Bundle.load`` of a folder, which a process reads again only when its files change.

    Raises:
        DamagedError, UserError: as ``Bundle.load``.
    """
    files = [Path(path, name) for name in (STITCHER_FILE, *(f"{part}.safetensors" for part in PARTS))]
    stats = [file.stat() if file.is_file() else None for file in files]
    stamp = tuple(None if at is None else (at.st_ino, at.st_size, at.st_mtime_ns) for at in stats)
    return _load(os.path.abspath(path), device, stamp)


@lru_cache(maxsize=1)
def _load(path: str, device: str, stamp: tuple[tuple[int, int, int] | None, ...]) -> Bundle:
    return Bundle.load(path, device)


def existing_fit(
    folder: str | os.PathLike[str],
    dataset: EpisodeDataset,
    config: FitConfig,
    device: str = "auto",
    note: Callable[[str], None] = say,
) -> Bundle | None:
    """Return the finished bundle that ``folder`` holds, None where a fit has to begin or go on; changes nothing.

    A damaged bundle counts as none; ``note`` gets a line that says so.

    Raises:
        UserError: when the folder belongs to another dataset or config.
    """
    folder, plan = Path(folder), _plan(dataset, config) | _bounds(dataset)
    if (folder / STITCHER_FILE).exists():
        try:
            _refuse_other(folder, bundle_plan(folder), plan)
            return load_once(folder, device)
        except DamagedError as error:
            note(f"{str(error).removesuffix('; fit again')}; it is fitted again")
    path = folder / RESUME_FOLDER / PLAN_FILE
    if path.exists():
        try:
            _refuse_other(folder, read_sealed(path), plan)
        except DamagedError as error:
            note(f"{error}; each checkpoint says itself what it belongs to")
    return None


def rehearse_fit(dataset: EpisodeDataset, config: FitConfig) -> Bundle:
    """Fits a bundle as ``config`` describes it, but with tiny networks and for one step.

    It knows nothing, and shows in a moment whether the dataset can be fitted.

    Raises:
        UserError, RunError: as ``fit_bundle``.
    """
    diffusion = config.diffusion
    heads: dict[str, Any] = {
        name: replace(head, hidden=8, num_layers=1, train_steps=1, batch_size=8) for name, head in config.heads.items()
    }
    tiny = replace(diffusion, width=8, num_blocks=1, train_steps=1, batch_size=8)
    return fit_bundle(dataset, replace(config, diffusion=tiny, calibration_windows=16, **heads), device="cpu")


def time_fit(dataset: EpisodeDataset, config: FitConfig) -> tuple[Bundle, float]:
    """Time a fit on the CPU: a few steps of every part, and once all that is done once.

    Returns:
        A bundle that knows nothing, and the seconds that the whole fit would take.

    Raises:
        UserError, RunError: as ``fit_bundle``.
    """
    began, more = time.perf_counter(), 0.0
    _check(dataset, config)
    train, holdout = holdout_split(dataset.num_episodes, config.holdout_fraction, derive_seed(config.seed, "holdout"))
    job = FitJob(dataset, config, train, torch.device("cpu"))
    for part in job.parts():
        if part.train_steps:
            seconds = _step_seconds(part, config.seed, uses_bf16(config.precision, job.device))
            more += seconds * max(0, part.train_steps - TIMED_STEPS)
    bundle = _bundle(job, calibrate(dataset, config, job.heads, holdout, job.device))
    return bundle, time.perf_counter() - began + more


def _step_seconds(part: FitPart, seed: int, bf16: bool) -> float:
    """Return the seconds of a step of one part, the median of some after the first two."""
    times: list[float] = []

    def watched(step: int, generator: torch.Generator) -> Tensor:
        times.append(time.perf_counter())
        return part.loss(step, generator)

    short = replace(part, train_steps=TIMED_STEPS, loss=watched)
    train_part(short, seed=seed, checkpoint=None, checkpoint_every=TIMED_STEPS, progress=None, bf16=bf16)
    return float(np.median(np.diff(times)[2:]))


def _begin(folder: Path, dataset: EpisodeDataset, config: FitConfig) -> dict[str, Any]:
    """Write what the fit belongs to, and return what its checkpoints have to match."""
    path, plan = folder / RESUME_FOLDER / PLAN_FILE, _plan(dataset, config)
    try:
        if path.exists() and "action_low" not in read_sealed(path):
            return plan  # begun by an older version, whose checkpoints do not say their bounds
    except DamagedError:
        pass  # written again
    plan |= _bounds(dataset)
    write_json(path, sealed(plan))
    return plan


def _plan(dataset: EpisodeDataset, config: FitConfig) -> dict[str, Any]:
    """Return the dataset and settings of a fit."""
    return {"dataset": dataset.fingerprint, **asdict(config)}


def _bounds(dataset: EpisodeDataset) -> dict[str, Any]:
    """Return what actions are scaled by, which a named environment may replace."""
    low, high = finite_bounds(dataset)
    return {"action_low": low.tolist(), "action_high": high.tolist()}


def _refuse_other(folder: Path, stored: dict[str, Any], asked: dict[str, Any]) -> None:
    if "action_low" not in stored:  # fits that older versions began do not say
        asked = {name: value for name, value in asked.items() if name not in ("action_low", "action_high")}
    different = differences({name: value for name, value in stored.items() if name != DIGEST}, asked)
    if different:
        raise UserError(
            f"{folder} holds a fit with other settings: {', '.join(different)}; choose another folder or delete it"
        )
