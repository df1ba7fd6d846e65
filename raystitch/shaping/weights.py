"""The first hook: weights that say how likely the episodes of the augmented part are drawn.

Legend: E episodes, O observation size. R~ is the return, min-max normalised over the episodes given.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from raystitch.data.episodes import Bools, Floats, Ints
from raystitch.errors import UserError, check_choice
from raystitch.shaping.advantages import EpisodeSteps, advantage_priorities
from raystitch.shaping.config import WeightConfig

EXPLAINED = 1e-6
"""Advantages that span less than this share of the returns are rounding: the first states explain every return."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EpisodeFacts:
    """Everything that a weighting may know about E episodes.

    Attributes:
        returns: float64 [E], undiscounted sums of the shaped rewards.
        lengths: int64 [E], transitions; may be 0.
        first_observations: float32 [E, O], standardised by the original data.
        sources: int64 [E], the real episode that each begins in.
    """

    returns: NDArray[np.float64]
    lengths: Ints
    first_observations: Floats
    sources: Ints

    def __len__(self) -> int:
        return len(self.returns)

    def take(self, rows: Bools) -> "EpisodeFacts":
        """Return the facts of some episodes, bool [E]."""
        return EpisodeFacts(
            returns=self.returns[rows],
            lengths=self.lengths[rows],
            first_observations=self.first_observations[rows],
            sources=self.sources[rows],
        )


class WeightFunction(Protocol):
    """A weighting of episodes, one line of ``WEIGHTS``."""

    def __call__(self, config: WeightConfig, episodes: EpisodeFacts) -> NDArray[np.float64]:
        """Return float64 [E], finite and >= 0: the relative probability of drawing one transition of each episode."""
        ...


class StepWeightFunction(Protocol):
    """A weighting of single transitions, one line of ``STEP_WEIGHTS``."""

    def __call__(self, steps: EpisodeSteps) -> NDArray[np.float64]:
        """Return float64 [M], finite and >= 0: the relative probability of drawing each transition."""
        ...


def uniform(config: WeightConfig, episodes: EpisodeFacts) -> NDArray[np.float64]:
    """Return the same weight for every episode: the identity."""
    return np.ones(len(episodes))


def return_weights(config: WeightConfig, episodes: EpisodeFacts) -> NDArray[np.float64]:
    """Return exp(R~ / temperature), 1 for the best episode (Hong et al. 2023, arXiv 2306.13085, RW)."""
    return _soft(episodes.returns, config.temperature)


def advantage_weights(config: WeightConfig, episodes: EpisodeFacts) -> NDArray[np.float64]:
    """Return exp(A~ / temperature), 1 for the best episode (Hong et al. 2023, arXiv 2306.13085, AW).

    A = R - V(s_0), V being the least-squares line through the returns over first states, min-max normalised like R~.
    All weights are 1 where the first states explain every return.
    """
    advantages = _advantages(episodes)
    if np.ptp(advantages) <= EXPLAINED * np.ptp(episodes.returns):
        return np.ones(len(episodes))
    return _soft(advantages, config.temperature)


def top_weights(config: WeightConfig, episodes: EpisodeFacts) -> NDArray[np.float64]:
    """Return 1 for the best ``share`` of the episodes, ties included, and 0 for the others.

    Raises:
        UserError: where the share is less than half an episode.
    """
    count = int(config.share * len(episodes) + 0.5)
    if not count:
        least = np.ceil(500 / len(episodes)) / 1000
        raise UserError(
            f"weights: top with share={config.share:g} of {len(episodes)} episodes selects none; use at least {least:g}"
        )
    return (episodes.returns >= np.sort(episodes.returns)[-count]).astype(np.float64)


def prioritised_returns(config: WeightConfig, episodes: EpisodeFacts) -> NDArray[np.float64]:
    """Return R~ + base (Yue et al. 2023, arXiv 2306.05412, OPER-R)."""
    returns = episodes.returns
    return (returns - returns.min()) / np.ptp(returns) + config.base


def shared_sources(config: WeightConfig, episodes: EpisodeFacts) -> NDArray[np.float64]:
    """Return 1 / k for an episode whose source begins k of the episodes: a real prefix counts once however often a
    bridge leaves it."""
    _, place, count = np.unique(episodes.sources, return_inverse=True, return_counts=True)
    return 1.0 / count[place]


WEIGHTS: dict[str, WeightFunction] = {
    "uniform": uniform,
    "rw": return_weights,
    "aw": advantage_weights,
    "top": top_weights,
    "oper_r": prioritised_returns,
    "sources": shared_sources,
}

STEP_WEIGHTS: dict[str, StepWeightFunction] = {"oper_a": advantage_priorities}
"""Weightings of single transitions; for these ``episode_weights`` are uniform."""

BY_RETURN = (return_weights, advantage_weights, top_weights, prioritised_returns)
"""Weightings of which nothing is left where all returns are equal: all weights are then 1."""


def episode_weights(
    config: WeightConfig, episodes: EpisodeFacts, note: Callable[[str], None] | None = None
) -> NDArray[np.float64]:
    """Return the weights of ``config``, float64 [E].

    Args:
        note: gets a line where every episode weighs the same because the weighting has nothing to go by.

    Raises:
        UserError: for a name that no weighting has, or a share that selects nothing.
    """
    check_choice("weights", config.name, (*WEIGHTS, *STEP_WEIGHTS))
    if config.name in STEP_WEIGHTS:
        return np.ones(len(episodes))
    rule, drawable = WEIGHTS[config.name], episodes.lengths > 0
    if rule is not uniform and not drawable.all():
        weights = np.zeros(len(episodes))
        weights[drawable] = episode_weights(config, episodes.take(drawable), note)
        return weights
    if rule in BY_RETURN and (not len(episodes) or np.ptp(episodes.returns) == 0):
        if note is not None and len(episodes):
            of = "the only episode" if len(episodes) == 1 else f"all {len(episodes):,} episodes"
            note(f"weights: {config.name}: {of} returned {episodes.returns[0]:g}; the weights are uniform")
        return np.ones(len(episodes))
    weights = rule(config, episodes)
    if rule is advantage_weights and note is not None and np.ptp(weights) == 0:
        note(f"weights: aw: the first states explain all {len(episodes):,} returns; the weights are uniform")
    return weights


def _soft(values: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Return exp of the values, normalised so that they span 1 and the largest is 0, over ``temperature``."""
    return np.exp((values - values.max()) / np.ptp(values) / temperature)


def _advantages(episodes: EpisodeFacts) -> NDArray[np.float64]:
    """Return R - V(s_0), float64 [E]."""
    design = np.column_stack([episodes.first_observations.astype(np.float64), np.ones(len(episodes))])
    line = np.linalg.lstsq(design, episodes.returns, rcond=None)[0]
    return episodes.returns - design @ line
