"""Real faults under ``sweep`` while it trains, each compared with an undisturbed run.

The driver is a separate process, ``raystitch sweep``; only processes started here are killed, by process id.
"""

import contextlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raystitch.bench.chaos.augment_faults import three_nodes
from raystitch.bench.chaos.processes import Driver, Process, descendants, settable_clock, small_disk, until
from raystitch.errors import RunError, UserError
from raystitch.pipeline.trials.run import LOCK_FILE
from raystitch.pipeline.trials.trial_folder import RETURNS_FILE, finished
from raystitch.report.table import read_rows

METRICS = "metrics.jsonl"
TRAINER = "ImplicitFunc"
"""In the title of the processes in which Ray Tune runs functions."""


@dataclass(frozen=True, kw_only=True)
class SweepTarget:
    """The run that the faults disturb.

    Attributes:
        prepared: a run's folder with stitcher and buffer and nothing else. undisturbed: the run that nothing disturbed.
        settings: over the configuration ``smoke``; one seed per group, so that the same numbers come out to the bit
            however the run was cut.
        long_settings: besides, for trials that last until they write a checkpoint.
        patience: seconds that anything may take.
    """

    prepared: Path
    undisturbed: Path
    settings: tuple[str, ...]
    long_settings: tuple[str, ...]
    long_undisturbed: Path
    patience: float = 600.0


@dataclass(frozen=True, kw_only=True)
class SweepFault:
    """The effect of one fault on a run.

    Attributes:
        trials: of the undisturbed run; ``lost`` of them have no result in the table, ``doubled`` are in it more than
            once, ``changed`` have other returns or weights, ``repeated`` were finished before the fault and trained
            again.
        seconds_to_recover: from the fault until another process went on with what was being trained.
        impossible: why the fault could not be tried here.
    """

    fault: str
    what_happened: str
    trials: int = 0
    repeated: int = 0
    lost: int = 0
    doubled: int = 0
    changed: int = 0
    seconds_to_recover: float | None = None
    impossible: str = ""

    @property
    def survived(self) -> bool:
        return not (self.repeated or self.lost or self.doubled or self.changed or self.impossible)


@dataclass(frozen=True)
class _Run:
    """A run's folder and what was finished in it at the moment of the fault."""

    out: Path
    target: SweepTarget
    long: bool = False

    def arguments(self, *options: str) -> list[str]:
        settings = self.target.settings + (self.target.long_settings if self.long else ())
        return ["sweep", "smoke", "--out", str(self.out), *options, *(f"--set={text}" for text in settings)]

    def finished(self) -> dict[str, tuple[int, int]]:
        """Trial -> (inode, time) of its result: writing it again changes both. One that waits for its evaluation has
        none."""
        found: dict[str, tuple[int, int]] = {}
        for path in self.out.glob(f"trials/*/{RETURNS_FILE}"):
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                if finished(path.parent) is not None:
                    found[path.parent.name] = stat.st_ino, stat.st_mtime_ns
        return found

    def wait_for(self, count: int, driver: Driver) -> dict[str, tuple[int, int]]:
        def there() -> bool:
            if driver.status is not None:
                raise RunError(f"the driver ended too early, with {driver.status}: {driver.last_line()}")
            return len(self.finished()) >= count

        until(there, f"{count} trials are finished", self.target.patience)
        return self.finished()

    def begun_again(self, trial: Path, since: float, driver: Driver) -> float:
        """Seconds from ``since``, by the steady clock, until another process goes on with the trial of this folder."""
        metrics = trial / METRICS
        before = metrics.stat().st_ino, metrics.stat().st_size

        def on() -> bool:
            with contextlib.suppress(FileNotFoundError):
                return driver.status is not None or (metrics.stat().st_ino, metrics.stat().st_size) != before
            return False

        until(on, "the trial goes on", self.target.patience)
        return time.monotonic() - since

    def taken_up(self, since: float, driver: Driver) -> float:
        """Seconds from ``since`` until a process of this driver, and not what another left, trains a trial."""
        until(
            lambda: driver.status is not None or _trained(self, driver.pid),
            "a trial is trained again",
            self.target.patience,
        )
        return time.monotonic() - since

    def end(self, driver: Driver) -> None:
        status = driver.wait(self.target.patience)
        if status != 0:
            raise RunError(f"the driver ended with {status}: {driver.last_line()}")

    def compare(
        self, fault: str, what_happened: str, before: Mapping[str, tuple[int, int]], seconds: float | None
    ) -> SweepFault:
        expected = _results(self.target.long_undisturbed if self.long else self.target.undisturbed)
        got, after = _results(self.out), self.finished()
        listed = Counter(row["trial_id"] for row in read_rows(self.out / "results.parquet") if row["status"] == "ok")
        return SweepFault(
            fault=fault,
            what_happened=what_happened,
            trials=len(expected),
            repeated=sum(after.get(trial) != stamp for trial, stamp in before.items()),
            lost=len(expected.keys() - listed.keys()),
            doubled=sum(count - 1 for count in listed.values()),
            changed=sum(got.get(trial, value) != value for trial, value in expected.items())
            + len(got.keys() - expected.keys()),
            seconds_to_recover=seconds,
        )


