"""Where a run lives: a folder, or a URI of an object store, of which every process has a stage.

The files have the same names in both. The driver of a run on a store copies what it reads (everything but shards,
policies and checkpoints) and publishes the run's own files; the buffer is written to the store by whoever makes a
shard; the process that trains a trial publishes that trial's files.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from raystitch.config import LoggerName
from raystitch.console import say
from raystitch.errors import RunError, UserError
from raystitch.io.files import is_remote
from raystitch.io.object_lease import held_by_process_here, object_leased
from raystitch.io.stage import Stage, Wanted, checked_uri, local_copy, stage_folder
from raystitch.io.storage import Storage
from raystitch.models.bundle import STITCHER_FILE
from raystitch.pipeline.trials.groups import Group
from raystitch.pipeline.trials.loggers import LOGS
from raystitch.pipeline.trials.logs import logged_trial
from raystitch.pipeline.trials.preflight import check_out
from raystitch.pipeline.trials.run import leave_error
from raystitch.pipeline.trials.trial import Trial
from raystitch.report.names import BUFFER, ERROR_FILE, LOCK_FILE, RETURNS_FILE, SETTINGS_FILE, STITCHER, TRIALS

ORDER = ("progress.json", "*.pt", "*policy.json", f"*{STITCHER_FILE}", f"*{RETURNS_FILE}")
"""Files that are published soon, and after those that they speak of: checkpoints after ``metrics.jsonl``, markers
last."""
READABLE = ("*.html", f"*{ERROR_FILE}", "generalise.json", "validate.json")
"""Files that name the run's folder, for people."""
TRIAL_FILES = (SETTINGS_FILE, "metrics.jsonl", RETURNS_FILE, ERROR_FILE)
"""Files of a trial that a driver and a report read."""
STAGE_LOGS = ("csv/fit.csv", "csv/augment.csv")
"""Logs of stages that go on in the same file."""
BUNDLE = "a stitcher bundle (made by `raystitch fit`)"


def of_report(name: str) -> bool:
    """Say whether a file of a run is one that its report, or the next driver, reads."""
    top, _, rest = name.partition("/")
    if top == TRIALS:
        return PurePosixPath(rest).name in TRIAL_FILES and rest.count("/") == 1
    if top == BUFFER:
        return rest in ("buffer.json", "reach.json")
    if top == STITCHER:
        return "/" not in rest or rest == ".fit/plan.json"
    if top == LOGS:
        return rest in STAGE_LOGS or rest.startswith("wandb/steps/")
    return top != "reruns" and not name.startswith("study/scaling/")


def of_study(name: str) -> bool:
    """Say whether a file of a run is one that a study, or a trial that is repeated, reads: all but checkpoints."""
    return of_report(name) or "/policy/" in name or name.startswith((f"{BUFFER}/", "study/"))


def of_driver(name: str) -> bool:
    """Say whether a file of a run is one that the driver, and no worker, writes."""
    return not name.startswith((f"{TRIALS}/", f"{BUFFER}/", f"{STITCHER}/"))


@dataclass(frozen=True, kw_only=True)
class RunPlace:
    """A run as one process sees it.

    Attributes:
        folder: with the run's files; on an object store this process's stage.
        stage: None for a folder.
    """

    folder: Path
    stage: Stage | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the folder alone: a stage is one process's, and of Tune's copy of its callbacks nothing is read."""
        return partial(RunPlace, folder=self.folder), ()

    @property
    def where(self) -> str:
        """The run's folder or URI, for messages."""
        return str(self.folder) if self.stage is None else self.stage.storage.where()

    @property
    def uri(self) -> str:
        """Where every node finds the run."""
        return str(self.folder.absolute()) if self.stage is None else self.stage.storage.uri

    def at(self, name: str) -> str:
        """Return where every node finds a file or folder of the run."""
        return str(self.folder / name) if self.stage is None else self.stage.storage.below(name)

    def refresh(self, under: str = "", wanted: Wanted = of_report) -> None:
        """Copy what other processes have changed below a folder of the run."""
        if self.stage is not None:
            self.stage.get(wanted, under)

    def refresh_trials(self, trial_ids: Sequence[str]) -> None:
        """Copy what the workers have published of trials; a store that does not answer is only told of."""
        try:
            for trial_id in trial_ids:
                self.refresh(f"{TRIALS}/{trial_id}")
        except RunError as error:
            say(f"note: {self.told(str(error))}; looked at again when the others have ended")

    def leave_error(self, trial: Trial, reason: str) -> None:
        """Leave why a trial failed in its ``error.txt``, where its process could not."""
        if self.stage is None:
            leave_error(trial.folder, reason)
            return
        with suppress(RunError, UserError):  # only who looks on misses it
            self.stage.storage.write(f"{TRIALS}/{trial.trial_id}/{ERROR_FILE}", f"{reason}\n".encode())
            self.refresh(f"{TRIALS}/{trial.trial_id}")

    def publish(self) -> None:
        """Send what this process has changed of the run."""
        if self.stage is not None:
            self.stage.put()

    def told(self, text: str) -> str:
        """Return a text for people that names the run where it names this process's stage."""
        return text if self.stage is None else self.stage.told(text)

    def held_here(self) -> bool:
        """Return True if a living process of this machine holds the lock of a run on an object store."""
        return self.stage is not None and held_by_process_here(self.stage.storage, LOCK_FILE)

    @contextmanager
    def held(self, busy: str, patience: float, on_wait: Callable[[str], None]) -> Iterator[None]:
        """Hold the lock of a run on an object store; arguments and errors are those of ``lease.leased``. What this
        process changes is published meanwhile and at the end, as long as the lock is not lost."""
        stage = self.stage
        assert stage is not None
        with object_leased(stage.storage, LOCK_FILE, busy=busy, patience=patience, on_wait=on_wait) as lease:
            if why := stage.storage.unguarded(LOCK_FILE):
                say(f"note: {self.where}: {why}, so two sweeps could work on it at once; let only one do so")
            stage.check = lease.check
            self.refresh()
            with stage.publishing():
                yield


