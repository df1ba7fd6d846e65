"""The run that the faults of ``sweep`` disturb, and its comparison with an undisturbed one."""

import contextlib
import json
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raystitch.bench.chaos.processes import Driver, Process, descendants, until
from raystitch.config import load_run_config
from raystitch.data.d4rl import write_d4rl
from raystitch.data.demo import make_pointmaze
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.load import load_dataset
from raystitch.errors import RunError, UserError
from raystitch.models.fit import fit_bundle
from raystitch.pipeline.generate.augment import augment_local
from raystitch.pipeline.trials.run import LOCK_FILE
from raystitch.pipeline.trials.trial_folder import RETURNS_FILE, finished
from raystitch.report.table import read_rows
from raystitch.trainers.config import DataSpec, TD3BCConfig
from raystitch.trainers.data import build_data
from raystitch.trainers.loop import CHECKPOINT_SECONDS, train_policy

METRICS = "metrics.jsonl"
TRAINER = "ImplicitFunc"
"""Part of the title of the processes in which Ray Tune runs functions."""
TRAIN_STEPS = 4000
LONG_SECONDS = 3 * CHECKPOINT_SECONDS
"""Duration of the trial that writes checkpoints, even if the machine becomes twice as fast meanwhile."""
LONG_BATCH, LONG_HIDDEN = 256, 512
TIMED_STEPS = 50


@dataclass(frozen=True, kw_only=True)
class SweepTarget:
    """The run that the faults disturb.

    Attributes:
        prepared: the folder of a run that has a stitcher and a buffer and nothing else.
        undisturbed, long_undisturbed: finished runs that nothing disturbed.
        settings: changes to the configuration ``smoke``; one seed per group, so that results are equal to the bit
            wherever the run was interrupted.
        long_settings: more changes, for trials that last until their first checkpoint.
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
        seconds_to_recover: from the fault until another process continued the interrupted trial.
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
class SweepRun:
    """A run in a folder, its drivers' command line, and what can be observed of its trials."""

    out: Path
    target: SweepTarget
    long: bool = False

    def arguments(self, *options: str) -> list[str]:
        settings = self.target.settings + (self.target.long_settings if self.long else ())
        return ["sweep", "smoke", "--out", str(self.out), *options, *(f"--set={text}" for text in settings)]

    def finished(self) -> dict[str, tuple[int, int]]:
        """Finished trials -> (inode, time) of their results, which change when a result is written again.

        A trial that waits for its evaluation is not finished.
        """
        found: dict[str, tuple[int, int]] = {}
        for path in self.out.glob(f"trials/*/{RETURNS_FILE}"):
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                if finished(path.parent) is not None:
                    found[path.parent.name] = stat.st_ino, stat.st_mtime_ns
        return found

    def wait_for(self, count: int, driver: Driver) -> dict[str, tuple[int, int]]:
        """Wait until this many trials are finished; return them as ``finished`` does."""

        def there() -> bool:
            if driver.status is not None:
                raise RunError(f"the driver ended too early, with {driver.status}: {driver.last_line()}")
            return len(self.finished()) >= count

        until(there, f"{count} trials are finished", self.target.patience)
        return self.finished()

    def begun_again(self, trial: Path, since: float, driver: Driver) -> float:
        """Seconds from ``since`` (monotonic clock) until another process continues the trial of this folder."""
        metrics = trial / METRICS
        before = metrics.stat().st_ino, metrics.stat().st_size

        def on() -> bool:
            with contextlib.suppress(FileNotFoundError):
                return driver.status is not None or (metrics.stat().st_ino, metrics.stat().st_size) != before
            return False

        until(on, "the trial goes on", self.target.patience)
        return time.monotonic() - since

    def taken_up(self, since: float, driver: Driver) -> float:
        """Seconds from ``since`` until a process of this driver, not of one before, trains a trial."""
        until(
            lambda: driver.status is not None or trained_in(self, driver.pid),
            "a trial is trained again",
            self.target.patience,
        )
        return time.monotonic() - since

    def end(self, driver: Driver) -> None:
        """Wait for the end of a driver.

        Raises:
            RunError: its exit status is not 0.
        """
        status = driver.wait(self.target.patience)
        if status != 0:
            raise RunError(f"the driver ended with {status}: {driver.last_line()}")

    def compare(
        self, fault: str, what_happened: str, before: Mapping[str, tuple[int, int]], seconds: float | None
    ) -> SweepFault:
        """Compare the finished run with the undisturbed one; ``before``: the trials finished before the fault."""
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


