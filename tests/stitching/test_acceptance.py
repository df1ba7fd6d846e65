import numpy as np
import pytest

from raystitch.models.calibration import Calibration, Delta
from raystitch.stitching.acceptance import failed_criteria, passes
from raystitch.stitching.candidates import REASONS
from raystitch.stitching.config import QualifyConfig

TABLE = np.array([[0.0, 1.0, 2.0], [0.0, 2.0, 4.0]])
CALIBRATION = Calibration(
    np.array([4, 5]),
    np.array([0.0, 0.5, 1.0]),
    {"residual": TABLE, "spread": TABLE / 10, "rollout": TABLE * 10, "proposers": TABLE},
)
PASSING = {
    "residual_max": 0.5,
    "spread_max": 0.01,
    "rollout_deviation": 1.0,
    "termination_max": 0.1,
    "return_stitched": 2.0,
    "return_source": 1.0,
}


def decide(delta: Delta, config: QualifyConfig | None = None, *, gap: int = 4, **numbers: float) -> str:
    """The reason given to one row."""
    values = {"gap": np.array([gap])}
    values |= {name: np.array([value], np.float32) for name, value in {**PASSING, **numbers}.items()}
    accepted, reason = passes(values.__getitem__, delta, CALIBRATION, config or QualifyConfig())
    assert accepted[0] == (reason[0] == 0)
    return REASONS[int(reason[0])]


def test_each_criterion_alone() -> None:
    assert decide(1.0) == "ok"
    assert decide(0.5) == "residual"  # the paper rejects at ">= delta"
    assert decide(0.0) == "residual"
    assert decide(1.0, termination_max=0.6) == "termination"
    assert decide(1.0, return_source=2.0) == "return"
    assert decide(1.0, QualifyConfig(spread=0.01)) == "spread"
    assert decide(1.0, QualifyConfig(rollout=0.5)) == "rollout"


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


def test_spread_and_rollout_are_off_by_default_and_read_their_own_tables() -> None:
    assert decide(1.0, spread_max=9.0, rollout_deviation=99.0) == "ok"
    assert decide(1.0, spread_max=float("nan"), rollout_deviation=float("nan")) == "ok"
    both = QualifyConfig(spread="q50", rollout="q50")
    assert decide(1.0, both, spread_max=0.09, rollout_deviation=9.0) == "ok"
    assert decide(1.0, both, spread_max=0.11, rollout_deviation=9.0) == "spread"
    assert decide(1.0, both, spread_max=0.09, rollout_deviation=11.0) == "rollout"


def test_what_each_criterion_would_remove_alone() -> None:
    values = {"gap": np.array([4, 4, 4])}
    values |= {name: np.full(3, value, np.float32) for name, value in PASSING.items()}
    values["residual_max"][0] = 5.0
    values["return_stitched"][:2] = 0.0
    failed = failed_criteria(values.__getitem__, CALIBRATION, QualifyConfig(delta=1.0))
    assert list(failed) == list(REASONS[1:])
    assert failed["residual"].tolist() == [True, False, False]
    assert failed["return"].tolist() == [True, True, False]
    assert not failed["spread"].any()
