"""Messages about work that waits for room on a cluster: what it needs, what is free where, and who else is there."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import ray
from ray.exceptions import RayError

from raystitch.cluster.private_ray import cluster_jobs, cluster_status
from raystitch.cluster.resources import NOTE_SECONDS, Need
from raystitch.console import duration
from raystitch.errors import RunError

MOST_NODES = 4
"""A message names at most this many nodes and jobs."""


class Waiting:
    """Watches work for progress and says what it waits for.

    Attributes:
        reason: what the work waited for at the last look; empty when it did not wait.
    """

    def __init__(self, needs: Sequence[Need], note: Callable[[str], None], bound: str = "") -> None:
        """``needs``: what the work reserves. ``bound``: goes before "Ctrl-C ends it" in the message."""
        self._needs, self._note, self._bound = needs, note, bound
        self._moved, self._ended = time.monotonic(), threading.Event()
        self.reason = ""

    def moved(self) -> None:
        """Note progress: nothing is said for the next ten seconds."""
        self._moved, self.reason = time.monotonic(), ""

    @contextmanager
    def said(self) -> Iterator[None]:
        """While the block runs, say every ten seconds without progress what the cluster has no room for."""
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _watch(self) -> None:
        said = self._moved
        while not self._ended.wait(0.5):
            now = time.monotonic()
            if now - max(self._moved, said) < NOTE_SECONDS:
                continue
            said = now
            try:
                self.reason = missing_room(self._needs)
            except RunError as error:  # this Ray does not say it
                self._note(str(error))
                return
            except (RayError, RuntimeError, OSError):  # the cluster is going away; the work itself will report it
                continue
            if self.reason:
                so_far = duration(now - self._moved)
                self._note(f"waiting for {self.reason}; {so_far} so far ({self._bound}Ctrl-C ends it)")


def missing_room(needs: Sequence[Need]) -> str:
    """Say which needs are pending on the cluster, what is free and who else is there; empty if none is pending."""
    status = cluster_status()
    waiting = [need for need in needs if any(_same(need.resources, bundle) for bundle in status.pending)]
    if not waiting:
        return ""
    wanted = " and ".join(dict.fromkeys(f"{need} for {need.who}" for need in waiting))
    names = list(
        dict.fromkeys(["CPU", *(name for need in waiting for name, amount in need.resources.items() if amount)])
    )
    nodes = [
        f"{node.address} has " + ", ".join(f"{n} {node.free.get(n, 0):g} of {node.total.get(n, 0):g}" for n in names)
        for node in status.nodes
        if any(node.total.get(name) for name in names)
    ]
    return f"{wanted}; free: {_few(nodes, 'nodes')}{_other_jobs()}"


def _other_jobs() -> str:
    """Name the other drivers on the cluster."""
    here = ray.get_runtime_context().get_job_id()
    others = [
        f"{job['JobID']} (process {job['DriverPid']} on {job['DriverIPAddress']})"
        for job in cluster_jobs()
        if not job["IsDead"] and job["JobID"] != here and not _is_ray_s_own(job)
    ]
    return f"; other jobs on the cluster: {_few(others, 'jobs')}" if others else ""


def _is_ray_s_own(job: Mapping[str, object]) -> bool:
    config = job.get("Config") or {}
    return str(config.get("ray_namespace", "") if isinstance(config, Mapping) else "").startswith("_ray_internal")


def _few(shown: Sequence[str], what: str) -> str:
    more = f" and {len(shown) - MOST_NODES} more {what}" if len(shown) > MOST_NODES else ""
    return ", ".join(shown[:MOST_NODES]) + more


def _same(need: Mapping[str, float], bundle: Mapping[str, float]) -> bool:
    """Return True if a request listed by Ray matches this need; Ray rounds amounts to 0.0001."""
    asked = {name: amount for name, amount in need.items() if amount}
    listed = {name: amount for name, amount in bundle.items() if amount}
    return asked.keys() == listed.keys() and all(abs(asked[name] - listed[name]) < 1e-3 for name in asked)
