from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import spearmanr

from raystitch.pipeline.validate.rank import gap_buckets, rank_correlation, spearman


def test_equals_scipy_and_the_interval_holds_it() -> None:
    rng = np.random.default_rng(0)
    first = np.round(rng.normal(size=200), 1)  # with ties
    second = first + rng.normal(size=200)
    found = spearman(first, second, rng)
    assert found["value"] == pytest.approx(spearmanr(first, second)[0])
    assert found["low"] < found["value"] < found["high"]
    assert 0.05 < found["high"] - found["low"] < 0.25


def test_a_wider_sample_narrows_the_interval() -> None:
    rng = np.random.default_rng(0)
    widths: list[float] = []
    for count in (50, 800):
        first = rng.normal(size=count)
        found = spearman(first, first + rng.normal(size=count), rng)
        widths.append(found["high"] - found["low"])
    assert widths[1] < 0.5 * widths[0]


def test_unknown_bridges_are_left_out() -> None:
    first, second = np.array([1, 2, np.nan, 4, 5.0]), np.array([10, 20, 30, 40, np.nan])
    found = spearman(first, second, np.random.default_rng(0))
    assert (found["count"], found["value"]) == (3, pytest.approx(1.0))


@pytest.mark.parametrize("first", [[1.0, 2.0], [3.0, 3.0, 3.0], []])
def test_no_correlation_where_none_exists(first: list[float]) -> None:
    found = spearman(np.array(first), np.arange(len(first), dtype=float), np.random.default_rng(0))
    assert found == {"count": len(first), "value": None, "low": None, "high": None}


def test_buckets_hold_every_gap_once() -> None:
    rng = np.random.default_rng(0)
    gap = rng.choice([4, 5, 9, 9, 9, 20, 24], 500)
    buckets = gap_buckets(gap)
    assert 2 <= len(buckets) <= 4
    assert (buckets[0][0], buckets[-1][1]) == (4, 24)
    assert all(first <= last for first, last in buckets)
    assert all(after[0] == before[1] + 1 for before, after in pairwise(buckets))
    assert gap_buckets(np.array([7, 7])) == [(7, 7)]
    assert gap_buckets(np.zeros(0, np.int64)) == []


def test_each_bucket_has_its_own_correlation() -> None:
    rng = np.random.default_rng(0)
    gap = np.repeat([4, 8], 60)
    judged = rng.normal(size=120)
    simulated = np.where(gap == 4, judged, -judged)
    found = rank_correlation(judged, simulated, gap, rng)
    assert [(row["gap_min"], row["gap_max"], row["count"]) for row in found["by_gap"]] == [(4, 4, 60), (5, 8, 60)]
    assert [row["value"] for row in found["by_gap"]] == pytest.approx([1.0, -1.0])
    assert abs(found["value"]) < 0.5
