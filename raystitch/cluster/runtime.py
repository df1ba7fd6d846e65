"""Connect to a Ray cluster, or start a quiet Ray on this machine and stop it again."""

import json
import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raystitch.cluster import local_ray
from raystitch.cluster.private_ray import version_at
from raystitch.cluster.signals import kept_through_ray
from raystitch.errors import RunError, UserError
from raystitch.io.files import is_remote
from raystitch.io.storage import Storage

OBJECT_STORE_GIB = 0.4
PROBE_SECONDS = 4.0
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by ``ray job submit`` for what it runs."""
_QUIET: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
_started_here = False


def cluster_address(address: str | None) -> str | None:
    """Return where to connect: ``address``, else ``$RAY_ADDRESS``, else this job's cluster; None starts a local Ray."""
    asked = address or os.environ.get("RAY_ADDRESS") or ("auto" if JOB_VARIABLE in os.environ else None)
    return None if asked == "local" else asked


def job_id() -> str | None:
    """Return the name of the job that ``ray job submit`` started this process for; None without one."""
    try:
        return json.loads(os.environ.get(JOB_VARIABLE, "{}"))["metadata"]["job_submission_id"]
    except (ValueError, KeyError, TypeError):
        return None


@contextmanager
def ensure_ray(
    address: str | None = None,
    *,
    num_cpus: int | None = None,
    object_store_gib: float = OBJECT_STORE_GIB,
    announce: Callable[[str], None] | None = None,
) -> Iterator[None]:
    """Ray is up inside the block.

    A running connection is used as it is; else ``cluster_address(address)`` is connected to; else a local Ray is
    started without a dashboard. Only what was started or connected here is shut down at the end.

    Args:
        num_cpus, object_store_gib: of a local Ray.
        announce: is called with ``describe_cluster()``.

    Raises:
        UserError: when there is no cluster at the address, or none that this process can use.
        RunError: when a local Ray cannot start.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    global _started_here
    found = cluster_address(address)
    with _sigterm_as_before():
        try:
            with kept_through_ray():
                if found is None:
                    local_ray.start(num_cpus=num_cpus, object_store_memory=int(object_store_gib * 2**30), **_QUIET)
                else:
                    _connect(found, f"--address {found}" if address else f"RAY_ADDRESS={found}")
            _started_here = found is None
            if announce is not None:
                announce(describe_cluster())
            yield
        finally:
            _started_here = False
            ray.shutdown()


@contextmanager
def _sigterm_as_before() -> Iterator[None]:
    """Restore the handler of SIGTERM at the end of the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        # None: Ray had set it outside Python.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _connect(address: str, named: str) -> None:
    import ray

    if "://" in address:
        raise UserError(
            f"{named} is not the address of a cluster itself, which is HOST:PORT (port 6379 unless told otherwise); to "
            "work from outside it use `ray job submit` (docs/jobs.md)"
        )
    if address != "auto":
        _probe(address, named)
    try:
        ray.init(address=address, **_QUIET)
    except Exception as error:
        versions = re.findall(r"(?:Ray|Python): (\S+)", str(error))
        if "Version mismatch" in str(error) and len(versions) == 4:
            raise UserError(_versions(named, *versions)) from error
        if address == "auto":
            known = "Could not find any running Ray instance" in str(error)
            raise UserError(
                f"{named}: no Ray cluster runs on this machine{'' if known else f' ({_first_line(error)})'}; start one "
                "with `ray start --head`, name one as HOST:PORT, or leave it out to start a Ray for this command alone"
            ) from error
        raise UserError(f"no Ray cluster at {named}: {_first_line(error)}; start one or drop it") from error


