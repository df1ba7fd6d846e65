"""The settings and trial results that a run's folder keeps from grids that were run in it before."""

import hashlib
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from raystitch.config import RunConfig
from raystitch.errors import UserError
from raystitch.io.config_file import parse_config
from raystitch.io.files import atomic_path, read_json
from raystitch.pipeline.trials.plan import ok_rows
from raystitch.pipeline.trials.trial import InputHashes, Trial
from raystitch.pipeline.trials.trial_folder import finished
from raystitch.report.names import CONFIG_FILE, RESULTS_FILE, SETTINGS_FILE, TRIALS
from raystitch.report.table import IN_GRID, RESULTS_SCHEMA, read_rows
from raystitch.shaping.config import ShapingConfig

EARLIER = "earlier"
"""Folder of a run: files that a later grid or search replaced, named by their content."""


def write_config(config: RunConfig, folder: Path) -> None:
    """Write ``config.yaml``; the one that is there is kept where it says something else."""
    path, text = folder / CONFIG_FILE, config.to_yaml()
    if path.is_file() and path.read_bytes() == text.encode():
        return
    keep_earlier(path)
    with atomic_path(path, durable=True) as temporary:
        temporary.write_text(text, encoding="utf-8")


def keep_earlier(path: Path) -> None:
    """Copy a file that is about to be replaced into ``earlier/``, once per content."""
    if not path.is_file():
        return
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    kept = path.parent / EARLIER / f"{path.stem}-{digest}{path.suffix}"
    if not kept.exists():
        with atomic_path(kept, durable=True) as temporary:
            shutil.copyfile(path, temporary)


def config_files(folder: Path) -> list[Path]:
    """Return ``config.yaml`` of the run, then those of earlier grids, the latest first."""
    earlier = sorted((folder / EARLIER).glob("config-*.yaml"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [folder / CONFIG_FILE, *earlier]


def other_rows(
    folder: Path, known: Collection[str], inputs: InputHashes, delta_value: Callable[[str], float | None]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return rows of the trials in the folder that belong to another grid, and notes on those that cannot be told.

    Args:
        known: ids of the trials that have rows already.
        delta_value: gives a delta as asked as a number on the buffer of ``inputs``.
    """
    stored, notes = _stored_rows(folder / RESULTS_FILE)
    rows: list[dict[str, Any]] = []
    for trial_dir in sorted((folder / TRIALS).glob("*/")):
        before = stored.get(trial_dir.name, [])
        if trial_dir.name in known:
            continue
        try:
            value = finished(trial_dir)
            if value is None:
                rows += [row for row in before if row["status"] != "ok"]  # failed, or stopped by a search
                continue
            trial, of_inputs = _recorded(trial_dir, inputs)
        except UserError as error:
            rows += before
            notes += [] if before else [f"{error}; it is left as it is and is not in {RESULTS_FILE}"]
            continue
        on_this_buffer = trial.delta is not None and of_inputs
        at = delta_value(trial.delta) if on_this_buffer and trial.delta else next(iter(before), {}).get("delta_value")
        rows += ok_rows(trial, value, at)
    return [row | {IN_GRID: False} for row in rows], notes


def _recorded(trial_dir: Path, inputs: InputHashes) -> tuple[Trial, bool]:
    """Read the trial of a folder from its ``config.json``, and whether its buffer is the one that is there now.

    Raises:
        UserError: when the file is missing or damaged.
    """
    path = trial_dir / SETTINGS_FILE
    content = read_json(path)
    try:
        record: Mapping[str, Any] = content["record"]
        trial = Trial(
            trial_id=trial_dir.name,
            folder=str(trial_dir),
            algo=str(content["algo"]),
            data=content["data"],
            ratio=str(content["ratio"]),
            delta=record.get("delta"),
            seed=int(content["seed"]),
            shaping=parse_config(content.get("shaping", {}), ShapingConfig),
        )
        return trial, record.get("buffer") == inputs.buffer
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} does not describe a trial: {error!r}") from error


def _stored_rows(path: Path) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Return rows of the table that is about to be replaced, by trial; a damaged one has none, and is kept."""
    if not path.is_file():
        return {}, []
    try:
        found = read_rows(path)
    except UserError as error:
        keep_earlier(path)
        return {}, [f"{error}; it is made again from trials/ and kept in {EARLIER}/"]
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in _known_columns(found):
        rows.setdefault(row["trial_id"], []).append(row)
    return rows, []


def _known_columns(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    blank: dict[str, Any] = dict.fromkeys(RESULTS_SCHEMA.names)
    for row in rows:
        yield blank | {name: value for name, value in row.items() if name in blank}
