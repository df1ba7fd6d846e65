"""The criteria table and the calibration curve: the effect of each criterion and of delta, from stored numbers alone.

Legend: N candidates, S sampled candidates.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raystitch.buffer.reader import Buffer
from raystitch.data.episodes import Bools, Ints
from raystitch.errors import UserError
from raystitch.models.calibration import AUTO, TRUE_SHARE
from raystitch.pipeline.validate.simulated import Simulated, error_summary, share
from raystitch.stitching.acceptance import failed_criteria
from raystitch.stitching.config import QualifyConfig

LEVELS = ("q50", "q75", "q90", "q95", "q99", "q99.5", "q99.9")
FIELDS = {
    "residual": "delta",
    "spread": "spread",
    "rollout": "rollout",
    "termination": "termination_max",
    "return": "value_check",
}
"""Criterion -> its field of QualifyConfig; ``non_finite`` has no field, because it is always on."""
AS_IF: Mapping[str, Any] = {
    "residual": "q99",
    "spread": "q99",
    "rollout": "q99",
    "termination": 0.5,
    "return": True,
}
"""Settings to try a criterion with that is switched off."""


def _settings(config: QualifyConfig) -> tuple[QualifyConfig, dict[str, tuple[bool, Any]]]:
    """Return the settings with every criterion on, and for each its threshold and whether it really is on."""
    found: dict[str, tuple[bool, Any]] = {"non_finite": (True, None)}
    tried: dict[str, Any] = {}
    for name, field in FIELDS.items():
        value = getattr(config, field)
        is_on = not (value is None or value is False or value == "off")  # 0 is a threshold
        tried[field] = value if is_on else AS_IF[name]
        found[name] = (is_on, tried[field])
    return replace(config, **tried), found


def _errors(simulated: Simulated, rows: Bools) -> dict[str, Any]:
    """``count`` of the sampled candidates in ``rows`` that the simulator could be asked about, and the median of their
    steps' and of their largest error."""
    described = error_summary(simulated.take(np.flatnonzero(rows)))
    largest = described["largest_error"]
    return {
        "count": largest["count"],
        "step_median": described["step_error"]["median"],
        "largest_median": largest["median"],
    }


def criteria_table(buffer: Buffer, rows: Ints, simulated: Simulated | None) -> list[dict[str, Any]]:
    """Return one row per criterion at the generation settings, in the order they are asked.

    Args:
        rows: int64 [S], a random sample of the buffer's candidates; ``simulated``: the simulator's answers for them.
    """
    config, settings = _settings(buffer.meta.stitch.qualify)
    failed = failed_criteria(buffer.column, buffer.calibration, config)
    table: list[dict[str, Any]] = []
    earlier = np.zeros(buffer.num_candidates, np.bool_)
    for name, fails in failed.items():
        is_on, threshold = settings[name]
        others = np.zeros(buffer.num_candidates, np.bool_)
        for other, also_fails in failed.items():
            if other != name and settings[other][0]:
                others |= also_fails
        entry: dict[str, Any] = {
            "name": name,
            "on": is_on,
            "threshold": threshold,
            "alone": int(fails.sum()),
            "first": int((fails & ~earlier).sum()),
            "only": int((fails & ~others).sum()),
            "removed": None,
            "kept": None,
        }
        if is_on:
            earlier |= fails
        if simulated is not None:
            entry["removed"], entry["kept"] = (_errors(simulated, which) for which in (fails[rows], ~fails[rows]))
        table.append(entry)
    return table


def calibration_curve(
    buffer: Buffer,
    real: tuple[Ints, NDArray[np.float64]] | None,
    rows: Ints,
    simulated: Simulated | None,
) -> list[dict[str, Any]]:
    """Return what is accepted when the buffer is read at each quantile of ``LEVELS``, and how true it is.

    Delta is a filter, so one generation serves the whole curve.

    Args:
        real: gaps [R] and judged largest residuals [R] of real held-out windows; None without a bundle.
        rows: int64 [S], ascending: all attempts of a random sample of pairs.
        simulated: the simulator's answers for ``rows``; None where it cannot be asked.
    """
    return [{"nominal": float(level[1:]) / 100, **_at_level(level, buffer, real, rows, simulated)} for level in LEVELS]


def auto_entry(
    buffer: Buffer,
    real: tuple[Ints, NDArray[np.float64]] | None,
    rows: Ints,
    simulated: Simulated | None,
    noise: Simulated | None,
) -> dict[str, Any]:
    """Return what is accepted when the buffer is read at ``auto``, how true it is, and whether that is what ``auto``
    promises; or why it has no answer.

    Args:
        real, rows, simulated: as for ``calibration_curve``. noise: real windows with noise.
    """
    try:
        entry = _at_level(AUTO, buffer, real, rows, simulated)
    except UserError as error:
        return {"level": AUTO, "unavailable": str(error)}
    reference = below = None
    if simulated is not None and noise is not None:
        largest = noise.largest[np.isfinite(noise.largest)]
        reference = float(np.median(largest)) if len(largest) else None
        ours = simulated.take(np.flatnonzero(np.isin(rows, buffer.accepted_rows(AUTO)))).largest
        below = None if reference is None else share(ours[np.isfinite(ours)] < reference)
    return {"nominal": TRUE_SHARE, **entry, "unavailable": None, "reference": reference, "below_reference": below}


def _at_level(
    level: str,
    buffer: Buffer,
    real: tuple[Ints, NDArray[np.float64]] | None,
    rows: Ints,
    simulated: Simulated | None,
) -> dict[str, Any]:
    first = buffer.column("attempt") == 0
    gap, residual = buffer.column("gap")[first], buffer.column("residual_max")[first]
    threshold = buffer.calibration.threshold(level, gap)
    counted = buffer.accepted_rows(level)
    entry: dict[str, Any] = {
        "level": level,
        "delta": float(np.median(threshold)) if len(threshold) else None,
        "real_accepted": None,
        "residual_accepted": share(residual < threshold),
        "first_accepted": share(buffer.passing(level)[0][first]),
        "num_bridges": len(counted),
        "simulator": None,
    }
    if real is not None:
        entry["real_accepted"] = share(real[1] < buffer.calibration.threshold(level, real[0]))
    if simulated is not None:
        inside = np.flatnonzero(np.isin(rows, counted))
        entry["simulator"] = {"num_windows": len(inside), **error_summary(simulated.take(inside))}
    return entry
