"""Episodes as runs of rows in a pool of transitions: stitched episodes without copying the dataset.

An episode is runs, one after the other: prefix, bridge, suffix, and more of them where bridges are chained. The pool
holds the dataset's transitions first and the bridges' after them. Legend: E episodes, N pool rows, R runs.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raystitch.buffer.bridges import References
from raystitch.buffer.episodes import Joins, Runs, bridge_runs, joined_runs, single_runs, stitched_runs
from raystitch.data.episodes import Bools, EpisodeDataset, Ints


@dataclass(frozen=True, kw_only=True, eq=False)
class Segments:
    """E episodes as runs of pool rows.

    Attributes:
        start, length: integers [E, R], first row and number of rows of each run; unused runs have length 0.
        weight: float64 [E], relative probability of drawing one transition of the episode.
    """

    start: NDArray[np.signedinteger]
    length: NDArray[np.signedinteger]
    weight: NDArray[np.float64]

    @property
    def total(self) -> Ints:
        """Transitions per episode, int64 [E]."""
        return self.length.sum(1)

    def __len__(self) -> int:
        return len(self.start)

    def take(self, rows: Ints | Bools) -> "Segments":
        return Segments(start=self.start[rows], length=self.length[rows], weight=self.weight[rows])

    def drawable(self) -> "Segments":
        """Return the episodes that can be drawn."""
        can = (self.total > 0) & (self.weight > 0)
        return self if can.all() else self.take(can)

    def weighted(self, weights: NDArray[np.float64]) -> "Segments":
        """Return the episodes with their weights multiplied by ``weights``, float64 [E]."""
        return Segments(start=self.start, length=self.length, weight=self.weight * weights)

    def cut(self, max_steps: int | None) -> "Segments":
        """Return every episode cut at the time limit."""
        if max_steps is None or not len(self) or self.total.max() <= max_steps:
            return self
        runs = Runs(self.start, self.length).head(max_steps)
        return Segments(start=runs.start, length=runs.length, weight=self.weight)

    def ended(self, rows: Ints) -> "Segments":
        """Return the episodes up to the first of ``rows`` (int64, ascending pool rows) that they come to."""
        if not len(rows):
            return self
        place = np.searchsorted(rows, self.start)
        comes = np.append(rows, np.iinfo(np.int64).max)[place]
        kept = np.minimum(self.length, comes - self.start)
        over = np.cumsum(kept < self.length, axis=1) - (kept < self.length) > 0  # a run before has ended it
        return Segments(start=self.start, length=np.where(over, 0, kept).astype(self.length.dtype), weight=self.weight)

    def widened(self, num_runs: int) -> "Segments":
        """Return the episodes with unused runs at the end, [E, num_runs]."""
        runs = Runs(self.start, self.length).widened(num_runs)
        return Segments(start=runs.start, length=runs.length, weight=self.weight)

    def reaching(self, run: NDArray[np.signedinteger]) -> "Segments":
        """Return the episodes with no weight where nothing is left of ``run`` (integers [E])."""
        reached = self.length[np.arange(len(self)), run] > 0
        return Segments(start=self.start, length=self.length, weight=self.weight * reached)

    def led_in(self, run: NDArray[np.signedinteger], steps: int | None) -> "Segments":
        """Return the episodes with at most ``steps`` (None: all) of what comes before ``run`` (integers [E])."""
        if steps is None:
            return self
        before = np.where(np.arange(self.length.shape[1]) < run[:, None], self.length, 0).sum(1)
        runs = Runs(self.start, self.length).tail(np.maximum(before - steps, 0))
        return Segments(start=runs.start, length=runs.length, weight=self.weight)

    def from_run(self, run: NDArray[np.signedinteger]) -> "Segments":
        """Return the episodes from ``run`` (integers [E]) on, without what came before it."""
        kept = np.arange(self.length.shape[1]) >= run[:, None]
        return Segments(start=self.start, length=self.length * kept, weight=self.weight)

    def without(self, dropped: Bools) -> "Segments":
        """Return the episodes without the rows marked in ``dropped``.

        Args:
            dropped: bool, of the pool's first rows; a dropped row must be the last one of its run.
        """
        if not dropped.any():
            return self
        last = self.start + self.length - 1
        known = (self.length > 0) & (last < len(dropped))
        return Segments(
            start=self.start,
            length=self.length - (known & dropped[np.where(known, last, 0)]),
            weight=self.weight,
        )


def _segments(runs: Runs) -> Segments:
    return Segments(start=runs.start, length=runs.length, weight=np.ones(len(runs.start)))


def original_segments(dataset: EpisodeDataset) -> Segments:
    """Return the dataset's own episodes."""
    return _segments(single_runs(dataset.offsets[:-1], dataset.lengths))


def stitched_segments(dataset: EpisodeDataset, bridges: References) -> tuple[Segments, NDArray[np.int8]]:
    """Return whole stitched episodes (the source up to where it is left, the bridge, the target from where it is
    entered) and which run of each is the bridge, int8 [E].

    Raises:
        ValueError: when the parents of a chained bridge are not among ``bridges``.
    """
    runs, own = stitched_runs(dataset, bridges)
    return _segments(runs), own


def bridge_segments(dataset: EpisodeDataset, bridges: References) -> Segments:
    """Return the generated transitions alone, each bridge's own: its parents bring theirs."""
    return _segments(bridge_runs(dataset, bridges))


def joined_segments(dataset: EpisodeDataset, pairs: Joins) -> Segments:
    """Return source then target with no seam transition: at the seam the target's state stands in for the source's."""
    return _segments(joined_runs(dataset, pairs))


def top_episodes(returns: NDArray[np.float64], fraction: float) -> Ints:
    """Return the ``fraction`` (at least one) of episodes with the highest returns; ties go to the lower index."""
    count = min(len(returns), max(1, round(len(returns) * fraction)))
    return np.sort(np.argsort(-returns, kind="stable")[:count])
