"""The logs of a run for other tools: of every trial, of fit and augment, and the report beside them.

The record stays what the stages leave in the run's folder (``metrics.jsonl``, ``returns.json``, the buffer); a log only
shows it, and nothing fails because a log cannot be written. Ray Tune's loggers are not used: a trial of Tune's is a
group of ours, its numbers are means.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

from raystitch.buffer.reach_file import Reach, read_reach
from raystitch.config import LoggerName, RunConfig
from raystitch.errors import DamagedError, RunError
from raystitch.io.digest import digest
from raystitch.models.config import PARTS, FitConfig
from raystitch.models.loop import CHECK_EVERY, FitProgress
from raystitch.pipeline.generate.progress import AugmentProgress, OnAugmentProgress
from raystitch.pipeline.trials.loggers import FINAL, LOGGERS, PAGE_LOGGERS, Logged, PageLogger, RunLogger
from raystitch.pipeline.trials.trial import Trial
from raystitch.pipeline.trials.trial_folder import finished
from raystitch.report.files import BUFFER
from raystitch.trainers.config import settings_json

STAGES = "stages"
"""Group of what is no trial."""
FIT_KEYS = ("dataset", "env", "select", "fit")
"""Keys of a run's settings that its fit depends on."""
BUFFER_KEYS = (*FIT_KEYS, "seed", "stitch", "augment")
"""Keys of a run's settings that its buffer depends on. A report goes by them too: other grids change its page."""
MOST_ROWS = 200
"""Rows of a part of the fit, at most."""
ROW_SECONDS = 2.0
"""Least time between two rows of augment, but for a round's last one."""

Note = Callable[[str], None]


class Log:
    """The log of one trial or stage with several loggers.

    Args:
        note: gets a line for every logger that cannot write; it is left as it is from then on.
    """

    def __init__(self, loggers: Mapping[str, RunLogger], name: str, note: Note) -> None:
        self._loggers, self._name, self._note = dict(loggers), name, note

    def row(self, kind: str, step: int, row: Mapping[str, Any]) -> None:
        """Take the numbers among the values of a step."""
        values = {name: float(value) for name, value in row.items() if _is_number(value)}
        self._each(lambda logger: logger.row(kind, step, values))

    def close(self, ok: bool) -> None:
        """Close all loggers; ``ok`` says whether the work came to its end."""
        self._each(lambda logger: logger.close(ok))

    def _each(self, work: Callable[[Any], None]) -> None:
        """Do some work of every logger; whatever a tool of others comes to, the run goes on."""
        for name, logger in list(self._loggers.items()):
            try:
                work(logger)
            except Exception as error:
                del self._loggers[name]
                why = next((line for line in str(error).splitlines() if line.strip()), "")
                self._note(f"logging: {name} stopped for {self._name}: {type(error).__name__}: {why}")


class PageLog(Log):
    """A log whose loggers can hold files."""

    def __init__(self, loggers: Mapping[str, PageLogger], name: str, note: Note) -> None:
        super().__init__(loggers, name, note)

    def page(self, page: Path, values: Mapping[str, float]) -> None:
        """Take a file and numbers that sum it up."""
        self._each(lambda logger: logger.page(page, values))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class TrialLogs:
    """The logs of some trials that are trained together."""

    def __init__(self, logs: Sequence[Log]) -> None:
        self._logs, self._finished = logs, set[int]()

    def row(self, index: int, row: Mapping[str, Any]) -> None:
        """Take a row of ``metrics.jsonl`` of the trial at ``index``."""
        values = {name: value for name, value in row.items() if name not in ("step", "total_steps")}
        self._logs[index].row(str(row["kind"]), int(row["step"]), values)

    def result(self, index: int, value: Mapping[str, Any] | RunError) -> None:
        """Take the content of ``returns.json`` of the trial at ``index``; of several evaluations the headline."""
        if isinstance(value, RunError):
            return
        self._finished.add(index)
        if value["evaluations"]:
            self._logs[index].row(FINAL, int(value["train_steps"]), value["evaluations"][0])

    def close(self) -> None:
        """Close every log."""
        for index, log in enumerate(self._logs):
            log.close(index in self._finished)


