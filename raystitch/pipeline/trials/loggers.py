"""Loggers for the tools in which people look at their runs: a log per trial, and per stage, with each of them.

What is logged a second time, because work goes on from a checkpoint, is written once: tables and event files drop what
they have of later steps, and services get only the steps that they lack.
"""

import csv
import importlib.util
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from raystitch.config import LoggerName
from raystitch.errors import UserError
from raystitch.io.files import atomic_path

LOGS = "logs"
"""Folder of a run in which loggers write."""
FINAL = "final"
"""Kind of the rows that the reported evaluations are; they follow all others of their step."""
NEEDS: Mapping[LoggerName, tuple[str, ...]] = {
    "csv": (),
    "tensorboard": ("tensorboardX",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
}
"""Packages of each logger; those of the last two are extras of the logger's name."""
MLFLOW_DATABASE, MLFLOW_KEY = "mlflow.db", "raystitch_key"
MLFLOW_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # 7 are four minutes in which the work would wait for a server
}
"""Variables that MLflow reads, where the user has not set them."""
WANDB_SECONDS = 30.0
"""Time to wait for Weights & Biases when a run begins, where WANDB_INIT_TIMEOUT does not say."""


@dataclass(frozen=True, kw_only=True)
class Logged:
    """What a log is about: a trial, or a stage of a run.

    Attributes:
        name: for people.
        file: name for files, different from all others of the run.
        key: hash of everything that the numbers depend on; work that goes on has the same one.
        group: cell of a trial, or ``stages``.
        settings: plain data.
    """

    name: str
    file: str
    key: str
    group: str
    settings: Mapping[str, Any]