def make_sweep_target(folder: Path, *, train_steps: int = TRAIN_STEPS, with_long: bool = True) -> SweepTarget:
    """Make a small maze, its stitcher and buffer, and the undisturbed runs, under ``folder``.

    Args:
        with_long: make the undisturbed run of the trial that lasts until a checkpoint too.
    """
    write_d4rl(make_pointmaze(num_steps=2000, seed=0), folder / "maze.hdf5")
    cells = "{algo: td3bc, data: original}, {algo: td3bc, data: stitched, delta: ['off']}, {algo: bc, data: original}"
    settings = (
        f"dataset=d4rl:{folder / 'maze.hdf5'}",
        f"grid=[{cells}]",
        "headline=null",
        "seeds=[0, 1]",
        f"algorithms.td3bc={{train_steps: {train_steps}, batch_size: 32, hidden: 16}}",
        f"algorithms.bc={{train_steps: {train_steps}, batch_size: 32, hidden: 16}}",
        "evaluation={num_episodes: 4, num_envs: 4}",
        "validation.enabled=false",
        "resources={stacked_seeds: 1, num_retries: 1}",
    )
    dataset = load_dataset(f"d4rl:{folder / 'maze.hdf5'}")
    long_steps = steps_that_last(dataset, LONG_SECONDS) if with_long else 1
    large = f"{{train_steps: {long_steps}, batch_size: {LONG_BATCH}, hidden: {LONG_HIDDEN}}}"
    target = SweepTarget(
        prepared=folder / "prepared",
        undisturbed=folder / "undisturbed",
        settings=settings,
        long_settings=("grid=[{algo: td3bc, data: original}]", "seeds=[0]", f"algorithms.td3bc={large}"),
        long_undisturbed=folder / "long",
    )
    config = load_run_config("smoke", list(settings))
    bundle = fit_bundle(dataset, config.fit, target.prepared / "stitcher", device="cpu")
    out = target.prepared / "buffer"
    augment_local(dataset, bundle, config.stitch, config.augment, out=out, seed=config.seed)
    undisturbed_run(target, target.undisturbed)
    if with_long:
        undisturbed_run(target, target.long_undisturbed, long=True)
    return target


def steps_that_last(dataset: EpisodeDataset, seconds: float) -> int:
    """Time a few steps of the large networks; return as many as take ``seconds`` here."""
    data = build_data(dataset, DataSpec(kind="transitions", device="cpu"))
    config = TD3BCConfig(train_steps=TIMED_STEPS, batch_size=LONG_BATCH, hidden=LONG_HIDDEN)
    began = time.monotonic()
    train_policy(data, "td3bc", config)
    return math.ceil(seconds / (time.monotonic() - began) * TIMED_STEPS)


def undisturbed_run(target: SweepTarget, out: Path, long: bool = False) -> Path:
    """Finish a run that nothing disturbs.

    Raises:
        UserError: when the folder exists.
        RunError: when the run fails.
    """
    if out.exists():
        raise UserError(f"{out} exists")
    shutil.copytree(target.prepared, out)
    run = SweepRun(out, target, long)
    with Driver(run.arguments()) as driver:
        run.end(driver)
    return out


def start_run(folder: Path, target: SweepTarget, long: bool = False) -> SweepRun:
    shutil.copytree(target.prepared, folder / "run")
    return SweepRun(folder / "run", target, long)


def trained_in(run: SweepRun, root: int) -> tuple[Process, Path] | None:
    """Find a process below ``root`` that trains an unfinished trial; return it with the folder that it has locked."""
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


def _results(run: Path) -> dict[str, Any]:
    """Trials -> the returns of every episode of every evaluation, and the weights of the policy."""
    found: dict[str, Any] = {}
    for path in run.glob(f"trials/*/{RETURNS_FILE}"):
        returns = [each["returns"] for each in json.loads(path.read_text(encoding="utf-8"))["evaluations"]]
        weights = [file.read_bytes() for file in sorted(path.parent.glob("policy/*.safetensors"))]
        found[path.parent.name] = returns, weights
    return found
