"""Nearest target states, and how often each of them may be used.

Legend: N rows, Q queries of a row, A alternatives of a row (best first), D active dimensions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from raystitch.data.episodes import Bools, Floats, Ints

TOP_QUERIES = 4
NEIGHBOURS = 16


@dataclass(frozen=True, eq=False)
class Alternatives:
    """Ways to finish a row: which of its queries, which target; ``distance`` [N, A] is inf where there is none."""

    query: Ints
    target: Ints
    distance: NDArray[np.float64]

    def reorder(self, order: Ints) -> "Alternatives":
        return Alternatives(
            np.take_along_axis(self.query, order, 1),
            np.take_along_axis(self.target, order, 1),
            np.take_along_axis(self.distance, order, 1),
        )


class NearestTargets:
    """Nearest neighbours among target states, given standardised on the active dimensions ([M, D]).

    Args:
        joinable: whether source episodes may go on in targets, by index; by default in those of other episodes.
    """

    def __init__(self, states: Floats, episodes: Ints, joinable: Callable[[Ints, Ints], Bools] | None = None) -> None:
        self._tree = KDTree(states)
        self._episodes = episodes
        self._joinable = joinable or (lambda source_episode, target: source_episode != episodes[target])

    def find(self, queries_NQD: Floats, source_episode: Ints, *, overlap: bool) -> Alternatives:
        """The ``NEIGHBOURS`` nearest targets of each of the row's ``TOP_QUERIES`` most promising queries.

        Args:
            queries_NQD: standardised states; non-finite ones are never matched.
            source_episode: int64 [N, Q]; targets of the same episode are left out.
            overlap: whether source and target episodes overlap at all; a wider search is needed then.
        """
        num_rows, num_queries, _ = queries_NQD.shape
        first_count, second_count = (NEIGHBOURS, 4 * NEIGHBOURS) if overlap else (1, NEIGHBOURS)
        _, first = self._query(queries_NQD, source_episode, first_count)
        top = np.argsort(first.min(-1), axis=1, kind="stable")[:, : min(TOP_QUERIES, num_queries)]
        rows = np.arange(num_rows)[:, None]
        target, distance = self._query(queries_NQD[rows, top], source_episode[rows, top], second_count)
        query = np.repeat(top, target.shape[-1], axis=1)
        found = Alternatives(query, target.reshape(num_rows, -1), distance.reshape(num_rows, -1))
        return found.reorder(np.argsort(found.distance, axis=1, kind="stable"))

    def _query(self, queries_NQD: Floats, source_episode: Ints, count: int) -> tuple[Ints, NDArray[np.float64]]:
        """Targets and distances, both [N, Q, count]."""
        count = min(count, len(self._episodes))
        usable = np.asarray(np.isfinite(queries_NQD).all(-1))
        safe = np.where(usable[..., None], queries_NQD, 0.0)
        found = self._tree.query(safe, k=count)
        distance, target = (np.asarray(column).reshape(*usable.shape, count) for column in found)
        joinable = self._joinable(source_episode[..., None], target)
        return target.astype(np.int64), np.where(usable[..., None] & joinable, distance, np.inf)


def limit_reuse(targets: Ints, usable: Bools, limit: int) -> Ints:
    """The first usable alternative of each row whose target is not used up; -1 where none is left.

    In rounds: every row without a choice asks for its next alternative, and gets it in row order while it lasts.

    Args:
        targets: int64 [N, A], best first; ``usable``: bool [N, A].
        limit: times one target may be chosen; 0 for no limit.

    Returns:
        int64 [N], a column of ``targets``.
    """
    num_rows, num_alternatives = targets.shape
    limit = limit or num_rows
    compact = np.unique(targets, return_inverse=True)[1].reshape(targets.shape)
    used = np.zeros(compact.max(initial=0) + 1, np.int64)
    column = np.where(usable.any(1), usable.argmax(1), num_alternatives)
    chosen = np.full(num_rows, -1, np.int64)
    pending = np.flatnonzero(column < num_alternatives)
    while len(pending):
        target = compact[pending, column[pending]]
        order = np.argsort(target, kind="stable")
        starts = np.searchsorted(target[order], target[order], side="left")
        turn = np.empty(len(pending), np.int64)
        turn[order] = np.arange(len(pending)) - starts
        settled = turn < limit - used[target]
        chosen[pending[settled]] = column[pending[settled]]
        used += np.bincount(target[settled], minlength=len(used))
        pending = pending[~settled]
        column[pending] += 1
        skip = np.arange(num_alternatives) >= column[pending, None]
        later = usable[pending] & skip
        column[pending] = np.where(later.any(1), later.argmax(1), num_alternatives)
        pending = pending[column[pending] < num_alternatives]
    return chosen
