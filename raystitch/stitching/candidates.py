"""The two batch types of the stitching stages.

Legend: N rows, P prefix states, S suffix states, O observation size, A action size, G largest gap.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from raystitch.data.episodes import Floats, Ints

REASONS = ("ok", "non_finite", "residual", "spread", "rollout", "termination", "return")
"""Reasons why a candidate is (not) accepted: the first criterion that fails, in this order."""


@dataclass(kw_only=True, eq=False)
class Pairs:
    """N pairs of a state to leave and a state to enter, in raw units.

    Attributes:
        source_episode, source_step, target_episode, target_step: int64 [N]; -1 for trajectories not in the dataset.
        prefix: float32 [N, P, O], the source's real states up to and including the one to leave, right-aligned.
        prefix_length: int64 [N], valid states of the prefix (at least 1).
        suffix: float32 [N, S, O], the target's real states from the one to enter on, left-aligned.
        suffix_length: int64 [N], valid states of the suffix (at least 1).
        return_source: float32 [N], discounted return of the source from source_step on (bootstrapped at time-outs).
        return_target: float32 [N], discounted return of the target from target_step on.
        gap: int64 [N], gap found by the selection, 0 where it found none.
        seam: float32 [N], squared L2 distance (standardised) between the target and the state that the selection
            expected the source in after the gap; NaN where it expected none.
        gap_is_given: the gaps are the caller's own: no gap mode changes them.
    """

    source_episode: Ints
    source_step: Ints
    target_episode: Ints
    target_step: Ints
    prefix: Floats
    prefix_length: Ints
    suffix: Floats
    suffix_length: Ints
    return_source: Floats
    return_target: Floats
    gap: Ints
    seam: Floats
    gap_is_given: bool = False

    def __len__(self) -> int:
        return len(self.source_episode)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> "Pairs":
        """Return these pairs, in the given order."""
        columns = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "gap_is_given"}
        return Pairs(**columns, gap_is_given=self.gap_is_given)

    @staticmethod
    def concatenate(parts: Sequence["Pairs"]) -> "Pairs":
        """The rows of all parts, of one selection, in their order."""
        names = [f.name for f in fields(Pairs) if f.name != "gap_is_given"]
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        return Pairs(**columns, gap_is_given=parts[0].gap_is_given)


def _nan(count: int) -> Floats:
    return np.full(count, np.nan, np.float32)


@dataclass(kw_only=True, eq=False)
class Candidates:
    """N candidate bridges, one row per attempt, padded to the largest gap G.

    A bridge of gap g has g generated states between the state left and the state entered: g + 2 states,
    g + 1 actions and rewards. Rows past that are zero.

    Attributes:
        source_episode, source_step, target_episode, target_step: int64 [N], as in ``Pairs``.
        gap: int64 [N], generated states.
        seed: int64 [N], the pair's.
        attempt: int64 [N], 0 for the first attempt of a pair.
        first_row: int64 [N], row of that first attempt.
        observations: float32 [N, G + 2, O], raw units.
        actions: float32 [N, G + 1, A].
        rewards: float32 [N, G + 1].
        return_source, return_target: float32 [N].
        return_stitched: float32 [N], pessimistic discounted return from the state left on.
        residual_max, residual_mean: float32 [N], of the judges' squared L2 residual per step, standardised units.
        residuals, spreads: float32 [N, G + 1], residual and disagreement of each step (NaN before qualification).
        spread_max: float32 [N], largest disagreement of the judges (squared L2, standardised units).
        rollout_deviation: float32 [N], squared L2 distance between the state entered and the judges' roll-out.
        termination_max: float32 [N], largest predicted termination probability of a generated state.
        accepted: bool [N].
        reason: int64 [N], index into REASONS.
        source_bridge, target_bridge: str [N], id of the bridge whose stitched episode is the source or the target;
            empty for real episodes. The step is then one of the stitched episode, the episode the real one that it
            begins (source) or ends (target) with.
    """

    source_episode: Ints
    source_step: Ints
    target_episode: Ints
    target_step: Ints
    gap: Ints
    seed: Ints
    attempt: Ints
    first_row: Ints
    observations: Floats
    actions: Floats
    rewards: Floats
    return_source: Floats
    return_target: Floats
    return_stitched: Floats
    residual_max: Floats = field(default_factory=lambda: _nan(0))
    residual_mean: Floats = field(default_factory=lambda: _nan(0))
    residuals: Floats = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    spreads: Floats = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    spread_max: Floats = field(default_factory=lambda: _nan(0))
    rollout_deviation: Floats = field(default_factory=lambda: _nan(0))
    termination_max: Floats = field(default_factory=lambda: _nan(0))
    accepted: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    reason: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    source_bridge: NDArray[np.str_] = field(default_factory=lambda: np.zeros(0, np.str_))
    target_bridge: NDArray[np.str_] = field(default_factory=lambda: np.zeros(0, np.str_))

    def __post_init__(self) -> None:
        count = len(self.gap)
        if len(self.residual_max) != count:
            for name in ("residual_max", "residual_mean", "spread_max", "rollout_deviation", "termination_max"):
                setattr(self, name, _nan(count))
            self.accepted = np.zeros(count, np.bool_)
            self.reason = np.zeros(count, np.int64)
        for name in ("residuals", "spreads"):
            if len(getattr(self, name)) != count:
                setattr(self, name, np.full(self.rewards.shape, np.nan, np.float32))
        if len(self.source_bridge) != count:
            self.source_bridge = self.target_bridge = np.zeros(count, np.str_)

    def __len__(self) -> int:
        return len(self.gap)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> "Candidates":
        """Return these candidates, in the given order."""
        return Candidates(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})
