"""Settings of the three hooks on training data; torch-free. A name is a key of the hook's registry."""

from dataclasses import dataclass, field
from typing import Literal

WeightName = Literal["uniform", "rw"]
RewardName = Literal["recorded"]
ReturnName = Literal["plain"]


@dataclass(frozen=True, kw_only=True)
class WeightConfig:
    """Settings of the weights that say how likely the episodes of the augmented part are drawn.

    Attributes:
        name: key of ``WEIGHTS``; ``uniform`` leaves episodes as they are.
        temperature: of ``rw``, in units of the range of the returns; lower keeps to the best episodes.
    """

    name: WeightName = "uniform"
    temperature: float = 0.1

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got temperature={self.temperature}")


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Settings of the rewards of stored steps, real and generated.

    Attributes:
        name: key of ``REWARDS``; ``recorded`` keeps the stored rewards.
    """

    name: RewardName = "recorded"


RECORDED = RewardConfig()
"""The rewards as they are stored."""


@dataclass(frozen=True, kw_only=True)
class ReturnConfig:
    """Settings of the returns-to-go.

    Attributes:
        name: key of ``RETURNS``; ``plain`` sums the rewards up to the episode's end.
    """

    name: ReturnName = "plain"


@dataclass(frozen=True, kw_only=True)
class ShapingConfig:
    """The three hooks on training data; by default each is the identity."""

    weights: WeightConfig = field(default_factory=WeightConfig)
    rewards: RewardConfig = field(default_factory=RewardConfig)
    returns: ReturnConfig = field(default_factory=ReturnConfig)
