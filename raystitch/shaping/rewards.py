"""The second hook: rewards of stored steps, computed where the steps are read and never written back to a buffer.

``apply_rewards`` is the only caller of the registry. Datasets go through ``shape_dataset``, bridges through
``shape_bridges`` of ``raystitch.buffer``; trainers, exports and the returns that ``augment`` reports all use these two.

Legend: N steps, B bridges.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from raystitch.data.episodes import Bools, EpisodeDataset, Floats, Ints
from raystitch.errors import check_choice
from raystitch.shaping.config import RewardConfig


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredSteps:
    """N stored steps with every number that is kept about them; the columns are read-only.

    Attributes:
        rewards: float32 [N], as recorded or as generated.
        generated: bool [N], False for recorded steps.
        residual: float32 [N], how far the qualifying dynamics models are from the step. spread: float32 [N], how far
            they are from one another. Both NaN for recorded steps and in buffers that do not keep them.
        gap: int64 [N], of the bridge that a generated step belongs to; 0 for recorded steps.
        position: int64 [N], place of a generated step in its bridge, 0 .. gap; -1 for recorded steps.
    """

    rewards: Floats
    generated: Bools
    residual: Floats
    spread: Floats
    gap: Ints
    position: Ints

    def __len__(self) -> int:
        return len(self.rewards)


def recorded_steps(rewards: Floats) -> StoredSteps:
    """Return real steps, about which nothing but the reward is kept; takes no memory beyond the rewards."""
    shape = rewards.shape
    unknown = np.broadcast_to(np.float32(np.nan), shape)
    return StoredSteps(
        rewards=rewards,
        generated=np.broadcast_to(np.False_, shape),
        residual=unknown,
        spread=unknown,
        gap=np.broadcast_to(np.int64(0), shape),
        position=np.broadcast_to(np.int64(-1), shape),
    )


def generated_steps(
    rewards: Floats, gap: Ints, residual: Floats | None = None, spread: Floats | None = None
) -> StoredSteps:
    """Return the steps of B bridges, one after the other.

    Args:
        rewards, residual, spread: float32 [N]; None where they are not known.
        gap: int64 [B]; a bridge has gap + 1 steps.
    """
    unknown = np.broadcast_to(np.float32(np.nan), rewards.shape)
    first = np.cumsum(gap + 1) - (gap + 1)
    return StoredSteps(
        rewards=rewards,
        generated=np.broadcast_to(np.True_, rewards.shape),
        residual=unknown if residual is None else residual,
        spread=unknown if spread is None else spread,
        gap=np.repeat(gap, gap + 1),
        position=np.arange(len(rewards)) - np.repeat(first, gap + 1),
    )


class RewardFunction(Protocol):
    """A rule for the rewards of stored steps, one line of ``REWARDS``.

    A step's reward must not depend on the steps beside it: steps are read in portions of any size.
    """

    def __call__(self, config: RewardConfig, steps: StoredSteps) -> Floats:
        """Return float32 [N]; finite where the stored rewards are."""
        ...


def recorded(config: RewardConfig, steps: StoredSteps) -> Floats:
    """Return the stored rewards: the identity."""
    return steps.rewards


REWARDS: dict[str, RewardFunction] = {"recorded": recorded}


def apply_rewards(config: RewardConfig, steps: StoredSteps) -> Floats:
    """Return the rewards of ``config``, float32 [N].

    Raises:
        UserError: for a name that no rule has.
    """
    check_choice("rewards", config.name, REWARDS)
    return REWARDS[config.name](config, steps)


def shape_dataset(dataset: EpisodeDataset, config: RewardConfig) -> EpisodeDataset:
    """Return the dataset with the rewards of ``config``; the dataset itself where they are the recorded ones."""
    rewards = apply_rewards(config, recorded_steps(dataset.rewards))
    return dataset if rewards is dataset.rewards else replace(dataset, rewards=rewards)
