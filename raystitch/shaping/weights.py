"""The first hook: weights that say how likely the episodes of the augmented part are drawn.

Legend: E episodes, O observation size.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from raystitch.data.episodes import Floats, Ints
from raystitch.errors import check_choice
from raystitch.shaping.config import WeightConfig


@dataclass(frozen=True, kw_only=True, eq=False)
class EpisodeFacts:
    """Everything that a weighting may know about E episodes.

    Attributes:
        returns: float64 [E], undiscounted sums of the shaped rewards.
        lengths: int64 [E], transitions; may be 0.
        first_observations: float32 [E, O], standardised by the original data.
    """

    returns: NDArray[np.float64]
    lengths: Ints
    first_observations: Floats

    def __len__(self) -> int:
        return len(self.returns)


class WeightFunction(Protocol):
    """A weighting of episodes, one line of ``WEIGHTS``."""

    def __call__(self, config: WeightConfig, episodes: EpisodeFacts) -> NDArray[np.float64]:
        """Return float64 [E], finite and >= 0: the relative probability of drawing one transition of each episode."""
        ...


def uniform(config: WeightConfig, episodes: EpisodeFacts) -> NDArray[np.float64]:
    """Return the same weight for every episode: the identity."""
    return np.ones(len(episodes))


def return_weights(config: WeightConfig, episodes: EpisodeFacts) -> NDArray[np.float64]:
    """Return exp(normalised return / temperature), 1 for the best episode (Hong et al. 2023, arXiv 2306.13085, RW)."""
    returns = episodes.returns
    spread = float(returns.max() - returns.min()) if len(returns) else 0.0
    normalised = (returns - returns.max()) / spread if spread > 0 else np.zeros(len(returns))
    return np.exp(normalised / config.temperature)


WEIGHTS: dict[str, WeightFunction] = {"uniform": uniform, "rw": return_weights}


def episode_weights(config: WeightConfig, episodes: EpisodeFacts) -> NDArray[np.float64]:
    """Return the weights of ``config``, float64 [E].

    Raises:
        UserError: for a name that no weighting has.
    """
    check_choice("weights", config.name, WEIGHTS)
    return WEIGHTS[config.name](config, episodes)
