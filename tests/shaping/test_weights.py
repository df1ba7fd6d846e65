"""Each weighting against its formula, and where it has nothing to go by."""

from typing import Any

import numpy as np
import pytest

from raystitch.errors import UserError
from raystitch.shaping.config import WeightConfig
from raystitch.shaping.weights import EpisodeFacts, episode_weights


def facts(returns: Any, first: Any = None, lengths: Any = None, sources: Any = None) -> EpisodeFacts:
    returns = np.asarray(returns, np.float64)
    first = np.random.default_rng(0).normal(size=(len(returns), 3)) if first is None else np.asarray(first)
    return EpisodeFacts(
        returns=returns,
        lengths=np.full(len(returns), 5) if lengths is None else np.asarray(lengths),
        first_observations=first.astype(np.float32),
        sources=np.arange(len(returns)) if sources is None else np.asarray(sources),
    )


def test_a_source_counts_once_however_often_it_is_left() -> None:
    of = facts([5, 1, 2, 3, 9], lengths=[4, 4, 4, 4, 0], sources=[7, 3, 7, 7, 3])
    np.testing.assert_allclose(weights("sources", of), [1 / 3, 1, 1 / 3, 1 / 3, 0])
    same = facts([1, 1, 1], sources=[0, 0, 1])
    np.testing.assert_allclose(weights("sources", same), [0.5, 0.5, 1])


def weights(name: Any, of: EpisodeFacts, **settings: Any) -> np.ndarray[Any, Any]:
    return episode_weights(WeightConfig(name=name, **settings), of)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0])
def test_advantage_weights_are_the_formula(alpha: float) -> None:
    """R - V(s_0), V by the normal equations in place of the solver that is used, min-max over the data."""
    rng = np.random.default_rng(1)
    first = rng.normal(size=(200, 4)).astype(np.float32)
    returns = 300 * first[:, 0] - 50 * first[:, 2] + rng.normal(size=200) * 200 + 1000
    design = np.column_stack([np.ones(200), first.astype(np.float64)])
    value = design @ np.linalg.solve(design.T @ design, design.T @ returns)
    advantage = returns - value
    expected = np.exp((advantage - advantage.min()) / (advantage.max() - advantage.min()) / alpha)
    found = weights("aw", facts(returns, first), temperature=alpha)
    np.testing.assert_allclose(found / found.sum(), expected / expected.sum(), rtol=1e-6)
    by_return = weights("rw", facts(returns, first), temperature=alpha)
    assert not np.allclose(found, by_return)  # it is not fooled by where an episode begins


def test_the_share_of_the_best_is_drawn_alike() -> None:
    assert weights("top", facts([3, 1, 2, 5, 4]), share=0.4).tolist() == [0, 0, 0, 1, 1]
    assert weights("top", facts([3, 1, 3, 5, 3]), share=0.4).tolist() == [1, 0, 1, 1, 1]  # ties are all in
    assert weights("top", facts([3, 9, 2, 1], lengths=[5, 0, 5, 5]), share=0.3).tolist() == [1, 0, 0, 0]
    with pytest.raises(UserError, match=r"share=0\.1 of 4 episodes selects none; use at least 0\.125"):
        weights("top", facts([3, 1, 2, 5]))


def test_prioritised_returns_are_linear_in_the_return() -> None:
    assert weights("oper_r", facts([1, 2, 5])).tolist() == [0, 0.25, 1]
    assert weights("oper_r", facts([1, 2, 5]), base=0.5).tolist() == [0.5, 0.75, 1.5]


@pytest.mark.parametrize("name", ["rw", "aw", "top", "oper_r"])
@pytest.mark.parametrize("returns", [[7.0, 7.0, 7.0], [7.0]])
def test_with_nothing_to_go_by_weights_are_uniform_and_a_line_says_so(name: Any, returns: list[float]) -> None:
    notes: list[str] = []
    found = episode_weights(WeightConfig(name=name), facts(returns), notes.append)
    assert found.tolist() == [1.0] * len(returns)
    (note,) = notes
    assert f"weights: {name}: " in note and "returned 7; the weights are uniform" in note
    assert ("the only episode" in note) == (len(returns) == 1)


def test_returns_that_first_states_explain_leave_no_advantage_but_rounding() -> None:
    notes: list[str] = []
    found = episode_weights(WeightConfig(name="aw"), facts([1.0, 900.0, 3.3]), notes.append)  # 3 episodes, 4 numbers
    assert found.tolist() == [1, 1, 1]
    assert notes == ["weights: aw: the first states explain all 3 returns; the weights are uniform"]


def test_nothing_is_noted_where_weights_differ() -> None:
    notes: list[str] = []
    for name in ("uniform", "rw", "aw", "top", "oper_r"):
        episode_weights(WeightConfig(name=name), facts(np.arange(10.0)), notes.append)
    assert notes == []
