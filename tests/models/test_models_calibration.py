import json
from dataclasses import replace

import numpy as np
import pytest

from raystitch.data.episodes import Episode, from_episodes
from raystitch.errors import UserError
from raystitch.models.calibration import QUANTILES, SEAM, TRUE_SHARE, Calibration, check_delta
from raystitch.models.fit import fit_bundle
from tests.conftest import small_fit
from tests.models.clipped import clipped_walk


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


def errors(rng: np.random.Generator, count: int, size: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """What a judge adds to the true next state: of any direction, seldom large."""
    return 0.02 * rng.exponential(1.0, (count, 1)) * rng.standard_normal((count, size)) / np.sqrt(size)


@pytest.mark.parametrize("size", [2, 17])
def test_auto_keeps_what_it_promises_if_judges_err_as_on_real_data(size: int) -> None:
    rng = np.random.default_rng(size)

    def squares(differences: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> np.ndarray:
        return (differences**2).sum(-1)

    count, noise = 20_000, 0.05
    reference = squares(rng.normal(0, noise, (count, size)) - rng.normal(0, noise, (count, size)))
    tables = {"recorded": squares(errors(rng, count, size)), "noise": reference}
    made = Calibration(
        np.array([2]), QUANTILES, {name: np.quantile(found, QUANTILES)[None] for name, found in tables.items()}
    )
    delta = float(made.threshold("auto", np.array([2]))[0])
    mistakes = errors(rng, count, size)
    anywhere = rng.standard_normal((count, size))
    anywhere *= np.sqrt(delta * rng.random(count) / squares(anywhere))[:, None]
    share = (squares(mistakes + anywhere) < np.median(reference)).mean()
    assert TRUE_SHARE < share < 0.995
    # It is no more than that: just at the limit, fewer are true.
    anywhere *= np.sqrt(delta / squares(anywhere))[:, None]
    assert (squares(mistakes + anywhere) < np.median(reference)).mean() < TRUE_SHARE


def test_auto_has_no_answer_where_judges_err_more_than_noise_or_nobody_measured_it() -> None:
    gaps, flat = np.array([2, 8]), np.ones((7, len(QUANTILES)))
    made = make()
    with pytest.raises(UserError, match=r"delta=auto: an earlier version fitted this stitcher.*delta=q99"):
        made.threshold("auto", gaps)
    made.check(["q99", 0.5, None, "off"])
    with pytest.raises(UserError, match="an earlier version fitted this stitcher"):
        made.check(["q99", "auto"])
    worse = np.linspace(1, 3, 7)[:, None] * flat
    some = replace(made, tables={**made.tables, "noise": 4 * flat, "recorded": 2 * worse})
    assert some.threshold("auto", gaps).tolist() == [2.0, 0.0]
    none = replace(made, tables={**made.tables, "noise": flat, "recorded": 2 * flat})
    with pytest.raises(UserError, match=r"the judges err too much on real data.*2 at 95 %.*noise of 0.05 makes 1"):
        none.threshold("auto", gaps)


def test_auto_is_for_delta_alone() -> None:
    assert check_delta("auto") == "auto"
    with pytest.raises(ValueError, match="spread='auto': use a number >= 0, a quantile such as q99, or off"):
        make().threshold("auto", np.array([2]), "spread")
    with pytest.raises(ValueError, match="delta='many': use a number >= 0, a quantile such as q99, auto, or off"):
        check_delta("many")


def test_how_far_apart_neighbours_end() -> None:
    """Episodes that start together and drift apart at speeds of their own, on a line without noise."""
    speeds = np.linspace(-1, 1, 21)
    episodes = [
        Episode(
            observations=(speed * np.arange(12))[:, None].astype(np.float32),
            actions=np.zeros((11, 1), np.float32),
            rewards=np.zeros(11, np.float32),
            terminated=False,
            truncated=True,
        )
        for speed in speeds
    ]
    dataset = from_episodes(episodes, name="fan", action_low=[-1], action_high=[1])
    config = small_fit(gap_max=4, diffusion_steps=2, head_steps=2)
    config = replace(config, diffusion=replace(config.diffusion, horizon=12))
    bundle = fit_bundle(dataset, config, None, device="cpu")
    table = bundle.calibration.tables[SEAM]
    assert table.shape == (3, len(QUANTILES))
    assert (np.diff(table, axis=0) >= 0).all()
    assert table[0, 0] > 0  # never the window itself, nor another of its own episode at the same place
    # Nobody is farther from the others than the fastest from the slowest would be.
    furthest = (2 * 5 / bundle.normalizer.std[0]) ** 2
    assert table.max() <= furthest
    assert Calibration.from_json(bundle.calibration.to_json()).threshold("q50", np.array([2]), SEAM) > 0


def test_without_neighbours_no_quantile_of_seams_is_known() -> None:
    with pytest.raises(UserError, match=r"pairs.seam_max=q95: this stitcher does not say how far apart neighbours end"):
        make().threshold("q95", np.array([2]), SEAM)
    assert make().threshold(0.5, np.array([2]), SEAM) == [0.5]
    with pytest.raises(UserError, match="lacks real windows with noise; fit again in another folder, or name"):
        make().believed()


def test_believed_is_the_median_of_windows_with_noise() -> None:
    rng = np.random.default_rng(0)
    noise = rng.exponential(1.0, (4000, 9)).astype(np.float32)
    calibration = Calibration.measure({"residual": noise, "noise": noise}, {}, 2, 8)
    every = calibration.believed()
    np.testing.assert_allclose(every[[0, 6]], [np.median(noise[:, :3].max(1)), np.median(noise.max(1))], rtol=1e-5)
    np.testing.assert_array_equal(calibration.believed(np.array([0, 8, 30])), every[[0, 6, 6]])


def test_what_follows_a_state_at_the_end_of_its_sensor_is_held_against_nobody() -> None:
    dataset = clipped_walk(push=0.1, beside=1.0)  # what never changes hides nothing
    config = small_fit(diffusion_steps=10, head_steps=10)
    config = replace(config, dynamics=replace(config.dynamics, train_steps=1200), holdout_fraction=0.4)
    tables = fit_bundle(dataset, config).calibration.tables
    everywhere = np.array([np.interp(TRUE_SHARE, QUANTILES, row) for row in tables["residual"]])
    known = np.array([np.interp(TRUE_SHARE, QUANTILES, row) for row in tables["recorded"]])
    assert (known < 0.7 * everywhere).all()
