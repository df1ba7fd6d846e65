"""Curiosity: targets far from what earlier rounds have entered are preferred, in every mode."""

import re
from typing import Any

import numpy as np
import pytest

from raystitch.data.episodes import EpisodeDataset, Ints
from raystitch.models.bundle import Bundle
from raystitch.stitching.candidates import Pairs
from raystitch.stitching.config import PairConfig, StitchConfig
from raystitch.stitching.links import RECORD, Links
from raystitch.stitching.pairs import SELECTORS, SourceIndex
from raystitch.stitching.values import StateValues

SEEDS = np.arange(200)


def entering(known: StateValues, episode: Ints, step: Ints) -> StateValues:
    """The values after a round of worthless bridges that enter some states."""
    zeros, nothing = np.zeros(len(episode), np.int64), np.zeros(len(episode))
    links = Links(
        ids=np.array([f"b{n}" for n in range(len(episode))], np.str_),
        source_episode=(episode + 1) % known.dataset.num_episodes,
        source_step=zeros,
        target_episode=episode,
        target_step=step,
        parent=zeros + RECORD,
        next=zeros + RECORD,
        reward=nothing,
        discount=nothing,
        value=nothing + known.floor,
    )
    return known.after(links, np.zeros(0, np.int64), 0.9)


def states_of(world: EpisodeDataset, episodes: Ints) -> tuple[Ints, Ints]:
    """Every state of some episodes that a transition follows: episodes and steps."""
    lengths = world.lengths[episodes]
    return np.repeat(episodes, lengths), np.concatenate([np.arange(length) for length in lengths])


def index_of(world: EpisodeDataset, bundle: Bundle, known: StateValues, **pairs: Any) -> SourceIndex:
    config = StitchConfig(pairs=PairConfig(terminal_margin=3, max_target_reuse=0, num_tries=8, **pairs))
    return SourceIndex(world, bundle, config, state_values=known)


def points(world: EpisodeDataset, bundle: Bundle, episode: Ints, step: Ints) -> np.ndarray:
    encoded = bundle.normalizer.encode(world.observations[world.obs_offsets[episode] + step])
    return encoded[:, bundle.normalizer.active].astype(np.float64)


def mean_of_nearest(states: np.ndarray, entered: np.ndarray) -> np.ndarray:
    apart = np.linalg.norm(states[:, None] - entered[None], axis=-1)
    return np.sort(apart, axis=1)[:, :10].mean(1)


def test_novelty_is_the_mean_distance_to_the_nearest_entered_states(world: EpisodeDataset, bundle: Bundle) -> None:
    known = StateValues.recorded(world, bundle)
    entered = states_of(world, np.arange(3))
    pools = index_of(world, bundle, entering(known, *entered)).pools
    target = np.arange(len(pools.targets.episode))
    reference = np.unique(points(world, bundle, *entered), axis=0)
    distance = mean_of_nearest(points(world, bundle, pools.targets.episode, pools.targets.step), reference)
    expected = np.minimum(distance / np.quantile(distance, 0.99), 1)
    np.testing.assert_allclose(pools.entered.novelty(target), expected, atol=1e-4)
    np.testing.assert_array_equal(
        pools.entered.novelty(target[:6].reshape(2, 3)).ravel(), pools.entered.novelty(target[:6])
    )
    assert not index_of(world, bundle, known).pools.entered.novelty(target).any()


@pytest.mark.parametrize("mode", sorted(SELECTORS))
def test_the_curious_enter_what_was_not_entered(world: EpisodeDataset, bundle: Bundle, mode: str) -> None:
    left = np.argsort([world.episode(number).observations[0, 0] for number in range(world.num_episodes)])
    entered = states_of(world, left[: world.num_episodes // 2])
    known = entering(StateValues.recorded(world, bundle), *entered)
    reference = points(world, bundle, *entered)

    def novelty(curiosity: float) -> float:
        pairs: Pairs = index_of(world, bundle, known, mode=mode, curiosity=curiosity, value_check=False).select(SEEDS)
        there = points(world, bundle, pairs.target_episode, pairs.target_step)
        return float(mean_of_nearest(there, reference).mean())

    assert novelty(4) > 1.1 * novelty(0)


def test_a_later_round_knows_what_was_entered_since(world: EpisodeDataset, bundle: Bundle) -> None:
    known = StateValues.recorded(world, bundle)
    first = entering(known, *states_of(world, np.arange(2)))
    index = index_of(world, bundle, first, curiosity=2.0)
    target = np.arange(len(index.pools.targets.episode))
    before = index.pools.entered.novelty(target)
    second = entering(first, *states_of(world, np.arange(2, 6)))
    later, anew = index.with_values(second), index_of(world, bundle, second, curiosity=2.0)
    assert not np.array_equal(later.pools.entered.novelty(target), before)
    np.testing.assert_array_equal(later.pools.entered.novelty(target), anew.pools.entered.novelty(target))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"curiosity": -1.0}, "curiosity must be >= 0 and finite, got curiosity=-1.0"),
        ({"curiosity": float("nan")}, "curiosity must be >= 0 and finite, got curiosity=nan"),
        ({"novelty": float("inf")}, "novelty must be >= 0 and finite, got novelty=inf"),
        ({"curiosity": 1.0, "split": "return"}, "curiosity=1.0 belongs to pairs.split: value"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        PairConfig(**settings)
