"""Fitting as a Ray task: on a cluster the driver's machine may have neither CPUs nor a GPU to give."""

import os
import queue
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from raystitch.cluster.resources import Need, await_node, fit_held, fit_need, live_nodes
from raystitch.cluster.waiting import Waiting
from raystitch.console import say
from raystitch.data.ref import DatasetRef
from raystitch.errors import RunError, UserError
from raystitch.io.config_file import plain
from raystitch.io.files import is_remote
from raystitch.models.config import FitConfig
from raystitch.models.fit import fit_bundle
from raystitch.models.loop import FitProgress
from raystitch.pipeline.trials.place import work_folder

RETRY_SECONDS = 1.0
"""Before the first retry; every further one waits twice as long."""


def fit(
    dataset: DatasetRef,
    config: FitConfig,
    out: str | Path,
    *,
    device: str = "auto",
    num_retries: int = 0,
    progress: Callable[[FitProgress], None] | None = None,
) -> None:
    """Fit a bundle in one Ray task that holds a whole machine's CPUs, and a GPU when the cluster has one; resumes.

    Args:
        out: a folder that all machines see, or a URI of an object store.
        num_retries: times that a fit whose process dies, or that fails in a way that is neither the input's nor the
            loss's, goes on from its last checkpoint.

    Raises:
        UserError: as ``fit_bundle``, and when no machine has what it needs or can be added.
        RunError: as ``fit_bundle``.
    """
    attempts = 1 + num_retries
    for attempt in range(1, attempts + 1):
        try:
            _fit_once(dataset, config, str(out) if is_remote(out) else os.path.abspath(out), device, progress)
            return
        except RayError as error:
            why = _reason(error)
            if attempt == attempts:
                tried = f"after {attempts} attempts: " if attempts > 1 else ""
                raise RunError(f"fitting failed: {tried}{why}; run it again to continue") from error
        say(f"fit: {why}; tried again from its last checkpoint ({attempt} of {num_retries})")
        time.sleep(RETRY_SECONDS * 2 ** (attempt - 1))


def _fit_once(
    dataset: DatasetRef,
    config: FitConfig,
    out: str,
    device: str,
    progress: Callable[[FitProgress], None] | None,
) -> None:
    """Raises: RayError when the process died, or failed in a way that may not happen again."""
    await_node(fit_need(device))
    cpus, gpus = fit_held(device, live_nodes())
    # Typed for tasks with one result; a streaming one is an iterator of references. Its process ends with it, else half
    # a GiB of what it knew would stay during all that follows.
    options = {"num_cpus": cpus, "num_gpus": int(gpus), "num_returns": "streaming"}
    remote: Any = ray.remote(**options, max_calls=1, max_retries=0)(_fit)
    reserved = Need(who="fit", resources={"CPU": cpus, "GPU": gpus}, advice="")
    waiting = Waiting([reserved], say)
    try:
        with waiting.said():
            for reference in remote.remote(dataset, config, out, device):
                report: Any = ray.get(reference)
                waiting.moved()
                if isinstance(report, str):
                    say(report)
                elif progress is not None:
                    progress(FitProgress(**report))
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, UserError | RunError):
            raise type(cause)(str(cause)) from None
        raise


def _reason(error: RayError) -> str:
    """Return one line: what the task raised, or that its process died."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1] if isinstance(error, RayTaskError) else f"its process died: {lines[0]}"


def _fit(dataset: DatasetRef, config: FitConfig, out: str, device: str) -> Generator[dict[str, Any] | str, None, None]:
    """Stream progress and notes while a thread fits."""
    reports: queue.Queue[FitProgress | str | None] = queue.Queue()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with work_folder(out, reports.put) as folder:
                fit_bundle(dataset.load(), config, folder, device, progress=reports.put, note=reports.put)
        except BaseException as error:
            failures.append(error)
        finally:
            reports.put(None)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while (report := reports.get()) is not None:
        yield report if isinstance(report, str) else plain(report.__dict__)
    if failures:
        raise failures[0]