@contextmanager
def open_place(out: str | os.PathLike[str], wanted: Wanted = of_report, mine: Wanted = of_driver) -> Iterator[RunPlace]:
    """Open a run to read or to drive; of one on an object store the wanted files are copied. Nothing is written there.

    Errors inside name the URI, not the stage.

    Raises:
        UserError: when there can be no run: no folder, a URI with credentials, a store that refuses.
        StorageError: when the store does not answer, or the cache cannot be written.
    """
    if not is_remote(out):
        yield RunPlace(folder=check_out(out))
        return
    uri = checked_uri(str(out))
    with stage_folder(uri) as folder:
        stage = Stage(uri, folder, order=ORDER, readable=READABLE, mine=mine)
        stage.storage.require_bucket()
        with stage.named():
            stage.get(wanted)
            yield RunPlace(folder=folder, stage=stage)


def check_shared_loggers(names: Sequence[LoggerName], place: RunPlace) -> None:
    """Refuse logs that workers without a common folder cannot write.

    Raises:
        UserError: for mlflow without a server.
    """
    if place.stage is not None and "mlflow" in names and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise UserError(
            f"logging: mlflow keeps its database in the run's folder, which {place.where} cannot hold; name a server "
            "with MLFLOW_TRACKING_URI, or leave it out"
        )


@contextmanager
def reading(run: str, marker: str, wanted: Wanted = of_report) -> Iterator[RunPlace]:
    """Open a run that is there, to write a report or a study into it; what changes is published.

    Args:
        run: its URI. marker: a file that it has.

    Raises:
        UserError: when there is no run; as ``open_place``.
    """
    with open_place(run, wanted) as place:
        assert place.stage is not None
        if not (place.folder / marker).is_file():
            raise UserError(f"{place.where} is not a run of `raystitch sweep`: it has no {marker}")
        with place.stage.publishing():
            yield place


@dataclass(frozen=True, kw_only=True)
class GroupAtHand:
    """A group of trials where this process can train it.

    Attributes:
        run: folder for their logs.
        check: raises when another process may have taken the trials over.
        publish: sends what there is so far. told: as ``RunPlace.told``.
    """

    group: Group
    run: Path
    check: Callable[[], None] = lambda: None
    publish: Callable[[], object] = lambda: None
    told: Callable[[str], str] = lambda text: text


@contextmanager
def at_hand(
    run: str, group: Group, loggers: Sequence[LoggerName] = (), note: Callable[[str], None] = say
) -> Iterator[GroupAtHand]:
    """Bring the trials of a group here, from where a run is (``RunPlace.uri``), and publish them as they change.

    Of a run on an object store every trial is leased meanwhile; it goes on from the checkpoint that was published last.

    Args:
        note: gets a line when the store does not answer for a while.

    Raises:
        UserError, RunError: as ``Stage``; when a lease was lost.
    """
    if not is_remote(run):
        yield GroupAtHand(group=group, run=Path(run))
        return
    storage = Storage(run)
    with ExitStack() as stack:
        # In one order everywhere, so that two processes cannot wait for each other.
        ids = sorted(trial.trial_id for trial in group)
        leases = [stack.enter_context(object_leased(storage, f"{TRIALS}/{name}/{LOCK_FILE}")) for name in ids]

        def check() -> None:
            for lease in leases:
                lease.check()

        folder = stack.enter_context(stage_folder(run))
        stage = Stage(run, folder, order=ORDER, readable=READABLE, check=check)
        stack.enter_context(stage.named())
        for trial_id in ids:
            stage.get(under=f"{TRIALS}/{trial_id}")
        if loggers:
            about = [logged_trial(trial) for trial in group]
            names = [name for each in about for name in (each.file, each.key)]
            stage.get(lambda file: any(name in file for name in names), under=LOGS)
        stack.enter_context(stage.publishing(note))
        here = tuple(
            replace(
                trial,
                folder=str(folder / TRIALS / trial.trial_id),
                buffer=storage.below(BUFFER),
                bundle=_bundle(storage) if trial.data == "joined" else trial.bundle,
            )
            for trial in group
        )
        yield GroupAtHand(group=here, run=folder, check=check, publish=stage.put, told=stage.told)


def _bundle(storage: Storage) -> str:
    return str(local_copy(storage.below(STITCHER), STITCHER_FILE, BUNDLE))


@contextmanager
def work_folder(out: str | os.PathLike[str], note: Callable[[str], None] = say) -> Iterator[Path]:
    """Yield a folder to write a bundle or a single trial into: ``out``, or the stage of a URI, with all that is there.

    What changes is published meanwhile and at the end.

    Raises:
        UserError, RunError: as ``Stage``.
    """
    if not is_remote(out):
        yield Path(out)
        return
    uri = checked_uri(str(out))
    with ExitStack() as stack:
        folder = stack.enter_context(stage_folder(uri))
        stage = Stage(uri, folder, order=ORDER, readable=READABLE)
        stack.enter_context(stage.named())

        def waiting(who: str) -> None:
            note(f"{stage.storage.where()} is held by {who}: waiting until it is done, or certainly gone")

        lease = stack.enter_context(object_leased(stage.storage, LOCK_FILE, on_wait=waiting))
        stage.check = lease.check
        stage.get()
        stack.enter_context(stage.publishing(note))
        yield folder
