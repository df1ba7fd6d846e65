"""Trajectories of a chain round: real and stitched episodes, and where they may be left and entered.

A stitched trajectory is left and entered at real states only, so every bridge starts and ends in reality. It is left
after its first bridge and entered before its last: elsewhere it equals a real episode, which is in the pool itself.
Two trajectories that share a real episode are never joined, so no chain passes through the same fragment twice.

Legend: E trajectories, S states of all of them, F most real episodes in one trajectory, N rows.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from raystitch.data.episodes import Bools, EpisodeDataset, Ints
from raystitch.stitching.candidates import Candidates, Pairs


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectories:
    """The trajectories from which a chain round selects its pairs.

    Attributes:
        dataset: E trajectories, the real episodes first.
        may_leave, may_enter: bool [S], per observation row of ``dataset``.
        fragments: int64 [E, F], the real episodes in each trajectory; unused places are -1.
        bridge_ids: str [E], the bridge that made each stitched trajectory; empty for real episodes.
        first_episode, last_episode: int64 [E], numbers of the real episodes with which each begins and ends.
    """

    dataset: EpisodeDataset
    may_leave: Bools
    may_enter: Bools
    fragments: Ints
    bridge_ids: NDArray[np.str_]
    first_episode: Ints
    last_episode: Ints

    def share_fragment(self, source: Ints, target: Ints) -> Bools:
        """Return True where two trajectories (indices; shapes broadcast) have a real episode in common."""
        source, target = np.broadcast_arrays(source, target)
        shared = np.zeros(source.shape, np.bool_)
        for column in self.fragments.T:
            fragment = column[source]
            for other in self.fragments.T:
                shared |= (fragment >= 0) & (fragment == other[target])
        return shared

    def loops(self, pairs: Pairs) -> Bools:
        """Mark the pairs that must not be stitched because they share a real episode, bool [N]."""
        return self.share_fragment(pairs.source_episode, pairs.target_episode)

    def refer(self, candidates: Candidates) -> Candidates:
        """Turn candidates between trajectories of this pool into references to real episodes and bridges."""
        source, target = candidates.source_episode, candidates.target_episode
        return replace(
            candidates,
            source_episode=self.first_episode[source],
            target_episode=self.last_episode[target],
            source_bridge=self.bridge_ids[source],
            target_bridge=self.bridge_ids[target],
        )