@contextmanager
def trial_logs(names: Sequence[LoggerName], run: Path, trials: Sequence[Trial], note: Note) -> Iterator[TrialLogs]:
    """Open the logs of trials in a run's folder; files appear with the first rows. Finished trials have theirs.

    Args:
        note: as of ``Log``.
    """
    asked = [names if finished(trial.folder) is None else () for trial in trials]
    logs = TrialLogs([_open(own, run, logged_trial(trial), note) for own, trial in zip(asked, trials, strict=True)])
    try:
        yield logs
    finally:
        logs.close()


def _open(names: Sequence[LoggerName], run: Path, about: Logged, note: Note) -> Log:
    return Log({name: LOGGERS[name](run, about) for name in names}, about.name, note)


def logged_trial(trial: Trial) -> Logged:
    """Return what the log of a trial is about, in a file such as ``dt-stitched-1_1-delta-0.1-seed-3-1a2b3c``."""
    settings = {
        "trial_id": trial.trial_id,
        "algo": trial.algo,
        "data": trial.data,
        "ratio": str(trial.ratio),
        "delta": trial.delta,
        "shaping": trial.shaping.text,
        "seed": trial.seed,
        "dataset": None if trial.dataset is None else trial.dataset.ref,
        "settings": settings_json(trial.settings),
        "evaluation": trial.evaluation.to_json(),
    }
    key = trial.trial_id or _key({**settings, **trial.record})
    text = "".join(letter if letter.isalnum() or letter in "._" else "-" for letter in trial.label.replace(":", "_"))
    return Logged(name=trial.label, file=f"{text}-{key[:6]}", key=key, group=trial.cell, settings=settings)


def logged_stage(config: RunConfig, stage: str) -> Logged:
    """Return what the log of a stage is about."""
    settings = yaml.safe_load(config.to_yaml())
    kept = {name: settings[name] for name in (FIT_KEYS if stage == "fit" else BUFFER_KEYS) if name in settings}
    return Logged(name=stage, file=stage, key=f"{stage}-{_key(kept)}", group=STAGES, settings=kept)


def _key(settings: Mapping[str, Any]) -> str:
    text = json.dumps(settings, sort_keys=True, default=str)
    return digest(text.encode()).removeprefix("xxh3:")[:16]


@contextmanager
def _stage_log(config: RunConfig, run: Path, stage: str, note: Note) -> Iterator[Log]:
    log, ok = _open(config.logging, run, logged_stage(config, stage), note), False
    try:
        yield log
        ok = True
    finally:
        log.close(ok)


@contextmanager
def fit_log(config: RunConfig, run: Path, note: Note) -> Iterator[Callable[[FitProgress], None]]:
    """Open the log of a run's fit; gives a callback for its progress.

    Args:
        note: as of ``Log``.
    """
    with _stage_log(config, run, "fit", note) as log:
        yield FitRows(log, config.fit)


