"""Standardisation: units do not matter, constants and quivers do not count."""

import numpy as np

from raystitch.data.normalise import Normalizer

ROWS = np.random.default_rng(0).standard_normal((500, 3)).astype(np.float32)


def test_units_do_not_matter() -> None:
    plain = Normalizer.fit(ROWS)
    for factor in (1e-6, 1e-3, 1e3, 1e6):
        scaled = ROWS * np.array([1, factor, 1], np.float32)
        np.testing.assert_allclose(Normalizer.fit(scaled).encode(scaled), plain.encode(ROWS), rtol=1e-3, atol=1e-4)


def test_a_constant_is_not_active() -> None:
    fitted = Normalizer.fit(np.concatenate([ROWS, np.full((500, 1), 0.1, np.float32)], 1))
    assert fitted.active.tolist() == [True] * 3 + [False]


def test_a_quiver_is_not_blown_up() -> None:
    """An object that rests at 0.5 and trembles by 1e-6 in the simulator."""
    resting = 0.5 + 1e-6 * ROWS[:, :1]
    rows = np.concatenate([ROWS, resting], 1)
    assert Normalizer.fit(rows).encode(rows)[:, 3].std() < 0.01


def test_there_and_back() -> None:
    fitted = Normalizer.fit(ROWS)
    np.testing.assert_allclose(fitted.decode(fitted.encode(ROWS)), ROWS, atol=1e-5)
