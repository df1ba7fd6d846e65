"""``progress.json`` of a run: what its driver is at, when each stage began and ended, and what it cost.

The driver writes it when a stage begins or ends, and every ten seconds at most in between. Nothing depends on it: a run
goes on where it cannot be written, and is looked at where it is missing or damaged.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from raystitch.console import say
from raystitch.errors import RunError, UserError
from raystitch.io.digest import digest
from raystitch.io.storage import Storage, StrPath
from raystitch.pipeline.status.cells import PlannedTrial
from raystitch.report.names import CONFIG_FILE, PLAN_FILE, PROGRESS_FILE

SCHEMA_VERSION = 1
WRITE_SECONDS = 10.0
"""Least time between two writings within a stage."""


@dataclass(kw_only=True)
class StageTimes:
    """One stage of a run, over all drivers that worked in the folder.

    Attributes:
        began: Unix time when it was begun last; ended: when it was done, None while it is not.
        seconds: spent on it. core_seconds, gpu_seconds: of the CPUs and GPUs that were held for it, or of the driver's
            own processor time where it works itself. Of trials their own files say what they took.
    """

    began: float
    ended: float | None = None
    seconds: float = 0.0
    core_seconds: float = 0.0
    gpu_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class DriverNote:
    """The content of ``progress.json``.

    Attributes:
        stage: at hand; None between two of them. now: facts about it.
        slots: groups of trials that run at once, 0 before that is known.
    """

    stage: str | None = None
    stages: Mapping[str, StageTimes] = field(default_factory=dict[str, StageTimes])
    now: Mapping[str, Any] = field(default_factory=dict[str, Any])
    slots: int = 0


def read_progress(storage: Storage) -> DriverNote:
    """Read ``progress.json``; without one, or where it is damaged or of a later version, nothing is known."""
    try:
        value = json.loads(storage.read_whole(PROGRESS_FILE).to_pybytes())
        if value["schema_version"] != SCHEMA_VERSION:
            return DriverNote()
        stages = {str(name): StageTimes(**times) for name, times in value["stages"].items()}
        for times in stages.values():
            if not all(isinstance(number, int | float) for number in asdict(times).values() if number is not None):
                return DriverNote()
        now = value["now"]
        if not isinstance(now, dict):
            return DriverNote()
        return DriverNote(stage=value["stage"], stages=stages, now=now, slots=int(value["slots"]))
    except (OSError, RunError, UserError, ValueError, KeyError, TypeError, AttributeError):
        return DriverNote()


class RunProgress:
    """Writes ``progress.json`` of a run and takes up what drivers before have spent. Not for several threads."""

    def __init__(self, run: StrPath) -> None:
        self._storage = Storage(run)
        self._stages = dict(read_progress(self._storage).stages)
        self._stage: str | None = None
        self._now: Mapping[str, Any] = {}
        self._slots, self._held = 0, (None, 0.0)
        self._wrote, self._since, self._processor = 0.0, 0.0, 0.0
        self._can_write = True

    @contextmanager
    def stage(self, name: str, *, cpus: float | None = None, gpus: float = 0.0) -> Iterator[None]:
        """Count what is done inside as a stage.

        Args:
            cpus, gpus: held meanwhile; without ``cpus`` the processor time of this process counts.
        """
        before = self._stages.get(name)
        spent = {} if before is None else {key: getattr(before, key) for key in _SPENT}
        self._stages[name] = StageTimes(began=time.time(), **spent)
        self._stage, self._now, self._held = name, {}, (cpus, gpus)
        self._since, self._processor = time.monotonic(), time.process_time()
        self._write()
        ended = None
        try:
            yield
            ended = time.time()
        finally:
            self._count()
            self._stages[name].ended = ended
            self._stage, self._now = None, {}
            self._write()

    def now(self, **facts: Any) -> None:
        """Say how far the stage at hand is; written the first time, and then if the last time was long enough ago."""
        first, self._now = not self._now, facts
        if first or time.monotonic() - self._wrote >= WRITE_SECONDS:
            self._count()
            self._write()

    def plan(self, trials: Sequence[PlannedTrial], slots: int) -> None:
        """Write ``plan.json``: the trials of the grid with their ids, for the run's ``config.yaml`` as it is.

        Args:
            slots: groups that run at once.
        """
        self._slots = slots
        rows = [asdict(trial) for trial in trials]
        settings = digest(self._storage.read_whole(CONFIG_FILE).to_pybytes())
        self._put(PLAN_FILE, {"schema_version": SCHEMA_VERSION, "settings": settings, "trials": rows})
        self._write()

    def _count(self) -> None:
        """Add the time since the last counting to the stage at hand."""
        if self._stage is None:
            return
        times, (cpus, gpus) = self._stages[self._stage], self._held
        seconds, processor = time.monotonic() - self._since, time.process_time() - self._processor
        self._since, self._processor = self._since + seconds, self._processor + processor
        times.seconds += seconds
        times.core_seconds += processor if cpus is None else cpus * seconds
        times.gpu_seconds += gpus * seconds

    def _write(self) -> None:
        self._wrote = time.monotonic()
        stages = {
            name: {key: None if value is None else round(value, 1) for key, value in asdict(times).items()}
            for name, times in self._stages.items()
        }
        content = {"schema_version": SCHEMA_VERSION, "stage": self._stage, "stages": stages}
        self._put(PROGRESS_FILE, {**content, "now": dict(self._now), "slots": self._slots})

    def _put(self, name: str, content: Mapping[str, Any]) -> None:
        if not self._can_write:
            return
        try:
            self._storage.write(name, (json.dumps(content) + "\n").encode())
        except (RunError, UserError, OSError) as error:
            self._can_write = False
            say(f"note: {error}; `raystitch status` will not know what this run is at")


_SPENT = ("seconds", "core_seconds", "gpu_seconds")
