"""The search for a ratio and a delta on Ray Tune: each of its cells is a group of trials, one per seed of the search.

The trials lie in the run's ``trials/`` as all others do, so what is finished is not repeated. Tune's state is thrown
away; ``search.json`` is what the next driver goes on from.
"""

import math
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from raystitch.cluster.node_losses import NodeLosses, end_with_node, failure_text
from raystitch.cluster.trials import LOST, OnTrialDone, failure, num_slots, quiet_tune, tune_folder, tune_resources
from raystitch.config import ResourceConfig, RunConfig
from raystitch.console import say
from raystitch.errors import RunError
from raystitch.pipeline.trials.place import RunPlace, at_hand
from raystitch.pipeline.trials.run import run_planned
from raystitch.pipeline.trials.search import Cell, SearchLog, cell_trials, draw_cells, make_cell, value_of
from raystitch.pipeline.trials.trial import InputHashes, Trial
from raystitch.pipeline.trials.trial_folder import finished
from raystitch.report.names import TRIALS
from raystitch.search_config import RatioRange, SearchConfig
from raystitch.seeding import derive_seed
from raystitch.trainers.evaluate import EvalResult
from raystitch.trainers.ratio import parse_ratio

REDUCTION = 3
"""ASHA lets about one of so many cells go on at every rung."""

TrialsOf = Callable[[Cell], list[Trial]]
"""The trials of a cell, one per seed of the search."""


def run_search(
    config: RunConfig,
    place: RunPlace,
    inputs: InputHashes,
    resources: ResourceConfig,
    progress: OnTrialDone | None = None,
) -> Cell:
    """Try the cells that are missing and return the best; its trials use none of the seeds that are reported.

    Args:
        resources: of the run, with the memory that is reserved for a cell.

    Raises:
        RunError: when no cell could be trained to its end.
    """
    log = SearchLog(place.folder, config, inputs)
    if not log.complete:
        steps = config.algorithms.of(config.search.algo).train_steps
        trials_of = partial(cell_trials, config, inputs, run=place.folder)
        watch = _Watch(trials_of, log, progress, place, resources.num_retries)
        again = log.resume()
        while True:
            watch.some_lost = False
            scheduler = _scheduler(config.search.scheduler, steps, config.evaluation.every)
            _try_missing(config.search, config.seed, resources, scheduler, watch, again)
            if not watch.some_lost:
                break
            again = log.resume(failed=False)
    return log.choose()


def _try_missing(
    search: SearchConfig,
    seed: int,
    resources: ResourceConfig,
    scheduler: TrialScheduler,
    watch: "_Watch",
    again: list[Cell],
) -> None:
    """Try cells, first those that were begun before (``again``), until there are as many as the search asks for."""
    log = watch.log
    tried = {cell for cell, _ in log.cells("ok", "stopped", "failed")}
    num_missing = search.num_cells - len(log.rows)
    space: dict[str, Any] = {}
    algorithm: Searcher | None = None
    if search.algorithm == "optuna":
        algorithm = _optuna(search, seed, log, again)
    else:
        missing = [cell for cell in draw_cells(search, seed) if cell not in tried]
        num_missing = len(missing)
        space = {"cell": tune.grid_search([cell._asdict() for cell in missing])}
    num_slots(resources)
    quiet_tune()
    storage = tune_folder(watch.place.folder)
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(_try, trials_of=watch.trials_of, run=watch.place.uri),
            tune_resources(resources),
        ),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="value",
            mode="max",
            num_samples=num_missing if algorithm is not None else 1,
            search_alg=algorithm,
            scheduler=scheduler,
            # A cell that is stopped leaves a thread behind that holds its folders: its process has to end.
            reuse_actors=search.scheduler == "fifo",
            max_concurrent_trials=resources.max_concurrent_trials,
            trial_dirname_creator=lambda trial: f"cell-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name="search",
            storage_path=str(storage),
            failure_config=tune.FailureConfig(max_failures=resources.num_retries),
            callbacks=[watch],
            verbose=0,
        ),
    )
    tuner.fit()
    watch.place.refresh(TRIALS)
    shutil.rmtree(storage, ignore_errors=True)


def _try(suggested: Mapping[str, Any], trials_of: TrialsOf, run: str) -> None:
    """Train all seeds of one cell, stacked, in a worker."""
    end_with_node()
    trials = tuple(trials_of(_cell(suggested)))
    returns: list[dict[str, Any]] = []
    notes: list[str] = []
    with at_hand(run, trials, note=notes.append) as here:

        def report(step: int, results: Mapping[int, EvalResult]) -> None:
            with suppress(RunError):  # or the publishing thread does it
                here.publish()  # the cell may be stopped for what is reported
            if len(results) == len(trials):  # not where some of the seeds came further before an interruption
                tune.report({"value": value_of(result.to_json() for result in results.values()), "step": step})

        def note(line: str) -> None:
            notes.append(here.told(line))

        for result in run_planned(here.group, log=lambda *_: here.check(), on_eval=report, note=note):
            if isinstance(result, RunError):
                raise result
            returns.append(result)
    value = value_of(result["evaluations"][0] for result in returns)
    tune.report({"value": value, "step": trials[0].settings.train_steps, "notes": notes})


