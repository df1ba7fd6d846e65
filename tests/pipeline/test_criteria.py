"""Counts per criterion against a loop, and what the calibration curve must look like."""

from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from raystitch.buffer.reader import Buffer
from raystitch.pipeline.validate.criteria import LEVELS, calibration_curve, criteria_table

ORDER = ("non_finite", "residual", "spread", "rollout", "termination", "return")
IS_ON = {"non_finite", "residual", "rollout", "termination"}


def failures(row: dict[str, Any]) -> set[str]:
    """The criteria that a candidate fails, each as if it were on."""
    limits = {
        "residual": row["residual_max"] >= 0.8,
        "spread": row["spread_max"] >= 0.99,
        "rollout": row["rollout_deviation"] >= 0.9,
        "termination": row["termination_max"] > 0.5,
        "return": row["return_stitched"] <= row["return_source"],
        "non_finite": not np.isfinite(row["residual_max"]),
    }
    failed = {name for name, fails in limits.items() if fails}
    return failed | {"residual"} if "non_finite" in failed else failed


def test_counts_are_those_of_a_loop(varied_buffer: Buffer) -> None:
    names = ["residual_max", "spread_max", "rollout_deviation", "termination_max", "return_source", "return_stitched"]
    rows = [failures(row) for row in varied_buffer.table.select(names).to_pylist()]
    table = criteria_table(varied_buffer, np.arange(50), None)
    assert [found["name"] for found in table] == list(ORDER)
    for found in table:
        name = found["name"]
        alone = [failed for failed in rows if name in failed]
        before = set(ORDER[: ORDER.index(name)]) & IS_ON
        assert found["on"] == (name in IS_ON)
        assert found["alone"] == len(alone) > 0
        assert found["first"] == sum(not failed & before for failed in alone)
        assert found["only"] == sum(not failed & (IS_ON - {name}) for failed in alone)
        assert found["removed"] is None
        assert found["kept"] is None
    removed = sum(found["first"] for found in table if found["on"])
    assert removed == varied_buffer.num_candidates - varied_buffer.reasons()["ok"]
    assert {found["name"]: found["threshold"] for found in table} == {
        "non_finite": None,
        "residual": "q80",
        "spread": "q99",
        "rollout": 0.9,
        "termination": 0.5,
        "return": True,
    }


def test_curve_is_what_reading_at_each_level_gives(varied_buffer: Buffer) -> None:
    real = np.full(1000, 5), (np.arange(1000) + 0.5) / 1000
    curve = calibration_curve(varied_buffer, real, np.arange(300), None)
    assert [found["level"] for found in curve] == list(LEVELS)
    first = varied_buffer.column("attempt") == 0
    residual = varied_buffer.column("residual_max")[first]
    for found in curve:
        assert found["real_accepted"] == pytest.approx(found["nominal"], abs=1e-3)
        assert found["delta"] == pytest.approx(found["nominal"], abs=1e-6)
        assert found["residual_accepted"] == pytest.approx((residual < found["nominal"]).mean())
        assert found["first_accepted"] == varied_buffer.passing(found["level"])[0][first].mean()
        assert found["num_bridges"] == varied_buffer.num_accepted(found["level"])
        assert found["simulator"] is None
    for key in ("delta", "real_accepted", "residual_accepted", "first_accepted", "num_bridges"):
        values = [found[key] for found in curve]
        assert values == sorted(values)
        assert values[0] < values[-1]


@pytest.mark.parametrize(("field", "name"), [("delta", "residual"), ("termination_max", "termination")])
def test_a_threshold_of_nothing_is_one(varied_buffer: Buffer, field: str, name: str) -> None:
    meta = varied_buffer.meta
    stitch = replace(meta.stitch, qualify=replace(meta.stitch.qualify, **{field: 0.0}))
    strict = copy(varied_buffer)
    strict.meta = replace(meta, stitch=stitch)
    (found,) = (found for found in criteria_table(strict, np.arange(50), None) if found["name"] == name)
    assert found["on"] and found["threshold"] == 0.0
