"""Connecting to Ray, or starting a quiet one on this machine and stopping it again."""

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from raystitch.errors import RunError, UserError

OBJECT_STORE_GIB = 0.4
_started_here = False


def _check_address(address: str) -> None:
    """Whether anything answers at HOST:PORT, in a moment; Ray tries for twenty seconds and prints each of them.

    Raises:
        UserError: when nothing does.
    """
    host, _, port = address.rpartition(":")
    if "/" in host or not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise UserError(
            f"no Ray cluster at address={address!r}: {error.strerror or error}; start one or drop it"
        ) from error


@contextmanager
def ensure_ray(
    address: str | None = None, *, num_cpus: int | None = None, object_store_gib: float = OBJECT_STORE_GIB
) -> Iterator[None]:
    """Ray is up inside the block.

    A running connection is used as it is; else ``address`` (or ``$RAY_ADDRESS``) is connected to; else a local Ray is
    started without a dashboard. Only what was started or connected here is shut down at the end.

    Args:
        num_cpus, object_store_gib: of a local Ray.

    Raises:
        UserError: when there is no cluster at ``address``.
        RunError: when a local Ray cannot start.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    global _started_here
    address = address or os.environ.get("RAY_ADDRESS")
    if address is not None:
        _check_address(address)
    try:
        if address is not None:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        else:
            ray.init(
                address="local",  # without it, Ray joins any cluster that happens to run on this machine
                num_cpus=num_cpus,
                include_dashboard=False,
                object_store_memory=int(object_store_gib * 2**30),
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
    except Exception as error:  # Ray raises bare ones too, when the machine is too busy for its start-up
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if address is not None:
            raise UserError(f"no Ray cluster at address={address!r}: {first_line}; start one or drop it") from error
        raise RunError(f"a local Ray could not be started: {first_line}") from error
    _started_here = address is None
    try:
        yield
    finally:
        _started_here = False
        ray.shutdown()


def is_local() -> bool:
    """Whether Ray was started by ``ensure_ray`` on this machine: nobody will add a node to it."""
    return _started_here


def check_shared(folder: str | os.PathLike[str], marker: str) -> None:
    """Several nodes have to see the same folder.

    Args:
        marker: a file that is in it.

    Raises:
        UserError: when a node does not see it.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
    here = ray.get_runtime_context().get_node_id()
    others = [node["NodeID"] for node in nodes if node["NodeID"] != here]
    sees: Callable[[str], bool] = os.path.isfile
    asked = [
        ray.remote(num_cpus=0.01)(sees)
        .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
        .remote(str(Path(folder) / marker))
        for node in others
    ]
    for node, seen in zip(others, ray.get(asked), strict=True):
        if not seen:
            raise UserError(
                f"--out {folder} is not on shared storage: node {node[:8]} does not see it; "
                "use a folder that all nodes mount, or for a buffer a URI such as s3://bucket/buffer"
            )
