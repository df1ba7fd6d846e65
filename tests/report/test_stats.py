import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rliable import metrics
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from raystitch.report.stats import (
    compare,
    detectable_difference,
    holm,
    interval,
    iqm,
    mean,
    probability_of_improvement,
    seeds_needed,
)

SCORES = np.array([12.0, 80.0, 35.0, 41.0, 39.0, 60.0, 22.0, 55.0, 47.0, 44.0])
OTHERS = np.array([20.0, 61.0, 30.0, 50.0, 30.0, 55.0, 25.0, 40.0, 49.0, 31.0])
# Halves, so that ties happen and sums are exact.
MATRICES = st.tuples(st.integers(1, 9), st.integers(1, 4)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.integers(-20, 20).map(lambda value: value / 2))
)


def by_seed(values: np.ndarray[Any, Any], first: int = 0) -> dict[int, float]:
    return {first + seed: float(value) for seed, value in enumerate(values)}


@given(MATRICES)
def test_iqm_and_mean_are_rliables(scores: np.ndarray[Any, Any]) -> None:
    assert iqm(scores.reshape(-1)) == pytest.approx(metrics.aggregate_iqm(scores))
    assert mean(scores.T).mean() == pytest.approx(metrics.aggregate_mean(scores))
    by_task = [metrics.aggregate_iqm(task[:, None]) for task in scores.T]
    assert iqm(scores.T) == pytest.approx(by_task)


@given(MATRICES, st.integers(0, 2**32 - 1))
def test_probability_of_improvement_is_rliables(scores: np.ndarray[Any, Any], seed: int) -> None:
    rng = np.random.default_rng(seed)
    others = rng.integers(-20, 20, (rng.integers(1, 9), scores.shape[1])) / 2
    expected = metrics.probability_of_improvement(scores, others)
    assert probability_of_improvement(scores.T, others.T).mean() == pytest.approx(expected)


def test_intervals_are_the_percentile_bootstrap() -> None:
    # rliable's own intervals need `arch`, which does not import with current pandas; they are this bootstrap.
    ours = interval(SCORES, iqm, num_resamples=20_000)
    theirs = stats.bootstrap(
        (SCORES,), lambda x, axis: stats.trim_mean(x, 0.25, axis), n_resamples=20_000, method="percentile"
    )
    assert [ours.low, ours.high] == pytest.approx(theirs.confidence_interval, abs=1.0)


@pytest.mark.parametrize("paired", [True, False])
def test_comparisons_are_the_bootstrap_and_the_t_test(paired: bool) -> None:
    def difference(x: Any, y: Any, axis: int) -> Any:
        return stats.trim_mean(x, 0.25, axis) - stats.trim_mean(y, 0.25, axis)

    found = compare(by_seed(SCORES), by_seed(OTHERS, 0 if paired else 100), iqm, num_resamples=20_000)
    assert found is not None
    assert found.paired == paired
    theirs = stats.bootstrap((SCORES, OTHERS), difference, n_resamples=20_000, method="percentile", paired=paired)
    assert [found.difference.low, found.difference.high] == pytest.approx(theirs.confidence_interval, abs=1.0)
    test: Any = stats.ttest_rel(SCORES, OTHERS) if paired else stats.ttest_ind(SCORES, OTHERS, equal_var=False)
    assert found.p_value == pytest.approx(test.pvalue)
    improvement = stats.bootstrap(
        (SCORES, OTHERS),
        lambda x, y: metrics.probability_of_improvement(x[:, None], y[:, None]),
        n_resamples=2_000,
        method="percentile",
        vectorized=False,
    )
    got = [found.improvement.low, found.improvement.high]
    assert got == pytest.approx(improvement.confidence_interval, abs=0.03)


@pytest.mark.parametrize(("few", "many"), [(1, 1), (3, 5), (30, 40)])
def test_the_chance_to_be_better_is_resampled_as_if_every_pair_were_counted(few: int, many: int) -> None:
    rng = np.random.default_rng(0)
    left, right = rng.normal(0.3, 1, few).round(1), rng.normal(0, 1, many).round(1)  # some are equal
    found = compare(by_seed(left), by_seed(right, 100), num_resamples=500, seed=3)
    assert found is not None
    draws = (np.random.Generator(np.random.PCG64(3 + at)).integers(0, n, (500, n)) for at, n in enumerate((few, many)))
    pairs = probability_of_improvement(*(side[drawn] for side, drawn in zip((left, right), draws, strict=True)))
    at = found.improvement
    assert [at.low, at.high] == pytest.approx(np.percentile(pairs, [2.5, 97.5]).tolist(), abs=1e-12)


