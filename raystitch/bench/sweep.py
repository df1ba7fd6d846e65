"""The cost of ``raystitch sweep`` itself as the number of its trials grows: memory, the driver's work, files, report.

Groups whose trials are finished cost what the driver and Tune add to each; whole runs are of trials that train for a
moment, their driver a process of its own that is watched from outside. Planning, resuming and the report are measured
on folders of trials that were written and not trained. Linux only.
"""

import io
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from raystitch.bench.chaos.processes import Driver
from raystitch.bench.machine import Limits, Row
from raystitch.bench.sweep_runs import NUM_CELLS, Prepared, inputs_of, prepare, write_finished
from raystitch.bench.synthetic import BenchOptions
from raystitch.buffer.episodes import on_dataset
from raystitch.buffer.opening import open_buffer
from raystitch.cluster.runtime import ensure_ray
from raystitch.cluster.trials import run_groups
from raystitch.data.load import load_dataset
from raystitch.errors import RunError
from raystitch.models.bundle import Bundle
from raystitch.pipeline.study.generalise import study_run
from raystitch.pipeline.trials.groups import group_trials
from raystitch.pipeline.trials.place import RunPlace
from raystitch.pipeline.trials.plan import delta_values, plan, result_rows
from raystitch.pipeline.trials.run_folder import RESULTS_FILE, other_rows, write_config
from raystitch.pipeline.trials.trial import STITCHER
from raystitch.pipeline.trials.trial_folder import finished
from raystitch.report.files import BUFFER
from raystitch.report.table import write_results

SEEDS = (10, 30, 100)
"""Per cell, trained together: 120, 360 and 1,200 trials in 12 groups."""
SEEDS_ALONE = (6, 12, 25)
"""Per cell, each a group of its own: 72, 144 and 300 groups."""
SEEDS_WRITTEN = (10, 30, 100, 900)
"""Per cell, of trials that are not trained."""
FIRST_GROUPS = 12
"""Groups until the workers are started, which do not count."""
LOOK_SECONDS = 0.25

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Driven:
    """The cost of a driver: ``pss_mib``, the largest proportional set size of its process, and the CPU seconds of that
    process alone and the wall-clock seconds from its start to its end."""

    pss_mib: float
    cpu_seconds: float
    wall_seconds: float


def rows(limits: Limits, options: BenchOptions) -> list[Row]:
    """Measure; takes about twenty minutes on two idle cores, half of it for the 10,800 trials that are written."""
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(Path(folder))
        for num_seeds in SEEDS_WRITTEN:
            found += written_rows(prepared, num_seeds, Path(folder))
        found += group_rows(prepared, SEEDS_ALONE, Path(folder))
        for num_seeds in SEEDS:
            found += run_rows(prepared, num_seeds, Path(folder))
    return found


def group_rows(prepared: Prepared, seeds: Sequence[int], folder: Path) -> list[Row]:
    """Give Tune groups of one finished trial each, so that all that is left is what the driver does for a group."""
    found: list[Row] = []
    with ensure_ray("local", object_store_gib=0.3):
        for num_seeds in seeds:
            run = prepared.copy(folder / f"groups-{num_seeds}")
            config = prepared.config(num_seeds)
            groups = group_trials(write_finished(config, run), 1, 2, on_gpu=False)
            marks: list[tuple[float, float, float]] = []

            def ended(done: int, note: str, marks: list[tuple[float, float, float]] = marks) -> None:
                marks.append((time.process_time(), time.monotonic(), _pss_mib(os.getpid())))

            run_groups(
                groups,
                RunPlace(folder=run),
                replace(config.resources, trial_memory_gib=0.5),
                ended,
                lambda done, text: None,
            )
            (cpu, wall, pss), (cpu_after, wall_after, pss_after) = marks[FIRST_GROUPS], marks[-1]
            count = len(marks) - 1 - FIRST_GROUPS
            about = f"{len(groups)} groups that have nothing to train"
            found += [
                Row(f"{about}: the driver's CPU per group", (cpu_after - cpu) / count, "s"),
                Row(f"{about}: wall per group", (wall_after - wall) / count, "s"),
                Row(f"{about}: growth of the driver's PSS per group", 1024 * (pss_after - pss) / count, "KiB"),
            ]
    return found