def _probe(address: str, named: str) -> None:
    """Refuse an address where no usable cluster answers within seconds; Ray would try for minutes.

    Raises:
        UserError: nothing answers, something else answers, or Ray has another version or asks for another token.
    """
    import grpc
    import ray
    from ray.exceptions import AuthenticationError

    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"{named} is not an address; give HOST:PORT, or auto for the cluster of this machine")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_SECONDS).close()
    except (OSError, OverflowError) as error:
        said = getattr(error, "strerror", None) or error
        raise UserError(f"no Ray cluster at {named}: {said}; start one or drop it") from error
    try:
        version = version_at(address, PROBE_SECONDS)
    except (grpc.RpcError, AuthenticationError) as error:
        code = error.code() if isinstance(error, grpc.Call) else None
        if code == grpc.StatusCode.UNAUTHENTICATED or isinstance(error, AuthenticationError):
            raise UserError(
                f"the Ray cluster at {named} asks for its token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
                "RAY_AUTH_TOKEN_PATH to the cluster's"
            ) from error
        raise UserError(
            f"no Ray cluster at {named}: something else answers there ({code.name if code else _first_line(error)}); "
            "give the port of the cluster itself (6379 unless told otherwise), not of its dashboard"
        ) from error
    if version != ray.__version__:
        raise UserError(_versions(named, version, "", ray.__version__, ""))


def _versions(named: str, ray_there: str, python_there: str, ray_here: str, python_here: str) -> str:
    there = f"Ray {ray_there}{f' on Python {python_there}' if python_there else ''}"
    here = f"Ray {ray_here}{f' on Python {python_here}' if python_here else ''}"
    return (
        f"the Ray cluster at {named} runs {there}, this command {here}: use the same versions, or let the cluster run "
        "it with `ray job submit`"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def describe_cluster() -> str:
    """Say in one line which Ray is connected and what resources it has."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    total: dict[str, float] = {}
    for node in nodes:
        for name, amount in node["Resources"].items():
            total[name] = total.get(name, 0.0) + amount
    has = [f"{total.get(name, 0.0):g} {name}{'' if total.get(name, 0.0) == 1 else 's'}" for name in ("CPU", "GPU")]
    has += [
        f"{total.get(name, 0.0) / 2**30:.3g} GiB {text}"
        for name, text in (("memory", "memory"), ("object_store_memory", "object store"))
    ]
    if is_local():
        return f"Ray: started here, {', '.join(has)}"
    job = f"job {name} on the " if (name := job_id()) else ""
    address = ray.get_runtime_context().gcs_address
    return f"Ray: {job}cluster at {address}, {len(nodes)} node{'' if len(nodes) == 1 else 's'}, {', '.join(has)}"


def is_local() -> bool:
    """Return True if ``ensure_ray`` started Ray on this machine or is yet to: no node will ever be added."""
    import ray

    return _started_here or not ray.is_initialized()


def check_shared(folder: str | os.PathLike[str], marker: str) -> None:
    """Refuse a folder that some node of the cluster does not see.

    Args:
        folder: or a URI, whose store every node has to reach. marker: a file or folder in it.

    Raises:
        UserError: naming the node.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
    here = ray.get_runtime_context().get_node_id()
    others = [node["NodeID"] for node in nodes if node["NodeID"] != here]
    looks: Callable[[str, str], str] = _look
    asked = [
        ray.remote(num_cpus=0.01)(looks)
        .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
        .remote(str(folder), marker)
        for node in others
    ]
    for node, why in zip(others, ray.get(asked), strict=True):
        if why and is_remote(folder):
            raise UserError(f"--out {Storage(folder).where()} cannot be reached from node {node[:8]}: {why}")
        if why:
            raise UserError(
                f"--out {folder} is not on shared storage: node {node[:8]} does not see it; "
                "use a folder that all nodes mount, or a URI such as s3://bucket/runs/name"
            )


def _look(folder: str, marker: str) -> str:
    """Return why a folder cannot be seen from here; empty where it can."""
    if not is_remote(folder):
        return "" if os.path.exists(Path(folder, marker)) else "it is not there"
    try:
        storage = Storage(folder)
        storage.require_bucket()
        storage.names()
    except (UserError, RunError) as error:
        return str(error)
    return ""