def test_memory_of_a_comparison_grows_with_the_seeds_and_not_with_their_square() -> None:
    peaks: list[int] = []
    for count in (100, 400):
        values = [by_seed(np.random.default_rng(side).normal(size=count)) for side in (0, 1)]
        tracemalloc.start()
        compare(values[0], values[1], num_resamples=500)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 5 * peaks[0]


def test_one_seed_has_no_interval() -> None:
    one = interval(np.array([3.0]))
    assert (one.value, one.low, one.high, one.num_seeds) == (3.0, 3.0, 3.0, 1)
    with pytest.raises(ValueError, match="at least one value"):
        interval(np.array([]))
    assert compare({}, {1: 2.0}) is None
    single = compare({1: 5.0}, {1: 2.0})
    assert single is not None
    assert (single.difference.value, single.p_value, single.seeds_needed, single.detectable) == (3.0, None, None, None)


def test_pairing_removes_what_seeds_share() -> None:
    seeds = range(6)
    theirs = {seed: 10.1 * seed for seed in seeds}
    ours = {seed: 10.1 * seed + 1.0 for seed in seeds} | {99: 1e6}
    found = compare(ours, theirs, mean)
    assert found is not None
    at = found.difference
    assert found.paired
    assert (at.value, at.low, at.high, at.num_seeds) == pytest.approx((1.0, 1.0, 1.0, 6))
    assert (at.sign, found.p_value, found.seeds_needed, found.detectable) == (1, 0.0, 3, 0.0)


def test_seeds_that_are_not_shared_are_independent_samples() -> None:
    found = compare({seed: 50.0 + seed for seed in range(4)}, {seed: float(seed) for seed in range(10, 16)})
    assert found is not None
    assert not found.paired
    assert (found.difference.num_seeds, found.difference.sign) == (4, 1)
    assert found.improvement.value == 1.0


def test_few_seeds_that_merely_agree_are_not_clear() -> None:
    base = dict.fromkeys(range(3), 50.0)
    spread = compare({0: 51.0, 1: 58.0, 2: 52.0}, base)
    assert spread is not None
    assert spread.difference.low > 0
    assert spread.difference.sign == 0
    tight = compare({0: 20.0, 1: 21.0, 2: 22.0}, base)
    assert tight is not None
    assert tight.difference.sign == -1


def test_clear_is_rarely_said_of_equals() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, (400, 2, 5))
    found = [compare(by_seed(left), by_seed(right), num_resamples=500) for left, right in values]
    assert np.mean([item is not None and item.difference.sign != 0 for item in found]) < 0.08


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12))
def test_intervals_hold_their_bounds(values: list[float]) -> None:
    got = interval(np.array(values), num_resamples=200)
    assert min(values) - 1e-9 <= got.low <= got.high <= max(values) + 1e-9


@pytest.mark.parametrize("count", [1, 2, 7])
def test_holm_is_statsmodels(count: int) -> None:
    p_values = np.random.default_rng(count).choice([0.001, 0.01, 0.02, 0.2, 0.9], count).tolist()
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


@pytest.mark.parametrize("ratio", [0.2, 0.8, 1.5, 4.0])
def test_seeds_needed_are_statsmodels(ratio: float) -> None:
    needed = seeds_needed(10 * ratio, 10.0)
    exact = TTestPower().solve_power(effect_size=ratio, alpha=0.05, power=0.8, alternative="two-sided")
    assert needed == max(3, int(np.ceil(exact)))
    assert seeds_needed(0.01, 10.0) is None


@pytest.mark.parametrize("count", [3, 5, 30])
def test_detectable_difference_is_statsmodels(count: int) -> None:
    exact = TTestPower().solve_power(nobs=count, alpha=0.05, power=0.8, alternative="two-sided")
    assert detectable_difference(7.0, count) == pytest.approx(7.0 * exact, rel=1e-4)
