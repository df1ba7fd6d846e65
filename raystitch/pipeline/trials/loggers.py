"""Loggers for the tools in which people look at their runs: a log per trial with settings, losses and evaluations.

The record stays what a trial leaves in its own folder (``metrics.jsonl``, ``returns.json``); a logger only shows it,
and no trial fails because its log cannot be written. Where a trial goes on from a checkpoint, what its log says of
later steps is made again. Ray Tune's loggers are not used: a trial of Tune's is a group of ours, its numbers are means.
"""

import csv
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from raystitch.config import LoggerName
from raystitch.errors import RunError, UserError
from raystitch.pipeline.trials.trial import Trial
from raystitch.trainers.config import settings_json

LOGS = "logs"
"""Folder of a run in which loggers write."""
FINAL = "final"
"""Kind of the rows that the reported evaluations are, beside ``train`` and ``eval``."""
NEEDS: Mapping[LoggerName, str | None] = {"csv": None, "tensorboard": "tensorboardX", "wandb": "wandb"}
"""Package of each logger."""


class TrialLogger(Protocol):
    """The log of one trial."""

    def row(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of a step."""

    def close(self) -> None:
        """Say that nothing follows."""


class CsvLogger:
    """A file with a line per number: step, kind, name, value."""

    def __init__(self, run: Path, trial: Trial) -> None:
        self._path, self._begun = run / LOGS / "csv" / f"{log_name(trial)}.csv", False

    def row(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        if not self._begun:
            self._begin(step)
        with self._path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows((step, kind, name, value) for name, value in values.items())

    def _begin(self, step: int) -> None:
        """Keep what there is of earlier steps."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        kept: list[list[str]] = []
        if self._path.is_file():
            with self._path.open(newline="", encoding="utf-8") as file:
                whole = [row for row in list(csv.reader(file))[1:] if len(row) == 4 and row[0].isdecimal()]
            kept = [row for row in whole if int(row[0]) < step]
        with self._path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["step", "kind", "name", "value"], *kept])
        self._begun = True

    def close(self) -> None:
        pass


class TensorBoardLogger:
    """Event files: ``tensorboard --logdir RUN/logs/tensorboard``."""

    def __init__(self, run: Path, trial: Trial) -> None:
        self._folder, self._trial, self._writer = run / LOGS / "tensorboard" / log_name(trial), trial, None

    def row(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        if self._writer is None:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=step)
            settings = json.dumps(settings_of(self._trial), indent=2)
            self._writer.add_text("settings", f"```json\n{settings}\n```", step)
        for name, value in values.items():
            self._writer.add_scalar(f"{kind}/{name}", value, step)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WandbLogger:
    """A run of Weights & Biases, in the project of the sweep's name; ``WANDB_MODE`` and the like say where to."""

    def __init__(self, run: Path, trial: Trial) -> None:
        self._folder, self._trial, self._run = run, trial, None

    def row(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        if self._run is None:
            import wandb  # pyright: ignore[reportMissingImports]

            (self._folder / LOGS).mkdir(exist_ok=True)
            self._run = wandb.init(
                project=self._folder.name,
                name=self._trial.label,
                group=self._trial.cell,
                id=self._trial.trial_id,
                dir=str(self._folder / LOGS),
                config=settings_of(self._trial),
                resume="allow",
                reinit="create_new",
            )
        self._run.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


LOGGERS: Mapping[LoggerName, Callable[[Path, Trial], TrialLogger]] = {
    "csv": CsvLogger,
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
}


def check_loggers(names: Sequence[LoggerName]) -> None:
    """Refuse loggers whose package is missing.

    Raises:
        UserError: naming the package.
    """
    for name in names:
        package = NEEDS[name]
        if package is not None and importlib.util.find_spec(package) is None:
            raise UserError(f"logging: {name} needs a package that is not installed: pip install {package}")


def log_name(trial: Trial) -> str:
    """Return a file name that says what the trial is and is its own: ``dt-stitched-1_1-delta-0.1-seed-3-1a2b3c``."""
    text = "".join(letter if letter.isalnum() or letter in "._" else "-" for letter in trial.label.replace(":", "_"))
    return f"{text}-{trial.trial_id[:6]}"


def settings_of(trial: Trial) -> dict[str, Any]:
    """Return what a trial is, as plain data."""
    return {
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


class TrialLogs:
    """The logs of some trials that are trained together.

    Args:
        note: gets a line for every log that cannot be written; it is left as it is from then on.
    """

    def __init__(self, logs: Sequence[list[TrialLogger]], note: Callable[[str], None]) -> None:
        self._logs, self._note = logs, note

    def row(self, index: int, row: Mapping[str, Any]) -> None:
        """Take a row of ``metrics.jsonl`` of the trial at ``index``."""
        self._write(index, str(row["kind"]), int(row["step"]), row)

    def result(self, index: int, value: Mapping[str, Any] | RunError) -> None:
        """Take the content of ``returns.json`` of the trial at ``index``; of several evaluations the headline."""
        if not isinstance(value, RunError) and value["evaluations"]:
            self._write(index, FINAL, int(value["train_steps"]), value["evaluations"][0])

    def _write(self, index: int, kind: str, step: int, row: Mapping[str, Any]) -> None:
        numbers = {name: value for name, value in row.items() if name not in ("step", "total_steps")}
        values = {name: float(value) for name, value in numbers.items() if _is_number(value)}
        for log in list(self._logs[index]):
            if not self._tried(log, lambda log=log: log.row(kind, step, values)):
                self._logs[index].remove(log)

    def close(self) -> None:
        """Close every log."""
        for log in (log for logs in self._logs for log in logs):
            self._tried(log, log.close)

    def _tried(self, log: TrialLogger, work: Callable[[], None]) -> bool:
        """Do some work of a log; whatever a tool of others comes to, the training goes on."""
        try:
            work()
        except Exception as error:
            self._note(f"{type(log).__name__} stopped: {type(error).__name__}: {error}")
            return False
        return True


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@contextmanager
def trial_logs(
    names: Sequence[LoggerName], run: Path, trials: Sequence[Trial], note: Callable[[str], None]
) -> Iterator[TrialLogs]:
    """Open the logs of trials in a run's folder; files appear with the first rows.

    Args:
        note: as of ``TrialLogs``.
    """
    logs = TrialLogs([[LOGGERS[name](run, trial) for name in names] for trial in trials], note)
    try:
        yield logs
    finally:
        logs.close()
