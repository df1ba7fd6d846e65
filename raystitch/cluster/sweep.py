"""``raystitch sweep``: data, fit, augment, validate, a grid of trials on Ray Tune, the report; every stage resumes."""

import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import ray

from raystitch.buffer.reader import Buffer, open_buffer
from raystitch.cluster.augment import augment
from raystitch.cluster.fit import fit
from raystitch.cluster.resources import check_resources, run_needs
from raystitch.cluster.runtime import check_shared, cluster_address, ensure_ray, job_id
from raystitch.cluster.search import run_search
from raystitch.cluster.trials import num_slots, run_groups
from raystitch.config import RunConfig, default_out
from raystitch.console import Progress, duration, say
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.load import load_dataset, parse_ref
from raystitch.errors import RunError, UserError
from raystitch.files import atomic_path, locked, write_json
from raystitch.models.bundle import Bundle
from raystitch.pipeline.cost import estimate, plan_groups
from raystitch.pipeline.evaluation import check_evaluation
from raystitch.pipeline.figures import write_figures
from raystitch.pipeline.groups import group_trials
from raystitch.pipeline.search import check_search, search_rows, with_chosen
from raystitch.pipeline.suitable import check_suitable
from raystitch.pipeline.sweep_plan import Inputs, Trial, finished, plan, result_rows, write_results
from raystitch.pipeline.trial import LOCK_FILE, sweep_job
from raystitch.pipeline.validate import validate

PACKAGES = ("raystitch", "ray", "torch", "numpy", "gymnasium", "gymnasium-robotics", "mujoco", "minari", "pyarrow")


def run_sweep(
    config: RunConfig, out: str | os.PathLike[str] | None = None, address: str | None = None, dry_run: bool = False
) -> Path:
    """Runs what is missing of a run and returns its folder; prints the results, or with ``dry_run`` only the plan.

    Raises:
        UserError: for input that cannot work, before anything long starts.
        RunError: when a stage fails, or all trials do.
    """
    out = default_out(config) if out is None else out
    check_search(config)
    if dry_run:
        _print_plan(config, Path(out))
        return Path(out)
    folder = _folder(out)
    busy = f"another `raystitch sweep` is at work in {folder}; wait for it, or choose another --out"
    with locked(folder / LOCK_FILE, busy=busy):
        return _run(replace(config, dataset=_absolute(config.dataset)), folder, address)


def _run(config: RunConfig, folder: Path, address: str | None) -> Path:
    began = time.monotonic()
    with ExitStack() as stack:
        here = cluster_address(address) is None
        if not here:  # what a cluster lacks is told before the data are read
            stack.enter_context(_attached(config, address))
        dataset = _data(config)
        _write_config(config, folder)
        if here:
            stack.enter_context(_attached(config, address))
        check_shared(folder, "config.yaml")
        write_json(folder / "environment.json", environment())
        bundle, buffer = _generate(config, folder, dataset)
        with _stage("figures"):
            write_figures(dataset, buffer, folder / "figures")
        if config.validation.enabled:
            with _stage("validate"):
                found = validate(buffer, dataset, bundle, max_bridges=config.validation.max_bridges)
                write_json(folder / "validate.json", found)
        inputs = Inputs(dataset=dataset.fingerprint, bundle=bundle.hash, buffer=buffer.hash)
        config = _search(config, folder, inputs)
        trials = plan(config, inputs)
        errors = _train(config, folder, trials, inputs)
    delta_value = partial(_delta_value, buffer)
    rows = result_rows(trials, folder / "trials", errors, delta_value)
    write_results(rows + search_rows(config, inputs, folder, delta_value), folder / "results.parquet")
    write_json(
        folder / "environment.json", environment() | {"finished_at": _now(), "seconds": time.monotonic() - began}
    )
    from raystitch.report.page import build_report  # these import Matplotlib: not before the first trial
    from raystitch.report.terminal import print_summary

    page = build_report(folder)
    print_summary(folder)
    print(f"\n{page}  ({duration(time.monotonic() - began)})")
    if errors and len(errors) == len(trials):
        raise RunError(f"all {len(trials)} trials failed, the first with: {next(iter(errors.values()))}")
    return folder


@contextmanager
def _attached(config: RunConfig, address: str | None) -> Iterator[None]:
    """Ray is up and has, or can get, what every stage asks for."""
    with ensure_ray(address, object_store_gib=config.resources.object_store_gib, announce=say):
        check_resources(run_needs(config), config.augment)
        yield


def _data(config: RunConfig) -> EpisodeDataset:
    with _stage("data"):
        dataset = load_dataset(config.dataset, env_id=config.env)
        check_evaluation(dataset, config.evaluation)
        for note in check_suitable(dataset):
            say(f"note: {note}")
    return dataset


class _stage:
    """Says on stderr how long a stage took, when it took long enough to notice."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        self.began = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        seconds = time.monotonic() - self.began
        if kind is None and seconds > 1:
            say(f"{self.name}: {duration(seconds)}")


def _absolute(ref: str) -> str:
    """A dataset reference that means the same in Ray's workers, whose working folder is another one."""
    kind, name = parse_ref(ref)
    return f"d4rl:{Path(name).expanduser().absolute()}" if kind == "d4rl" else ref


