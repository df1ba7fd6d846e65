"""Whether a candidate counts, from its stored numbers alone: at generation, and when a buffer is read at a delta."""

import numpy as np

from raystitch.data.episodes import Bools, Floats, Ints
from raystitch.models.calibration import Calibration
from raystitch.stitching.candidates import REASONS
from raystitch.stitching.config import Delta, QualifyConfig


def passes(
    residual_max: Floats,
    gap: Ints,
    termination_max: Floats,
    return_stitched: Floats,
    return_source: Floats,
    delta: Delta,
    calibration: Calibration,
    qualify_config: QualifyConfig,
) -> tuple[Bools, Ints]:
    """Applies the criteria to N candidates (all columns [N]); ``delta`` replaces the one in ``qualify_config``.

    Returns:
        accepted bool [N] and reason int64 [N] (index into REASONS, the first criterion that fails).

    Raises:
        ValueError: for a delta that is neither a number >= 0, a quantile nor ``off``.
    """
    finite = np.isfinite(residual_max) & np.isfinite(termination_max) & np.isfinite(return_stitched)
    # The paper rejects at ">= delta"; the threshold is inf where delta is off.
    threshold = calibration.threshold(delta, gap)
    failed = {
        "non_finite": ~finite,
        "residual": ~(residual_max < threshold),
        "termination": np.zeros(len(gap), np.bool_),
        "return": np.zeros(len(gap), np.bool_),
    }
    if qualify_config.termination_max is not None:
        failed["termination"] = ~(termination_max <= qualify_config.termination_max)
    if qualify_config.value_check:
        failed["return"] = ~(return_stitched > return_source)
    reason = np.full(len(gap), REASONS.index("ok"), np.int64)
    for name in reversed(failed):  # the first criterion is written last, so it stands
        reason[failed[name]] = REASONS.index(name)
    return reason == REASONS.index("ok"), reason
