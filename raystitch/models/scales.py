"""Scales, bounds and reward levels of the data, which heads have before they are fitted, and their torch modules."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from raystitch.data.episodes import EpisodeDataset, Floats
from raystitch.data.normalise import Normalizer

MAX_REWARD_LEVELS = 8
PILED_UP, PILED_ROWS = 1e-3, 10
"""A sensor ends at a dimension's extreme if at least this share of the states lies exactly there, and so many do."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadScales:
    """Scales, bounds and levels of the data that the heads are made with.

    Attributes:
        state, delta: standardisation of s and of s' - s.
        state_low, state_high: float32 [O], where the sensor of a dimension ends (MuJoCo's locomotion tasks clip
            velocities at 10); infinite where it does not.
        action_low, action_high: float32 [A], finite: the action space's bounds, or the data's where it has none.
        reward_mean, reward_std, reward_low, reward_high: of the data's rewards.
        reward_levels: the distinct rewards when there are few of them (a sparse reward), else empty.
        value_mean, value_std: of the data's discounted returns.
        any_terminal: whether any episode terminates.
    """

    state: Normalizer
    delta: Normalizer
    state_low: Floats
    state_high: Floats
    action_low: Floats
    action_high: Floats
    reward_mean: float
    reward_std: float
    reward_low: float
    reward_high: float
    reward_levels: Floats
    value_mean: float
    value_std: float
    any_terminal: bool

    @classmethod
    def blank(cls, obs_dim: int, act_dim: int, num_levels: int) -> "HeadScales":
        """Right shapes only; the values are loaded with the weights."""
        return cls(
            state=identity_normalizer(obs_dim),
            delta=identity_normalizer(obs_dim),
            state_low=np.full(obs_dim, -np.inf, np.float32),
            state_high=np.full(obs_dim, np.inf, np.float32),
            action_low=-np.ones(act_dim, np.float32),
            action_high=np.ones(act_dim, np.float32),
            reward_mean=0.0,
            reward_std=1.0,
            reward_low=0.0,
            reward_high=0.0,
            reward_levels=np.zeros(num_levels, np.float32),
            value_mean=0.0,
            value_std=1.0,
            any_terminal=False,
        )

    @classmethod
    def measure(cls, dataset: EpisodeDataset, normalizer: Normalizer, values: Floats) -> "HeadScales":
        """Measure them on the data; ``values`` are its discounted returns, float32 [N]."""
        rows = dataset.obs_index[dataset.next_observed]
        deltas = dataset.observations[rows + 1] - dataset.observations[rows]
        low, high = finite_bounds(dataset)
        state_low, state_high = sensor_ends(dataset.observations[np.union1d(dataset.obs_index, rows + 1)])
        levels = np.unique(dataset.rewards)
        return cls(
            state=normalizer,
            delta=Normalizer.fit(deltas),
            state_low=state_low,
            state_high=state_high,
            action_low=low,
            action_high=high,
            reward_mean=float(dataset.rewards.mean()),
            reward_std=_scale(dataset.rewards),
            reward_low=float(levels[0]),
            reward_high=float(levels[-1]),
            reward_levels=levels if len(levels) <= MAX_REWARD_LEVELS else np.zeros(0, np.float32),
            value_mean=float(values.mean()),
            value_std=_scale(values),
            any_terminal=bool(dataset.transition_terminal.any()),
        )


def sensor_ends(observations: Floats) -> tuple[Floats, Floats]:
    """Return where each dimension's sensor ends, float32 [O] each: its extreme where states pile up there, else
    infinite."""
    low, high = observations.min(0), observations.max(0)
    enough = max(PILED_ROWS, PILED_UP * len(observations))
    at_low, at_high = (observations == low).sum(0), (observations == high).sum(0)
    return (
        np.where(at_low >= enough, low, -np.inf).astype(np.float32),
        np.where(at_high >= enough, high, np.inf).astype(np.float32),
    )


def finite_bounds(dataset: EpisodeDataset) -> tuple[Floats, Floats]:
    """The action space's bounds, the data's extremes where the space is unbounded; float32 [A] each."""
    low = np.where(np.isfinite(dataset.action_low), dataset.action_low, dataset.actions.min(0))
    high = np.where(np.isfinite(dataset.action_high), dataset.action_high, dataset.actions.max(0))
    return low.astype(np.float32), np.maximum(high, low + 1e-6).astype(np.float32)


def _scale(values: Floats) -> float:
    std = float(values.astype(np.float64).std())
    return std if std > 1e-9 else 1.0


class ActionScale(nn.Module):
    """Actions <-> [-1, 1] by the bounds."""

    low: Tensor
    high: Tensor

    def __init__(self, scales: HeadScales) -> None:
        super().__init__()
        self.register_buffer("low", torch.from_numpy(scales.action_low.copy()))
        self.register_buffer("high", torch.from_numpy(scales.action_high.copy()))

    def encode(self, act: Tensor) -> Tensor:
        return 2 * (act - self.low) / (self.high - self.low) - 1

    def decode(self, scaled: Tensor) -> Tensor:
        act = self.low + (scaled.clamp(-1, 1) + 1) / 2 * (self.high - self.low)
        return torch.minimum(torch.maximum(act, self.low), self.high)


class Standardizer(nn.Module):
    """Raw units <-> standardised units; ``active`` (float, 0 or 1) marks the dimensions that vary.

    The others are 0 to a network, and its outputs for them, which nothing fits, are taken as 0: they count nowhere.
    """

    mean: Tensor
    std: Tensor
    active: Tensor

    def __init__(self, normalizer: Normalizer) -> None:
        super().__init__()
        for name in ("mean", "std", "active"):
            self.register_buffer(name, torch.from_numpy(np.asarray(getattr(normalizer, name), np.float32).copy()))

    def encode(self, raw: Tensor) -> Tensor:
        """Raw [..., O] -> standardised [..., O]; 0 in dimensions that are not active."""
        return (raw - self.mean) / self.std * self.active

    def decode(self, standardised: Tensor) -> Tensor:
        """Standardised [..., O] -> raw [..., O]; the mean in dimensions that are not active."""
        return self.to_raw(standardised) + self.mean

    def to_raw(self, standardised: Tensor) -> Tensor:
        """Difference of states in standardised units [..., O] -> in raw units; 0 in dimensions that are not active."""
        return standardised * (self.std * self.active)

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        """Squared L2 distance of raw [..., O] states in standardised units over the active dimensions -> [...]."""
        return (((first - second) / self.std * self.active) ** 2).sum(-1)


def identity_normalizer(dim: int) -> Normalizer:
    """Leaves values as they are; what an unfitted model is built with before its weights are loaded."""
    return Normalizer(np.zeros(dim, np.float32), np.ones(dim, np.float32), np.ones(dim, np.bool_))
