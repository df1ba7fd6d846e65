"""Statistics over seeds: inter-quartile means, percentile bootstrap, comparisons, power (checked against rliable,
scipy and statsmodels).

Legend: S, T seeds, R bootstrap resamples, V different values. Seeds are the samples; evaluation episodes are not.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]

Curve = Mapping[int, float]
"""The measure of one seed: step -> value."""
NUM_RESAMPLES = 5000
CONFIDENCE = 0.95
POWER = 0.8
MAX_SEEDS = 1000
"""``Comparison.seeds_needed`` does not count further than this."""


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
        sign: of a difference that is clear: 1 or -1 where neither the bootstrap interval nor the t interval holds
            zero, from 3 seeds on. The bootstrap alone is too sure of itself with few seeds: with 3 it excludes zero
            whenever all have the same sign, which happens to a quarter of the pairs of equals.
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


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison of our values with theirs.

    Attributes:
        difference: of the statistics, ours minus theirs.
        improvement: P(a seed of ours beats a seed of theirs); its interval resamples both sides on their own.
        paired: over the seeds that both have; else over all seeds of each, as independent samples.
        spread: standard deviation of the differences by seed, None below 3 seeds. Independent samples: as if they had
            been paired at random.
        p_value: of the two-sided t test (paired, or Welch's); None below 3 seeds.
        adjusted: the p-value after correction for the comparisons that it is shown with; None where none was made.
    """

    difference: Interval
    improvement: Interval
    paired: bool
    spread: float | None
    p_value: float | None
    adjusted: float | None = None

    @property
    def seeds_needed(self) -> int | None:
        """Seeds at which a paired t test sees the observed difference with 80 % power; None past ``MAX_SEEDS``."""
        if self.spread is None or self.difference.value == 0:
            return None
        return seeds_needed(self.difference.value, self.spread)

    @property
    def detectable(self) -> float | None:
        """The smallest difference that as many seeds as these would show with 80 % power."""
        return None if self.spread is None else detectable_difference(self.spread, self.difference.num_seeds)