def _folder(out: str | os.PathLike[str]) -> Path:
    """The run's folder, checked to be writable before hours of work and not after them."""
    if "://" in str(out):
        raise UserError(f"--out {out}: a run needs a folder; on a cluster, one on storage that all nodes mount")
    folder = Path(out).expanduser()
    if job_id() is not None and not folder.is_absolute():
        raise UserError(
            f"--out {out}: inside a job this would lie in the job's own folder on one node; give an absolute path, on "
            "storage that all nodes mount"
        )
    folder = folder.absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be made: {error.strerror}; choose another folder") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"--out {out} cannot be written; choose another folder")
    return folder


def _generate(config: RunConfig, folder: Path, dataset: EpisodeDataset) -> tuple[Bundle, Buffer]:
    resources = config.resources
    with _stage("fit"), Progress() as progress:
        fit(
            config.dataset,
            config.fit,
            folder / "stitcher",
            d4rl_env=config.env,
            device=resources.device,
            progress=lambda at: progress.update(
                at.part, at.step, at.total_steps, f"loss {at.loss:.4g}, {duration(at.seconds_left)} left"
            ),
        )
    with _stage("augment"), Progress() as progress:
        augment(
            dataset,
            folder / "stitcher",
            out=folder / "buffer",
            stitch_config=config.stitch,
            config=config.augment,
            seed=config.seed,
            device=resources.device,
            progress=lambda at: progress.update("augment", at.accepted, at.wanted, at.text),
        )
    return Bundle.load(folder / "stitcher", "cpu"), open_buffer(folder / "buffer")


def _write_config(config: RunConfig, folder: Path) -> None:
    with atomic_path(folder / "config.yaml") as temporary:
        temporary.write_text(config.to_yaml(), encoding="utf-8")


def _search(config: RunConfig, folder: Path, inputs: Inputs) -> RunConfig:
    """The run with the cell that the search chose, if it asks for a search."""
    if config.search.algorithm == "none":
        return config
    with _stage("search"), Progress() as progress:
        chosen = run_search(
            config,
            folder,
            inputs,
            lambda done, note: progress.update("search", done, config.search.num_cells, note),
        )
    say(f"search: chose ratio {chosen.ratio}, delta {chosen.delta}")
    config = with_chosen(config, chosen)
    _write_config(config, folder)
    return config


def _train(config: RunConfig, folder: Path, trials: Sequence[Trial], inputs: Inputs) -> dict[str, str]:
    missing = [trial for trial in trials if finished(folder / "trials" / trial.trial_id) is None]
    if len(missing) < len(trials):
        say(f"{len(trials) - len(missing)} of {len(trials)} trials are finished already")
    if not missing:
        return {}
    resources = config.resources
    groups = group_trials(missing, resources.stacked_seeds, num_slots(resources), on_gpu=resources.trial_gpus > 0)
    with _stage("trials"), Progress() as progress:
        return run_groups(
            groups,
            sweep_job(config, folder, inputs),
            resources,
            lambda done, note: progress.update("trials", done, len(missing), note),
        )


def _delta_value(buffer: Buffer, delta: str) -> float | None:
    """A delta as a number: for a quantile the median of its thresholds over the accepted bridges' gaps."""
    rows = buffer.accepted_rows(delta)
    if not len(rows):
        return None
    value = float(np.median(buffer.calibration.threshold(delta, buffer.column("gap")[rows])))
    return value if np.isfinite(value) else None


def environment() -> dict[str, Any]:
    """Versions and machine, for environment.json."""
    packages: dict[str, str] = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    resources = ray.cluster_resources() if ray.is_initialized() else {}
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "machine": platform.processor() or platform.machine(),
        "cpus": resources.get("CPU", float(os.cpu_count() or 1)),
        "gpus": resources.get("GPU", 0.0),
        "packages": packages,
    }


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _print_plan(config: RunConfig, folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    trials = plan(config)
    cells: dict[tuple[str, str, str, str], int] = {}
    for trial in trials:
        key = (trial.algo, trial.data, trial.ratio, trial.delta or "-")
        cells[key] = cells.get(key, 0) + 1
    table = Table(title=f"{config.name}: {len(trials)} trials")
    for head in ("algo", "data", "ratio", "delta", "seeds", "steps each"):
        table.add_column(head)
    for key, seeds in cells.items():
        table.add_row(*key, str(seeds), f"{getattr(config.algorithms, key[0]).train_steps:,}")
    console = Console()
    console.print(table)
    num_cpus = os.cpu_count() or 1
    costs = estimate(config, trials, num_cpus)
    groups, _ = plan_groups(config, trials, num_cpus)
    stages = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in costs.items())
    done = sum(1 for path in (folder / "trials").glob("*") if finished(path) is not None)
    if config.search.algorithm != "none":
        search = config.search
        console.print(
            f"before them a search: {search.num_cells} cells by {search.algorithm} with {search.scheduler}, "
            f"{search.algo} on {len(search.seeds)} seeds of its own; the best joins the grid",
            highlight=False,
        )
    console.print(f"{len(trials)} trials in {len(groups)} groups of stacked seeds", highlight=False)
    console.print(f"dataset {config.dataset}; {config.augment.num_bridges:,} bridges; into {folder}", highlight=False)
    console.print(
        f"rough estimate on {num_cpus} CPUs: {stages}; {duration(sum(costs.values()))} in all", highlight=False
    )
    if done:
        console.print(f"{done} finished trials are in {folder} and are used where they still fit", highlight=False)
