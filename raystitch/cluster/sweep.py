"""``raystitch sweep``: data, fit, augment, validate, a grid of trials on Ray Tune, the report; every stage resumes."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from raystitch.buffer.episodes import on_dataset
from raystitch.buffer.opening import open_buffer
from raystitch.buffer.reach_file import read_reach
from raystitch.buffer.reader import Buffer
from raystitch.cluster.augment import augment
from raystitch.cluster.environment import environment, now_text
from raystitch.cluster.fit import fit
from raystitch.cluster.resources import (
    augment_held,
    fit_held,
    live_nodes,
    machines_of,
    require_resources,
    run_needs,
)
from raystitch.cluster.runtime import check_shared, cluster_address, ensure_ray, job_id
from raystitch.cluster.search import run_search
from raystitch.cluster.trials import num_slots, reserve_memory, run_groups
from raystitch.config import LoggerName, ResourceConfig, RunConfig, default_out
from raystitch.console import Progress, duration, say
from raystitch.data.episodes import EpisodeDataset
from raystitch.device import give_memory_back
from raystitch.errors import RunError, TrialsFailed, UserError
from raystitch.io.files import make_folder, write_json
from raystitch.io.lease import held_here, leased
from raystitch.models.bundle import Bundle
from raystitch.models.fit import existing_fit, load_once
from raystitch.models.loop import FitProgress
from raystitch.pipeline.generate.progress import AugmentProgress
from raystitch.pipeline.potential import write_potential
from raystitch.pipeline.status.progress import RunProgress
from raystitch.pipeline.study.generalise import study_run
from raystitch.pipeline.trials.cost import print_cluster_estimate, print_estimate, print_plan
from raystitch.pipeline.trials.figures import write_figures
from raystitch.pipeline.trials.groups import group_trials
from raystitch.pipeline.trials.like import ImaginedCluster
from raystitch.pipeline.trials.logs import augment_log, fit_log, log_report
from raystitch.pipeline.trials.place import RunPlace, check_shared_loggers, of_study, open_place
from raystitch.pipeline.trials.plan import delta_values, plan, planned, result_rows
from raystitch.pipeline.trials.preflight import Checked, asked_deltas, check_run, check_stages, nearest
from raystitch.pipeline.trials.run_folder import other_rows, write_config
from raystitch.pipeline.trials.search import search_rows, with_chosen
from raystitch.pipeline.trials.targets import with_target
from raystitch.pipeline.trials.trial import InputHashes, Trial
from raystitch.pipeline.trials.trial_folder import finished
from raystitch.pipeline.validate.truth import validate
from raystitch.report.names import (
    BUFFER,
    ENVIRONMENT_FILE,
    FIGURES,
    LOCK_FILE,
    RESULTS_FILE,
    STITCHER,
    TRIALS,
    VALIDATION_FILE,
)
from raystitch.report.table import write_results

JOB_PATIENCE = 120.0


def run_sweep(
    config: RunConfig,
    out: str | os.PathLike[str] | None = None,
    address: str | None = None,
    dry_run: bool = False,
    allow_failed: bool = False,
    like: ImaginedCluster | None = None,
) -> Path:
    """Run what is missing of a run and return its folder; print the results, or with ``dry_run`` only the plan.

    Of a run on an object store the folder is the one that it was staged in, which is gone by then.

    Whatever can refuse the run is asked before any file of the folder changes; a dry run asks the same, and writes
    nothing there.

    Args:
        like: with ``dry_run``, the cluster that the plan is for; None for this machine, or the one at ``address``.
        allow_failed: a run with failed trials is as good as one without, as long as one trial has a result.

    Raises:
        UserError: for input that cannot work, before anything long starts.
        TrialsFailed: when the run went to its end but some trials failed.
        RunError: when a stage fails, or all trials do.
    """
    out = default_out(config) if out is None else out
    _check_job(out)
    config = replace(config, dataset=config.dataset_ref.absolute().ref)
    with ExitStack() as stack:
        place = stack.enter_context(open_place(out))
        checked = _checked(config, place, address, stack, elsewhere=like is not None)
        config, dataset = checked.config, checked.dataset
        if dry_run:
            machines = None if like is None else machines_of(config, dataset, like)
            print_plan(config, place.folder, None if machines is None else machines.slots, where=place.where)
            if like is None or machines is None:
                print_estimate(config, dataset)
            else:
                print_cluster_estimate(config, dataset, machines, like)
            say("nothing stands in the way of this run")
            return place.folder
        stack.enter_context(_alone(place))
        check_stages(config, place.folder, dataset, place.at(BUFFER))  # another run may have been at work until now
        return _run(config, place, dataset, address, allow_failed, stack)


def _checked(config: RunConfig, place: RunPlace, address: str | None, stack: ExitStack, elsewhere: bool) -> Checked:
    """Return a run that nothing refuses with its dataset, and connect to the cluster that it names.

    Args:
        elsewhere: it is only planned, for machines that are not at hand.

    Raises:
        UserError, RunError: for the first thing that refuses it.
    """
    folder = place.folder
    check_shared_loggers(config.logging, place)
    if not _patience() and (place.held_here() or held_here(folder / LOCK_FILE)):
        raise UserError(_busy(place))
    if elsewhere:
        pass  # who plans it asks what those machines have
    elif cluster_address(address) is not None:  # report what the cluster lacks before reading the data
        stack.enter_context(_attached(config, address))
        there = nearest(folder)
        marker = LOCK_FILE if (there / LOCK_FILE).is_file() else "."
        check_shared(there if place.stage is None else place.uri, marker)
    else:
        require_resources(run_needs(config), config.augment)
    with _stage("data"):
        checked = check_run(config, folder, place.at(BUFFER))
    for note in checked.notes:
        say(f"note: {note}")
    return checked


def _run(
    asked: RunConfig,
    place: RunPlace,
    dataset: EpisodeDataset,
    address: str | None,
    allow_failed: bool,
    stack: ExitStack,
) -> Path:
    began, folder = time.monotonic(), place.folder
    if cluster_address(address) is None:
        stack.enter_context(_attached(asked, address))
    check_shared(place.uri, LOCK_FILE)
    write_config(asked, folder)
    if not (folder / ENVIRONMENT_FILE).is_file():  # keep a finished run's file until this run is finished
        write_json(folder / ENVIRONMENT_FILE, environment())
    place.publish()
    track = RunProgress(folder)
    bundle, buffer = _generate(asked, place, dataset, track)
    buffer.calibration.check(asked_deltas(asked))
    with track.stage("figures"):
        with _stage("figures"):
            write_figures(dataset, buffer, folder / FIGURES)
        with _stage("potential"):
            write_potential(folder, dataset, buffer)
    if asked.validation.enabled:
        with _stage("validate"), track.stage("validate"):
            found = validate(buffer, dataset, bundle, max_bridges=asked.validation.max_bridges)
            write_json(folder / VALIDATION_FILE, found)
    inputs = InputHashes(dataset=dataset.fingerprint, bundle=bundle.hash, buffer=buffer.hash)
    resources = reserve_memory(asked, dataset)
    config = with_target(_search(asked, place, inputs, resources, track), folder)
    trials = plan(config, inputs, folder)
    track.plan(planned(trials), num_slots(resources))
    errors = _train(trials, place, resources, asked.logging, track)
    delta_value = delta_values(buffer)
    rows = result_rows(trials, errors, delta_value)
    rows += search_rows(config, inputs, folder, delta_value)
    others, notes = other_rows(folder, {row["trial_id"] for row in rows}, inputs, delta_value)
    for note in notes:
        say(f"note: {note}")
    write_results([*rows, *others], folder / RESULTS_FILE)
    with _stage("generalise"), track.stage("generalise"):
        place.refresh(TRIALS, of_study)  # with the policies
        study_run(folder, dataset, bundle, buffer)
    now = environment() | {"finished_at": now_text(), "seconds": time.monotonic() - began}
    write_json(folder / ENVIRONMENT_FILE, now)
    from raystitch.report.page import build_report  # these import Matplotlib: not before the first trial
    from raystitch.report.terminal import print_summary

    with track.stage("report"):
        page = build_report(folder)
        log_report(config, folder, page, say)
        place.publish()
    print_summary(folder)
    print(f"\n{place.told(str(page))}  ({duration(time.monotonic() - began)})")
    _judge(trials, errors, rows, allow_failed)
    return folder


def _judge(
    trials: Sequence[Trial], errors: Mapping[str, str], rows: Sequence[Mapping[str, Any]], allow_failed: bool
) -> None:
    """Raises: RunError when no trial has a result; TrialsFailed when some have none and that is not allowed."""
    failed = {row["trial_id"]: row["error"] for row in rows if row["status"] == "failed"}
    if errors and len(errors) == len(trials):
        raise RunError(f"all {len(trials)} trials failed, the first with: {next(iter(errors.values()))}")
    if failed and not allow_failed:
        total = len({row["trial_id"] for row in rows})
        raise TrialsFailed(
            f"{len(failed)} of {total} trials failed, the first with: {next(iter(failed.values()))}; the report has "
            "the others; run the same command to retry them (--allow-failed: exit status 0)"
        )


@contextmanager
def _attached(config: RunConfig, address: str | None) -> Iterator[None]:
    """Connect to a Ray that has, or can get, what every stage asks for."""
    with ensure_ray(address, object_store_gib=config.resources.object_store_gib, announce=say):
        require_resources(run_needs(config), config.augment)
        yield


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


def _check_job(out: str | os.PathLike[str]) -> None:
    """Refuse a folder that would be a job's own."""
    if job_id() is not None and "://" not in str(out) and not Path(out).expanduser().is_absolute():
        raise UserError(
            f"--out {out}: inside a job this would lie in the job's own folder on one node; give an absolute path, on "
            "storage that all nodes mount, or a URI such as s3://bucket/runs/name"
        )


