"""Fitting as a Ray task: on a cluster the driver's machine may have neither CPUs nor a GPU to give."""

import queue
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from raystitch.cluster.resources import Need, await_node, fit_need, live_nodes
from raystitch.cluster.waiting import Waiting
from raystitch.config_file import plain
from raystitch.console import say
from raystitch.data.load import load_dataset
from raystitch.errors import RunError, UserError
from raystitch.models.config import FitConfig
from raystitch.models.fit import fit_bundle
from raystitch.models.loop import FitProgress


def fit(
    dataset_ref: str,
    config: FitConfig,
    out: str | Path,
    *,
    d4rl_env: str | None = None,
    device: str = "auto",
    progress: Callable[[FitProgress], None] | None = None,
) -> None:
    """Fits a bundle in one Ray task that holds a whole machine's CPUs, and a GPU when the cluster has one; resumes.

    Raises:
        UserError: as ``fit_bundle``, and when no machine has what it needs or can be added.
        RunError: as ``fit_bundle``.
    """
    await_node(fit_need(device))
    nodes = live_nodes()
    wants_gpu = device != "cpu" and any(node.get("GPU", 0) >= 1 for node in nodes)
    able = [node for node in nodes if node.get("GPU", 0) >= 1] if wants_gpu else nodes
    cpus = max(1.0, *(node.get("CPU", 0.0) for node in able))
    # Typed for tasks with one result; a streaming one is an iterator of references.
    remote: Any = ray.remote(num_cpus=cpus, num_gpus=int(wants_gpu), num_returns="streaming", max_retries=0)(_fit)
    reserved = Need(who="fit", resources={"CPU": cpus, "GPU": float(wants_gpu)}, advice="")
    waiting = Waiting([reserved], say)
    try:
        with waiting.said():
            for reference in remote.remote(dataset_ref, d4rl_env, config, str(Path(out).absolute()), device):
                report: Any = ray.get(reference)
                waiting.moved()
                if progress is not None:
                    progress(FitProgress(**report))
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, UserError | RunError):
            raise type(cause)(str(cause)) from None
        raise RunError(f"fitting failed: {str(error).strip().splitlines()[-1]}") from error
    except RayError as error:
        raise RunError(f"fitting failed: {str(error).strip().splitlines()[0]}; run it again to continue") from error


def _fit(
    dataset_ref: str, d4rl_env: str | None, config: FitConfig, out: str, device: str
) -> Generator[dict[str, Any], None, None]:
    """Streams progress while a thread fits."""
    reports: queue.Queue[FitProgress | None] = queue.Queue()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            fit_bundle(load_dataset(dataset_ref, env_id=d4rl_env), config, Path(out), device, progress=reports.put)
        except BaseException as error:
            failures.append(error)
        finally:
            reports.put(None)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while (report := reports.get()) is not None:
        yield plain(report.__dict__)
    if failures:
        raise failures[0]