def _results(run: Path) -> dict[str, Any]:
    """Trial -> what every episode of every evaluation returned, and the weights of its policy."""
    found: dict[str, Any] = {}
    for path in run.glob(f"trials/*/{RETURNS_FILE}"):
        returns = [each["returns"] for each in json.loads(path.read_text(encoding="utf-8"))["evaluations"]]
        weights = [file.read_bytes() for file in sorted(path.parent.glob("policy/*.safetensors"))]
        found[path.parent.name] = returns, weights
    return found


def run_sweep_fault(name: str, folder: Path, target: SweepTarget) -> SweepFault:
    """One fault; ``folder`` is emptied first and holds the run afterwards.

    Raises:
        RunError: when the run does not survive the fault, or nothing happens for too long.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return SWEEP_FAULTS[name](name, folder, target)


def _start(folder: Path, target: SweepTarget, long: bool = False) -> _Run:
    shutil.copytree(target.prepared, folder / "run")
    return _Run(folder / "run", target, long)


def _trained(run: _Run, root: int) -> tuple[Process, Path] | None:
    """A process below ``root`` that trains a trial which is not finished, and the trial's folder, whose lock it has."""
    for process in descendants(root):
        if TRAINER in process.title:
            for folder in _locked_by(process.pid):
                at_work = (folder / METRICS).exists() and not (folder / RETURNS_FILE).exists()
                if folder.parent.parent == run.out and at_work:
                    return process, folder
    return None


def _locked_by(pid: int) -> list[Path]:
    found: list[Path] = []
    with contextlib.suppress(OSError):  # the process, or the file, is gone meanwhile
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                file = Path(os.readlink(entry))
                if file.name == LOCK_FILE:
                    found.append(file.parent)
    return found


def _kill_worker(name: str, folder: Path, target: SweepTarget) -> SweepFault:
    """SIGKILL of a process that trains; the run goes on by itself."""
    run = _start(folder, target)
    with Driver(run.arguments()) as driver:
        run.wait_for(1, driver)
        victim, trial = until(lambda: _trained(run, driver.pid), "a trial is trained", target.patience)
        victim.kill()
        killed, before = time.monotonic(), run.finished()
        seconds = run.begun_again(trial, killed, driver)
        run.end(driver)
    return run.compare(name, f"killed pid {victim.pid}; the run went on", before, seconds)


def _kill_driver(name: str, folder: Path, target: SweepTarget) -> SweepFault:
    """SIGKILL of the driver, and the same command again."""
    run = _start(folder, target)
    with Driver(run.arguments()) as driver:
        run.wait_for(2, driver)
        driver.kill()
        killed, before = time.monotonic(), run.finished()
        with Driver(run.arguments()) as again:
            seconds = run.taken_up(killed, again)
            run.end(again)
    return run.compare(name, f"killed with {len(before)} trials finished; run again", before, seconds)


