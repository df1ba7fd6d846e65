"""The trials of a sweep on Ray Tune: first in, first out, groups of stacked seeds on small shares of the cluster.

A table of results is never cut short by a scheduler that stops what looks bad early: that would bias it.
"""

import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from raystitch.cluster.node_losses import NodeLosses, end_with_node, failure_text
from raystitch.cluster.resources import MEMORY, await_node, live_nodes, trial_need
from raystitch.cluster.trial_reports import Reports, Running, number_of, param_space
from raystitch.config import LoggerName, ResourceConfig, RunConfig
from raystitch.console import say
from raystitch.data.episodes import EpisodeDataset
from raystitch.errors import RunError, UserError
from raystitch.pipeline.trials.groups import Group, group_bytes
from raystitch.pipeline.trials.logs import trial_logs
from raystitch.pipeline.trials.place import RunPlace, at_hand
from raystitch.pipeline.trials.run import error_of, run_planned
from raystitch.pipeline.trials.trial import Trial
from raystitch.pipeline.trials.trial_folder import finished
from raystitch.report.names import TRIALS

OnTrialDone = Callable[[int, str], None]
"""Called with the trials done so far and a note on the last ones."""
OnTrialsRun = Callable[[int, str], None]
"""Called with the trials done so far and what runs now."""

TUNE_FOLDER = ".tune"
GROUP = "group-"
LOST = "lost with the node, or while starting: tried again"
LOW_MEMORY = "running low on memory"
"""What Ray's memory monitor says about a process that it killed."""


def quiet_tune() -> None:
    """Keep Tune silent: our own files hold all results, our own display shows them, the caller handles Ctrl-C."""
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)


def tune_folder(folder: str | os.PathLike[str]) -> Path:
    """Return an empty folder of the run for Tune's own state, which nothing needs afterwards."""
    storage = Path(folder).absolute() / TUNE_FOLDER
    shutil.rmtree(storage, ignore_errors=True)
    return storage


def num_slots(resources: ResourceConfig) -> int:
    """Return how many groups of trials run at once on the connected cluster.

    Raises:
        UserError: when no machine has what one asks for, and none can be added.
    """
    need = trial_need(resources)
    await_node(need)
    slots = 0
    for node in live_nodes():
        slots += int(min(node.get(name, 0) / amount for name, amount in need.resources.items()) + 1e-9)
    return min(slots, resources.max_concurrent_trials or slots)


def reserve_memory(config: RunConfig, dataset: EpisodeDataset) -> ResourceConfig:
    """Return the run's resources with the memory of a group as a number where it is ``auto``.

    An estimate never refuses a run: it is at most what the largest node for a trial has, and 0 while there is none.
    """
    resources = config.resources
    if resources.trial_memory_gib != "auto":
        return resources
    most = len(config.seeds) if resources.stacked_seeds == "auto" else resources.stacked_seeds
    need = trial_need(resources)
    largest = max((node.get(MEMORY, 0.0) for node in live_nodes() if need.fits(node)), default=0.0)
    wanted = group_bytes(config, dataset, most)
    return replace(resources, trial_memory_gib=min(wanted, largest) / 2**30)


def tune_resources(resources: ResourceConfig) -> dict[str, float]:
    """Return the resources that a group holds, under Tune's names."""
    held = trial_need(resources).resources
    return {"cpu": held["CPU"], "gpu": held.get("GPU", 0.0), MEMORY: held.get(MEMORY, 0.0)}


def run_groups(
    groups: Sequence[Group],
    place: RunPlace,
    resources: ResourceConfig,
    progress: OnTrialDone | None = None,
    running: OnTrialsRun | None = None,
    loggers: Sequence[LoggerName] = (),
) -> dict[str, str]:
    """Run groups of trials of a run on the connected cluster; return the errors of trials that failed, by trial id.

    A group that fails is tried again ``resources.num_retries`` times; its finished trials are not repeated. The loss of
    its node is not its failure (``NodeLosses``). Groups that Ray's memory monitor killed are then tried once more, with
    twice the memory reserved, so that fewer run beside them: other trials' memory is not their failure. What is
    finished lies in the trials' own folders; Tune's state is thrown away, so an interrupted run just submits what is
    missing.
    """
    watch = _Watch(progress, running, place, resources.num_retries)
    errors, killed = _run_with_lost(groups, place, resources, watch, loggers)
    if not killed:
        return errors
    more = _twice_the_memory(resources)
    say(
        f"{_groups(killed)} of trials killed for lack of memory: tried again with "
        f"{more.trial_memory_gib:.3g} GiB reserved for each"
    )
    again, _ = _run_with_lost(killed, place, more, watch, loggers)
    return _of_others(errors, killed) | again


