"""Every weighting, every rule for rewards and every rule for returns-to-go must pass these."""

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from raystitch.data.episodes import Episode, from_episodes
from raystitch.data.returns import returns_to_go
from raystitch.errors import UserError
from raystitch.shaping.config import (
    ReturnConfig,
    ReturnName,
    RewardConfig,
    RewardName,
    ShapingConfig,
    WeightConfig,
    WeightName,
)
from raystitch.shaping.facts import DataFacts
from raystitch.shaping.returns import RETURNS, PooledEpisodes, pool_rows, returns_to_go_of
from raystitch.shaping.rewards import REWARDS, StoredSteps, apply_rewards, generated_steps, recorded_steps
from raystitch.shaping.weights import STEP_WEIGHTS, WEIGHTS, EpisodeFacts, episode_weights

JUDGED = ("penalty", "cut")
"""Rules for rewards that need the judges' numbers of every generated step."""


def facts(returns: NDArray[np.float64]) -> EpisodeFacts:
    rng = np.random.default_rng(3)
    return EpisodeFacts(
        returns=returns,
        lengths=rng.integers(1, 9, len(returns)),
        first_observations=rng.normal(size=(len(returns), 2)).astype(np.float32),
        sources=rng.integers(0, 5, len(returns)),
    )


def steps(kept: bool = True) -> StoredSteps:
    """The steps of three bridges; ``kept``: their buffer keeps residual and spread."""
    rng = np.random.default_rng(4)
    gap = np.array([2, 0, 5])
    count = int((gap + 1).sum())
    numbers = rng.uniform(0, 1, (2, count)).astype(np.float32)
    rewards = rng.normal(size=count).astype(np.float32)
    states = rng.normal(size=(count + len(gap), 2)).astype(np.float32)
    residual, spread = numbers if kept else (None, None)
    return generated_steps(rewards, gap, residual, spread, states, whole())


def whole() -> DataFacts:
    """What is known of all data: 40 episodes, and limits of the judges' numbers by gap."""
    rng = np.random.default_rng(6)
    episodes = [
        Episode(
            observations=rng.normal(size=(9, 2)).astype(np.float32),
            actions=np.zeros((8, 1), np.float32),
            rewards=rng.normal(size=8).astype(np.float32) + 1,
            terminated=False,
            truncated=True,
        )
        for _ in range(40)
    ]
    dataset = from_episodes(episodes, name="toy", action_low=-np.ones(1), action_high=np.ones(1))
    limits = {name: np.linspace(1, 2, 4, dtype=np.float32) for name in ("residual", "spread")}
    limits |= {f"{name}_sum": limits[name] * np.float32(0.5) for name in ("residual", "spread")}
    return DataFacts(dataset=dataset, limits=limits, first_gap=1)


def real_steps() -> StoredSteps:
    facts = whole()
    return recorded_steps(facts.dataset.rewards, facts.dataset.observations, facts.dataset.obs_index, facts)


def part(of: StoredSteps, rows: slice) -> StoredSteps:
    """Return some of the steps; states and facts are there as they are."""
    columns = {name: value for name, value in vars(of).items() if name not in ("observations", "facts")}
    return replace(of, **{name: None if value is None else value[rows] for name, value in columns.items()})


def pooled(start: list[list[int]], length: list[list[int]]) -> PooledEpisodes:
    """Episodes over two dataset episodes of 4 and 3 rows, the first terminates, and a bridge of 2 rows."""
    rng = np.random.default_rng(5)
    rewards = rng.normal(size=9).astype(np.float32)
    return PooledEpisodes(
        start=np.array(start, np.int32),
        length=np.array(length, np.int32),
        rewards=rewards,
        dones=np.array([0, 0, 0, 1, 0, 0, 0, 0, 0], np.float32),
        rest=returns_to_go(rewards, np.array([0, 4, 7, 9])),
        observations=rng.normal(size=(12, 2)).astype(np.float32),
        obs_row=np.array([0, 1, 2, 3, 5, 6, 7, 9, 10]),
        values=rng.normal(size=12).astype(np.float32),
    )


WHOLE = ([[0, 0, 0], [4, 7, 2], [1, 7, 5]], [[4, 0, 0], [2, 2, 2], [1, 2, 2]])
"""An episode of the dataset, one from the second through the bridge into the first, one the other way round."""


def promised(config: ReturnConfig, episodes: PooledEpisodes) -> list[NDArray[np.float64]]:
    """Return the returns-to-go of every step, one array per episode."""
    found = returns_to_go_of(config, episodes)
    start = episodes.start if found.start is None else found.start
    assert found.values.dtype == found.offset.dtype == np.float32
    assert found.offset.shape == start.shape == episodes.length.shape
    if found.start is None:
        assert len(found.values) == len(episodes.rewards)
    return [
        np.concatenate([found.values[s : s + n].astype(np.float64) + o for s, n, o in zip(*row, strict=True)])
        for row in zip(start, episodes.length, found.offset, strict=True)
    ]


