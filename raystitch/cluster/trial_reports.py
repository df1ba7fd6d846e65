"""How far the trials on Ray Tune are: workers report losses and evaluations, the driver says what runs and how long."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from raystitch.console import duration
from raystitch.pipeline.trials.groups import Group

REPORT_SECONDS = 5.0
"""Least time between two reports of losses; an evaluation is always reported."""
EVALUATING = "evaluating"
NUM_NAMED = 3
"""Running groups that the progress line names."""


def param_space(groups: Sequence[Group]) -> dict[str, Any]:
    """Return what Tune tries, each group once and in order; Tune, its callbacks and its loggers show every value."""
    shown = [_shown(group) for group in groups]

    def column(name: str, config: Mapping[str, Any]) -> str:
        return shown[config["group"]][name]

    columns = {name: tune.sample_from(partial(column, name)) for name in shown[0]}
    return {"group": tune.grid_search(list(range(len(groups)))), **columns}


def _shown(group: Group) -> dict[str, str]:
    first = group[0]
    return {
        "algo": first.algo,
        "data": first.data,
        "ratio": str(first.ratio),
        "delta": first.delta or "-",
        "shaping": first.shaping.text or "-",
        "seeds": ", ".join(str(trial.seed) for trial in group),
    }


class Reports:
    """Tells Tune how a group gets on: means over its seeds of the losses, and of every evaluation during training.

    Of an evaluation that asks for several returns the headline, which comes first, is reported.
    """

    def __init__(self, group: Group) -> None:
        self._steps, self._num_seeds = group[0].settings.train_steps, len(group)
        self._at: tuple[str, int] | None = None
        self._rows: dict[int, Mapping[str, Any]] = {}
        self._last = time.monotonic()

    def row(self, index: int, row: Mapping[str, Any]) -> None:
        """Take a row of ``metrics.jsonl`` of the trial at ``index``; seeds that train together are at one step."""
        at = str(row["kind"]), int(row["step"])
        if at != self._at:
            self._send()  # of fewer seeds than there are: some failed, or stand at another checkpoint
            self._at = at
        self._rows.setdefault(index, row)
        if len(self._rows) == self._num_seeds and at == ("train", self._steps):
            self._send()  # nothing comes after it until the policies are evaluated

    def _send(self) -> None:
        rows, self._rows = list(self._rows.values()), {}
        if self._at is None or not rows:
            return
        now, (kind, step) = time.monotonic(), self._at
        done = kind == "train" and step >= self._steps
        if kind == "train" and not done and now - self._last < REPORT_SECONDS:
            return
        self._last = now
        means = {f"{kind}/{name}": value for name, value in _means(rows).items()}
        tune.report({"step": step, "steps": self._steps, "doing": EVALUATING if done else "training", **means})


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean of every number that all rows have."""
    found: dict[str, float] = {}
    for name in rows[0].keys() - {"step", "total_steps", "seconds"}:
        values = [row.get(name) for row in rows]
        numbers = [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
        if len(numbers) == len(values):
            found[name] = sum(numbers) / len(numbers)
    return found


class Running:
    """The groups that are being trained, how much of the work is done, and the time left.

    What a report costs depends on the groups that have begun and not ended, not on how many there are.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self._waiting = set(groups)
        self._waiting_work = sum(map(_work, groups))
        self._begun: dict[Group, float] = {}
        """The share of each that is left."""
        self._at: dict[Group, Mapping[str, Any]] = {}
        self._done, self._began = 0.0, time.monotonic()

    def reported(self, group: Group, result: Mapping[str, Any]) -> None:
        """Take a report of a group; the first says where it begins, or goes on from a checkpoint."""
        if "step" not in result:
            return
        self._begin(group)
        left = 1 - min(1.0, result["step"] / max(1, result["steps"]))
        if group in self._at:
            self._done += _work(group) * max(0.0, self._begun[group] - left)
        self._begun[group], self._at[group] = left, result

    def stopped(self, group: Group) -> None:
        """Say that a group is not being trained now."""
        self._at.pop(group, None)

    def ended(self, group: Group) -> None:
        """Say that a group ended, whatever was left of it."""
        self.stopped(group)
        self._begin(group)
        del self._begun[group]

    def _begin(self, group: Group) -> None:
        if group in self._waiting:
            self._waiting.remove(group)
            self._waiting_work -= _work(group)
        self._begun.setdefault(group, 1.0)

    @property
    def text(self) -> str:
        """What runs and, once that can be said, the time left if every step takes as long as those so far."""
        parts = [f"{group[0].cell} {_place(result)}" for group, result in [*self._at.items()][:NUM_NAMED]]
        if len(self._at) > NUM_NAMED:
            parts.append(f"and {len(self._at) - NUM_NAMED} more")
        left = self._waiting_work + sum(_work(group) * share for group, share in self._begun.items())
        if left and self._done > 0.02 * (self._done + left):
            parts.append(f"about {duration((time.monotonic() - self._began) * left / self._done)} left")
        return ", ".join(parts)


def _work(group: Group) -> int:
    return len(group) * group[0].settings.train_steps


def _place(result: Mapping[str, Any]) -> str:
    if result.get("doing") == EVALUATING:
        return "being evaluated"
    return f"{result['step']:,}/{result['steps']:,}"


def number_of(trial: TuneTrial) -> int:
    """Return the number of the group that a trial of Tune trains."""
    return int((trial.config or {})["group"])
