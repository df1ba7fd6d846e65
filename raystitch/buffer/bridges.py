"""Bridges in memory: flat columns plus offsets, as trainers and exports use them.

Legend: B bridges, T their transitions, O observation size, A action size.
"""

from dataclasses import dataclass, field
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
        source_episode, target_episode: int64 [B], the real episodes that the stitched one begins and ends with.
        source_step, target_step: int64 [B], where the source is left and the target entered; counted in the parent's
            stitched episode where there is a parent.
        gap: int64 [B].
        residual_max, termination_max, return_source, return_stitched: float32 [B].
        accepted: bool [B], at the generation settings.
        offsets: int64 [B + 1], transitions before each bridge; a bridge has gap + 1.
        observations: float32 [T + B, O]; bridge b holds rows ``offsets[b] + b .. offsets[b + 1] + b`` inclusive.
        actions: float32 [T, A]; rewards: float32 [T].
        chain_round: int64 [B].
        source_parent, target_parent: int64 [B], row among the buffer's candidates of the bridge whose stitched episode
            is the source or the target; -1 for a real episode.
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
    chain_round: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    source_parent: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    target_parent: Ints = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        for name, value in (("chain_round", 0), ("source_parent", -1), ("target_parent", -1)):
            if len(getattr(self, name)) != len(self.gap):
                object.__setattr__(self, name, np.full(len(self.gap), value, np.int64))

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

    def parent_positions(self) -> tuple[Ints, Ints]:
        """Where the source's and the target's parent lie in this set, int64 [B] each; -1 for real episodes.

        Raises:
            ValueError: when a parent is not in it.
        """
        order = np.argsort(self.rows, kind="stable")
        found: list[Ints] = []
        for parent in (self.source_parent, self.target_parent):
            place = np.searchsorted(self.rows, parent, sorter=order)
            position = order[np.minimum(place, len(self) - 1)] if len(self) else place
            lost = np.flatnonzero((parent != -1) & (self.rows[position] != parent))
            if len(lost):
                raise ValueError(
                    f"bridge {self.ids[lost[0]]} is chained onto another that is not among these {len(self)} bridges; "
                    "rebuild from all bridges of one delta and choose by rows="
                )
            found.append(np.where(parent == -1, -1, position).astype(np.int64))
        return found[0], found[1]

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
    "chain_round",
    "source_parent",
    "target_parent",
)
