"""The grid of a run as trials, and their results as a table. A trial is finished when ``returns.json`` is complete."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raystitch.config import RunConfig
from raystitch.errors import DamagedError
from raystitch.io.digest import read_sealed
from raystitch.models.calibration import Delta
from raystitch.report.summary import delta_text
from raystitch.report.table import IN_GRID, RESULTS_SCHEMA
from raystitch.trainers.config import DataMode
from raystitch.trainers.ratio import parse_ratio

RETURNS_FILE = "returns.json"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Hashes of what trials are trained on."""

    dataset: str
    bundle: str
    buffer: str


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One policy to train; plain data.

    Attributes:
        trial_id: hash of everything that the result depends on.
        delta: as written in results.parquet: a number, ``q99``, ``off``; None where there are no generated bridges.
    """

    trial_id: str
    algo: str
    data: DataMode
    ratio: str
    delta: str | None
    seed: int

    @property
    def label(self) -> str:
        parts = (self.algo, self.data, self.ratio, None if self.delta is None else f"delta {self.delta}")
        return " ".join([*(part for part in parts if part), f"seed {self.seed}"])


def plan(config: RunConfig, inputs: Inputs | None = None) -> list[Trial]:
    """All trials of the grid, each once, seed by seed so that an interrupted run has whole tables first.

    Args:
        inputs: None before anything is fitted; the ids are then not the final ones.
    """
    trials: dict[str, Trial] = {}
    for seed in config.seeds:
        for cell in config.grid:
            for ratio, delta in cell.combinations:
                trial = make_trial(config, inputs, cell.algo, cell.data, ratio, delta, seed)
                trials.setdefault(trial.trial_id, trial)
    return list(trials.values())


def make_trial(
    config: RunConfig, inputs: Inputs | None, algo: str, data: DataMode, ratio: str, delta: Delta, seed: int
) -> Trial:
    """One trial of a cell, with its id."""
    shares = parse_ratio(ratio)
    # Nothing is augmented at 1:0: every such cell is the original data, which runs once.
    data = data if shares.augmented else "original"
    fields: dict[str, Any] = {
        "algo": algo,
        "data": data,
        "ratio": str(shares) if shares.augmented else "1:0",
        "delta": delta_text(delta) if data == "stitched" else None,
        "seed": seed,
    }
    return Trial(trial_id=_identity(config, inputs, fields), **fields)


def _identity(config: RunConfig, inputs: Inputs | None, fields: Mapping[str, Any]) -> str:
    content: dict[str, Any] = {
        **fields,
        "config": asdict(getattr(config.algorithms, fields["algo"])),
        "evaluation": config.evaluation.to_json(),
        "env": config.env,
        "dataset": inputs.dataset if inputs else config.dataset,
    }
    if fields["data"] == "stitched" and inputs:
        content |= {"bundle": inputs.bundle, "buffer": inputs.buffer}
    if fields["data"] == "joined":
        augment = config.augment
        content["pairs"] = [asdict(config.stitch), augment.num_bridges, augment.pairs_per_shard, config.seed]
        content |= {"bundle": inputs.bundle} if inputs else {}
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def finished(trial_dir: str | Path) -> dict[str, Any] | None:
    """The content of ``returns.json``, None while the trial is not finished: also where the file is damaged.

    Raises:
        UserError: when the file is there but cannot be read, which says nothing about the trial.
    """
    path = Path(trial_dir) / RETURNS_FILE
    if not path.is_file():  # a folder in its place is set aside when the trial is done again
        return None
    try:
        value = read_sealed(path)
    except DamagedError:
        return None
    whole = value.keys() >= {"train_steps", "train_seconds", "evaluations"}
    return value if whole and value["evaluations"] else None


def result_rows(
    trials: Sequence[Trial],
    folder: str | Path,
    errors: Mapping[str, str],
    delta_value: Callable[[str], float | None],
) -> list[dict[str, Any]]:
    """Rows of results.parquet: one per (trial, target return); failed trials have one, unfinished ones none.

    Args:
        folder: of the trials. errors: by trial id.
        delta_value: what a delta as asked is as a number.
    """
    rows: list[dict[str, Any]] = []
    for trial in trials:
        at = None if trial.delta is None else delta_value(trial.delta)
        value = finished(Path(folder) / trial.trial_id)
        if value is not None:
            rows += ok_rows(trial, value, at)
        elif trial.trial_id in errors:
            failed = {"headline": True, "status": "failed", "error": errors[trial.trial_id]}
            rows.append(blank_row(trial, at) | failed)
    return rows


def ok_rows(trial: Trial, value: Mapping[str, Any], delta_value: float | None) -> list[dict[str, Any]]:
    """The rows of a finished trial with ``returns.json`` ``value``."""
    blank = blank_row(trial, delta_value)
    steps = {name: value[name] for name in ("train_steps", "train_seconds")}
    return [
        blank | steps | {name: item for name, item in evaluation.items() if name in blank} | {"status": "ok"}
        for evaluation in value["evaluations"]
    ]


def blank_row(trial: Trial, delta_value: float | None) -> dict[str, Any]:
    """A row without results."""
    return dict.fromkeys(RESULTS_SCHEMA.names) | asdict(trial) | {"delta_value": delta_value, IN_GRID: True}
