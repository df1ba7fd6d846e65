"""Returns against a plain loop."""

import numpy as np
import pytest

from raystitch.data.returns import discounted_before, discounted_returns, returns_to_go

OFFSETS = np.array([0, 4, 4, 5, 12], np.int64)
REWARDS = np.random.default_rng(0).normal(size=12).astype(np.float32)
BOOTSTRAP = np.array([2.0, 3.0, 0.0, -1.0], np.float32)


def plain_loop(gamma: float, bootstrap: np.ndarray) -> np.ndarray:
    result = np.zeros(len(REWARDS))
    for start, stop, value in zip(OFFSETS[:-1], OFFSETS[1:], bootstrap, strict=True):
        running = float(value)
        for row in range(stop - 1, start - 1, -1):
            running = REWARDS[row] + gamma * running
            result[row] = running
    return result


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("bootstrap", [None, BOOTSTRAP])
def test_discounted_returns(gamma: float, bootstrap: np.ndarray | None) -> None:
    expected = plain_loop(gamma, np.zeros(4) if bootstrap is None else bootstrap)
    result = discounted_returns(REWARDS, OFFSETS, gamma, bootstrap)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_returns_to_go() -> None:
    result = returns_to_go(REWARDS, OFFSETS)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, plain_loop(1.0, np.zeros(4)), atol=1e-6)


def test_one_bootstrap_value_per_episode() -> None:
    with pytest.raises(ValueError, match="got 3 for 4 episodes"):
        discounted_returns(REWARDS, OFFSETS, 0.9, BOOTSTRAP[:3])


def test_discounted_before_is_what_was_collected() -> None:
    collected, discounts = discounted_before(np.array([1.0, 2.0, 4.0], np.float32), 0.5)
    np.testing.assert_allclose(collected, [0, 1, 2, 3])
    np.testing.assert_allclose(discounts, [1, 0.5, 0.25, 0.125])
