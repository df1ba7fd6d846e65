"""The second hook: rewards of stored steps, computed where the steps are read and never written back to a buffer.

``apply_rewards`` is the only caller of the registry. Datasets go through ``shape_dataset``, bridges through
``shape_bridges`` of ``raystitch.buffer``; trainers, exports and the returns that ``augment`` reports all use these two.

Legend: N steps, P observation rows, O observation size, B bridges.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from raystitch.data.episodes import Bools, EpisodeDataset, Floats, Ints
from raystitch.errors import UserError, check_choice
from raystitch.shaping.config import RECORDED, RewardConfig
from raystitch.shaping.facts import DataFacts

BONUS_STEPS = 16_384
"""Steps whose entered states are gathered at a time."""


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
        observations: float32 [P, O], raw. obs_row: int64 [N], row of s_t; s_{t+1} is the next one. Nothing is copied.
            None where rewards are all that is at hand.
        facts: numbers of the whole data; None there too.
    """

    rewards: Floats
    generated: Bools
    residual: Floats
    spread: Floats
    gap: Ints
    position: Ints
    observations: Floats | None = None
    obs_row: Ints | None = None
    facts: DataFacts | None = None

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def whole(self) -> DataFacts:
        """The numbers of the whole data.

        Raises:
            UserError: where they are not at hand.
        """
        if self.facts is None:
            raise UserError("these rewards are measured by the whole dataset, which is not at hand here")
        return self.facts


def recorded_steps(
    rewards: Floats,
    observations: Floats | None = None,
    obs_row: Ints | None = None,
    facts: DataFacts | None = None,
) -> StoredSteps:
    """Return real steps, about which nothing but reward and states is kept; takes no memory beyond these."""
    shape = rewards.shape
    unknown = np.broadcast_to(np.float32(np.nan), shape)
    return StoredSteps(
        rewards=rewards,
        generated=np.broadcast_to(np.False_, shape),
        residual=unknown,
        spread=unknown,
        gap=np.broadcast_to(np.int64(0), shape),
        position=np.broadcast_to(np.int64(-1), shape),
        observations=observations,
        obs_row=obs_row,
        facts=facts,
    )