def _lose_node(name: str, folder: Path, target: SweepTarget) -> SweepFault:
    """One of three machines that train vanishes with what it trained."""
    run = _start(folder, target)
    with three_nodes() as (address, remove_node_of), Driver(run.arguments("--address", address)) as driver:
        run.wait_for(1, driver)
        victim, trial = until(lambda: _trained(run, os.getpid()), "a trial is trained", target.patience)
        remove_node_of(victim.pid)
        killed, before = time.monotonic(), run.finished()
        seconds = run.begun_again(trial, killed, driver)
        run.end(driver)
    return run.compare(name, f"removed the node of pid {victim.pid}; the run went on", before, seconds)


def _fill_disk(name: str, folder: Path, target: SweepTarget) -> SweepFault:
    """A disk on which no checkpoint fits; room is made and the command run again."""
    disk, source = folder / "disk", _Run(target.prepared, target)
    size = sum(path.stat().st_size for path in source.out.rglob("*") if path.is_file()) // 1024
    try:
        with small_disk(disk, 2 * size + 2048) as resize:
            run = _start(disk, target, long=True)
            with Driver(run.arguments()) as driver:
                status, said, output = driver.wait(target.patience), driver.last_line(), driver.lines()
            if status not in (1, 3) or any(line.startswith("Traceback") for line in output):
                raise RunError(f"{name}: expected one clear line and exit 1 or 3, got exit {status} and: {said}")
            resize(2 * size + 512 * 1024)
            made, before = time.monotonic(), run.finished()
            with Driver(run.arguments()) as again:
                seconds = run.taken_up(made, again)
                run.end(again)
            happened = f"exit {status}: {said}; run again with room"
            return run.compare(name, happened, before, seconds)
    except PermissionError as error:
        return SweepFault(fault=name, what_happened=f"not possible here: {error}", impossible=str(error))


def _set_clock_back(name: str, folder: Path, target: SweepTarget) -> SweepFault:
    """The clock of every Python process of the run goes back by an hour while it trains; then the driver is killed, and
    the same command runs by the wrong clock, with files of the future all around."""
    run = _start(folder, target)
    with settable_clock(folder) as set_back, Driver(run.arguments()) as driver:
        run.wait_for(1, driver)
        set_back()
        run.wait_for(len(run.finished()) + 1, driver)
        driver.kill()
        killed, before = time.monotonic(), run.finished()
        with Driver(run.arguments()) as again:
            seconds = run.taken_up(killed, again)
            run.end(again)
    happened = f"the run went on; killed with {len(before)} trials finished and run again, an hour behind its files"
    return run.compare(name, happened, before, seconds)


def _two_drivers(name: str, folder: Path, target: SweepTarget) -> SweepFault:
    """A second driver in the folder while the first is at work; it is refused, and may as well come afterwards."""
    run = _start(folder, target)
    with Driver(run.arguments()) as driver:
        before = run.wait_for(1, driver)
        with Driver(run.arguments()) as second:
            status, said = second.wait(target.patience), second.last_line()
        if status != 2 or "another `raystitch sweep` is at work" not in said:
            raise RunError(f"{name}: the second driver was not refused, but ended with {status}: {said}")
        run.end(driver)
        before |= run.finished()
        with Driver(run.arguments()) as third:
            run.end(third)
    return run.compare(name, "exit 2 for the second; a third, afterwards, repeated nothing", before, None)


SWEEP_FAULTS: Mapping[str, Callable[[str, Path, SweepTarget], SweepFault]] = {
    "trial worker": _kill_worker,
    "driver of a sweep": _kill_driver,
    "node of a sweep": _lose_node,
    "full disk at a checkpoint": _fill_disk,
    "clock back an hour": _set_clock_back,
    "two drivers of a sweep": _two_drivers,
}


def undisturbed_run(target: SweepTarget, out: Path, long: bool = False) -> Path:
    """A run that nothing disturbs.

    Raises:
        UserError: when the folder is there.
        RunError: when it fails all the same.
    """
    if out.exists():
        raise UserError(f"{out} exists")
    shutil.copytree(target.prepared, out)
    run = _Run(out, target, long)
    with Driver(run.arguments()) as driver:
        run.end(driver)
    return out