class RunLogger(Protocol):
    """The log of one trial or stage with one tool."""

    def row(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of a step, which never decreases; one that was written before is not doubled."""

    def close(self, ok: bool) -> None:
        """Say that nothing follows, and whether the work came to its end."""


class PageLogger(RunLogger, Protocol):
    """A log that can hold files."""

    def page(self, page: Path, values: Mapping[str, float]) -> None:
        """Take a file and numbers that sum it up, in place of those before."""


class CsvLogger:
    """A file with a line per number: step, kind, name, value."""

    def __init__(self, run: Path, about: Logged) -> None:
        self._path, self._begun = run / LOGS / "csv" / f"{about.file}.csv", False

    def row(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        if not self._begun:
            self._begin(step + (kind == FINAL))
        with self._path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows((step, kind, name, value) for name, value in values.items())

    def _begin(self, step: int) -> None:
        """Keep what there is of earlier steps."""
        kept: list[list[str]] = []
        if self._path.is_file():
            with self._path.open(newline="", encoding="utf-8") as file:
                whole = [row for row in list(csv.reader(file))[1:] if len(row) == 4 and row[0].isdecimal()]
            kept = [row for row in whole if int(row[0]) < step]
        with (
            atomic_path(self._path, durable=False) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            csv.writer(file).writerows([["step", "kind", "name", "value"], *kept])
        self._begun = True

    def close(self, ok: bool) -> None:
        pass


class TensorBoardLogger:
    """Event files: ``tensorboard --logdir RUN/logs/tensorboard``."""

    def __init__(self, run: Path, about: Logged) -> None:
        self._folder, self._about, self._writer = run / LOGS / "tensorboard" / about.file, about, None

    def row(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        if self._writer is None:
            from tensorboardX import SummaryWriter

            # Its names have whole seconds: of two files of one second the second would replace the first.
            own = f".{time.time_ns()}"
            self._writer = SummaryWriter(str(self._folder), purge_step=step + (kind == FINAL), filename_suffix=own)
            settings = json.dumps(self._about.settings, indent=2, default=str)
            self._writer.add_text("settings", f"```json\n{settings}\n```", step)
        for name, value in values.items():
            self._writer.add_scalar(f"{kind}/{name}", value, step)
        self._writer.flush()

    def close(self, ok: bool) -> None:
        if self._writer is not None:
            self._writer.close()


class WandbLogger:
    """A run of Weights & Biases, in the project of the folder's name; ``WANDB_MODE`` and the like say where to.

    A file keeps the last step of each kind: a run that goes on offline cannot ask the service.
    """

    def __init__(self, run: Path, about: Logged) -> None:
        self._folder, self._about, self._run = run.absolute(), about, None
        self._marks, self._last = self._folder / LOGS / "wandb" / "steps" / f"{about.key}.json", dict[str, int]()

    def row(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        run = self._opened()
        if step <= self._last.get(kind, -1):
            return
        run.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)
        self._last[kind] = step
        with atomic_path(self._marks, durable=False) as temporary:
            temporary.write_text(json.dumps(self._last), encoding="utf-8")

    def page(self, page: Path, values: Mapping[str, float]) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        run = self._opened()
        run.summary.update(dict(values))
        kept = Path(run.dir, page.name)  # beside the run's other files: it may be uploaded only later
        shutil.copyfile(page, kept)
        artifact = wandb.Artifact(page.stem, type=page.stem)
        artifact.add_file(str(kept), name=page.name, policy="immutable")
        run.log_artifact(artifact)

    def _opened(self) -> Any:
        if self._run is None:
            import wandb  # pyright: ignore[reportMissingImports]

            (self._folder / LOGS).mkdir(exist_ok=True)
            self._wait_for_a_new_second()
            settings: dict[str, Any] = {"console": "off", "silent": True}
            if "WANDB_INIT_TIMEOUT" not in os.environ:
                settings["init_timeout"] = WANDB_SECONDS
            self._run = wandb.init(
                project=self._folder.name,
                name=self._about.name,
                group=self._about.group,
                id=self._about.key,
                dir=str(self._folder / LOGS),
                config=dict(self._about.settings),
                resume="allow",
                reinit="create_new",
                settings=wandb.Settings(**settings),
            )
            if self._marks.is_file():
                self._last = json.loads(self._marks.read_text(encoding="utf-8"))
        return self._run

    def _wait_for_a_new_second(self) -> None:
        """wandb names a folder by the second in which it begins, and would write over one that began in the same."""
        folder = self._folder / LOGS / "wandb"
        while any(
            list(folder.glob(f"*{time.strftime('%Y%m%d_%H%M%S', at)}-{self._about.key}"))
            for at in (time.localtime(), time.gmtime())
        ):
            time.sleep(0.05)

    def close(self, ok: bool) -> None:
        if self._run is not None:
            self._run.finish(exit_code=0 if ok else 1)


class MlflowLogger:
    """A run of MLflow, in the experiment of the folder's name: in a database of the run, or where
    ``MLFLOW_TRACKING_URI`` says. Work that goes on finds its run by its key."""

    def __init__(self, run: Path, about: Logged) -> None:
        self._folder, self._about = run.absolute(), about
        self._client: Any = None
        self._run_id, self._last = "", dict[str, int]()

    def row(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        self._opened()
        named = {_mlflow_name(f"{kind}/{name}"): value for name, value in values.items()}
        self._log({name: value for name, value in named.items() if step > self._last.get(name, -1)}, step)

    def page(self, page: Path, values: Mapping[str, float]) -> None:
        client = self._opened()
        client.log_artifact(self._run_id, str(page))
        known = client.get_run(self._run_id).data.metrics
        named = {_mlflow_name(name): value for name, value in values.items()}
        self._log({name: value for name, value in named.items() if known.get(name) != value}, 0)

    def _log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        now = int(1000 * time.time())
        if values:
            metrics = [Metric(name, value, now, step) for name, value in values.items()]
            self._client.log_batch(self._run_id, metrics=metrics)

    def _opened(self) -> Any:
        if self._client is None:
            for name, value in MLFLOW_DEFAULTS.items():
                os.environ.setdefault(name, value)
            from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

            uri, place, artifacts = os.environ.get("MLFLOW_TRACKING_URI"), self._folder / LOGS / "mlflow", None
            if not uri:
                uri, artifacts = f"sqlite:///{place / MLFLOW_DATABASE}", (place / "artifacts").as_uri()
            client = MlflowClient(tracking_uri=uri)
            self._run_id = self._take_up(client, self._experiment(client, artifacts))
            self._client = client
        return self._client

    def _experiment(self, client: Any, artifacts: str | None) -> str:
        from mlflow import MlflowException  # pyright: ignore[reportMissingImports]

        name = self._folder.name
        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                return client.create_experiment(name, artifact_location=artifacts)
            except MlflowException:  # another trial's process may have been first
                found = client.get_experiment_by_name(name)
                if found is None:
                    raise
        return found.experiment_id

    def _take_up(self, client: Any, experiment: str) -> str:
        """Return the id of the run, an earlier one where there is one with this key."""
        from mlflow.entities import Param  # pyright: ignore[reportMissingImports]

        about, known = self._about, dict[str, str]()
        found = client.search_runs([experiment], f"tags.{MLFLOW_KEY} = '{about.key}'", max_results=1)
        if found:
            run_id, known = found[0].info.run_id, found[0].data.params
            client.update_run(run_id, status="RUNNING")
            for name in found[0].data.metrics:
                self._last[name] = max(metric.step for metric in client.get_metric_history(run_id, name))
        else:
            tags = {MLFLOW_KEY: about.key, "group": about.group}
            run_id = client.create_run(experiment, run_name=about.name, tags=tags).info.run_id
        client.log_batch(
            run_id, params=[Param(name, text) for name, text in _flat(about.settings) if name not in known]
        )
        return run_id

    def close(self, ok: bool) -> None:
        if self._client is not None:
            self._client.set_terminated(self._run_id, "FINISHED" if ok else "FAILED")


def _mlflow_name(name: str) -> str:
    """Return a name with the letters that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "", name)