def _run_with_lost(
    groups: Sequence[Group], place: RunPlace, resources: ResourceConfig, watch: "_Watch", loggers: Sequence[LoggerName]
) -> tuple[dict[str, str], list[Group]]:
    """Run a round, and again those that Tune gave up too early (``NodeLosses.tries_again``); return the errors of
    trials that failed, by trial id, and the groups that were killed for lack of memory."""
    errors, killed, lost = _run_round(groups, place, resources, watch, loggers)
    while lost:
        say(f"{_groups(lost)} of trials {LOST}")
        again, more_killed, still_lost = _run_round(lost, place, resources, watch, loggers)
        errors, lost = _of_others(errors, lost) | again, still_lost
        killed += more_killed
    return errors, killed


def _groups(groups: Sequence[Group]) -> str:
    return f"{len(groups)} group{'s' * (len(groups) > 1)}"


def _of_others(errors: Mapping[str, str], groups: Sequence[Group]) -> dict[str, str]:
    tried = {trial.trial_id for group in groups for trial in group}
    return {trial_id: error for trial_id, error in errors.items() if trial_id not in tried}


def _twice_the_memory(resources: ResourceConfig) -> ResourceConfig:
    """Double the memory that a group reserves, as far as the largest node has it."""
    need = trial_need(replace(resources, trial_memory_gib=0))
    largest = max((node.get(MEMORY, 0.0) for node in live_nodes() if need.fits(node)), default=0.0) / 2**30
    reserved = resources.trial_memory_gib
    doubled = 2 * reserved if isinstance(reserved, float | int) and reserved else 1.0
    return replace(resources, trial_memory_gib=min(doubled, largest))


def _run_round(
    groups: Sequence[Group], place: RunPlace, resources: ResourceConfig, watch: "_Watch", loggers: Sequence[LoggerName]
) -> tuple[dict[str, str], list[Group], list[Group]]:
    """Return the errors of trials that failed, by trial id, the groups that were killed for lack of memory, and those
    that are to be tried again."""
    quiet_tune()
    storage = tune_folder(place.folder)
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(_train, groups=groups, run=place.uri, loggers=loggers),
            tune_resources(resources),
        ),
        param_space=param_space(groups),
        tune_config=tune.TuneConfig(
            reuse_actors=True,
            max_concurrent_trials=resources.max_concurrent_trials,
            trial_dirname_creator=lambda trial: f"{GROUP}{number_of(trial)}",
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(storage),
            failure_config=tune.FailureConfig(max_failures=resources.num_retries),
            callbacks=[watch],
            verbose=0,
        ),
    )
    watch.begin(groups)
    results = tuner.fit()
    place.refresh(TRIALS)
    errors: dict[str, str] = {}
    killed: list[Group] = []
    for result in results:
        group = groups[int(Path(result.path).name.removeprefix(GROUP))]  # Tune loses its config if it died at once
        error = watch.failures.get(group) or str(result.error or "")
        if LOW_MEMORY in error:
            killed.append(group)
        for trial in group:
            if finished(trial.folder) is None:
                errors[trial.trial_id] = failure(trial, error, watch.attempts.get(group, 1))
    shutil.rmtree(storage, ignore_errors=True)
    return errors, killed, watch.lost


def _train(config: Mapping[str, Any], groups: Sequence[Group], run: str, loggers: Sequence[LoggerName]) -> None:
    """Train one group in a worker, which reads everything from the run's place. The driver prints the notes."""
    end_with_node()
    notes: list[str] = []
    group = groups[config["group"]]
    reports = Reports(group)
    try:
        with (
            at_hand(run, group, loggers, notes.append) as here,
            trial_logs(loggers, here.run, here.group, notes.append) as logs,
        ):

            def log(index: int, row: dict[str, Any]) -> None:
                here.check()
                reports.row(index, row)
                logs.row(index, row)

            results = run_planned(here.group, log=log, note=lambda line: notes.append(here.told(line)))
            for index, result in enumerate(results):
                logs.result(index, result)
    except UserError as error:  # a retry would fail the same way
        tune.report({"failed": len(group), "notes": notes, "error": str(error)})
        return
    tune.report({"failed": sum(isinstance(result, RunError) for result in results), "notes": notes})