def compare(
    ours: Mapping[int, float],
    theirs: Mapping[int, float],
    statistic: Statistic = iqm,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Comparison | None:
    """Compare values by seed: in pairs when at least two seeds are shared. None when one side is empty."""
    if not ours or not theirs:
        return None
    common = sorted(ours.keys() & theirs.keys())
    # A single shared seed is a pair too, although it says nothing about spread.
    paired = len(common) >= 2 or (len(common) == len(ours) == len(theirs))
    left_seeds, right_seeds = (common, common) if paired else (sorted(ours), sorted(theirs))
    left = np.array([ours[key] for key in left_seeds], np.float64)
    right = np.array([theirs[key] for key in right_seeds], np.float64)
    left_draws = _draws(len(left), num_resamples, seed)
    right_draws = _draws(len(right), num_resamples, seed + 1)
    resampled = statistic(left[left_draws]) - statistic(right[left_draws if paired else right_draws])
    low, high = _percentiles(resampled)
    estimate, spread, error, freedom = _moments(left, right, paired)
    sign, p_value = 0, None
    if spread is not None:
        from scipy.stats import t  # takes a second, in every process of a run

        p_value = float(2 * t.sf(abs(estimate) / error, freedom)) if error > 0 else float(estimate == 0)
        # Clear only when both say so: the interval of the statistic and the t-test of the mean.
        clear = p_value < 1 - CONFIDENCE
        sign = int(low > 0 and estimate > 0 and clear) - int(high < 0 and estimate < 0 and clear)
    value = float(statistic(left) - statistic(right))
    return Comparison(
        difference=Interval(value, low, high, min(len(left), len(right)), sign),
        improvement=_improvement(ours, theirs, num_resamples, seed),
        paired=paired,
        spread=spread,
        p_value=p_value,
    )


def _moments(left: Array, right: Array, paired: bool) -> tuple[float, float | None, float, float]:
    """Difference of the means, spread of one difference, standard error and degrees of freedom."""
    estimate = float(left.mean() - right.mean())
    if min(len(left), len(right)) < 3:
        return estimate, None, 0.0, 0.0
    if paired:
        spread = float((left - right).std(ddof=1))
        # Equal differences leave rounding errors, which are not spread.
        spread = 0.0 if spread < 1e-12 * max(1.0, abs(estimate)) else spread
        return estimate, spread, spread / np.sqrt(len(left)), len(left) - 1
    parts = np.array([values.var(ddof=1) / len(values) for values in (left, right)])
    sizes = np.array([len(left), len(right)])
    freedom = float(parts.sum() ** 2 / (parts**2 / (sizes - 1)).sum()) if parts.sum() > 0 else 1.0
    return estimate, float(np.sqrt((parts * sizes).sum())), float(np.sqrt(parts.sum())), freedom


def probability_of_improvement(ours: Array, theirs: Array) -> Array:
    """P(a run of ours beats a run of theirs), ties counted half: [..., S] and [..., T] give [...]."""
    left, right = np.asarray(ours, np.float64)[..., None], np.asarray(theirs, np.float64)[..., None, :]
    return ((left > right) + 0.5 * (left == right)).mean((-2, -1))


def _improvement(ours: Mapping[int, float], theirs: Mapping[int, float], num_resamples: int, seed: int) -> Interval:
    left, right = (np.array([*values.values()], np.float64) for values in (ours, theirs))
    # How often every different value is drawn, in ascending order: no table of all pairs, whose size is S x T x R.
    _, place = np.unique(np.concatenate([left, right]), return_inverse=True)
    left_RV = _times_drawn(place[: len(left)], place.max() + 1, num_resamples, seed)
    right_RV = _times_drawn(place[len(left) :], place.max() + 1, num_resamples, seed + 1)
    below_RV = right_RV.cumsum(-1) - right_RV
    resampled = (left_RV * (below_RV + 0.5 * right_RV)).sum(-1) / (len(left) * len(right))
    low, high = _percentiles(resampled)
    return Interval(float(probability_of_improvement(left, right)), low, high, min(len(left), len(right)))


def _times_drawn(place: NDArray[np.int64], num_values: int, num_resamples: int, seed: int) -> NDArray[np.int64]:
    """Return how often a bootstrap draws every value, [R, V], of seeds whose values are those at ``place`` [S]."""
    drawn = place[_draws(len(place), num_resamples, seed)] + num_values * np.arange(num_resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=num_resamples * num_values).reshape(num_resamples, num_values)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values in the order given. The chance that any of those below 0.05 is wrong is below 5
    %."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return adjusted.tolist()


def _power(ratio: float | Array, num_seeds: NDArray[np.int64] | int) -> Array:
    """Power of the two-sided paired t-test (5 %) for a difference of ``ratio`` spreads; its square is an F test."""
    from scipy.stats import ncf, t

    freedom = np.asarray(num_seeds) - 1
    limit = t.ppf(0.5 + CONFIDENCE / 2, freedom) ** 2
    return ncf.sf(limit, 1, freedom, np.minimum(np.square(ratio) * num_seeds, 900.0))


def seeds_needed(difference: float, spread: float) -> int | None:
    """Seeds (from 3) at which a paired t test sees ``difference`` with 80 % power; None past ``MAX_SEEDS``.

    Args:
        spread: standard deviation of the differences by seed.
    """
    if spread == 0:
        return 3
    counts = np.arange(3, MAX_SEEDS + 1)
    enough = np.flatnonzero(_power(difference / spread, counts) >= POWER)
    return int(counts[enough[0]]) if len(enough) else None


def detectable_difference(spread: float, num_seeds: int) -> float:
    """The difference that a paired t test over ``num_seeds`` (at least 3) sees with 80 % power."""
    from scipy.optimize import root_scalar

    limit = 30.0 / np.sqrt(num_seeds)
    found = root_scalar(lambda ratio: float(_power(ratio, num_seeds)) - POWER, bracket=(1e-6, limit))
    return spread * float(found.root)


def evaluations(entries: Sequence[Mapping[str, Any]], column: str) -> dict[int, float]:
    """Return the evaluations in a trial's metrics.jsonl; with several target returns, those of the first, the
    headline's."""
    points: dict[int, float] = {}
    for entry in entries:
        if entry.get("kind") == "eval" and entry.get(column) is not None:
            points.setdefault(int(entry["step"]), float(entry[column]))
    return points


def best_checkpoints(last: Mapping[int, float], curves: Mapping[int, Curve]) -> dict[int, float]:
    """Return the largest of all evaluations by seed, the final one included; empty unless every seed has several."""
    if not last or any(len(curves.get(seed, {})) < 2 for seed in last):
        return {}
    return {seed: max(value, *curves[seed].values()) for seed, value in last.items()}


def rise(curves: Mapping[int, Curve]) -> Comparison | None:
    """Compare the last quarter of training with the quarter before, paired by seed; None without evaluations in
    both."""
    late: dict[int, float] = {}
    early: dict[int, float] = {}
    for seed, points in curves.items():
        end = max(points, default=0)
        before = [value for step, value in points.items() if 0.5 * end < step <= 0.75 * end]
        after = [value for step, value in points.items() if step > 0.75 * end]
        if before and after:
            early[seed], late[seed] = float(np.mean(before)), float(np.mean(after))
    return compare(late, early, mean)
