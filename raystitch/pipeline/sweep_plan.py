"""The grid of a run as trials, and their results as a table. A trial is finished when ``returns.json`` is complete."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raystitch.config import RunConfig
from raystitch.errors import UserError
from raystitch.files import atomic_path, read_json
from raystitch.models.delta import Delta
from raystitch.report.summary import delta_text
from raystitch.trainers.config import DataMode
from raystitch.trainers.ratio import parse_ratio

RETURNS_FILE = "returns.json"

RESULTS_SCHEMA = pa.schema(
    [
        ("trial_id", pa.string()),
        ("algo", pa.string()),
        ("data", pa.string()),
        ("ratio", pa.string()),
        ("delta", pa.string()),
        ("delta_value", pa.float64()),
        ("seed", pa.int64()),
        ("target_return", pa.float64()),
        ("headline", pa.bool_()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("train_steps", pa.int64()),
        ("train_seconds", pa.float64()),
        ("return_mean", pa.float64()),
        ("return_std", pa.float64()),
        ("success_rate", pa.float64()),
        ("score", pa.float64()),
        ("num_eval_episodes", pa.int64()),
    ],
    metadata={"schema_version": "1"},
)


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
    """The content of ``returns.json``, None while the trial is not finished."""
    value = _returns(trial_dir)
    return value if value.get("evaluations") else None


def awaits_evaluation(trial_dir: str | Path) -> bool:
    """Whether the policy is trained and saved, and only its evaluation is missing."""
    return _returns(trial_dir).get("evaluations") == [] and (Path(trial_dir) / "policy" / "policy.json").is_file()


def _returns(trial_dir: str | Path) -> dict[str, Any]:
    """The content of ``returns.json``, empty where there is none that can be read."""
    path = Path(trial_dir) / RETURNS_FILE
    if not path.is_file():
        return {}
    try:
        value = read_json(path)
    except UserError:
        return {}
    return value if isinstance(value, dict) else {}


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
        blank: dict[str, Any] = dict.fromkeys(RESULTS_SCHEMA.names)
        shared = asdict(trial) | {"delta_value": None if trial.delta is None else delta_value(trial.delta)}
        value = finished(Path(folder) / trial.trial_id)
        if value is not None:
            steps = {name: value[name] for name in ("train_steps", "train_seconds")}
            for evaluation in value["evaluations"]:
                measured = {name: item for name, item in evaluation.items() if name in blank}
                rows.append(blank | shared | steps | measured | {"status": "ok"})
        elif trial.trial_id in errors:
            rows.append(blank | shared | {"headline": True, "status": "failed", "error": errors[trial.trial_id]})
    return rows


def write_results(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Writes results.parquet, whole or not at all."""
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=RESULTS_SCHEMA)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)
