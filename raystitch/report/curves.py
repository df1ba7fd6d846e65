"""What the evaluations during training say: the best checkpoint against the last, and whether curves still rise."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raystitch.report.stats import Comparison, compare, mean

Curve = Mapping[int, float]
"""Step -> measure, of one seed."""


def evaluations(entries: Sequence[Mapping[str, Any]], column: str) -> dict[int, float]:
    """The evaluations in a trial's metrics.jsonl; of several target returns the first, which is the headline's."""
    points: dict[int, float] = {}
    for entry in entries:
        if entry.get("kind") == "eval" and entry.get(column) is not None:
            points.setdefault(int(entry["step"]), float(entry[column]))
    return points


def best_checkpoints(last: Mapping[int, float], curves: Mapping[int, Curve]) -> dict[int, float]:
    """By seed, the largest of all evaluations, the final one included; empty unless every seed has several."""
    if not last or any(len(curves.get(seed, {})) < 2 for seed in last):
        return {}
    return {seed: max(value, *curves[seed].values()) for seed, value in last.items()}


def rise(curves: Mapping[int, Curve]) -> Comparison | None:
    """The last quarter of training against the quarter before, paired by seed; None without evaluations in both."""
    late: dict[int, float] = {}
    early: dict[int, float] = {}
    for seed, points in curves.items():
        end = max(points, default=0)
        before = [value for step, value in points.items() if 0.5 * end < step <= 0.75 * end]
        after = [value for step, value in points.items() if step > 0.75 * end]
        if before and after:
            early[seed], late[seed] = float(np.mean(before)), float(np.mean(after))
    return compare(late, early, mean)
