"""Nearest target states, and how often each of them may be used.

Legend: N rows, Q queries of a row, A alternatives of a row (best first), M targets, D dimensions searched in.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from raystitch.data.episodes import Bools, Floats, Ints

TOP_QUERIES = 4
NEIGHBOURS = 16
# Found neighbours may be up to twice as far as the nearest; measured, they are 0.3 % further and 5-20 times faster.
SLACK = 1.0
_LEAF_SIZE = 32


@dataclass(frozen=True, eq=False)
class Alternatives:
    """Ways to finish a row: which of its queries, which target; ``distance`` [N, A] is inf where there is none."""

    query: Ints
    target: Ints
    distance: NDArray[np.float64]

    def take(self, rows: Ints) -> "Alternatives":
        return Alternatives(self.query[rows], self.target[rows], self.distance[rows])

    def reorder(self, order: Ints) -> "Alternatives":
        return Alternatives(
            np.take_along_axis(self.query, order, 1),
            np.take_along_axis(self.target, order, 1),
            np.take_along_axis(self.distance, order, 1),
        )


class NearestTargets:
    """Nearest neighbours among target states, given as points [M, D]: standardised states or embedded ones.

    The tree is built on principal axes, which leaves distances as they are and halves the search; splitting in the
    middle instead of at the median makes it up to ten times faster on data as clumped as recorded trajectories.

    Args:
        joinable: whether source episodes may go on in targets, by index; by default in those of other episodes.
        slack: neighbours may be up to (1 + slack) times as far as the true ones; 0 is exact.
    """

    def __init__(
        self,
        points: Floats,
        episodes: Ints,
        joinable: Callable[[Ints, Ints], Bools] | None = None,
        *,
        slack: float = SLACK,
    ) -> None:
        centred = points.astype(np.float64) - points.mean(0, dtype=np.float64)
        self._axes = np.linalg.eigh(centred.T @ centred)[1][:, ::-1]
        self._tree = KDTree(self._rotate(points), leafsize=_LEAF_SIZE, balanced_tree=False)
        self._count = len(points)
        self._slack = slack
        self._joinable = joinable or (lambda source_episode, target: source_episode != episodes[target])

    def find(self, queries_NQD: Floats, source_episode: Ints, *, overlap: bool) -> Alternatives:
        """The ``NEIGHBOURS`` nearest targets of each of the row's ``TOP_QUERIES`` most promising queries.

        Args:
            queries_NQD: points; non-finite ones are never matched.
            source_episode: int64 [N, Q]; targets that it may not go on in are left out.
            overlap: whether nearest targets may be such; a wider search is needed then.
        """
        num_rows, num_queries, _ = queries_NQD.shape
        first_count, second_count = (NEIGHBOURS, 4 * NEIGHBOURS) if overlap else (1, NEIGHBOURS)
        top = np.broadcast_to(np.arange(num_queries), (num_rows, num_queries))
        if num_queries > TOP_QUERIES:
            _, first = self.query(queries_NQD, source_episode, first_count)
            top = np.argsort(first.min(-1), axis=1, kind="stable")[:, :TOP_QUERIES]
        rows = np.arange(num_rows)[:, None]
        target, distance = self.query(queries_NQD[rows, top], source_episode[rows, top], second_count)
        query = np.repeat(top, target.shape[-1], axis=1)
        found = Alternatives(query, target.reshape(query.shape), distance.reshape(query.shape))
        return found.reorder(np.argsort(found.distance, axis=1, kind="stable"))

    def query(self, queries_NQD: Floats, source_episode: Ints, count: int) -> tuple[Ints, NDArray[np.float64]]:
        """Nearest targets and their distances, both [N, Q, count]; inf where a source may not go on in them."""
        count = min(count, self._count)
        usable = np.asarray(np.isfinite(queries_NQD).all(-1))
        safe = self._rotate(np.where(usable[..., None], queries_NQD, 0.0))
        found = self._tree.query(safe, k=count, eps=self._slack)
        distance, target = (np.asarray(column).reshape(*usable.shape, count) for column in found)
        joinable = self._joinable(source_episode[..., None], target)
        return target.astype(np.int64), np.where(usable[..., None] & joinable, distance, np.inf)

    def _rotate(self, points: Floats) -> NDArray[np.float64]:
        # Not a BLAS product: its last bits depend on the other rows, and with them which of two equal targets is found.
        return np.einsum("...d,de->...e", points.astype(np.float64), self._axes)


def limit_reuse(targets: Ints, usable: Bools, limit: int, used: Ints) -> Ints:
    """The first usable alternative of each row whose target is not used up; -1 where none is left.

    In rounds: every row without a choice asks for its next alternative, and gets it in row order while it lasts.

    Args:
        targets: int64 [N, A], best first; ``usable``: bool [N, A].
        limit: times one target may be chosen; 0 for no limit.
        used: int64 [M], times each target was chosen before; counts on in place.

    Returns:
        int64 [N], a column of ``targets``.
    """
    num_rows, num_alternatives = targets.shape
    limit = limit or np.iinfo(np.int64).max
    column = np.where(usable.any(1), usable.argmax(1), num_alternatives)
    chosen = np.full(num_rows, -1, np.int64)
    pending = np.flatnonzero(column < num_alternatives)
    while len(pending):
        target = targets[pending, column[pending]]
        order = np.argsort(target, kind="stable")
        starts = np.searchsorted(target[order], target[order], side="left")
        turn = np.empty(len(pending), np.int64)
        turn[order] = np.arange(len(pending)) - starts
        settled = turn < limit - used[target]
        chosen[pending[settled]] = column[pending[settled]]
        np.add.at(used, target[settled], 1)
        pending = pending[~settled]
        column[pending] += 1
        skip = np.arange(num_alternatives) >= column[pending, None]
        later = usable[pending] & skip
        column[pending] = np.where(later.any(1), later.argmax(1), num_alternatives)
        pending = pending[column[pending] < num_alternatives]
    return chosen
