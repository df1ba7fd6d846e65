import json

import numpy as np
import pytest

from raystitch.models.calibration import Calibration


def make() -> Calibration:
    rng = np.random.default_rng(0)
    residuals = rng.exponential(1.0, (4000, 9)).astype(np.float32)
    residuals[2000:, 6:] = np.nan  # half of the windows end early
    return Calibration.measure({"residual": residuals}, {}, 2, 8)


def test_quantiles_of_the_largest_residual_per_gap() -> None:
    calibration, rng = make(), np.random.default_rng(0)
    residuals = rng.exponential(1.0, (4000, 9)).astype(np.float32)
    thresholds = calibration.threshold("q90", np.array([2, 5, 8]))
    expected = [np.quantile(residuals[:rows, : gap + 1].max(1), 0.9) for gap, rows in ((2, 4000), (5, 4000), (8, 2000))]
    np.testing.assert_allclose(thresholds, expected, rtol=1e-5)
    assert (np.diff(thresholds) > 0).all()


def test_delta_as_users_write_it() -> None:
    calibration, gaps = make(), np.array([2, 8, 8])
    assert calibration.threshold("off", gaps).tolist() == [np.inf] * 3
    assert calibration.threshold(None, gaps).tolist() == [np.inf] * 3
    assert calibration.threshold(0.5, gaps).tolist() == [0.5] * 3
    assert calibration.threshold("0.5", gaps).tolist() == [0.5] * 3
    assert (calibration.threshold("q100", gaps) >= calibration.threshold("q99.5", gaps)).all()
    # Outside the table: the nearest gap.
    np.testing.assert_array_equal(
        calibration.threshold("q50", np.array([0, 30])), calibration.threshold("q50", np.array([2, 8]))
    )
    for wrong in (-1.0, "-1", "q101", "nan", "many"):
        with pytest.raises(ValueError, match="delta"):
            calibration.threshold(wrong, gaps)


def test_a_gap_longer_than_every_held_out_window_takes_the_longest_measured() -> None:
    residuals = np.full((10, 9), np.nan, np.float32)
    residuals[:, :5] = 1.0
    assert Calibration.measure({"residual": residuals}, {}, 2, 8).threshold("q99", np.array([8])) == pytest.approx(1.0)


def test_json_round_trip() -> None:
    calibration = make()
    again = Calibration.from_json(json.loads(json.dumps(calibration.to_json())))
    gaps = np.arange(2, 9)
    np.testing.assert_array_equal(again.threshold("q97", gaps), calibration.threshold("q97", gaps))