@contextmanager
def _alone(place: RunPlace) -> Iterator[None]:
    """Make the folder and keep other sweeps out of it.

    One whose machine was lost is waited for until its lease is over: a job's next attempt has to outlast the last.

    Raises:
        UserError: when another is at work, or the folder cannot be made after all.
    """
    folder = place.folder

    def waiting(who: str) -> None:
        say(f"{place.where} is held by {who}: waiting until it is certain that it is gone, or at work")

    if place.stage is not None:
        with place.held(_busy(place), _patience(), waiting):
            yield
        return
    try:
        make_folder(folder)
    except OSError as error:
        raise UserError(f"--out {folder} cannot be made: {error.strerror}; choose another folder") from error
    with leased(folder / LOCK_FILE, busy=_busy(place), patience=_patience(), on_wait=waiting):
        yield


def _patience() -> float:
    """Return the seconds to wait for a run in the same folder: inside a job it may be the one before, dying."""
    return JOB_PATIENCE if job_id() is not None else 0.0


def _busy(place: RunPlace) -> str:
    return f"another `raystitch sweep` is at work in {place.where}; wait for it, or choose another --out"


def _generate(config: RunConfig, place: RunPlace, dataset: EpisodeDataset, track: RunProgress) -> tuple[Bundle, Buffer]:
    resources, folder, at = config.resources, place.folder, place.at(BUFFER)
    if existing_fit(folder / STITCHER, dataset, config.fit, "cpu") is None:
        cpus, gpus = fit_held(resources.device, live_nodes())
        with (
            _stage("fit"),
            track.stage("fit", cpus=cpus, gpus=gpus),
            Progress() as bars,
            fit_log(config, folder, bars.note) as log_fit,
        ):

            def show_fit(at: FitProgress) -> None:
                note = f"loss {at.loss:.4g}, {duration(at.seconds_left)} left"
                bars.update(at.part, at.step, at.total_steps, note)
                log_fit(at)
                track.now(part=at.part, step=at.step, total_steps=at.total_steps, seconds_left=round(at.seconds_left))

            fit(
                config.dataset_ref,
                config.fit,
                place.at(STITCHER),
                device=resources.device,
                num_retries=resources.num_retries,
                progress=show_fit,
            )
        place.refresh(STITCHER)
    cpus, gpus = augment_held(config.augment)
    noted = set[str]()
    with (
        _stage("augment"),
        track.stage("augment", cpus=cpus, gpus=gpus),
        Progress() as progress,
        augment_log(config, folder, progress.note, at) as log_augment,
    ):

        def show(at: AugmentProgress) -> None:
            if at.event == "note":
                noted.add(at.message)
                progress.note(f"augment: {at.message}")
            progress.update("augment", at.accepted, at.wanted, at.text)
            log_augment(at)
            known = at.to_json()
            track.now(**{name: known[name] for name in ("bridges_per_second", "seconds_left")})

        augment(
            dataset,
            folder / STITCHER,
            out=at,
            stitch_config=config.stitch,
            config=config.augment,
            seed=config.seed,
            device=resources.device,
            progress=show,
        )
    give_memory_back()  # trials need it now
    place.refresh(BUFFER)
    buffer = on_dataset(open_buffer(at), dataset)
    for found in read_reach(buffer.uri)[-1:]:  # what stitched episodes reach, and what follows for training
        if str(found) not in noted:
            say(f"augment: {found}")
        if found.advice:
            say(found.advice)
    return load_once(folder / STITCHER, "cpu"), buffer


