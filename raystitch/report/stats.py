"""Statistics over seeds: inter-quartile means, percentile bootstrap, paired differences (checked against rliable).

Legend: S seeds, R bootstrap resamples. Seeds are the samples; evaluation episodes are not.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]

NUM_RESAMPLES = 5000
CONFIDENCE = 0.95


def mean(values: Array) -> Array:
    """Mean over the last axis."""
    return values.mean(-1)


def iqm(values: Array) -> Array:
    """Inter-quartile mean over the last axis: a quarter of the values (rounded down) is cut off at each end."""
    cut = values.shape[-1] // 4
    kept = np.sort(values, axis=-1)
    return kept[..., cut : values.shape[-1] - cut].mean(-1)


@dataclass(frozen=True)
class Interval:
    """A statistic with its bootstrap interval; a single seed has no interval (low = high = value).

    Attributes:
        sign: of a difference that is clear: 1 or -1 where neither the bootstrap interval nor the paired t interval
            holds zero, from 3 seeds on. The bootstrap alone is too sure of itself with few seeds: with 3 it excludes
            zero whenever all have the same sign, which happens to a quarter of the pairs of equals.
    """

    value: float
    low: float
    high: float
    num_seeds: int
    sign: int = 0


def _percentiles(resampled: Array) -> tuple[float, float]:
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return float(low), float(high)


def _draws(num_seeds: int, num_resamples: int, seed: int) -> NDArray[np.int64]:
    return np.random.Generator(np.random.PCG64(seed)).integers(0, num_seeds, (num_resamples, num_seeds))


def interval(
    values: Array, statistic: Statistic = iqm, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Interval:
    """The statistic of ``values`` [S] with a 95 % percentile-bootstrap interval over seeds.

    Raises:
        ValueError: without values.
    """
    values = np.asarray(values, np.float64)
    if values.size == 0:
        raise ValueError("interval needs at least one value, got none")
    resampled = statistic(values[_draws(len(values), num_resamples, seed)])
    return Interval(float(statistic(values)), *_percentiles(resampled), len(values))


def paired_difference(
    ours: Mapping[int, float],
    theirs: Mapping[int, float],
    statistic: Statistic = iqm,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """Difference of the statistics over the seeds both have, resampled in pairs; None without a common seed."""
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        return None
    left = np.array([ours[key] for key in common], np.float64)
    right = np.array([theirs[key] for key in common], np.float64)
    draws = _draws(len(common), num_resamples, seed)
    resampled = statistic(left[draws]) - statistic(right[draws])
    low, high = _percentiles(resampled)
    t_low, t_high = _t_interval(left - right)
    sign = int(low > 0 and t_low > 0) - int(high < 0 and t_high < 0)
    return Interval(float(statistic(left) - statistic(right)), low, high, len(common), sign)


def _t_interval(differences: Array) -> tuple[float, float]:
    """Student's 95 % interval of the mean; unbounded below 3 values."""
    count = len(differences)
    if count < 3:
        return -np.inf, np.inf
    half = float(t.ppf(0.5 + CONFIDENCE / 2, count - 1) * differences.std(ddof=1) / np.sqrt(count))
    return float(differences.mean()) - half, float(differences.mean()) + half


def probability_of_improvement(ours: Array, theirs: Array) -> float:
    """P(a run of ours beats a run of theirs), ties counted half."""
    left, right = np.asarray(ours, np.float64)[:, None], np.asarray(theirs, np.float64)[None]
    return float(((left > right) + 0.5 * (left == right)).mean())
