"""Each rule for rewards against its formula, and where it has nothing to measure by."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from raystitch.errors import UserError
from raystitch.shaping.config import RewardConfig
from raystitch.shaping.facts import DataFacts
from raystitch.shaping.rewards import apply_rewards, ends_early, generated_steps, recorded_steps, shape_dataset
from tests.contract.test_shaping import real_steps, steps, whole


def rewards(name: Any, of: Any, **settings: Any) -> np.ndarray[Any, Any]:
    return apply_rewards(RewardConfig(name=name, **settings), of)


@pytest.mark.parametrize("doubt", ["residual", "spread"])
def test_penalty_is_in_spreads_of_the_rewards_at_the_limit_of_the_gap(doubt: Any) -> None:
    of = steps()
    sigma = np.std(whole().dataset.rewards.astype(np.float64))
    limit = np.array([1, 4 / 3, 5 / 3, 2])[np.clip(of.gap - 1, 0, 3)]  # of the gaps 1 to 4, the nearest for others
    expected = of.rewards - 0.7 * sigma * getattr(of, doubt) / limit
    np.testing.assert_allclose(rewards("penalty", of, strength=0.7, doubt=doubt), expected, rtol=1e-5)
    assert np.array_equal(rewards("penalty", of, strength=0), of.rewards)
    assert rewards("penalty", real_steps()) is not None
    np.testing.assert_array_equal(rewards("penalty", real_steps()), real_steps().rewards)


@pytest.mark.parametrize("doubt", ["residual", "spread"])
def test_cut_ends_episodes_where_doubt_has_added_up(doubt: Any) -> None:
    of = steps()
    limit = np.array([1, 4 / 3, 5 / 3, 2]) / 2  # of windows of the gaps 1 to 4, the nearest for others
    for strength in (0.5, 1.0, 3.0):
        marked = ends_early(RewardConfig(name="cut", strength=strength, doubt=doubt), of)
        assert marked is not None
        total = 0.0
        for at, position in enumerate(of.position):
            total = getattr(of, doubt)[at] + (total if position else 0.0)
            assert marked[at] == (total > strength * limit[np.clip(position - 1, 0, 3)])
    assert 0 < marked.sum() < len(of)
    none = ends_early(RewardConfig(name="cut"), real_steps())
    assert none is not None and not none.any()
    assert ends_early(RewardConfig(name="penalty"), of) is None
    np.testing.assert_array_equal(rewards("cut", of), of.rewards)


def test_shift_scale_and_zero_change_all_steps_alike() -> None:
    recorded = whole().dataset.rewards.astype(np.float64)
    for of in (steps(), real_steps()):
        np.testing.assert_allclose(rewards("shift", of, strength=-1), of.rewards - recorded.mean(), atol=1e-5)
        np.testing.assert_allclose(
            rewards("scale", of, strength=2), of.rewards * 2 / np.abs(recorded).mean(), rtol=1e-5
        )
        assert not rewards("zero", of).any()


def test_bonus_pays_for_the_distance_of_the_entered_state_to_recorded_ones() -> None:
    facts = whole()
    states = facts.dataset.observations
    mean, std = states.astype(np.float64).mean(0), states.astype(np.float64).std(0)
    encoded = (states - mean) / std

    def distance(state: Any) -> float:
        near = np.sort(np.linalg.norm((state - mean) / std - encoded, axis=1))
        near = near[near > 1e-6]
        return float(near[:10].mean())

    far = np.quantile([distance(state) for state in states], 0.99)
    sigma = np.std(facts.dataset.rewards.astype(np.float64))
    given = real_steps()
    entered = states[facts.dataset.obs_index + 1]
    expected = given.rewards + 0.5 * sigma * np.array([distance(state) for state in entered]) / far
    np.testing.assert_allclose(rewards("bonus", given, strength=0.5), expected, rtol=1e-3)
    made = steps()
    assert made.observations is not None
    away = replace(made, observations=made.observations + 100)
    assert (rewards("bonus", away) > rewards("bonus", made)).all()


def test_reference_states_of_large_data_are_drawn_once_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raystitch.data.neighbours.NUM_REFERENCE", 50)
    monkeypatch.setattr("raystitch.data.neighbours.NUM_SPACED", 64)
    one, other = whole(), whole()
    states = one.dataset.observations
    np.testing.assert_array_equal(one.novelty(states, 5), other.novelty(states, 5))
    in_parts = np.concatenate([one.novelty(states[:100], 5), one.novelty(states[100:], 5)])
    np.testing.assert_allclose(in_parts, other.novelty(states, 5), rtol=1e-6)
    assert 0.9 < np.quantile(one.novelty(states, 5), 0.99) < 1.1


def test_rewards_that_cannot_be_measured_are_one_line() -> None:
    facts = whole()
    flat = replace(facts.dataset, rewards=np.zeros(facts.dataset.num_transitions, np.float32))
    for name, what in (("shift", "mean"), ("scale", "size"), ("bonus", "standard deviation")):
        with pytest.raises(UserError, match=f"toy: rewards cannot be measured by their {what}, which is 0"):
            shape_dataset(flat, RewardConfig(name=name))  # pyright: ignore[reportArgumentType]
    of = replace(steps(), facts=DataFacts(dataset=facts.dataset))
    with pytest.raises(UserError, match="the residual on real data, which only a buffer of bridges comes with"):
        rewards("penalty", of)
    bare = generated_steps(of.rewards, np.array([2, 0, 5]), of.residual, of.spread)
    with pytest.raises(UserError, match="measured by the whole dataset"):
        rewards("penalty", bare)
    still = replace(facts.dataset, observations=np.zeros_like(facts.dataset.observations))
    with pytest.raises(UserError, match="novelty cannot be measured"):
        shape_dataset(still, RewardConfig(name="bonus"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "penalty", "strength": -1}, "strength of penalty must be >= 0, got strength=-1"),
        ({"name": "scale", "strength": 0}, "strength of scale must be positive, got strength=0"),
        ({"name": "shift", "strength": float("nan")}, "strength must be finite, got strength=nan"),
        ({"name": "zero", "strength": 1}, "zero does not read strength=1; it takes no settings"),
        ({"name": "shift", "doubt": "spread"}, "shift does not read doubt=spread; it takes strength"),
        ({"name": "bonus", "neighbours": 0}, "neighbours must be at least 1, got neighbours=0"),
    ],
)
def test_wrong_settings_are_quoted(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RewardConfig(**settings)


def test_nothing_is_copied_for_recorded_rewards() -> None:
    dataset = whole().dataset
    assert shape_dataset(dataset, RewardConfig()) is dataset
    given = recorded_steps(dataset.rewards, dataset.observations, dataset.obs_index)
    assert given.observations is dataset.observations
