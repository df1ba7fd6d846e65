"""The faults of ``sweep`` while it trains, each done for real and compared with an undisturbed run.

The driver is a process of its own, ``raystitch sweep``; only processes started here are killed, by process id.
"""

import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from raystitch.bench.chaos.augment_faults import three_nodes
from raystitch.bench.chaos.processes import Driver, settable_clock, small_disk, until
from raystitch.bench.chaos.sweep_target import SweepFault, SweepRun, SweepTarget, start_run, trained_in
from raystitch.errors import RunError


def run_sweep_fault(name: str, folder: Path, target: SweepTarget) -> SweepFault:
    """Do one fault; ``folder`` is emptied first and holds the run afterwards.

    Raises:
        RunError: when the run does not survive the fault, or nothing happens for too long.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return SWEEP_FAULTS[name](name, folder, target)


def _kill_worker(name: str, folder: Path, target: SweepTarget) -> SweepFault:
    """Kill a process that trains; the run continues by itself."""
    run = start_run(folder, target)
    with Driver(run.arguments()) as driver:
        run.wait_for(1, driver)
        victim, trial = until(lambda: trained_in(run, driver.pid), "a trial is trained", target.patience)
        victim.kill()
        killed, before = time.monotonic(), run.finished()
        seconds = run.begun_again(trial, killed, driver)
        run.end(driver)
    return run.compare(name, f"killed pid {victim.pid}; the run went on", before, seconds)


def _kill_driver(name: str, folder: Path, target: SweepTarget) -> SweepFault:
    """Kill the driver and run the same command again."""
    run = start_run(folder, target)
    with Driver(run.arguments()) as driver:
        run.wait_for(2, driver)
        driver.kill()
        killed, before = time.monotonic(), run.finished()
        with Driver(run.arguments()) as again:
            seconds = run.taken_up(killed, again)
            run.end(again)
    return run.compare(name, f"killed with {len(before)} trials finished; run again", before, seconds)


def _lose_node(name: str, folder: Path, target: SweepTarget) -> SweepFault:
    """Remove one of three nodes with the trial that trains on it."""
    run = start_run(folder, target)
    with three_nodes() as (address, remove_node_of), Driver(run.arguments("--address", address)) as driver:
        run.wait_for(1, driver)
        victim, trial = until(lambda: trained_in(run, os.getpid()), "a trial is trained", target.patience)
        remove_node_of(victim.pid)
        killed, before = time.monotonic(), run.finished()
        seconds = run.begun_again(trial, killed, driver)
        run.end(driver)
    return run.compare(name, f"removed the node of pid {victim.pid}; the run went on", before, seconds)


def _fill_disk(name: str, folder: Path, target: SweepTarget) -> SweepFault:
    """Train on a disk that is too small for a checkpoint, then make room and run the command again."""
    disk, source = folder / "disk", SweepRun(target.prepared, target)
    size = sum(path.stat().st_size for path in source.out.rglob("*") if path.is_file()) // 1024
    try:
        with small_disk(disk, 2 * size + 2048) as resize:
            run = start_run(disk, target, long=True)
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
    """Set the clock of the run's Python processes back by an hour while it trains; kill the driver, run it again.

    The second driver has the wrong clock too, so every file it finds is from the future.
    """
    run = start_run(folder, target)
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
    """Start a second driver while the first is at work, which is refused, and a third after the first has ended."""
    run = start_run(folder, target)
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
