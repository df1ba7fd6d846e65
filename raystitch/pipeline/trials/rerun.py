"""Repeats one trial of a finished run, by itself and without a cluster, to check the number in the report."""

import difflib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from raystitch.buffer.episodes import on_dataset
from raystitch.buffer.opening import open_buffer
from raystitch.config import RunConfig, recorded_run_config
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.ref import DatasetRef
from raystitch.envs.spec import confirmed_id
from raystitch.errors import RunError, UserError
from raystitch.models.fit import load_once
from raystitch.pipeline.trials.plan import plan
from raystitch.pipeline.trials.run import run_planned
from raystitch.pipeline.trials.run_folder import CONFIG_FILE, config_files
from raystitch.pipeline.trials.search import SearchLog, cell_trials
from raystitch.pipeline.trials.targets import with_target
from raystitch.pipeline.trials.trial import STITCHER, InputHashes, Trial
from raystitch.pipeline.trials.trial_folder import finished
from raystitch.report.files import BUFFER

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
        """Return per target return (or ``max``) {target_return, stored, repeated (mean returns), apart (largest
        difference between the returns of two equal episodes)}; None for what there is not."""
        stored = {_asked(item): item for item in (self.stored or {}).get("evaluations", [])}
        rows: list[dict[str, Any]] = []
        for item in self.repeated["evaluations"]:
            before = stored.get(_asked(item))
            apart = None
            if before is not None and len(before["returns"]) == len(item["returns"]):
                apart = float(np.abs(np.subtract(before["returns"], item["returns"])).max())
            row = {"target_return": _asked(item), "stored": None if before is None else before["return_mean"]}
            rows.append(row | {"repeated": item["return_mean"], "apart": apart})
        return rows

    @property
    def equal(self) -> bool:
        """Say whether every episode of every evaluation has the same return, to the bit."""
        return self.stored is not None and all(row["apart"] == 0 for row in self.rows())


def _asked(evaluation: Mapping[str, Any]) -> float | str | None:
    """Return what the policy was asked for in one evaluation of ``returns.json``."""
    return evaluation.get("prompt") or evaluation["target_return"]


def rerun(
    run: str | Path,
    trial_id: str,
    log: Callable[[dict[str, Any]], None] | None = None,
    env_id: str | None = None,
) -> Rerun:
    """Train and evaluate one trial of a run again, alone, into ``RUN/reruns/ID``; nothing else of the run changes.

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
    config = recorded_run_config(run / CONFIG_FILE)
    config = replace(config, env=_confirmed(config.env, env_id))
    dataset = config.dataset_ref.load_recorded()
    trial = find_trial(_trials(run, config, _inputs(dataset, run)), trial_id, str(run))
    folder, fresh = run / RERUNS / trial.trial_id, run / RERUNS / NEW / trial.trial_id
    assert trial.dataset is not None
    again = replace(
        trial,
        folder=str(fresh),
        dataset=replace(trial.dataset, env=_confirmed(trial.dataset.env, env_id)),
        # On a machine without the GPU of the run the trial runs on the CPU; the numbers then differ by rounding.
        device="cpu" if trial.device == "cpu" else "auto",
    )

    def load(ref: DatasetRef) -> EpisodeDataset:
        return dataset if ref == config.dataset_ref else ref.load_recorded()  # an earlier config may name another

    (result,) = run_planned([again], log=None if log is None else lambda _, row: log(row), load=load)
    if isinstance(result, RunError):
        raise result
    shutil.rmtree(folder, ignore_errors=True)  # the previous one, now that the new one is complete
    fresh.replace(folder)
    return Rerun(trial=trial, folder=folder, stored=finished(trial.folder), repeated=result)


def _confirmed(env: str | None, env_id: str | None) -> str | None:
    return confirmed_id(env, env_id, "--set env=")


def _trials(run: Path, config: RunConfig, inputs: InputHashes) -> list[Trial]:
    """Return every trial of the run's grid, its search and its earlier grids."""
    config = with_target(config, run)
    tried = (cell for cell, _ in SearchLog(run, config, inputs).cells("ok", "stopped", "failed"))
    searched = [trial for cell in tried for trial in cell_trials(config, inputs, cell, run)]
    found = {trial.trial_id: trial for trial in [*plan(config, inputs, run), *searched]}
    for path in config_files(run)[1:]:
        try:
            earlier = recorded_run_config(path)
        except UserError:
            continue  # of another version; what it described cannot be repeated
        for trial in plan(with_target(earlier, run), inputs, run):
            found.setdefault(trial.trial_id, trial)
    return list(found.values())


def find_trial(trials: Sequence[Trial], trial_id: str, where: str) -> Trial:
    """Return the trial with this id, or with the only id that begins so.

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


def _inputs(dataset: EpisodeDataset, run: Path) -> InputHashes:
    bundle, buffer = load_once(run / STITCHER, "cpu"), open_buffer(run / BUFFER)
    on_dataset(buffer, dataset)
    return InputHashes(dataset=dataset.fingerprint, bundle=bundle.hash, buffer=buffer.hash)