def generated_steps(
    rewards: Floats,
    gap: Ints,
    residual: Floats | None = None,
    spread: Floats | None = None,
    observations: Floats | None = None,
    facts: DataFacts | None = None,
) -> StoredSteps:
    """Return the steps of B bridges, one after the other.

    Args:
        rewards, residual, spread: float32 [N]; None where they are not known.
        gap: int64 [B]; a bridge has gap + 1 steps.
        observations: float32 [N + B, O], gap + 2 of each bridge.
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
        observations=observations,
        obs_row=None if observations is None else np.arange(len(rewards)) + np.repeat(np.arange(len(gap)), gap + 1),
        facts=facts,
    )


class RewardFunction(Protocol):
    """A rule for the rewards of stored steps, one line of ``REWARDS``.

    A step's reward must not depend on the steps beside it: steps are read in portions of any size.
    """

    def __call__(self, config: RewardConfig, steps: StoredSteps) -> Floats:
        """Return float32 [N]; finite where the stored rewards are."""
        ...


def _strength(config: RewardConfig) -> float:
    assert config.strength is not None, "rules that have one set it"
    return config.strength


def recorded(config: RewardConfig, steps: StoredSteps) -> Floats:
    """Return the stored rewards: the identity."""
    return steps.rewards


def penalty(config: RewardConfig, steps: StoredSteps) -> Floats:
    """Return r - strength * sigma_r * u / u_q99 on generated steps (after MOPO, Yu et al. 2020, arXiv 2005.13239).

    u is the step's ``doubt`` (residual or spread), u_q99 its limit on real windows of the bridge's gap, sigma_r the
    standard deviation of the recorded rewards.

    Raises:
        UserError: for a buffer that does not keep the numbers of each step, or rewards that are all equal.
    """
    if not steps.generated.any():
        return steps.rewards
    doubt, whole = _doubt(config, steps), steps.whole
    limit = np.maximum(whole.limit(config.doubt, steps.gap), np.finfo(np.float32).tiny)
    cost = np.where(steps.generated, _strength(config) * whole.spread * (doubt / limit), 0.0)
    return (steps.rewards - cost).astype(np.float32)


def cut(config: RewardConfig, steps: StoredSteps) -> Floats:
    """Return the stored rewards: what the rule changes is where episodes end, see ``ends_early``.

    Raises:
        UserError: for a buffer that does not keep the numbers of each step.
    """
    _doubt(config, steps)
    return steps.rewards


def shift(config: RewardConfig, steps: StoredSteps) -> Floats:
    """Return r + strength * mean r (Sun et al. 2022, arXiv 2209.07288): a shift up is pessimistic, down optimistic."""
    return steps.rewards + np.float32(_strength(config) * steps.whole.mean)


def scale(config: RewardConfig, steps: StoredSteps) -> Floats:
    """Return r * strength / mean |r|: rewards of the size ``strength``."""
    return steps.rewards * np.float32(_strength(config) / steps.whole.size)


_MEASURED_BY = {"penalty": "spread", "bonus": "spread", "shift": "mean", "scale": "size"}
"""Rule -> the number of ``DataFacts`` that it measures rewards by."""


def check_rewards(config: RewardConfig, dataset: EpisodeDataset) -> None:
    """Check that a rule can measure by the numbers of these data.

    Raises:
        UserError: where such a number is 0.
    """
    facts = DataFacts(dataset=dataset)
    if config.name in _MEASURED_BY:
        getattr(facts, _MEASURED_BY[config.name])
    if config.name == "bonus":
        facts.novelty(dataset.observations[:1], config.neighbours)


def bonus(config: RewardConfig, steps: StoredSteps) -> Floats:
    """Return r + strength * sigma_r * novelty of the entered state, on real and generated steps alike."""
    whole = steps.whole
    assert steps.observations is not None and steps.obs_row is not None
    paid = np.empty(len(steps), np.float32)
    for first in range(0, len(steps), BONUS_STEPS):
        here = slice(first, first + BONUS_STEPS)
        paid[here] = whole.novelty(steps.observations[steps.obs_row[here] + 1], config.neighbours)
    paid *= _strength(config) * steps.whole.spread
    return steps.rewards + paid


def zero(config: RewardConfig, steps: StoredSteps) -> Floats:
    """Return no reward for any step (the survival check of Li et al. 2023, arXiv 2306.03286)."""
    return np.zeros(len(steps), np.float32)


REWARDS: dict[str, RewardFunction] = {
    "recorded": recorded,
    "penalty": penalty,
    "cut": cut,
    "shift": shift,
    "scale": scale,
    "bonus": bonus,
    "zero": zero,
}


def apply_rewards(config: RewardConfig, steps: StoredSteps) -> Floats:
    """Return the rewards of ``config``, float32 [N].

    Raises:
        UserError: for a name that no rule has, or steps about which too little is known.
    """
    check_choice("rewards", config.name, REWARDS)
    return REWARDS[config.name](config, steps)


def ends_early(config: RewardConfig, steps: StoredSteps) -> Bools | None:
    """Return where the rule ``cut`` ends episodes as a time-out, before a step that is marked; None for other rules.

    A generated step is marked when the doubt about its bridge has added up to more than ``strength`` times what it adds
    up to in 99 % of the real windows of that length (TATU, Zhang et al. 2023, arXiv 2304.04660).

    Args:
        steps: of whole bridges.

    Raises:
        UserError: for a buffer that does not keep the numbers of each step or the sums on real data.
    """
    if config.name != "cut":
        return None
    doubt = np.where(steps.generated, _doubt(config, steps), 0.0).astype(np.float64)
    total = np.cumsum(doubt)
    first = np.arange(len(steps)) - np.maximum(steps.position, 0)
    so_far = total - (total - doubt)[first]
    limit = _strength(config) * steps.whole.limit(f"{config.doubt}_sum", steps.position)
    return steps.generated & (so_far > limit)


def _doubt(config: RewardConfig, steps: StoredSteps) -> Floats:
    """Return the judges' number of each step that the rule goes by, float32 [N]."""
    doubt: Floats = getattr(steps, config.doubt)
    if not np.isfinite(doubt[steps.generated]).all():
        raise UserError(
            f"rewards: {config.name} needs the judges' {config.doubt} of every generated step, which this buffer does "
            "not keep (schema 2: no per-step residuals); generate it again, or use rewards: recorded"
        )
    return doubt


def shape_dataset(dataset: EpisodeDataset, config: RewardConfig) -> EpisodeDataset:
    """Return the dataset with the rewards of ``config``; the dataset itself where they are the recorded ones."""
    if config == RECORDED:
        return dataset
    steps = recorded_steps(dataset.rewards, dataset.observations, dataset.obs_index, DataFacts(dataset=dataset))
    rewards = apply_rewards(config, steps)
    return dataset if rewards is dataset.rewards else replace(dataset, rewards=rewards)
