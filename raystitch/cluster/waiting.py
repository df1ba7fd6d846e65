"""Work that waits for room on a cluster says so: what it needs, what is free where, and who else is there."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import ray
from ray.exceptions import RayError

from raystitch.cluster.resources import NOTE_SECONDS, Need, cluster_status
from raystitch.console import duration

MOST_NODES = 4
"""Nodes and jobs that a line names one by one."""


class Waiting:
    """Knows when something last moved, and what is waited for since.

    Attributes:
        reason: what was waited for when it was last looked at; empty when nothing was.
    """

    def __init__(self, needs: Sequence[Need], note: Callable[[str], None], bound: str = "") -> None:
        """``needs``: of the work that may have to wait. ``bound``: begins what the line says about the wait's end."""
        self._needs, self._note, self._bound = needs, note, bound
        self._moved, self._ended = time.monotonic(), threading.Event()
        self.reason = ""

    def moved(self) -> None:
        """Something was finished: nothing is said for the next ten seconds."""
        self._moved, self.reason = time.monotonic(), ""

    @contextmanager
    def said(self) -> Iterator[None]:
        """Says every ten seconds in which nothing moved what the cluster has no room for, as long as the block runs."""
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
            with suppress(RayError, RuntimeError, OSError):  # the cluster is going away; the work itself will report it
                self.reason = missing_room(self._needs)
                if self.reason:
                    so_far = duration(now - self._moved)
                    self._note(f"waiting for {self.reason}; {so_far} so far ({self._bound}Ctrl-C ends it)")


def missing_room(needs: Sequence[Need]) -> str:
    """Which of the needs the cluster has been asked for and has not given, what is free and who else is there; empty
    where there is none."""
    state = cluster_status().cluster_resource_state
    asked = [dict(pending.request.resources_bundle) for pending in state.pending_resource_requests]
    waiting = [need for need in needs if any(_same(need.resources, bundle) for bundle in asked)]
    if not waiting:
        return ""
    wanted = " and ".join(dict.fromkeys(f"{need} for {need.who}" for need in waiting))
    names = list(
        dict.fromkeys(["CPU", *(name for need in waiting for name, amount in need.resources.items() if amount)])
    )
    nodes = [
        f"{node.node_ip_address} has "
        + ", ".join(f"{n} {node.available_resources.get(n, 0):g} of {node.total_resources.get(n, 0):g}" for n in names)
        for node in state.node_states
        if any(node.total_resources.get(name) for name in names)
    ]
    return f"{wanted}; free: {_few(nodes, 'nodes')}{_other_jobs()}"


def _other_jobs() -> str:
    """The drivers that share the cluster."""
    from ray._private.state import jobs

    here = ray.get_runtime_context().get_job_id()
    others = [
        f"{job['JobID']} (process {job['DriverPid']} on {job['DriverIPAddress']})"
        for job in jobs()
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