def _flat(value: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested settings as names with dots and texts that are not empty."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _flat(item, f"{at}.{name}" if at else str(name))
    elif value != "":
        yield at, value if isinstance(value, str) else json.dumps(value, default=str)


LOGGERS: Mapping[LoggerName, Callable[[Path, Logged], RunLogger]] = {
    "csv": CsvLogger,
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
    "mlflow": MlflowLogger,
}
PAGE_LOGGERS: Mapping[LoggerName, Callable[[Path, Logged], PageLogger]] = {"wandb": WandbLogger, "mlflow": MlflowLogger}


def check_loggers(names: Sequence[LoggerName], run: Path) -> None:
    """Refuse loggers that cannot work in a run's folder; it need not exist.

    Raises:
        UserError: for a package or a key that is missing, or a folder that cannot be written.
    """
    for name in names:
        missing = [package for package in NEEDS[name] if importlib.util.find_spec(package) is None]
        if missing:
            install = f"'raystitch[{name}]'" if name in PAGE_LOGGERS else missing[0]
            raise UserError(
                f"logging: {name} needs a package that is not installed ({missing[0]}): pip install {install}"
            )
    for folder in ([run / LOGS, *(run / LOGS / name for name in names)]) if names else ():
        if os.path.lexists(folder) and not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
            raise UserError(f"logging: {folder} is no folder that can be written; move it away, or set logging=[]")
    if "wandb" in names:
        _check_wandb()


def _check_wandb() -> None:
    """Raises: UserError where Weights & Biases would ask for a key in the middle of a run."""
    import wandb  # pyright: ignore[reportMissingImports]

    try:
        ready = wandb.setup().settings.mode not in ("online", "shared") or wandb.login(prompt=False, verify=False)
    except Exception as error:  # such as variables that it cannot read
        raise UserError(f"logging: wandb: {' '.join(str(error).split())}") from error
    if not ready:
        raise UserError("logging: wandb has no API key: run `wandb login`, or set WANDB_MODE=offline")
