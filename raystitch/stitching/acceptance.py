"""Acceptance of candidates from their stored numbers alone: at generation, and when a buffer is read at a delta."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from raystitch.data.episodes import Bools, Ints
from raystitch.models.calibration import Calibration, Delta
from raystitch.stitching.candidates import REASONS
from raystitch.stitching.config import QualifyConfig

Column = Callable[[str], np.ndarray[Any, Any]]
"""The name of one of the stored numbers -> its values [N]; ``Buffer.column`` is one."""


def failed_criteria(column: Column, calibration: Calibration, config: QualifyConfig) -> dict[str, Bools]:
    """Return which of N candidates fail each criterion, bool [N] each, in the order of ``REASONS``.

    A criterion that is switched off fails nobody.

    Raises:
        ValueError: for a threshold that is neither a number >= 0, a quantile nor ``off``.
    """
    gap = column("gap")
    numbers = {name: column(f"{name}_max") for name in ("residual", "spread", "termination")}
    numbers["rollout"] = column("rollout_deviation")
    finite = np.isfinite(column("return_stitched"))
    for name in ("residual", "termination"):
        finite &= np.isfinite(numbers[name])
    failed = {"non_finite": ~finite}
    # The paper rejects at ">= delta"; the threshold is inf where a criterion is off.
    for name, asked in (("residual", config.delta), ("spread", config.spread), ("rollout", config.rollout)):
        is_off = asked is None or asked == "off"
        limit = calibration.threshold(asked, gap, name)
        failed[name] = np.zeros(len(gap), np.bool_) if is_off else ~(numbers[name] < limit)
    failed["termination"] = np.zeros(len(gap), np.bool_)
    if config.termination_max is not None:
        failed["termination"] = ~(numbers["termination"] <= config.termination_max)
    failed["return"] = np.zeros(len(gap), np.bool_)
    if config.value_check:
        failed["return"] = ~(column("return_stitched") > column("return_source"))
    return failed


def passes(column: Column, delta: Delta, calibration: Calibration, config: QualifyConfig) -> tuple[Bools, Ints]:
    """Applies the criteria to N candidates; ``delta`` replaces the one in ``config``.

    Returns:
        accepted bool [N] and reason int64 [N] (index into REASONS, the first criterion that fails).

    Raises:
        ValueError: for a threshold that is neither a number >= 0, a quantile nor ``off``.
    """
    failed = failed_criteria(column, calibration, replace(config, delta=delta))
    reason = np.full(len(column("gap")), REASONS.index("ok"), np.int64)
    for name in reversed(failed):  # the first criterion is written last, so it stands
        reason[failed[name]] = REASONS.index(name)
    return reason == REASONS.index("ok"), reason