def _search(
    config: RunConfig, place: RunPlace, inputs: InputHashes, resources: ResourceConfig, track: RunProgress
) -> RunConfig:
    """Return the run with the cell that the search chose, if it asks for a search."""
    if config.search.algorithm == "none":
        return config
    with _stage("search"), track.stage("search", cpus=0.0), Progress() as progress:  # its trials say what they took
        chosen = run_search(
            with_target(config, place.folder),
            place,
            inputs,
            resources,
            lambda done, note: progress.update("search", done, config.search.num_cells, note),
        )
    say(f"search: chose ratio {chosen.ratio}, delta {chosen.delta}")
    config = with_chosen(config, chosen)
    write_config(config, place.folder)
    return config


def _train(
    trials: Sequence[Trial],
    place: RunPlace,
    resources: ResourceConfig,
    loggers: Sequence[LoggerName],
    track: RunProgress,
) -> dict[str, str]:
    """Train what is not finished; return the errors of trials that failed, by trial id."""
    missing = [trial for trial in trials if finished(trial.folder) is None]
    if len(missing) < len(trials):
        say(f"{len(trials) - len(missing)} of {len(trials)} trials are finished already")
    if not missing:
        return {}
    groups = group_trials(missing, resources.stacked_seeds, num_slots(resources), on_gpu=resources.trial_gpus > 0)
    with _stage("trials"), track.stage("trials", cpus=0.0), Progress() as progress:  # they say what they took

        def show(done: int, runs: str) -> None:
            progress.update("trials", done, len(missing), runs)
            track.now(done=done, missing=len(missing))

        def ended(done: int, note: str) -> None:
            progress.note(note)
            show(done, "")

        return run_groups(groups, place, resources, ended, show, loggers)
