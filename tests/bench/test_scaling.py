"""The calculation for many GPUs: what limits, and by how much."""

import pytest

from raystitch.bench.scaling import Assumed, Measured, estimate, rows

MEASURED = Measured(pairs_per_second=100.0, driver_seconds=0.01, bytes_per_pair=1000.0, start_seconds=10.0)
ASSUMED = Assumed(speed_up=50.0, storage_bytes_per_second=1e9, run_seconds=3600.0)


def test_one_gpu_loses_the_start_and_the_end() -> None:
    found = estimate(1, 100_000, MEASURED, ASSUMED)  # a shard takes 20 s
    assert found.efficiency == pytest.approx(3600 / (3600 + 10 + 2 * 20))
    assert found.pairs_per_second == pytest.approx(5000 * found.efficiency)
    assert found.bottleneck == "the GPUs"


def test_small_shards_are_limited_by_the_driver() -> None:
    found = estimate(100, 500, MEASURED, ASSUMED)  # 0.1 s each: 1,000 a second, the driver manages 100
    assert found.bottleneck == "the driver"
    assert found.efficiency == pytest.approx(0.1, rel=0.01)


def test_large_shards_on_many_gpus_are_limited_by_storage() -> None:
    found = estimate(1000, 100_000, MEASURED, ASSUMED)  # 5 GB a second
    assert found.bottleneck == "storage"
    assert found.efficiency == pytest.approx(0.2, rel=0.01)


def test_short_runs_are_limited_by_their_start() -> None:
    assert estimate(1, 5000, MEASURED, Assumed(run_seconds=5.0)).bottleneck == "start-up"


def test_rows_say_how_many_gpus_a_driver_and_the_storage_feed() -> None:
    found = {row.what: row for row in rows(MEASURED, 500, ASSUMED)}
    assert found["calculated: GPUs that one driver keeps busy, shards of 500 pairs"].value == pytest.approx(10)
    assert found["calculated: GPUs that one driver keeps busy, shards of 100,000 pairs"].value == pytest.approx(2000)
    assert found["calculated: GPUs that storage keeps up with"].value == pytest.approx(200)
    assert all(0 < row.ratio <= 1 for row in found.values() if row.ratio is not None)
