"""What ``raystitch sweep`` itself takes as the number of its trials grows: memory, the driver's work, files, report.

Trials are so small that nothing else matters. The driver is a process of its own, watched from outside; planning,
resuming and the report are also measured on folders of trials that were written and not trained. Linux only.
"""

import io
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from raystitch.bench.chaos.processes import Driver
from raystitch.bench.machine import Limits, Row
from raystitch.bench.sweep_runs import NUM_CELLS, Prepared, inputs_of, prepare, write_finished
from raystitch.bench.synthetic import BenchOptions
from raystitch.buffer.episodes import on_dataset
from raystitch.buffer.opening import open_buffer
from raystitch.cluster.sweep import delta_values
from raystitch.data.load import load_dataset
from raystitch.errors import RunError
from raystitch.models.bundle import Bundle
from raystitch.pipeline.study.generalise import study_run
from raystitch.pipeline.trials.groups import group_trials
from raystitch.pipeline.trials.plan import plan, result_rows
from raystitch.pipeline.trials.run_folder import RESULTS_FILE, other_rows, write_config
from raystitch.pipeline.trials.trial import STITCHER
from raystitch.pipeline.trials.trial_folder import RETURNS_FILE, finished
from raystitch.report.files import BUFFER, TRIALS
from raystitch.report.table import write_results

SEEDS = (10, 30, 100)
"""Per cell, trained together: 120, 360 and 1,200 trials."""
SEEDS_ALONE = (6, 12, 25)
"""Per cell, each a group of its own: 72, 144 and 300 groups."""
SEEDS_WRITTEN = (10, 30, 100, 900)
"""Per cell, of trials that are not trained."""
FIRST_GROUPS = 12
"""Groups until the workers are started, which do not count."""
LOOK_SECONDS = 0.25
PATIENCE = 3600.0

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Driven:
    """What a driver took.

    Attributes:
        pss_mib: proportional set size of the driver alone, at most; ``growth_mib``: after ``FIRST_GROUPS`` groups.
        cpu_seconds, wall_seconds: of the driver, from its start to its end.
        group_cpu_seconds, group_wall_seconds: per group, after ``FIRST_GROUPS``; None where there are no more.
    """

    pss_mib: float
    growth_mib: float
    cpu_seconds: float
    wall_seconds: float
    group_cpu_seconds: float | None = None
    group_wall_seconds: float | None = None


def rows(limits: Limits, options: BenchOptions) -> list[Row]:
    """Measure; takes about half an hour on two cores."""
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(Path(folder))
        for num_seeds in SEEDS_WRITTEN:
            found += written_rows(prepared, num_seeds, Path(folder))
        for num_seeds in SEEDS_ALONE:
            found += driven_rows(prepared, num_seeds, 1, Path(folder))
        for num_seeds in SEEDS:
            found += driven_rows(prepared, num_seeds, num_seeds, Path(folder))
    return found


def driven_rows(prepared: Prepared, num_seeds: int, stacked: int, folder: Path) -> list[Row]:
    """Train a run and run its command again when all trials are finished; rows of both."""
    num_trials = NUM_CELLS * num_seeds
    num_groups = NUM_CELLS * -(-num_seeds // stacked)
    out = prepared.copy(folder / f"driven-{num_trials}-{num_groups}")
    settings = prepared.arguments(num_seeds, f"resources={{stacked_seeds: {stacked}}}")
    arguments = ["sweep", "smoke", "--out", str(out), *(f"--set={text}" for text in settings)]
    about = f"{num_trials:,} trials in {num_groups} groups"
    trained = drive(arguments, out, num_trials, num_groups)
    resumed = drive(arguments, out, num_trials, num_groups)
    found = [
        Row(f"driver, {about}: largest PSS", trained.pss_mib, "MiB"),
        Row(f"driver, {about}: growth of PSS after the first {FIRST_GROUPS} groups", trained.growth_mib, "MiB"),
        Row(f"driver, {about}: CPU of all", trained.cpu_seconds, "s"),
        Row(f"driver, {about}: wall of all", trained.wall_seconds, "s"),
    ]
    if trained.group_cpu_seconds is not None and trained.group_wall_seconds is not None:
        each = num_trials / num_groups
        found += [
            Row(f"driver, {about}: CPU per group", trained.group_cpu_seconds, "s"),
            Row(f"driver, {about}: CPU per trial", trained.group_cpu_seconds / each, "s"),
            Row(f"driver, {about}: wall per group, training included", trained.group_wall_seconds, "s"),
        ]
    return [
        *found,
        Row(f"driver, {about}: CPU of a run of which all is finished", resumed.cpu_seconds, "s"),
        Row(f"driver, {about}: wall of a run of which all is finished", resumed.wall_seconds, "s"),
        Row(f"driver, {about}: report.html", (out / "report.html").stat().st_size / 2**20, "MiB"),
    ]


def drive(arguments: list[str], out: Path, num_trials: int, num_groups: int) -> Driven:
    """Run a command to its end and watch its process from outside.

    Raises:
        RunError: when it ends with another status than 0.
    """
    began = time.monotonic()
    samples: list[tuple[float, float, float, int]] = []
    with Driver(arguments) as driver:
        while driver.status is None:
            try:
                at = time.monotonic() - began, _cpu_seconds(driver.pid), _pss_mib(driver.pid)
            except (OSError, IndexError, StopIteration):
                continue  # it is ending
            samples.append((*at, _num_finished(out)))
            time.sleep(LOOK_SECONDS)
        if driver.status != 0:
            raise RunError(f"the driver ended with {driver.status}: {driver.last_line()}")
    wall, cpu, _, _ = samples[-1]
    taken = Driven(pss_mib=max(at[2] for at in samples), growth_mib=0.0, cpu_seconds=cpu, wall_seconds=wall)
    first = FIRST_GROUPS * num_trials // num_groups
    counted = [at for at in samples if first <= at[3] < num_trials]
    if len(counted) < 2 or counted[0][3] == counted[-1][3]:
        return taken
    (wall, cpu, pss, done), (wall_after, cpu_after, pss_after, done_after) = counted[0], counted[-1]
    groups = (done_after - done) * num_groups / num_trials
    return Driven(
        pss_mib=taken.pss_mib,
        growth_mib=pss_after - pss,
        cpu_seconds=taken.cpu_seconds,
        wall_seconds=taken.wall_seconds,
        group_cpu_seconds=(cpu_after - cpu) / groups,
        group_wall_seconds=(wall_after - wall) / groups,
    )


def _num_finished(out: Path) -> int:
    try:
        with os.scandir(out / TRIALS) as trials:
            return sum(os.path.exists(os.path.join(trial.path, RETURNS_FILE)) for trial in trials)
    except FileNotFoundError:
        return 0


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

    trials = timed("plan and group", lambda: _planned(partial(plan, config, inputs, run)))
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


def _planned(make: Callable[[], Sequence[T]]) -> Sequence[T]:
    trials = make()
    group_trials(trials, "auto", 2, on_gpu=False)  # type: ignore[arg-type]
    return trials