@pytest.mark.parametrize("name", sorted(WEIGHTS))
def test_contract_of_every_weighting(name: str) -> None:
    config = WeightConfig(name=name)  # pyright: ignore[reportArgumentType]
    returns = np.random.default_rng(0).normal(size=20) * 1000
    given = facts(returns)
    weights = episode_weights(config, given)
    assert weights.dtype == np.float64
    assert weights.shape == (20,)
    assert np.isfinite(weights).all()
    assert (weights >= 0).all() and (weights > 0).any()
    np.testing.assert_array_equal(returns, np.random.default_rng(0).normal(size=20) * 1000)
    order = np.random.default_rng(1).permutation(20)
    shuffled = EpisodeFacts(**{column: values[order] for column, values in vars(given).items()})
    np.testing.assert_allclose(episode_weights(config, shuffled), weights[order])
    assert np.isfinite(episode_weights(config, facts(np.full(3, 7.0)))).all()
    assert episode_weights(config, facts(np.zeros(0))).shape == (0,)


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_contract_of_every_rule_for_rewards(name: str) -> None:
    config = RewardConfig(name=name)  # pyright: ignore[reportArgumentType]
    if name in JUDGED:
        with pytest.raises(UserError, match="schema 2: no per-step residuals"):
            apply_rewards(config, steps(kept=False))
    for given in (
        steps(),
        *([] if name in JUDGED else [steps(kept=False)]),
        real_steps(),
        part(steps(), slice(0, 0)),
    ):
        before = given.rewards.copy()
        rewards = apply_rewards(config, given)
        np.testing.assert_array_equal(given.rewards, before)
        assert len(rewards) == len(given)
        assert np.isfinite(rewards).all()
        portions = [apply_rewards(config, part(given, slice(at, at + 2))) for at in range(0, len(given), 2)]
        np.testing.assert_array_equal(np.concatenate([*portions, np.zeros(0)]), rewards)
    assert apply_rewards(config, steps()).dtype == np.float32


@pytest.mark.parametrize("name", sorted(RETURNS))
def test_contract_of_every_rule_for_returns(name: str) -> None:
    config = ReturnConfig(name=name)  # pyright: ignore[reportArgumentType]
    together = promised(config, pooled(*WHOLE))
    assert [len(values) for values in together] == [4, 6, 5]
    assert all(np.isfinite(values).all() for values in together)
    for at, values in enumerate(together):
        (alone,) = promised(config, pooled(*([part[at]] for part in WHOLE)))
        np.testing.assert_allclose(alone, values, atol=1e-5)
    # Nothing is promised beyond the reward of a step that ends an episode for good.
    np.testing.assert_allclose(together[0][-1], pooled(*WHOLE).rewards[3], atol=1e-6)


def test_the_identities_say_what_the_data_say() -> None:
    assert episode_weights(WeightConfig(), facts(np.arange(3.0))).tolist() == [1, 1, 1]
    for given in (steps(), recorded_steps(steps().rewards)):
        assert apply_rewards(RewardConfig(), given) is given.rewards
    episodes = pooled(*WHOLE)
    for at, values in enumerate(promised(ReturnConfig(), episodes)):
        rewards = episodes.rewards[pool_rows(pooled(*([part[at]] for part in WHOLE)))].astype(np.float64)
        np.testing.assert_allclose(values, np.cumsum(rewards[::-1])[::-1], atol=1e-5)


def test_return_weights_are_those_of_the_paper() -> None:
    weights = episode_weights(WeightConfig(name="rw"), facts(np.array([0.0, 5.0, 10.0])))
    np.testing.assert_allclose(weights, np.exp([-10, -5, 0]))
    assert episode_weights(WeightConfig(name="rw"), facts(np.zeros(3))).tolist() == [1, 1, 1]
    softer = episode_weights(WeightConfig(name="rw", temperature=0.2), facts(np.array([0.0, 10.0])))
    np.testing.assert_allclose(softer, np.exp([-5, 0]))


def test_names_are_those_of_the_registries() -> None:
    for registry, names in (({**WEIGHTS, **STEP_WEIGHTS}, WeightName), (REWARDS, RewardName), (RETURNS, ReturnName)):
        assert set(registry) == set(get_args(names))
    assert ShapingConfig() == ShapingConfig(weights=WeightConfig(), rewards=RewardConfig(), returns=ReturnConfig())


def test_unknown_names_and_wrong_values_are_quoted() -> None:
    unknown: Any = "none"
    with pytest.raises(UserError, match="weights='none' is not one of uniform, rw, aw, top, oper_r, sources, oper_a"):
        episode_weights(WeightConfig(name=unknown), facts(np.zeros(2)))
    with pytest.raises(UserError, match="rewards='none' is not one of recorded, penalty"):
        apply_rewards(RewardConfig(name=unknown), steps())
    with pytest.raises(UserError, match="returns='none' is not one of plain"):
        returns_to_go_of(ReturnConfig(name=unknown), pooled(*WHOLE))
    for wrong in ({"temperature": 0}, {"name": "top", "share": 0}, {"name": "oper_r", "base": -1}):
        setting, value = list(wrong.items())[-1]
        with pytest.raises(ValueError, match=f"{setting}={value}"):
            WeightConfig(**wrong)  # pyright: ignore[reportArgumentType]


def test_an_episode_without_a_step_changes_no_other_ones_weight() -> None:
    five = facts(np.array([7.0, 1.0, 4.0, 9.0, 2.0]))
    five = replace(five, lengths=np.full(5, 3))
    empty = replace(facts(np.array([7.0, 1.0, 4.0, 9.0, 2.0, -50.0])), lengths=np.array([3, 3, 3, 3, 3, 0]))
    empty = replace(
        empty,
        first_observations=np.concatenate([five.first_observations, np.ones((1, 2), np.float32)]),
        sources=np.append(five.sources, 0),
    )
    for name in get_args(WeightName):
        config = WeightConfig(name=name)
        np.testing.assert_array_equal(episode_weights(config, empty)[:5], episode_weights(config, five), err_msg=name)
