"""Which shaping fits which training data and algorithm, and how the keys of a grid's line name it; torch-free."""

from dataclasses import dataclass

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
from raystitch.trainers.config import AlgorithmConfig, DataMode, DTConfig, EvalConfig
from raystitch.trainers.ratio import parse_ratio

GENERATED_ONLY = ("penalty", "cut")
"""Rules for rewards that leave recorded steps as they are; they go by the judges' numbers of each generated step."""

Weights = WeightName | WeightConfig
Rewards = RewardName | RewardConfig
Returns = ReturnName | ReturnConfig
"""A rule by its name, or with its settings."""


@dataclass(frozen=True, kw_only=True)
class ShapingRules:
    """One rule for each hook, as options and configurations name them."""

    weights: Weights = "uniform"
    rewards: Rewards = "recorded"
    returns: Returns = "plain"

    @property
    def shaping(self) -> ShapingConfig:
        """The rules with their settings."""
        return shaping_of(self.weights, self.rewards, self.returns)


def shaping_of(
    weights: Weights = "uniform", rewards: Rewards = "recorded", returns: Returns = "plain"
) -> ShapingConfig:
    """Return a shaping from rules that are named, or given with their settings."""
    return ShapingConfig(
        weights=WeightConfig(name=weights) if isinstance(weights, str) else weights,
        rewards=RewardConfig(name=rewards) if isinstance(rewards, str) else rewards,
        returns=ReturnConfig(name=returns) if isinstance(returns, str) else returns,
    )


def all_shapings(
    weights: Weights | tuple[Weights, ...],
    rewards: Rewards | tuple[Rewards, ...],
    returns: Returns | tuple[Returns, ...],
) -> list[ShapingConfig]:
    """Return every combination of the rules of the three hooks; no rule stands for the identity."""
    of_weights: tuple[Weights, ...] = weights if isinstance(weights, tuple) else (weights,)
    of_rewards: tuple[Rewards, ...] = rewards if isinstance(rewards, tuple) else (rewards,)
    of_returns: tuple[Returns, ...] = returns if isinstance(returns, tuple) else (returns,)
    return [
        shaping_of(one, other, third)
        for one in of_weights or (WeightConfig(),)
        for other in of_rewards or (RewardConfig(),)
        for third in of_returns or (ReturnConfig(),)
    ]


def settle(data: DataMode, ratio: str, shaping: ShapingConfig, named: bool = False) -> tuple[DataMode, ShapingConfig]:
    """Return what is trained on in the one way in which each result is written.

    At 1:0 nothing is weighted and there are no generated steps. ``weighted`` data with the weights ``rw`` are those
    without a word about weights; with the weights ``uniform`` they are ``duplicated``.

    Args:
        named: the weights were named, rather than left out.
    """
    weights, rewards = shaping.weights, shaping.rewards
    if not parse_ratio(ratio).augmented:
        weights = WeightConfig()
        rewards = RewardConfig() if rewards.name in GENERATED_ONLY else rewards
        data = "original"
    if data == "weighted" and named and weights == WeightConfig():
        data = "duplicated"
    if data == "weighted" and weights == WeightConfig(name="rw"):
        weights = WeightConfig()
    return data, ShapingConfig(weights=weights, rewards=rewards, returns=shaping.returns)


def check_shaping(shaping: ShapingConfig, algo: str, config: AlgorithmConfig, data: DataMode) -> None:
    """Raise UserError where the shaping would change nothing, or something that the algorithm does not read."""
    weights, rewards, returns = shaping.weights.name, shaping.rewards.name, shaping.returns.name
    if weights != "uniform" and data == "original":
        raise UserError(
            f"weights: {weights} weighs the augmented part, which original data do not have; use data: weighted, at "
            "0:1 for weighted data alone"
        )
    if weights == "sources" and data == "weighted":
        raise UserError("weights: sources: every recorded episode is a source of its own; use stitched or joined data")
    if weights != "uniform" and data == "duplicated":
        raise UserError(f"weights: {weights} on duplicated data are weighted data; write data: weighted")
    if rewards in GENERATED_ONLY and data != "stitched":
        raise UserError(f"rewards: {rewards} changes generated steps, which {data} data do not have; use stitched data")
    if returns != "plain" and config.data_needs().context is None:
        raise UserError(f"returns: {returns} changes returns-to-go, which {algo} does not read; use dt")


def check_asked(config: AlgorithmConfig, evaluation: EvalConfig) -> None:
    """Raise UserError where returns are named for a policy that chooses its own."""
    if isinstance(config, DTConfig) and config.prompt == "max" and evaluation.target_returns:
        raise UserError(
            f"algorithms.dt.prompt: max asks for what the data promise, so evaluation.target_returns="
            f"{evaluation.target_returns} would not be used; leave them out, or write prompt: both"
        )
