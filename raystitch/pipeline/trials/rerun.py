"""One trial of a finished run again, by itself and without a cluster: is the number in the report really what comes
out?"""

import difflib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from raystitch.buffer.episodes import on_dataset
from raystitch.buffer.reader import open_buffer
from raystitch.config import RunConfig, load_run_config
from raystitch.envs.spec import confirmed_id
from raystitch.errors import RunError, UserError
from raystitch.models.bundle import Bundle
from raystitch.pipeline.trials.plan import Inputs, Trial, finished, plan
from raystitch.pipeline.trials.run_folder import CONFIG_FILE, config_files
from raystitch.pipeline.trials.search import SearchLog, cell_trials
from raystitch.pipeline.trials.trial import run_planned, sweep_job

RERUNS = "reruns"
NEW = ".new"
"""Folder in ``reruns/`` for what is not finished yet."""


@dataclass(frozen=True, kw_only=True)
class Rerun:
    """A trial and its two results.

    Attributes:
        folder: where it was repeated.
        stored, repeated: contents of ``returns.json``; ``stored`` is None for a trial that failed or never ran.
    """

    trial: Trial
    folder: Path
    stored: dict[str, Any] | None
    repeated: dict[str, Any]

    def rows(self) -> list[dict[str, Any]]:
        """Per target return: {target_return, stored, repeated (mean returns), apart (largest difference between the
        returns of two equal episodes)}; None for what there is not."""
        stored = {item["target_return"]: item for item in (self.stored or {}).get("evaluations", [])}
        rows: list[dict[str, Any]] = []
        for item in self.repeated["evaluations"]:
            before = stored.get(item["target_return"])
            apart = None
            if before is not None and len(before["returns"]) == len(item["returns"]):
                apart = float(np.abs(np.subtract(before["returns"], item["returns"])).max())
            row = {"target_return": item["target_return"], "stored": None if before is None else before["return_mean"]}
            rows.append(row | {"repeated": item["return_mean"], "apart": apart})
        return rows

    @property
    def equal(self) -> bool:
        """Every episode of every evaluation has the same return, to the bit."""
        return self.stored is not None and all(row["apart"] == 0 for row in self.rows())


def rerun(
    run: str | Path,
    trial_id: str,
    log: Callable[[dict[str, Any]], None] | None = None,
    env_id: str | None = None,
) -> Rerun:
    """Trains and evaluates one trial of a run again, alone, into ``RUN/reruns/ID``; nothing else of the run changes.

    Args:
        trial_id: as in results.parquet and the report; a unique beginning of it is enough.
        log: gets the rows of metrics.jsonl.
        env_id: the run's environment, named again; needed where it is ``module:ID``.

    Raises:
        UserError: when the folder is no run, the run has no such trial, or its environment has to be named.
        RunError: when the trial fails.
    """
    run = Path(run).expanduser().absolute()
    if not (run / CONFIG_FILE).is_file():
        raise UserError(f"{run} is not a run of `raystitch sweep`: it has no {CONFIG_FILE}")
    config = _confirmed(load_run_config(run / CONFIG_FILE), env_id)
    inputs = _inputs(config, run)
    grids = _grids(run, config, inputs)
    trial = find_trial([trial for trial, _ in grids.values()], trial_id, str(run))
    config = _confirmed(grids[trial.trial_id][1], env_id)
    folder, fresh = run / RERUNS / trial.trial_id, run / RERUNS / NEW / trial.trial_id
    job = sweep_job(config, run, inputs)
    # On a machine without the GPU of the run the trial runs on the CPU; the numbers then differ by rounding.
    job = replace(job, device="cpu" if job.device == "cpu" else "auto")
    into = os.path.join(RERUNS, NEW)
    (result,) = run_planned([trial], job, into=into, log=None if log is None else lambda _, row: log(row))
    if isinstance(result, RunError):
        raise result
    shutil.rmtree(folder, ignore_errors=True)  # the previous one, now that the new one is complete
    fresh.replace(folder)
    return Rerun(trial=trial, folder=folder, stored=finished(run / "trials" / trial.trial_id), repeated=result)


def _confirmed(config: RunConfig, env_id: str | None) -> RunConfig:
    return replace(config, env=confirmed_id(config.env, env_id, "--set env="))


def _grids(run: Path, config: RunConfig, inputs: Inputs) -> dict[str, tuple[Trial, RunConfig]]:
    """Every trial of the run's grid, its search and its earlier grids, by id, with the settings that it belongs to."""
    tried = (cell for cell, _ in SearchLog(run, config, inputs).cells("ok", "stopped", "failed"))
    searched = [trial for cell in tried for trial in cell_trials(config, inputs, cell)]
    found = {trial.trial_id: (trial, config) for trial in [*plan(config, inputs), *searched]}
    for path in config_files(run)[1:]:
        try:
            earlier = load_run_config(path)
        except UserError:
            continue  # of another version; what it described cannot be repeated
        for trial in plan(earlier, inputs):
            found.setdefault(trial.trial_id, (trial, earlier))
    return found


def find_trial(trials: Sequence[Trial], trial_id: str, where: str) -> Trial:
    """The trial with this id, or with the only id that begins so.

    Raises:
        UserError: when there is none, or several; names the near ones.
    """
    found = [trial for trial in trials if trial.trial_id.startswith(trial_id)]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(trial.trial_id for trial in found[:5])
        raise UserError(f"--rerun {trial_id}: {len(found)} trials of {where} begin so: {ids}; write more of it")
    ids = [trial.trial_id for trial in trials]
    near = difflib.get_close_matches(trial_id, ids, n=3, cutoff=0.3) or ids[:3]
    described = ", ".join(f"{trial.trial_id} ({trial.label})" for trial in trials if trial.trial_id in near)
    raise UserError(f"--rerun {trial_id}: {where} has no such trial; there are {described}")


def _inputs(config: RunConfig, run: Path) -> Inputs:
    dataset = config.dataset_ref.load_recorded()
    bundle, buffer = Bundle.load(run / "stitcher", "cpu"), open_buffer(run / "buffer")
    on_dataset(buffer, dataset)
    return Inputs(dataset=dataset.fingerprint, bundle=bundle.hash, buffer=buffer.hash)