class FitRows:
    """Turns the progress of a fit into rows: losses of every part, with steps that count on from part to part."""

    def __init__(self, log: Log, config: FitConfig) -> None:
        self._log, self._part, self._last = log, "", 0
        self._losses: list[float] = []
        counts = [config.diffusion.train_steps, *(head.train_steps for head in config.heads.values())]
        self._before: dict[str, int] = dict(zip(PARTS, accumulate(counts, initial=0), strict=False))

    def __call__(self, at: FitProgress) -> None:
        """Take the progress; every row has the mean loss since the one before."""
        if at.part != self._part:
            self._part, self._losses = at.part, []
        self._losses.append(at.loss)
        every = max(1, at.total_steps // MOST_ROWS)
        if at.step < at.total_steps and at.step // every == (at.step - CHECK_EVERY) // every:
            return
        loss, self._losses = sum(self._losses) / len(self._losses), []
        step = self._before[at.part] + at.step
        if step > self._last:  # a fit whose process died goes on from its last checkpoint
            self._last = step
            self._log.row(at.part, step, {"loss": loss})


@contextmanager
def augment_log(
    config: RunConfig, run: Path, note: Note, buffer: str | Path | None = None
) -> Iterator[OnAugmentProgress]:
    """Open the log of a run's augment; gives a callback for its progress.

    Args:
        note: as of ``Log``. buffer: where it is, if not in the run's folder.
    """
    with _stage_log(config, run, "augment", note) as log:
        rows = AugmentRows(log, partial(_reach, run / BUFFER if buffer is None else buffer))
        try:
            yield rows
        finally:
            rows.end()


def _reach(buffer: Path | str) -> list[Reach]:
    try:
        return read_reach(buffer)
    except (DamagedError, OSError):
        return []


class AugmentRows:
    """Turns the progress of a generation into rows, whose steps are accepted bridges, and those of its rounds' reach.

    What was there when it began is in the log of the call that made it.

    Args:
        reach: gives what is known of the reach of the buffer, round by round.
    """

    def __init__(self, log: Log, reach: Callable[[], list[Reach]]) -> None:
        self._log, self._reach = log, reach
        self._told = max((found.num_rounds for found in reach()), default=0)
        self._unsaid: AugmentProgress | None = None
        self._step: int | None = None
        self._round, self._seconds = 0, float("-inf")

    def __call__(self, at: AugmentProgress) -> None:
        """Take the progress."""
        if self._step is None:
            self._step, self._round = at.accepted, at.chain_round
        if at.chain_round != self._round:
            self.end()
            self._round = at.chain_round
        self._unsaid = at
        if at.seconds - self._seconds >= ROW_SECONDS:
            self._say()

    def end(self) -> None:
        """Write the last state of a round, and what its bridges lead to."""
        self._say()
        for found in self._reach():
            if found.num_rounds > self._told and self._step is not None:
                self._told = found.num_rounds
                numbers = {name: value for name, value in found.to_json().items() if not name.startswith("best_")}
                self._log.row("reach", self._step, numbers)

    def _say(self) -> None:
        at, self._unsaid = self._unsaid, None
        if at is None or self._step is None or at.accepted <= self._step:
            return
        self._step, self._seconds = at.accepted, at.seconds
        rejected = {f"share_{reason}": n / at.candidates for reason, n in at.reasons.items() if reason != "ok"}
        row = {
            "bridges": at.accepted,
            "round": at.chain_round + 1,
            "shards": at.shards,
            "candidates": at.candidates,
            "share_accepted": at.accepted_share,
            "failed_shards": at.failed_shards,
            "bridges_per_second": at.bridges_per_second,
        }
        self._log.row("augment", at.accepted, {**row, **rejected})


def log_report(config: RunConfig, run: Path, page: Path, note: Note) -> None:
    """Hand the page of a run, and the results that are its headlines, to the loggers that hold files.

    Args:
        note: as of ``Log``.
    """
    about = logged_stage(config, "report")
    loggers = {name: make(run, about) for name, make in PAGE_LOGGERS.items() if name in config.logging}
    if not loggers:
        return
    log = PageLog(loggers, about.name, note)
    log.page(page, _headlines(run))
    log.close(True)


def _headlines(run: Path) -> dict[str, float]:
    """Return the interquartile mean of every cell with a result."""
    from raystitch.report.files import read_run
    from raystitch.report.summary import summarise

    found = read_run(run)
    summary = summarise(found.final_rows, found.headline, found.metrics)
    lines = [(line, line.iqm) for line in summary.lines if line.iqm is not None]
    return {f"{line.algo} {line.label}/{summary.metric.column}": float(iqm.value) for line, iqm in lines}
