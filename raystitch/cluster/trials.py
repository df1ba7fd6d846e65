"""The trials of a sweep on Ray Tune: first in, first out, each on its own small share of the cluster."""

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from raystitch.config import ResourceConfig
from raystitch.pipeline.sweep_plan import Trial, finished
from raystitch.pipeline.trial import ERROR_FILE, SweepJob, run_planned

Progress = Callable[[int, str], None]
"""Called with the trials done so far and a note on the last one."""

TUNE_FOLDER = ".tune"


def run_trials(
    trials: Sequence[Trial], job: SweepJob, resources: ResourceConfig, progress: Progress | None = None
) -> dict[str, str]:
    """Runs the trials on the connected cluster; returns the errors of those that failed, by trial id.

    A failed trial is tried again ``resources.num_retries`` times. What is finished lies in the trials' own folders;
    Tune's state is thrown away, so an interrupted run just submits what is missing.
    """
    # Our own files hold all results, our own display shows them, and Ctrl-C is for the caller to handle.
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    storage = Path(job.folder).absolute() / TUNE_FOLDER
    shutil.rmtree(storage, ignore_errors=True)
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(_train, job=job), {"cpu": resources.trial_cpus, "gpu": resources.trial_gpus}
        ),
        param_space={"trial": tune.grid_search([asdict(trial) for trial in trials])},
        tune_config=tune.TuneConfig(
            reuse_actors=True,
            max_concurrent_trials=resources.max_concurrent_trials,
            trial_dirname_creator=_folder_name,
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(storage),
            failure_config=tune.FailureConfig(max_failures=resources.num_retries),
            callbacks=[_Watch({trial.trial_id: trial for trial in trials}, job, progress)],
            verbose=0,
        ),
    )
    results = tuner.fit()
    errors: dict[str, str] = {}
    for result in results:
        trial = Trial(**(result.config or {})["trial"])
        if finished(_folder(job, trial.trial_id)) is None:
            errors[trial.trial_id] = _reason(job, trial.trial_id, result.error)
    shutil.rmtree(storage, ignore_errors=True)
    return errors


def _train(config: dict[str, Any], job: SweepJob) -> None:
    """What runs in the worker: everything comes from the job's paths."""
    result = run_planned(Trial(**config["trial"]), job)
    headline = result["evaluations"][0]
    tune.report({name: headline[name] for name in ("return_mean", "success_rate", "score")})


def _folder(job: SweepJob, trial_id: str) -> Path:
    return Path(job.folder) / "trials" / trial_id


def _folder_name(trial: TuneTrial) -> str:
    return str((trial.config or {})["trial"]["trial_id"])


def _reason(job: SweepJob, trial_id: str, error: BaseException | None) -> str:
    """One line: the trial's own error, or Ray's where the process died."""
    trace = _folder(job, trial_id) / ERROR_FILE
    text = trace.read_text(encoding="utf-8") if trace.is_file() else str(error or "the trial ended without a result")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if trace.is_file() else lines[0]


class _Watch(tune.Callback):
    """Tells the driver's progress display about every trial that ends."""

    def __init__(self, trials: dict[str, Trial], job: SweepJob, progress: Progress | None) -> None:
        self.trials, self.job, self.progress, self.done = trials, job, progress, 0

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._tell(trial)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._tell(trial)

    def _tell(self, tune_trial: TuneTrial) -> None:
        self.done += 1
        trial = self.trials[_folder_name(tune_trial)]
        value = finished(_folder(self.job, trial.trial_id))
        if self.progress is None:
            return
        if value is None:
            self.progress(self.done, f"{trial.label}: failed ({_reason(self.job, trial.trial_id, None)})")
            return
        first = value["evaluations"][0]
        success = first["success_rate"]
        shown = f"return {first['return_mean']:.4g}" if success is None else f"success {100 * success:.0f} %"
        self.progress(self.done, f"{trial.label}: {shown} ({value['train_seconds']:.0f} s)")
