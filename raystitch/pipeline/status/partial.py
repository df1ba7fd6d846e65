"""The results of a run that is not finished, from its trials' folders, and what it lacks in words."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raystitch.console import duration
from raystitch.errors import UserError
from raystitch.io.storage import StrPath
from raystitch.pipeline.status.status import AUGMENT, FIT, SEARCH, VALIDATE, RunStatus, read_status
from raystitch.pipeline.status.trials import TrialState
from raystitch.report.names import RESULTS_FILE
from raystitch.report.summary import cell_label
from raystitch.report.table import (
    IN_GRID,
    RESULTS_SCHEMA,
    SHAPING,
    UNFINISHED,
    PartialResults,
    evaluated_rows,
    listed,
    read_rows,
    short_name,
)


def partial_results(run: StrPath, folder: Path) -> PartialResults | None:
    """Return what is there of a run; None where its results.parquet says all, as in every finished run.

    Args:
        run: its folder or URI. folder: with its files here.

    Raises:
        UserError: when it is no run, or a file of it cannot be read.
    """
    try:
        status = read_status(run)
    except UserError:
        if (folder / RESULTS_FILE).is_file():  # settings of another version: its table can be read all the same
            return None
        raise
    stored = _stored(folder / RESULTS_FILE)
    search = status.config.search
    seeds = () if search.algorithm == "none" else search.seeds
    searched = [row for row in stored if row[IN_GRID] and row["data"] == "stitched" and row["seed"] in seeds]
    tabled = [row for row in stored if row[IN_GRID] and row not in searched]
    if stored and _contents(tabled) == {state.trial.trial_id: _content(state) for state in status.trials.trials}:
        return None
    deltas = {row["delta"]: row["delta_value"] for row in stored if row["delta_value"] is not None}
    rows = [row for state in status.trials.trials for row in _rows(state, deltas)]
    mine = {row["trial_id"] for row in rows} | {row["trial_id"] for row in searched}
    rows += [*searched, *(row | {IN_GRID: False} for row in stored if row["trial_id"] not in mine)]
    return PartialResults(rows=rows, missing=_missing(status))


def _contents(rows: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    """Return what a table says of each trial, to be compared with ``_content``."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row["trial_id"], []).extend([row["return_mean"]] if row["status"] == "ok" else [])
    return {trial_id: tuple(returns) for trial_id, returns in found.items()}


def _content(state: TrialState) -> object:
    if state.state == "finished":
        return tuple(result["return_mean"] for result in state.returns["evaluations"])
    return () if state.state == "failed" else None


def _stored(path: Path) -> list[dict[str, Any]]:
    """Return the rows of an earlier table; none where there is none or it is damaged."""
    try:
        return read_rows(path) if path.is_file() else []
    except UserError:
        return []


def _rows(state: TrialState, deltas: Mapping[str | None, float]) -> list[dict[str, Any]]:
    """Return the rows of a trial, as results.parquet has them: one per return asked for."""
    one = state.trial
    blank = dict.fromkeys(RESULTS_SCHEMA.names) | {
        "trial_id": one.trial_id or f"{UNFINISHED}-{'-'.join(str(part) for part in one.key if part)}",
        "algo": one.algo,
        "data": one.data,
        "ratio": one.ratio,
        "delta": one.delta,
        "delta_value": deltas.get(one.delta),
        "seed": one.seed,
        SHAPING: one.shaping,
        IN_GRID: True,
    }
    if state.state == "finished":
        return evaluated_rows(blank, state.returns)
    if state.state == "failed":
        return [blank | {"headline": True, "status": "failed", "error": state.reason}]
    return [blank | {"headline": True, "status": UNFINISHED, "train_steps": state.step or None}]


def _missing(status: RunStatus) -> list[str]:
    """Say what the run lacks."""
    trials = status.trials
    text = f"{len(trials.of('finished'))} of {len(trials.trials)} trials are finished"
    counts = {word: len(trials.of(word)) for word in ("failed", "running", "interrupted")}
    text += "".join(f", {count} {word}" for word, count in counts.items() if count)
    if status.left.seconds is not None and status.at_work:
        text += f"; about {duration(status.left.seconds)} of training left"
    said = [f"{text}."]
    none, few = _cells(trials.trials)
    if none:
        said.append(f"Cells without a result: {listed(none)}.")
    if few:
        said.append(f"Cells with fewer seeds than planned: {listed(few)}.")
    words = {FIT: "Fitting", AUGMENT: "Augmentation", VALIDATE: "Validation", SEARCH: "The search"}
    for stage in status.stages:
        if stage.name not in words or stage.state == "done":
            continue
        about = f" ({stage.about})" if stage.about else ""
        told = {"running": "is still going on", "waiting": "has not begun", "stale": "is not up to date"}[stage.state]
        said.append(f"{words[stage.name]} {told}{about}.")
    if not status.at_work:
        said.append("No driver is at work on the run: the same `raystitch sweep` command goes on with it.")
    return said


def _cells(states: Sequence[TrialState]) -> tuple[list[str], list[str]]:
    """Return the cells without any result that may still get one, and those with some."""
    cells: dict[str, list[TrialState]] = {}
    for state in states:
        label = f"{short_name(state.trial.algo)}, {cell_label(vars(state.trial))}"
        cells.setdefault(label, []).append(state)
    none: list[str] = []
    few: list[str] = []
    for label, cell in cells.items():
        there = sum(state.state == "finished" for state in cell)
        if all(state.state in ("finished", "failed") for state in cell):
            continue
        if there:
            few.append(f"{label} ({there} of {len(cell)})")
        else:
            none.append(label)
    return none, few
