import numpy as np
import pytest

from raystitch.models.calibration import Calibration
from raystitch.stitching.acceptance import passes
from raystitch.stitching.candidates import REASONS
from raystitch.stitching.config import Delta, QualifyConfig

CALIBRATION = Calibration(np.array([4, 5]), np.array([0.0, 0.5, 1.0]), np.array([[0.0, 1.0, 2.0], [0.0, 2.0, 4.0]]))


def decide(
    delta: Delta,
    config: QualifyConfig | None = None,
    *,
    residual_max: float = 0.5,
    gap: int = 4,
    termination_max: float = 0.1,
    return_stitched: float = 2.0,
    return_source: float = 1.0,
) -> str:
    """The reason given to one row."""
    accepted, reason = passes(
        np.array([residual_max], np.float32),
        np.array([gap]),
        np.array([termination_max], np.float32),
        np.array([return_stitched], np.float32),
        np.array([return_source], np.float32),
        delta,
        CALIBRATION,
        config or QualifyConfig(),
    )
    assert accepted[0] == (reason[0] == 0)
    return REASONS[int(reason[0])]


def test_each_criterion_alone() -> None:
    assert decide(1.0) == "ok"
    assert decide(0.5) == "residual"  # the paper rejects at ">= delta"
    assert decide(0.0) == "residual"
    assert decide(1.0, termination_max=0.6) == "termination"
    assert decide(1.0, return_source=2.0) == "return"


def test_the_first_failing_criterion_is_the_reason() -> None:
    assert decide(1.0, residual_max=9.0, termination_max=0.9, return_stitched=0.0) == "residual"
    assert decide("off", residual_max=9.0, termination_max=0.9, return_stitched=0.0) == "termination"
    assert decide(1.0, residual_max=9.0, termination_max=0.9, return_stitched=float("nan")) == "non_finite"
    assert decide("off", residual_max=float("inf")) == "non_finite"
    assert decide("off", termination_max=float("nan")) == "non_finite"


def test_criteria_can_be_switched_off() -> None:
    config = QualifyConfig(termination_max=None, value_check=False)
    assert decide(None, config, residual_max=1e9, termination_max=1.0, return_stitched=-5.0) == "ok"


def test_a_quantile_is_read_for_the_rows_own_gap() -> None:
    assert decide("q50", residual_max=1.5, gap=4) == "residual"
    assert decide("q50", residual_max=1.5, gap=5) == "ok"
    assert decide("q75", residual_max=1.4, gap=4) == "ok"


@pytest.mark.parametrize("delta", [-1.0, "q101", "much", float("nan")])
def test_bad_delta_is_refused_with_its_value(delta: Delta) -> None:
    with pytest.raises(ValueError, match=str(delta)):
        decide(delta)