def failure(trial: Trial, error: str, attempts: int) -> str:
    """Return one line: the trial's own error, or Ray's where the process died; and how often it was tried."""
    reason = error_of(trial.folder)
    if reason is None:  # a process that dies leaves no trace of its own
        reason = _died(error)
    return f"after {attempts} attempts: {reason}" if attempts > 1 else reason


def _died(error: str) -> str:
    said = [line.strip() for line in error.splitlines() if line.strip()]
    return "its process died: " + (said[0] if said else "out of memory, or killed")


class _Watch(tune.Callback):
    """Tells the driver's progress display what runs and about every group that ends, and counts attempts.

    Where nodes come and go, a group may lose many of them: that is no failure of its own, of which it may have
    ``resources.num_retries``, as long as it gets further in between.
    """

    def __init__(
        self, progress: OnTrialDone | None, running: OnTrialsRun | None, place: RunPlace, num_retries: int
    ) -> None:
        self.progress, self.say_running, self.place, self.done = progress, running, place, 0
        self.attempts: dict[Group, int] = {}
        self.before: dict[Group, int] = {}
        self.losses = NodeLosses(num_retries)

    def begin(self, groups: Sequence[Group]) -> None:
        """Take the groups of a round. Those that an earlier round has tried count as not done again, and attempts from
        now on come on top of those before."""
        again = [group for group in groups if group in self.attempts]
        self.before = {group: self.attempts[group] for group in again}
        self.done -= sum(len(group) for group in again)
        self.groups, self.running = groups, Running(groups)
        self.failures: dict[Group, str] = {}
        self.lost: list[Group] = []

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        group = self.groups[number_of(trial)]
        self.running.reported(group, result)
        self.losses.reached(group, result.get("step", 0))
        if self.say_running is not None:
            self.say_running(self.done, self.running.text)

    def on_trial_recover(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        group = self.groups[number_of(trial)]
        self.running.stopped(group)  # its process died; it waits for its next attempt
        self.losses.recovered(group, trial)

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        last = trial.last_result or {}
        for line in last.get("notes", ()):
            say(line)
        self._ended(trial, trial.num_failures + 1, str(last.get("error") or ""))

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        group, error = self.groups[number_of(trial)], failure_text(trial)
        self.failures[group] = error
        if LOW_MEMORY not in error and self.losses.tries_again(group, trial):
            self.lost.append(group)  # not the end of it, so no reason is left
            self._ended(trial, trial.num_failures, "")
        else:
            self._ended(trial, trial.num_failures, _died(error))

    def _ended(self, tune_trial: TuneTrial, attempts: int, reason: str) -> None:
        """Take the end of a group in this round. ``reason``: why trials failed that could not say so themselves; empty
        for none."""
        group = self.groups[number_of(tune_trial)]
        self.place.refresh_trials([trial.trial_id for trial in group])
        for trial in group:
            if reason and finished(trial.folder) is None and error_of(trial.folder) is None:
                self.place.leave_error(trial, reason)
        attempts += self.before.get(group, 0)
        self.attempts[group] = attempts
        self.running.ended(group)
        self.done += len(group)
        if self.progress is not None:
            lost = f"{group[0].cell}: {LOST}"
            self.progress(self.done, lost if group in self.lost else _note(group, attempts))


def _note(group: Group, attempts: int) -> str:
    """Say how the trials of a group ended: what each seed reached, or why the first that failed did."""
    found = [finished(trial.folder) for trial in group]
    for trial, value in zip(group, found, strict=True):
        if value is None:
            return f"{trial.label}: failed ({failure(trial, '', attempts)})"
    first = [value["evaluations"][0] for value in found if value is not None]
    if first[0]["success_rate"] is None:
        returns = ", ".join(f"{row['return_mean']:.4g}" for row in first)
        return f"{group[0].cell}: return {returns}"
    rates = ", ".join(f"{100 * row['success_rate']:.0f}" for row in first)
    return f"{group[0].cell}: success {rates} %"
