"""Accepted bridges as links between recorded states, and the trajectories that they make.

A link's trajectory goes on, after the state entered, with the best that is known from there now: a later round may find
a better way on than the one that was known when the bridge was made.

Legend: L links, F most real episodes in one trajectory.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raystitch.data.episodes import Bools, Ints

RECORD = -1
"""In place of a link: the trajectory goes on as recorded."""
CYCLE = -2
"""In place of a depth: following the links leads back to this one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Links:
    """L accepted bridges, or joins without one, between states of a dataset.

    Attributes:
        ids: str [L]. source_episode, source_step, target_episode, target_step: int64 [L], rows of the dataset.
        parent: int64 [L], the link that was next after the state entered when this one was made; ``RECORD`` for none.
        next: int64 [L], the link that is next now.
        reward: float64 [L], discounted pessimistic reward of the bridge itself; discount: float64 [L], after it.
        value: float64 [L], pessimistic discounted return from the state left on.
    """

    ids: NDArray[np.str_]
    source_episode: Ints
    source_step: Ints
    target_episode: Ints
    target_step: Ints
    parent: Ints
    next: Ints
    reward: NDArray[np.float64]
    discount: NDArray[np.float64]
    value: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.value)

    @staticmethod
    def none() -> "Links":
        """Return no links."""
        whole, number = np.zeros(0, np.int64), np.zeros(0)
        columns: dict[str, Any] = dict.fromkeys(Links.__dataclass_fields__, whole)
        columns |= {"ids": np.zeros(0, np.str_), "reward": number, "discount": number, "value": number}
        return Links(**columns)

    def head(self, count: int) -> "Links":
        """Return the first ``count``, of which none may go on with one of the others."""
        return Links(**{name: getattr(self, name)[:count] for name in self.__dataclass_fields__})

    def and_more(self, more: "Links") -> "Links":
        """Return these and others, whose ``parent`` and ``next`` are counted in the result."""
        both = {name: np.concatenate([getattr(self, name), getattr(more, name)]) for name in self.__dataclass_fields__}
        return Links(**both)

    @cached_property
    def depth(self) -> Ints:
        """Links that each trajectory takes after this one, int64 [L]."""
        return depths(self.next)

    def switched(self, chosen: Ints, following: Ints) -> "Links":
        """Return the links when those chosen go on with others, as far as no trajectory passes an episode twice then.

        Args:
            chosen, following: int64 [C], links and what they are to go on with.
        """
        while len(chosen):
            later = self.next.copy()
            later[chosen] = following
            tried = replace(self, next=later)
            repeating = tried._repeating
            if not len(repeating):
                return tried
            # What a trajectory takes later may be at fault as well as what it takes first.
            kept = ~tried._followed(repeating)[chosen]
            if kept.all():
                break
            chosen, following = chosen[kept], following[kept]
        return self

    @property
    def _repeating(self) -> Ints:
        """Links that lead back to themselves or to the episode that they leave, int64."""
        later = self.fragments()[self.next]
        again = (self.next != RECORD) & (later == self.source_episode[:, None]).any(1)
        return np.flatnonzero(again | (self.depth == CYCLE))

    def _followed(self, first: Ints) -> Bools:
        """Mark some links and all that their trajectories take after them, bool [L]."""
        marked = np.zeros(len(self), np.bool_)
        while len(first):
            marked[first] = True
            first = np.unique(self.next[first])
            first = first[first != RECORD]
            first = first[~marked[first]]
        return marked

    @cached_property
    def last_episode(self) -> Ints:
        """The real episode with which each trajectory ends, int64 [L]."""
        return self._last(self.next)

    @cached_property
    def first_last_episode(self) -> Ints:
        """The real episode with which each trajectory ended when the link was made, int64 [L]."""
        return self._last(self.parent)

    def _last(self, later: Ints) -> Ints:
        last, depth = self.target_episode.copy(), depths(later)
        for level in range(1, int(depth.max(initial=0)) + 1):
            here = np.flatnonzero(depth == level)
            last[here] = last[later[here]]
        return last

    def fragments(self) -> Ints:
        """Return the real episodes that each trajectory passes through from its source on: int64 [L, F], unused
        places -1. A trajectory that leads back to itself has those of the link alone."""
        passed = np.stack([self.source_episode, self.target_episode], 1)
        for level in range(1, int(self.depth.max(initial=0)) + 1):
            here = np.flatnonzero(self.depth == level)
            own = np.concatenate([passed[here, :1], passed[self.next[here]]], 1)
            width = max(passed.shape[1], own.shape[1])
            passed = np.pad(passed, ((0, 0), (0, width - passed.shape[1])), constant_values=-1)
            passed[here] = np.pad(own, ((0, 0), (0, width - own.shape[1])), constant_values=-1)
        return passed


def depths(*parents: Ints) -> Ints:
    """Return how many generations of parents each entry has, int64 [L]; ``CYCLE`` where they lead back to it.

    Args:
        parents: int64 [L] each, an entry that this one builds on; negative for none.
    """
    depth = np.full(len(parents[0]), CYCLE, np.int64)
    waiting, level = np.arange(len(depth)), 0
    while len(waiting):
        # A negative parent is an entry behind the last one, which is known from the beginning.
        known = np.append(depth != CYCLE, True)
        ready = np.logical_and.reduce([known[np.where(of[waiting] < 0, len(depth), of[waiting])] for of in parents])
        if not ready.any():
            break
        depth[waiting[ready]] = level
        waiting, level = waiting[~ready], level + 1
    return depth
