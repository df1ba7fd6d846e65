"""A run's folder as plain values; missing optional files are None."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from raystitch.buffer.meta import read_meta
from raystitch.buffer.reach_file import Reach, read_reach
from raystitch.buffer.schema import PilotResult
from raystitch.errors import UserError
from raystitch.io.files import read_json
from raystitch.io.storage import Storage
from raystitch.models.calibration import delta_text
from raystitch.report.cost import TrialCost
from raystitch.report.names import (
    BUFFER,
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    GENERALISE_FILE,
    METRICS_FILE,
    POTENTIAL_FILE,
    PROGRESS_FILE,
    RESULTS_FILE,
    RETURNS_FILE,
    SEARCH_FILE,
    TRIALS,
    VALIDATION_FILE,
)
from raystitch.report.summary import Headline
from raystitch.report.table import AGAIN, IN_GRID, PartialResults, read_rows, read_table
from raystitch.trainers.ratio import parse_ratio


def trial_path(run: str | Path, trial_id: str) -> Path:
    """Return the folder of a run's trial."""
    return Path(run) / TRIALS / trial_id


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """The contents of a run's folder that a report needs.

    Attributes:
        rows: rows of results.parquet for the run's own grid and search.
        other_rows: rows of trials that an earlier grid left in the folder; no table of scores has them.
        notes: one line for each file that could not be read.
        figures: tables of figures/, by name.
        metrics: lines of metrics.jsonl, by trial.
        validation, generalise: validate.json and generalise.json.
        search: search.json of a hyper-parameter search.
        potential: potential.json.
        reach: what the buffer's reach.json says, round by round.
        pilot: how the buffer's pairs were chosen, the best way first; empty where no pilot chose them.
        missing: what a run lacks that is not finished, a sentence each.
        progress: progress.json. costs: what trials with a result took, by trial.
    """

    folder: Path
    config: dict[str, Any]
    config_text: str
    environment: dict[str, Any] | None
    rows: list[dict[str, Any]]
    other_rows: list[dict[str, Any]]
    notes: list[str]
    validation: dict[str, Any] | None
    generalise: dict[str, Any] | None
    figures: dict[str, pa.Table]
    metrics: dict[str, list[dict[str, Any]]]
    search: dict[str, Any] | None
    reach: list[Reach]
    pilot: tuple[PilotResult, ...] = ()
    potential: dict[str, Any] | None = None
    missing: Sequence[str] = ()
    progress: dict[str, Any] | None = None

    @property
    def headline(self) -> Headline:
        """The cell that the verdict is about, as results.parquet has its values; a search chooses it."""
        chosen = (self.search or {}).get("chosen") or self.config.get("headline")
        if not chosen:
            return "", None
        return str(parse_ratio(chosen["ratio"])), delta_text(chosen["delta"]), chosen.get("shaping", "")

    @property
    def final_rows(self) -> list[dict[str, Any]]:
        """Rows that scores are reported from: without the trials that a search used to choose, because these flatter
        it."""
        seeds = set((self.search or {}).get("seeds", ()))
        return [row for row in self.rows if row["data"] != "stitched" or row["seed"] not in seeds]


def read_run(folder: str | Path, partial: PartialResults | None = None) -> RunFiles:
    """Read the files of one run.

    Args:
        partial: what is there of a run that is not finished, in place of results.parquet.

    Raises:
        UserError: when the folder is not a run, or its settings or results are damaged.
    """
    folder = Path(folder)
    for name in (CONFIG_FILE, *[RESULTS_FILE] * (partial is None)):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not a run with results: it has no {name}; finish it with `raystitch sweep`")
    text, config = _config(folder / CONFIG_FILE)
    rows = read_rows(folder / RESULTS_FILE) if partial is None else list(partial.rows)
    ours = [row for row in rows if row[IN_GRID]]
    notes: list[str] = []
    return RunFiles(
        folder=folder,
        config=config,
        config_text=text,
        environment=_optional_json(folder / ENVIRONMENT_FILE, notes),
        rows=ours,
        other_rows=[row for row in rows if not row[IN_GRID]],
        notes=notes,
        validation=_optional_json(folder / VALIDATION_FILE, notes),
        generalise=_optional_json(folder / GENERALISE_FILE, notes),
        figures=read_figures(folder / "figures", notes),
        metrics={row["trial_id"]: _metrics(trial_path(folder, row["trial_id"]), notes) for row in ours},
        missing=() if partial is None else partial.missing,
        progress=_optional_json(folder / PROGRESS_FILE, []),
        search=_search(folder, config, notes),
        potential=_optional_json(folder / POTENTIAL_FILE, notes),
        reach=_reach(folder / BUFFER, notes),
        pilot=_pilot(folder / BUFFER),
    )


def _config(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        config = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is damaged: {' '.join(str(error).split())}; {AGAIN}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} is damaged: it holds no settings; {AGAIN}")
    return text, config


def _optional_json(path: Path, notes: list[str]) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        value = read_json(path)
    except UserError as error:
        notes.append(str(error))
        return None
    if not isinstance(value, dict):
        notes.append(f"{path} is damaged: it holds no object")
        return None
    return value


def read_figures(folder: Path, notes: list[str]) -> dict[str, pa.Table]:
    """Read the tables of a run's ``figures``, by name; ``notes`` gets a line for each that cannot be read."""
    tables: dict[str, pa.Table] = {}
    for path in sorted(folder.glob("*.parquet")):
        try:
            tables[path.stem] = read_table(path)
        except UserError as error:
            notes.append(str(error))
    return tables


def read_costs(run: RunFiles) -> dict[str, TrialCost]:
    """Read what the finished trials of a run cost, by trial, from their ``returns.json``."""
    resources = run.config.get("resources")
    cpus = resources.get("trial_cpus", 1.0) if isinstance(resources, Mapping) else 1.0
    found: dict[str, TrialCost] = {}
    for trial_id in {row["trial_id"] for row in run.rows if row["status"] == "ok"}:
        returns = _optional_json(trial_path(run.folder, trial_id) / RETURNS_FILE, [])
        cost = None if returns is None else TrialCost.of(returns, max(1.0, float(cpus)))
        if cost is not None:
            found[trial_id] = cost
    return found


def _search(folder: Path, config: Mapping[str, Any], notes: list[str]) -> dict[str, Any] | None:
    """Return ``search.json``, or None where the run's settings ask for no search: an earlier search does not concern
    them."""
    asked = (config.get("search") or {}).get("algorithm")
    return None if asked == "none" else _optional_json(folder / SEARCH_FILE, notes)


def _reach(buffer: Path, notes: list[str]) -> list[Reach]:
    try:
        return read_reach(buffer)
    except UserError as error:
        notes.append(str(error))
        return []


def _pilot(buffer: Path) -> tuple[PilotResult, ...]:
    try:
        return read_meta(Storage(buffer)).pilot
    except UserError:
        return ()  # the report is about the trials; it does without a buffer that cannot be read


def _metrics(trial_dir: Path, notes: list[str]) -> list[dict[str, Any]]:
    try:
        return read_metrics(trial_dir)
    except UserError as error:
        notes.append(str(error))
        return []


def read_metrics(trial_dir: Path) -> list[dict[str, Any]]:
    """Read the complete lines of a trial's ``metrics.jsonl``; a killed trial may leave half a line at the end.

    Raises:
        UserError: when the file is there but cannot be read.
    """
    path = trial_dir / METRICS_FILE
    if not path.is_file():
        return []
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    lines: list[dict[str, Any]] = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(value, dict) and "kind" in value:
            lines.append(value)
    return lines
