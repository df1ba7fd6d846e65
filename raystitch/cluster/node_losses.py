"""Nodes that vanish under a trial of Ray Tune, as spot machines do, and when that is not a failure of the trial."""

import os
import threading
from collections.abc import Hashable
from functools import cache
from pathlib import Path

from ray.tune.experiment import Trial as TuneTrial

NODE_LOST = "its node has died"
"""What Ray says about a process whose node is gone, for whatever reason."""
MAX_LOSSES = 10
"""Nodes that a group may lose before it gets any further; it may be what kills them."""
LOOK_SECONDS = 2.0
"""Time between two looks of a worker for the process that started it."""
GRACE_SECONDS = 20.0
"""Time that a worker without a raylet still lives: Ray takes 12 s to see that a node is lost, and until then it would
count the end of a worker as the worker's own."""


@cache
def end_with_node() -> None:
    """End this worker once the process that started it, its node's raylet, is gone; asked again, it does nothing.

    Ray leaves some workers behind when a raylet is killed. Such a one would train on, and hold the leases of its trials
    against the worker that is to go on with them.
    """
    raylet, done = os.getppid(), threading.Event()

    def watch() -> None:
        while os.getppid() == raylet:
            done.wait(LOOK_SECONDS)
        done.wait(GRACE_SECONDS)
        os._exit(1)  # nobody is left to tell

    threading.Thread(target=watch, name="end with node", daemon=True).start()


class NodeLosses:
    """Counts the nodes that every group has lost since it last got further, and how often it failed to start.

    Args:
        num_retries: times that a group which failed to start is tried again.
    """

    def __init__(self, num_retries: int) -> None:
        self.num_retries = num_retries
        self._losses: dict[Hashable, int] = {}
        self._failed_starts: dict[Hashable, int] = {}
        self._furthest: dict[Hashable, int] = {}

    def reached(self, group: Hashable, step: int) -> None:
        """Take the training step that a group reports."""
        if step > self._furthest.get(group, 0):
            self._furthest[group] = step
            self._losses.pop(group, None)

    def recovered(self, group: Hashable, trial: TuneTrial) -> None:
        """Let Tune try a group once more than it would if its latest failure is the loss of a node."""
        if NODE_LOST in failure_text(trial) and self._forgiven(group):
            trial.max_failures += 1

    def tries_again(self, group: Hashable, trial: TuneTrial) -> bool:
        """Count a failure for which Tune has given a group up; say whether it is to be tried again.

        That is so after the loss of a node. It is, ``num_retries`` times, after a failure to start, such as in the
        process of an earlier group whose node is gone: Tune never tries that again, whatever failures it still allows.
        """
        if NODE_LOST in failure_text(trial):
            return self._forgiven(group)
        if not trial.should_recover():
            return False
        self._failed_starts[group] = self._failed_starts.get(group, 0) + 1
        return self._failed_starts[group] <= self.num_retries

    def _forgiven(self, group: Hashable) -> bool:
        """Count a loss; return True unless it is one too many."""
        self._losses[group] = self._losses.get(group, 0) + 1
        return self._losses[group] <= MAX_LOSSES


def failure_text(trial: TuneTrial) -> str:
    """Return what this process's Tune wrote about the latest failure of a trial of its own; empty for nothing."""
    path = trial.error_file
    if path is None or not Path(path).is_file():
        return ""
    return Path(path).read_text(encoding="utf-8").rpartition("Failure # ")[2].partition("\n")[2].strip()
