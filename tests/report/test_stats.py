import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rliable import metrics
from scipy import stats

from raystitch.report.stats import interval, iqm, mean, paired_difference, probability_of_improvement

SCORES = np.array([12.0, 80.0, 35.0, 41.0, 39.0, 60.0, 22.0, 55.0, 47.0, 44.0])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 10])
def test_iqm_is_rliables(count: int) -> None:
    scores = SCORES[:count]
    assert iqm(scores) == pytest.approx(metrics.aggregate_iqm(scores[:, None]))


def test_interval_is_the_percentile_bootstrap() -> None:
    # rliable's own interval needs `arch`, which does not import with current pandas; it is this bootstrap.
    ours = interval(SCORES, iqm, num_resamples=20_000)
    theirs = stats.bootstrap(
        (SCORES,), lambda x, axis: stats.trim_mean(x, 0.25, axis), n_resamples=20_000, method="percentile"
    )
    assert [ours.low, ours.high] == pytest.approx(theirs.confidence_interval, abs=1.0)


def test_probability_of_improvement_is_rliables() -> None:
    left, right = SCORES[:6], np.array([20.0, 41.0, 35.0, 60.0])
    expected = metrics.probability_of_improvement(left[:, None], right[:, None])
    assert probability_of_improvement(left, right) == pytest.approx(expected)


def test_one_seed_has_no_interval() -> None:
    one = interval(np.array([3.0]))
    assert (one.value, one.low, one.high, one.num_seeds) == (3.0, 3.0, 3.0, 1)
    with pytest.raises(ValueError, match="at least one value"):
        interval(np.array([]))


def test_pairing_removes_what_seeds_share() -> None:
    seeds = range(6)
    theirs = {seed: 10.0 * seed for seed in seeds}
    ours = {seed: 10.0 * seed + 1.0 for seed in seeds} | {99: 1e6}
    paired = paired_difference(ours, theirs, mean)
    assert paired is not None
    assert (paired.value, paired.low, paired.high, paired.num_seeds) == pytest.approx((1.0, 1.0, 1.0, 6))
    assert paired.sign == 1
    assert paired_difference({1: 2.0}, {2: 2.0}) is None


def test_few_seeds_that_merely_agree_are_not_clear() -> None:
    base = dict.fromkeys(range(3), 50.0)
    spread = paired_difference({0: 51.0, 1: 58.0, 2: 52.0}, base)
    assert spread is not None
    assert spread.low > 0
    assert spread.sign == 0
    tight = paired_difference({0: 20.0, 1: 21.0, 2: 22.0}, base)
    assert tight is not None
    assert tight.sign == -1


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12))
def test_intervals_hold_their_bounds(values: list[float]) -> None:
    got = interval(np.array(values), num_resamples=200)
    assert min(values) - 1e-9 <= got.low <= got.high <= max(values) + 1e-9