def run_rows(prepared: Prepared, num_seeds: int, folder: Path) -> list[Row]:
    """Train a run, all seeds of a cell together, and give its command again when all trials are finished."""
    out = prepared.copy(folder / f"run-{num_seeds}")
    settings = prepared.arguments(num_seeds, f"resources={{stacked_seeds: {num_seeds}}}")
    arguments = ["sweep", "smoke", "--out", str(out), *(f"--set={text}" for text in settings)]
    about = f"{NUM_CELLS * num_seeds:,} trials in {NUM_CELLS} groups"
    found: list[Row] = []
    for when, what in ((about, drive(arguments)), (f"{about}, all finished", drive(arguments))):
        found += [
            Row(f"{when}: the driver's largest PSS", what.pss_mib, "MiB"),
            Row(f"{when}: the driver's CPU", what.cpu_seconds, "s"),
            Row(f"{when}: wall", what.wall_seconds, "s"),
        ]
    return [*found, Row(f"{about}: report.html", (out / "report.html").stat().st_size / 2**20, "MiB")]


def drive(arguments: list[str]) -> Driven:
    """Run a command to its end and watch its process from outside.

    Raises:
        RunError: when it ends with another status than 0.
    """
    began = time.monotonic()
    cpu = pss = 0.0
    with Driver(arguments) as driver:
        while driver.status is None:
            with suppress(OSError, IndexError, StopIteration):  # it is ending
                cpu, pss = _cpu_seconds(driver.pid), max(pss, _pss_mib(driver.pid))
            time.sleep(LOOK_SECONDS)
        if driver.status != 0:
            raise RunError(f"the driver ended with {driver.status}: {driver.last_line()}")
        return Driven(pss_mib=pss, cpu_seconds=cpu, wall_seconds=time.monotonic() - began)


def _cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of a process and its threads, without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _pss_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 2**10


def written_rows(prepared: Prepared, num_seeds: int, folder: Path) -> list[Row]:
    """Write the folders of finished trials; rows in CPU seconds of this process of what a run does with them."""
    from raystitch.report.page import build_report
    from raystitch.report.terminal import print_summary

    run = prepared.copy(folder / f"written-{num_seeds}")
    asked = prepared.config(num_seeds)
    dataset = load_dataset(asked.dataset)
    write_finished(asked, run)
    write_config(asked, run)
    config, inputs = asked.for_dataset(dataset), inputs_of(asked, run)
    bundle, buffer = Bundle.load(run / STITCHER, "cpu"), on_dataset(open_buffer(run / BUFFER), dataset)
    num_trials = NUM_CELLS * num_seeds
    found: list[Row] = []

    def timed(what: str, work: Callable[[], T]) -> T:
        began = time.process_time()
        result = work()
        seconds = time.process_time() - began
        found.append(Row(f"{num_trials:,} finished trials: CPU to {what}", seconds, "s"))
        return result

    trials = timed("plan", lambda: plan(config, inputs, run))
    timed("group", lambda: group_trials(trials, "auto", 2, on_gpu=False))
    timed("see which are finished", lambda: [trial for trial in trials if finished(trial.folder) is None])
    values = delta_values(buffer)
    table = timed("read their results", lambda: result_rows(trials, {}, values))
    known = {row["trial_id"] for row in table}
    others, _ = timed("look for other trials", lambda: other_rows(run, known, inputs, values))
    timed("write results.parquet", lambda: write_results([*table, *others], run / RESULTS_FILE))
    timed("study the policies", lambda: study_run(run, dataset, bundle, buffer))
    timed("study them again", lambda: study_run(run, dataset, bundle, buffer))
    page = timed("write report.html", lambda: build_report(run))
    with redirect_stdout(io.StringIO()):
        timed("print the summary", lambda: print_summary(run))
    found.append(Row(f"{num_trials:,} finished trials: PSS of this process", _pss_mib(os.getpid()), "MiB"))
    found.append(Row(f"{num_trials:,} finished trials: report.html", page.stat().st_size / 2**20, "MiB"))
    return found