def _cell(suggested: Mapping[str, Any]) -> Cell:
    cell = suggested.get("cell", suggested)
    return make_cell(cell["ratio"], cell["delta"])


def _scheduler(name: str, train_steps: int, every: int) -> TrialScheduler:
    if name == "fifo":
        return FIFOScheduler()
    return AsyncHyperBandScheduler(
        time_attr="step",
        max_t=train_steps,
        grace_period=every,
        reduction_factor=REDUCTION,
    )


def _optuna(search: SearchConfig, seed: int, log: SearchLog, again: list[Cell]) -> Searcher:
    """Return a TPE that knows what was tried before, and begins with what was interrupted."""
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    ratios: BaseDistribution
    if isinstance(search.ratio, RatioRange):
        ratios = FloatDistribution(search.ratio.low, search.ratio.high, log=True)
    else:
        ratios = CategoricalDistribution(sorted({make_cell(ratio, None).ratio for ratio in search.ratio}))
    deltas = CategoricalDistribution(sorted({make_cell("1:1", delta).delta for delta in search.delta}))

    def point(cell: Cell) -> dict[str, Any]:
        if not isinstance(search.ratio, RatioRange):
            return cell._asdict()
        shares = parse_ratio(cell.ratio)  # kept to three digits, which may be just outside
        share = min(max(shares.augmented / shares.original, search.ratio.low), search.ratio.high)
        return {"ratio": share, "delta": cell.delta}

    algorithm = OptunaSearch(
        space={"ratio": ratios, "delta": deltas},
        metric="value",
        mode="max",
        points_to_evaluate=[point(cell) for cell in again],
        seed=derive_seed(seed, "optuna", len(log.rows)) % 2**32,  # what it drew first has been tried
    )
    for cell, row in log.cells("ok", "stopped"):
        if row["value"] is not None:
            algorithm.add_evaluated_point(point(cell), row["value"])
    return algorithm


class _Watch(tune.Callback):
    """Keeps ``search.json`` and the driver's progress display up to date."""

    def __init__(
        self, trials_of: TrialsOf, log: SearchLog, progress: OnTrialDone | None, place: RunPlace, num_retries: int
    ) -> None:
        self.trials_of, self.log, self.progress, self.place = trials_of, log, progress, place
        self.places: dict[str, int] = {}
        self.losses = NodeLosses(num_retries)
        self.some_lost = False
        """Whether cells are to be tried again (``NodeLosses.tries_again``)."""

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._place(trial)

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        self.losses.reached(_cell(trial.config or {}), result.get("step", 0))

    def on_trial_recover(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self.losses.recovered(_cell(trial.config or {}), trial)

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        last = trial.last_result or {}
        for line in last.get("notes", ()):
            say(line)
        value, step = last.get("value"), int(last.get("step", 0))
        self.place.refresh_trials([mine.trial_id for mine in self._trials(trial)])
        done = all(finished(mine.folder) is not None for mine in self._trials(trial))
        self.log.end(self._place(trial), "ok" if done else "stopped", value, step)
        shown = "" if value is None or math.isnan(value) else f"{value:.4g}"
        self._tell(trial, shown if done else f"stopped at step {step:,} with {shown}")

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        mine = self._trials(trial)
        self.place.refresh_trials([one.trial_id for one in mine])
        failed = [one for one in mine if finished(one.folder) is None]
        if not failed:  # it only could not say so
            done = [value for one in mine if (value := finished(one.folder)) is not None]
            value = value_of(content["evaluations"][0] for content in done)
            self.log.end(self._place(trial), "ok", value, mine[0].settings.train_steps)
            self._tell(trial, f"{value:.4g}")
            return
        if self.losses.tries_again(_cell(trial.config or {}), trial):
            self.some_lost = True
            self._place(trial)  # its row stays as one that runs: the next round goes on with it
            self._tell(trial, LOST)
            return
        self.log.end(self._place(trial), "failed", None, int((trial.last_result or {}).get("step", 0)))
        self._tell(trial, f"failed ({failure(failed[0], failure_text(trial), trial.num_failures)})")

    def _place(self, trial: TuneTrial) -> int:
        """Return the place of its row in the log; what fails at once was never told to have started."""
        if trial.trial_id not in self.places:
            self.places[trial.trial_id] = self.log.start(_cell(trial.config or {}))
        return self.places[trial.trial_id]

    def _trials(self, trial: TuneTrial) -> list[Trial]:
        return self.trials_of(_cell(trial.config or {}))

    def _tell(self, trial: TuneTrial, note: str) -> None:
        if self.progress is not None:
            cell = _cell(trial.config or {})
            num_ended = len(self.log.cells("ok", "stopped", "failed"))
            self.progress(num_ended, f"{self.log.search.algo} {cell.ratio} delta {cell.delta}: {note}")
