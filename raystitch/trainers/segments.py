"""Episodes as runs of rows in a pool of transitions: stitched episodes without copying the dataset.

An episode is runs, one after the other: prefix, bridge, suffix, and more of them where bridges are chained. The pool
holds the dataset's transitions first and the bridges' after them. Legend: E episodes, N pool rows, R runs.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raystitch.buffer.bridges import References
from raystitch.buffer.episodes import BLOCK, Joins, Runs, bridge_runs, joined_runs, single_runs, stitched_runs
from raystitch.data.episodes import Bools, EpisodeDataset, Floats, Ints


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
        """Without the episodes that can never be drawn."""
        can = (self.total > 0) & (self.weight > 0)
        return self if can.all() else self.take(can)

    def cut(self, max_steps: int | None) -> "Segments":
        """Every episode cut at the time limit."""
        if max_steps is None or not len(self) or self.total.max() <= max_steps:
            return self
        runs = Runs(self.start, self.length).head(max_steps)
        return Segments(start=runs.start, length=runs.length, weight=self.weight)

    def widened(self, num_runs: int) -> "Segments":
        """With unused runs at the end, [E, num_runs]."""
        runs = Runs(self.start, self.length).widened(num_runs)
        return Segments(start=runs.start, length=runs.length, weight=self.weight)

    def reaching(self, run: NDArray[np.signedinteger]) -> "Segments":
        """Episodes of which nothing of ``run`` (integers [E]) is left are never drawn."""
        reached = self.length[np.arange(len(self)), run] > 0
        return Segments(start=self.start, length=self.length, weight=self.weight * reached)

    def from_run(self, run: NDArray[np.signedinteger]) -> "Segments":
        """What comes from ``run`` (integers [E]) on; what came before it is left out."""
        kept = np.arange(self.length.shape[1]) >= run[:, None]
        return Segments(start=self.start, length=self.length * kept, weight=self.weight)

    def without(self, dropped: Bools) -> "Segments":
        """Without the rows marked in ``dropped`` (bool, of the pool's first rows); they may only be the last row of a
        run."""
        if not dropped.any():
            return self
        last = self.start + self.length - 1
        known = (self.length > 0) & (last < len(dropped))
        return Segments(
            start=self.start,
            length=self.length - (known & dropped[np.where(known, last, 0)]),
            weight=self.weight,
        )

    def return_offsets(self, rewards: Floats, returns_to_go: Floats) -> tuple[Floats, NDArray[np.float64]]:
        """What turns the pool's own return-to-go into the episode's.

        Args:
            rewards: [N]; returns_to_go: [N], undiscounted, within the dataset episode or the bridge.

        Returns:
            float32 [E, R] to add to a row's own return-to-go, per run, and float64 [E], the return of each episode.
        """
        offset, whole = np.zeros(self.length.shape, np.float32), np.zeros(len(self))
        for first in range(0, len(self), BLOCK):
            here = slice(first, first + BLOCK)
            length = self.length[here]
            used = length > 0
            begin = np.where(used, self.start[here], 0)
            last = np.where(used, self.start[here] + length - 1, 0)
            after = np.where(used, returns_to_go[last].astype(np.float64) - rewards[last], 0.0)
            run_return = np.where(used, returns_to_go[begin].astype(np.float64), 0.0) - after
            later = np.cumsum(run_return[:, ::-1], axis=1)[:, ::-1] - run_return
            offset[here], whole[here] = later - after, run_return.sum(1)
        return offset, whole


def _segments(runs: Runs) -> Segments:
    return Segments(start=runs.start, length=runs.length, weight=np.ones(len(runs.start)))


def original_segments(dataset: EpisodeDataset) -> Segments:
    """The dataset's own episodes."""
    return _segments(single_runs(dataset.offsets[:-1], dataset.lengths))


def stitched_segments(dataset: EpisodeDataset, bridges: References) -> tuple[Segments, NDArray[np.int8]]:
    """Whole stitched episodes: the source up to where it is left, the bridge, the target from where it is entered; and
    which run of each is the bridge (int8 [E]).

    Raises:
        ValueError: when the parents of a chained bridge are not among ``bridges``.
    """
    runs, own = stitched_runs(dataset, bridges)
    return _segments(runs), own


def bridge_segments(dataset: EpisodeDataset, bridges: References) -> Segments:
    """The generated transitions alone, each bridge's own: its parents bring theirs."""
    return _segments(bridge_runs(dataset, bridges))


def joined_segments(dataset: EpisodeDataset, pairs: Joins) -> Segments:
    """Source then target with no seam transition: at the seam the target's state stands in for the source's."""
    return _segments(joined_runs(dataset, pairs))


def return_weights(returns: NDArray[np.float64], temperature: float = 0.1) -> NDArray[np.float64]:
    """Weights exp(normalised return / temperature) (Hong et al. 2023, arXiv 2306.13085, RW), float64 [E]."""
    spread = float(returns.max() - returns.min()) if len(returns) else 0.0
    normalised = (returns - returns.max()) / spread if spread > 0 else np.zeros(len(returns))
    return np.exp(normalised / temperature)


def top_episodes(returns: NDArray[np.float64], fraction: float) -> Ints:
    """The ``fraction`` (at least one) of episodes with the highest returns; ties go to the lower index."""
    count = min(len(returns), max(1, round(len(returns) * fraction)))
    return np.sort(np.argsort(-returns, kind="stable")[:count])
