"""Whole stitched episodes as runs of consecutive transitions in one pool: the dataset's rows, then the bridges'.

A bridge between real episodes is three runs: prefix, bridge, suffix. A chained one is cut together from the runs of its
parents, round by round, so nothing is copied whatever the depth. Legend: E episodes, B bridges, R runs.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raystitch.buffer.bridges import References
from raystitch.data.episodes import Bools, EpisodeDataset, Ints

BLOCK = 1 << 15
"""Episodes that are put together at a time."""


@dataclass(frozen=True, eq=False)
class Runs:
    """E episodes as runs of pool rows; ``start``, ``length`` integers [E, R], unused runs have length 0."""

    start: NDArray[np.signedinteger]
    length: NDArray[np.signedinteger]

    @property
    def total(self) -> Ints:
        """Transitions per episode, int64 [E]."""
        return self.length.sum(1)

    def take(self, rows: Ints | Bools) -> "Runs":
        return Runs(self.start[rows], self.length[rows])

    def head(self, steps: Ints | int) -> "Runs":
        """The first ``steps`` (int64 [E] or one number) transitions of each episode."""
        before = np.cumsum(self.length, axis=1) - self.length
        return Runs(self.start, np.clip(np.reshape(steps, (-1, 1)) - before, 0, self.length))

    def tail(self, steps: Ints) -> "Runs":
        """Without the first ``steps`` (int64 [E]) transitions."""
        dropped = self.head(steps).length
        return Runs(self.start + dropped, self.length - dropped)

    def widened(self, num_runs: int) -> "Runs":
        """With unused runs at the end, [E, num_runs]."""
        if num_runs == self.length.shape[1]:
            return self
        more = ((0, 0), (0, num_runs - self.length.shape[1]))
        return Runs(np.pad(self.start, more), np.pad(self.length, more))

    def compact(self) -> "Runs":
        """Without the unused runs between used ones, as narrow as the episode of most runs."""
        used = self.length > 0
        order = np.argsort(~used, axis=1, kind="stable")[:, : max(1, int(used.sum(1).max(initial=0)))]
        return Runs(np.take_along_axis(self.start, order, 1), np.take_along_axis(self.length, order, 1))

    @staticmethod
    def side_by_side(*parts: "Runs") -> "Runs":
        """The runs of every part of an episode, one after the other."""
        return Runs(np.concatenate([p.start for p in parts], 1), np.concatenate([p.length for p in parts], 1))


def single_runs(start: Ints, length: Ints) -> Runs:
    """One run per episode."""
    return Runs(np.asarray(start, np.int64)[:, None], np.asarray(length, np.int64)[:, None])


def bridge_runs(dataset: EpisodeDataset, bridges: References) -> Runs:
    """The generated transitions alone."""
    return single_runs(dataset.num_transitions + bridges.offsets[:-1], np.diff(bridges.offsets))


def stitched_runs(dataset: EpisodeDataset, bridges: References) -> tuple[Runs, NDArray[np.int8]]:
    """Every bridge's whole episode, uncut, and which of its runs is the bridge itself (int8 [B]).

    The runs are int32 where the pool allows it: there are 3 of them and more per bridge, and many bridges.

    Raises:
        ValueError: when the parents of a chained bridge are not among ``bridges``.
    """
    pool_rows = dataset.num_transitions + bridges.num_transitions
    kind = np.int32 if pool_rows < 2**31 else np.int64
    parents = bridges.parent_positions()
    position = np.zeros(len(bridges), np.int8)
    made = Runs(np.zeros((len(bridges), 3), kind), np.zeros((len(bridges), 3), kind))
    for chain_round in np.unique(bridges.chain_round):
        of_round = np.flatnonzero(bridges.chain_round == chain_round)
        for first in range(0, len(of_round), BLOCK):
            rows = of_round[first : first + BLOCK]
            source, target = (
                _trajectories(dataset, made, parent[rows], episode[rows])
                for parent, episode in zip(parents, (bridges.source_episode, bridges.target_episode), strict=True)
            )
            prefix = source.head(bridges.source_step[rows])
            own = single_runs(dataset.num_transitions + bridges.offsets[rows], bridges.gap[rows] + 1)
            whole = Runs.side_by_side(prefix, own, target.tail(bridges.target_step[rows])).compact()
            position[rows] = (prefix.length > 0).sum(1)
            width = max(made.length.shape[1], whole.length.shape[1])
            made, whole = made.widened(width), whole.widened(width)
            made.start[rows], made.length[rows] = whole.start, whole.length
    return made, position


def _trajectories(dataset: EpisodeDataset, made: Runs, parent: Ints, episode: Ints) -> Runs:
    """The stitched episode of each row's parent, or its real episode where the parent is -1."""
    real = single_runs(dataset.offsets[episode], dataset.lengths[episode]).widened(made.length.shape[1])
    chained = (parent >= 0)[:, None]
    stitched = made.take(parent)  # what row -1 gives is not used
    return Runs(np.where(chained, stitched.start, real.start), np.where(chained, stitched.length, real.length))
