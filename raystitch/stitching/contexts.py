"""Which episodes are about the same thing: pairs must agree on the dimensions that are still within an episode.

Contexts are compared by their distance (L2, standardised units). Discrete ones (a goal among a few) agree exactly or
not at all; continuous ones (each episode of pen has a target orientation of its own) are never equal, so those within
``TOLERANCE`` count as one: 0.25 is an angle of some 6 degrees of pen's target, a third of what counts as success there.

Legend: E episodes, C context dimensions, S and U different contexts of sources and of targets.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.spatial import KDTree

from raystitch.data.context import still_dimensions
from raystitch.data.episodes import Bools, EpisodeDataset, Floats, Ints
from raystitch.data.normalise import Normalizer
from raystitch.errors import UserError

TOLERANCE = 0.25
# In searches, contexts as far apart as the tolerance count like states 8 standard deviations apart.
WEIGHT = 8.0 / TOLERANCE


@dataclass(frozen=True, kw_only=True, eq=False)
class Contexts:
    """Contexts of the episodes, standardised, float32 [E, C]: ``leave`` as sources, ``enter`` as targets."""

    name: str
    dims: Ints
    leave: Floats
    enter: Floats

    @classmethod
    def find(cls, dataset: EpisodeDataset, normalizer: Normalizer, num_recorded: int) -> "Contexts | None":
        """None where no dimension is a context. Only the first ``num_recorded`` episodes are looked at for that: a
        stitched trajectory changes its context, within the tolerance, at every seam."""
        recorded = dataset if num_recorded == dataset.num_episodes else dataset.subset(np.arange(num_recorded))
        dims = np.flatnonzero(still_dimensions(recorded)[1] & normalizer.active)
        if not len(dims):
            return None
        first, last = (
            normalizer.encode(dataset.observations[rows])[:, dims]
            for rows in (dataset.obs_offsets[:-1], dataset.obs_offsets[1:] - 1)
        )
        return cls(name=dataset.name, dims=dims, leave=last, enter=first)

    def agree(self, source_episode: Ints, target_episode: Ints) -> Bools:
        """Whether contexts are within the tolerance; shapes broadcast."""
        return np.linalg.norm(self.leave[source_episode] - self.enter[target_episode], axis=-1) <= TOLERANCE

    def partners(self, source_episodes: Ints, target_episodes: Ints) -> "tuple[Partners, Ints]":
        """Who may go with whom, and those of the sources that may go with any target of another episode.

        Args:
            target_episodes: int64 [M], the episode of each target state, ascending.

        Raises:
            UserError: when no source has a target in another episode, saying how many contexts there are.
        """
        sources, source_group = np.unique(self.leave[source_episodes], axis=0, return_inverse=True)
        targets, target_group = np.unique(self.enter[target_episodes], axis=0, return_inverse=True)
        near = KDTree(targets).query_ball_point(sources, TOLERANCE, return_sorted=True)
        counts = np.array([len(groups) for groups in near], np.int64)
        group = np.concatenate([np.asarray(groups, np.int64) for groups in near])
        of_episode = np.full(len(self.leave), -1, np.int64)
        of_episode[source_episodes] = source_group.ravel()
        partners = Partners(
            group_of=of_episode,
            entry_start=np.concatenate([[0], np.cumsum(counts)]),
            entry_group=group,
            states=np.argsort(target_group.ravel(), kind="stable"),
            state_start=np.concatenate([[0], np.cumsum(np.bincount(target_group.ravel(), minlength=len(targets)))]),
        )
        own = np.bincount(target_episodes, minlength=len(self.leave))[source_episodes]
        own = own * self.agree(source_episodes, source_episodes)
        matched = source_episodes[partners.count(source_episodes) > own]
        if not len(matched):
            dims = ", ".join(str(dim) for dim in self.dims)
            raise UserError(
                f"{self.name}: observation dimensions {dims} are a context, {len(np.unique(self.enter, axis=0))} "
                f"different ones in {len(self.enter)} episodes, and no source episode has a target within "
                f"{TOLERANCE} standard deviations of its own; raise pairs.source_fraction or pairs.target_fraction, or "
                "set pairs.context: ignore, which joins different tasks"
            )
        return partners, matched


@dataclass(frozen=True, kw_only=True, eq=False)
class Partners:
    """Target states by context, and the contexts that each source's agrees with.

    Attributes:
        group_of: int64 [E], the source context (0 .. S - 1) of each episode, -1 for others.
        entry_start: int64 [S + 1]; ``entry_group[entry_start[s] : entry_start[s + 1]]`` are the target contexts of s.
        states: int64 [M], target states ordered by context; ``state_start`` int64 [U + 1], where each context's start.
    """

    group_of: Ints
    entry_start: Ints
    entry_group: Ints
    states: Ints
    state_start: Ints

    def count(self, source_episode: Ints) -> Ints:
        """Target states that a source's context agrees with."""
        ends = self._ends
        group = self.group_of[source_episode]
        return ends[self.entry_start[group + 1]] - ends[self.entry_start[group]]

    def pick(self, source_episode: Ints, number: Ints) -> Ints:
        """The target states with the given number, 0 .. count - 1, among those; shapes broadcast."""
        ends = self._ends
        place = ends[self.entry_start[self.group_of[source_episode]]] + number
        entry = np.searchsorted(ends, place, side="right") - 1
        entry = np.minimum(entry, len(self.entry_group) - 1)
        return self.states[self.state_start[self.entry_group[entry]] + place - ends[entry]]

    @cached_property
    def _ends(self) -> Ints:
        """Target states before each entry, int64 [entries + 1]."""
        size = np.diff(self.state_start)[self.entry_group]
        return np.concatenate([[0], np.cumsum(size)])
