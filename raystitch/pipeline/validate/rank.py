"""Rank correlation of two judgements of the same bridges, with a bootstrap interval.

Legend: W bridges, K bootstrap draws.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raystitch.data.episodes import Ints

NUM_DRAWS = 1000
NUM_BUCKETS = 4
MIN_COUNT = 3

Floats64 = NDArray[np.float64]


def _spearman(first_KW: Floats64, second_KW: Floats64) -> Floats64:
    """Spearman's correlation of each row, float64 [K]; NaN where a row is constant."""
    from scipy.stats import rankdata  # importing it takes half a second, in every process of a run

    ranks = [rankdata(values, axis=1) - (values.shape[1] + 1) / 2 for values in (first_KW, second_KW)]
    scale = np.sqrt((ranks[0] ** 2).sum(1) * (ranks[1] ** 2).sum(1))
    return np.where(scale > 0, (ranks[0] * ranks[1]).sum(1) / np.where(scale > 0, scale, 1.0), np.nan)


def spearman(first: Floats64, second: Floats64, rng: np.random.Generator) -> dict[str, Any]:
    """Spearman's correlation of two numbers per bridge [W], over the bridges where both are known.

    Returns:
        ``count`` of those bridges, ``value``, and ``low, high``: the 95 % percentile bootstrap interval over bridges.
        None where the correlation does not exist (fewer than three bridges, or all alike).
    """
    known = np.isfinite(first) & np.isfinite(second)
    first, second = first[known], second[known]
    count = len(first)
    found: dict[str, Any] = {"count": count, "value": None, "low": None, "high": None}
    if count < MIN_COUNT:
        return found
    value = float(_spearman(first[None], second[None])[0])
    if not np.isfinite(value):
        return found
    rows = rng.integers(count, size=(NUM_DRAWS, count))
    drawn = _spearman(first[rows], second[rows])
    low, high = np.quantile(drawn[np.isfinite(drawn)], [0.025, 0.975]).tolist()
    return found | {"value": value, "low": low, "high": high}


def gap_buckets(gap: Ints) -> list[tuple[int, int]]:
    """At most four ranges of gaps (first and last gap, both inside) that hold about equally many of the bridges."""
    if not len(gap):
        return []
    levels = np.linspace(0, 1, NUM_BUCKETS + 1)[1:]
    last = np.unique(np.quantile(gap, levels, method="inverted_cdf").astype(np.int64)).tolist()
    first = [int(gap.min()), *(end + 1 for end in last[:-1])]
    return list(zip(first, last, strict=True))


def rank_correlation(judged: Floats64, simulated: Floats64, gap: Ints, rng: np.random.Generator) -> dict[str, Any]:
    """``spearman`` over all bridges, and ``by_gap``: the same per bucket with its ``gap_min`` and ``gap_max``."""
    by_gap: list[dict[str, Any]] = []
    for first, last in gap_buckets(gap):
        inside = (gap >= first) & (gap <= last)
        by_gap.append({"gap_min": first, "gap_max": last, **spearman(judged[inside], simulated[inside], rng)})
    return {**spearman(judged, simulated, rng), "by_gap": by_gap}
