"""The nearest target states of queries, and a limit on how often each target is used.

Legend: N rows, Q queries per row, T most promising queries of a row, K neighbours per query, A = T * K alternatives per
row (best first), M targets, D dimensions searched, P rows without a choice yet.
"""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raystitch.data.episodes import Bools, Floats, Ints

TOP_QUERIES = 4
NEIGHBOURS = 16
# Neighbours may be up to twice as far as the nearest; on average they are 0.3 % further and found 5 to 20 times faster.
SLACK = 1.0
_LEAF_SIZE = 32


@dataclass(frozen=True, eq=False)
class Alternatives:
    """Targets found for each row, best first, all [N, A].

    Attributes:
        query: which of the row's queries found it. target: its index. distance: inf where there is none.
    """

    query: Ints
    target: Ints
    distance: NDArray[np.float64]

    def take(self, rows: Ints) -> "Alternatives":
        return Alternatives(self.query[rows], self.target[rows], self.distance[rows])

    def only(self, usable_NA: Bools) -> "Alternatives":
        """Return the same targets, those that are not usable at no finite distance."""
        return Alternatives(self.query, self.target, np.where(usable_NA, self.distance, np.inf))

    def reorder(self, order_NA: Ints) -> "Alternatives":
        return Alternatives(
            np.take_along_axis(self.query, order_NA, 1),
            np.take_along_axis(self.target, order_NA, 1),
            np.take_along_axis(self.distance, order_NA, 1),
        )


class NearestTargets:
    """Nearest neighbours among target states, given as points [M, D]: standardised states or embedded ones.

    The tree is built on principal axes, which leaves distances as they are and halves the search; splitting in the
    middle instead of at the median makes it up to ten times faster on data as clumped as recorded trajectories.

    Args:
        points_MD, episode_M: each target's point and its episode.
        joinable: (source episodes, targets) -> whether they may be joined; by default those of other episodes.
        slack: neighbours may be up to (1 + slack) times as far as the true ones; 0 is exact.
    """

    def __init__(
        self,
        points_MD: Floats,
        episode_M: Ints,
        joinable: Callable[[Ints, Ints], Bools] | None = None,
        *,
        slack: float = SLACK,
    ) -> None:
        from scipy.spatial import KDTree  # takes half a second, in every process that loads this module

        centred_MD = points_MD.astype(np.float64) - points_MD.mean(0, dtype=np.float64)
        self._axes_DD = np.linalg.eigh(centred_MD.T @ centred_MD)[1][:, ::-1]
        self._tree = KDTree(self._rotate(points_MD), leafsize=_LEAF_SIZE, balanced_tree=False)
        self._num_targets = len(points_MD)
        self._slack = slack
        self._joinable = joinable or (lambda source_episode, target: source_episode != episode_M[target])

    def joined_by(self, joinable: Callable[[Ints, Ints], Bools]) -> "NearestTargets":
        """Return the same index with another rule for what may be joined."""
        later = copy(self)
        later._joinable = joinable
        return later

    def find(self, query_NQD: Floats, source_NQ: Ints, *, overlap: bool) -> Alternatives:
        """The ``NEIGHBOURS`` nearest targets of each of a row's ``TOP_QUERIES`` most promising queries.

        Args:
            query_NQD: points; non-finite ones are never matched.
            source_NQ: the source episode of each query; targets that it may not go on in are left out.
            overlap: the nearest targets may be among those, so the search has to be wider.
        """
        num_rows, num_queries, _ = query_NQD.shape
        first_count, second_count = (NEIGHBOURS, 4 * NEIGHBOURS) if overlap else (1, NEIGHBOURS)
        top_NT = np.broadcast_to(np.arange(num_queries), (num_rows, num_queries))
        if num_queries > TOP_QUERIES:
            _, distance_NQK = self.query(query_NQD, source_NQ, first_count)
            top_NT = np.argsort(distance_NQK.min(-1), axis=1, kind="stable")[:, :TOP_QUERIES]
        rows = np.arange(num_rows)[:, None]
        target_NTK, distance_NTK = self.query(query_NQD[rows, top_NT], source_NQ[rows, top_NT], second_count)
        query_NA = np.repeat(top_NT, target_NTK.shape[-1], axis=1)
        found = Alternatives(query_NA, target_NTK.reshape(query_NA.shape), distance_NTK.reshape(query_NA.shape))
        return found.reorder(np.argsort(found.distance, axis=1, kind="stable"))

    def query(self, query_NQD: Floats, source_NQ: Ints, count: int) -> tuple[Ints, NDArray[np.float64]]:
        """Nearest targets and their distances, [N, Q, K] with K up to ``count``; inf where they may not be joined."""
        count = min(count, self._num_targets)
        finite_NQ = np.asarray(np.isfinite(query_NQD).all(-1))
        point_NQD = self._rotate(np.where(finite_NQ[..., None], query_NQD, 0.0))
        found = self._tree.query(point_NQD, k=count, eps=self._slack)
        distance_NQK, target_NQK = (np.asarray(column).reshape(*finite_NQ.shape, count) for column in found)
        usable_NQK = finite_NQ[..., None] & self._joinable(source_NQ[..., None], target_NQK)
        return target_NQK.astype(np.int64), np.where(usable_NQK, distance_NQK, np.inf)

    def _rotate(self, points: Floats) -> NDArray[np.float64]:
        # Not a BLAS product: its last bits depend on the other rows, and so would the choice between equal targets.
        return np.einsum("...d,de->...e", points.astype(np.float64), self._axes_DD)


def limit_reuse(target_NA: Ints, usable_NA: Bools, limit: int, used_M: Ints) -> Ints:
    """Choose the first usable alternative of each row whose target is not used up; -1 where none is left.

    It works in rounds: every row without a choice asks for its next alternative, and targets are given in row order
    while they last.

    Args:
        target_NA: best first. usable_NA: alternatives that may be chosen at all.
        limit: times one target may be chosen; 0 for no limit.
        used_M: times each target was chosen before; counted on in place.

    Returns:
        int64 [N], a column of ``target_NA``.
    """
    num_rows, num_alternatives = target_NA.shape
    limit = limit or np.iinfo(np.int64).max
    column_N = np.where(usable_NA.any(1), usable_NA.argmax(1), num_alternatives)
    chosen_N = np.full(num_rows, -1, np.int64)
    pending_P = np.flatnonzero(column_N < num_alternatives)
    while len(pending_P):
        target_P = target_NA[pending_P, column_N[pending_P]]
        # turn_P: how many earlier rows ask for the same target in this round.
        order_P = np.argsort(target_P, kind="stable")
        start_P = np.searchsorted(target_P[order_P], target_P[order_P], side="left")
        turn_P = np.empty(len(pending_P), np.int64)
        turn_P[order_P] = np.arange(len(pending_P)) - start_P
        settled_P = turn_P < limit - used_M[target_P]
        chosen_N[pending_P[settled_P]] = column_N[pending_P[settled_P]]
        np.add.at(used_M, target_P[settled_P], 1)

        pending_P = pending_P[~settled_P]
        column_N[pending_P] += 1
        later_PA = usable_NA[pending_P] & (np.arange(num_alternatives) >= column_N[pending_P, None])
        column_N[pending_P] = np.where(later_PA.any(1), later_PA.argmax(1), num_alternatives)
        pending_P = pending_P[column_N[pending_P] < num_alternatives]
    return chosen_N
