"""Bridges in memory: flat columns plus offsets, as trainers and exports use them.

Legend: B bridges, T their transitions, O observation size, A action size.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raystitch.data.episodes import Bools, Floats, Ints


def ranges(starts: Ints, lengths: Ints) -> Ints:
    """The concatenation of ``arange(start, start + length)`` over the rows, int64."""
    total = int(lengths.sum())
    before = np.cumsum(lengths) - lengths
    return np.arange(total, dtype=np.int64) + np.repeat(starts - before, lengths)


@dataclass(frozen=True, kw_only=True, eq=False)
class BridgeSet:
    """B bridges.

    Attributes:
        ids: str [B], ``bridge_id``.
        rows: int64 [B], row of each among the buffer's candidates.
        source_episode, source_step, target_episode, target_step, gap: int64 [B].
        residual_max, termination_max, return_source, return_stitched: float32 [B].
        accepted: bool [B], at the generation settings.
        offsets: int64 [B + 1], transitions before each bridge; a bridge has gap + 1.
        observations: float32 [T + B, O]; bridge b holds rows ``offsets[b] + b .. offsets[b + 1] + b`` inclusive.
        actions: float32 [T, A]; rewards: float32 [T].
    """

    ids: NDArray[np.str_]
    rows: Ints
    source_episode: Ints
    source_step: Ints
    target_episode: Ints
    target_step: Ints
    gap: Ints
    residual_max: Floats
    termination_max: Floats
    return_source: Floats
    return_stitched: Floats
    accepted: Bools
    offsets: Ints
    observations: Floats
    actions: Floats
    rewards: Floats

    def __len__(self) -> int:
        return len(self.gap)

    @property
    def num_transitions(self) -> int:
        return int(self.offsets[-1])

    @cached_property
    def obs_offsets(self) -> Ints:
        """First observation row of each bridge, int64 [B + 1]."""
        return self.offsets + np.arange(len(self.offsets))

    @cached_property
    def obs_index(self) -> Ints:
        """Observation row of each transition's s_t, int64 [T]; s_{t+1} is the next row."""
        return np.arange(self.num_transitions) + np.repeat(np.arange(len(self)), self.gap + 1)

    def take(self, rows: Ints | Bools) -> "BridgeSet":
        """The given bridges, in the given order."""
        index = np.flatnonzero(rows) if np.asarray(rows).dtype == np.bool_ else np.asarray(rows, np.int64)
        lengths = self.gap[index] + 1
        steps = ranges(self.offsets[index], lengths)
        columns: dict[str, Any] = {name: getattr(self, name)[index] for name in PER_BRIDGE}
        return BridgeSet(
            **columns,
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            observations=self.observations[ranges(self.obs_offsets[index], lengths + 1)],
            actions=self.actions[steps],
            rewards=self.rewards[steps],
        )


PER_BRIDGE = (
    "ids",
    "rows",
    "source_episode",
    "source_step",
    "target_episode",
    "target_step",
    "gap",
    "residual_max",
    "termination_max",
    "return_source",
    "return_stitched",
    "accepted",
)
