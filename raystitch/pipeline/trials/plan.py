"""The grid of a run as trials, and their results as rows of a table."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from raystitch.buffer.reader import Buffer
from raystitch.config import RunConfig
from raystitch.data.select import ALL
from raystitch.errors import UserError
from raystitch.models.calibration import Delta
from raystitch.pipeline.status.cells import PlannedTrial, settled_cell
from raystitch.pipeline.trials.trial import STITCHER, InputHashes, JoinedSettings, Trial, shaping_entry
from raystitch.pipeline.trials.trial_folder import finished
from raystitch.report.files import BUFFER, trial_path
from raystitch.report.table import IN_GRID, RESULTS_SCHEMA, SHAPING, evaluated_rows
from raystitch.shaping.config import ShapingConfig
from raystitch.trainers.config import DataMode, settings_json

AS_RECORDED = ShapingConfig()
"""No hook changes the training data."""
_COLUMNS = ("trial_id", "algo", "data", "ratio", "delta", "seed")


def plan(config: RunConfig, inputs: InputHashes | None = None, run: str | Path = "") -> list[Trial]:
    """Return all trials of the grid, each once, seed by seed so that an interrupted run has whole tables first.

    Args:
        inputs: None before anything is fitted; the ids are then not the final ones.
        run: its folder.
    """
    trials: dict[str, Trial] = {}
    for seed in config.seeds:
        for cell in config.grid:
            for planned in cell.cells:
                trial = make_trial(config, inputs, run, **planned._asdict(), seed=seed)
                trials.setdefault(trial.trial_id, trial)
    return list(trials.values())


def planned(trials: Sequence[Trial]) -> list[PlannedTrial]:
    """Return trials as ``plan.json`` lists them."""
    return [
        PlannedTrial(**{name: getattr(trial, name) for name in _COLUMNS}, shaping=trial.shaping.text)
        for trial in trials
    ]


def make_trial(
    config: RunConfig,
    inputs: InputHashes | None,
    run: str | Path,
    *,
    algo: str,
    data: DataMode,
    ratio: str,
    delta: Delta,
    seed: int,
    shaping: ShapingConfig = AS_RECORDED,
) -> Trial:
    """Return one trial of a cell, with its id, its folder and everything that it is trained from."""
    data, written, at = settled_cell(data, ratio, delta)
    resources = config.resources
    pairs = JoinedSettings.of(config.stitch, config.augment, config.seed)
    fields = {"algo": algo, "data": data, "ratio": written, "delta": at, "seed": seed}
    trial_id = _identity(config, inputs, fields, pairs, shaping)
    return Trial(
        trial_id=trial_id,
        folder=str(trial_path(run, trial_id)),
        dataset=config.dataset_ref,
        algo=algo,
        config=config.algorithms.of(algo),
        shaping=shaping,
        evaluation=config.evaluation,
        data=data,
        ratio=written,
        delta=at,
        seed=seed,
        inputs=inputs,
        bundle=str(Path(run, STITCHER)),
        buffer=str(Path(run, BUFFER)),
        pairs=pairs if data == "joined" else None,
        device="cuda" if resources.trial_gpus > 0 else "cpu",
        threads=max(1, int(resources.trial_cpus)),
        memory_gib=resources.memory_gib,
    )


def _identity(
    config: RunConfig,
    inputs: InputHashes | None,
    fields: Mapping[str, Any],
    pairs: JoinedSettings,
    shaping: ShapingConfig,
) -> str:
    content: dict[str, Any] = {
        **fields,
        "config": settings_json(config.algorithms.of(fields["algo"])),
        **shaping_entry(shaping),
        "evaluation": config.evaluation.to_json(),
        "env": config.env,
        "dataset": inputs.dataset if inputs else config.dataset,
    }
    if not inputs and config.select != ALL:
        content["select"] = config.select  # else the dataset's fingerprint covers it
    if fields["data"] == "stitched" and inputs:
        content |= {"bundle": inputs.bundle, "buffer": inputs.buffer}
    if fields["data"] == "joined":
        content["pairs"] = pairs.to_json()
        content |= {"bundle": inputs.bundle} if inputs else {}
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def result_rows(
    trials: Sequence[Trial], errors: Mapping[str, str], delta_value: Callable[[str], float | None]
) -> list[dict[str, Any]]:
    """Return rows of results.parquet: one per (trial, target return); failed trials have one, unfinished ones none.

    Args:
        errors: by trial id.
        delta_value: gives a delta as asked as a number.
    """
    rows: list[dict[str, Any]] = []
    for trial in trials:
        at = None if trial.delta is None else delta_value(trial.delta)
        value = finished(trial.folder)
        if value is not None:
            rows += ok_rows(trial, value, at)
        elif trial.trial_id in errors:
            failed = {"headline": True, "status": "failed", "error": errors[trial.trial_id]}
            rows.append(blank_row(trial, at) | failed)
    return rows


def delta_values(buffer: Buffer) -> Callable[[str], float | None]:
    """Return a function that gives a delta as a number: for a quantile and ``auto`` the median of the thresholds over
    the accepted bridges' gaps, None where there are none. Every delta is worked out once, however many trials have
    it."""

    @cache
    def value_of(delta: str) -> float | None:
        try:
            rows = buffer.accepted_rows(delta)
        except UserError:  # another grid's auto
            return None
        if not len(rows):
            return None
        value = float(np.median(buffer.calibration.threshold(delta, buffer.column("gap")[rows])))
        return value if np.isfinite(value) else None

    return value_of


def ok_rows(trial: Trial, value: Mapping[str, Any], delta_value: float | None) -> list[dict[str, Any]]:
    """Return the rows of a finished trial with ``returns.json`` ``value``."""
    return evaluated_rows(blank_row(trial, delta_value), value)


def blank_row(trial: Trial, delta_value: float | None) -> dict[str, Any]:
    """Return a row without results."""
    cell = {name: getattr(trial, name) for name in _COLUMNS}
    return (
        dict.fromkeys(RESULTS_SCHEMA.names)
        | cell
        | {"delta_value": delta_value, IN_GRID: True, SHAPING: trial.shaping.text}
    )
