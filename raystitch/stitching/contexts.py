"""Contexts: the dimensions that stay constant within an episode, such as its goal. Only episodes that agree are paired.

Contexts are compared by their distance (L2, standardised units). Discrete ones (a goal among a few) agree exactly or
not at all. Continuous ones (each episode of pen has a target orientation of its own) are never equal, so those within
``TOLERANCE`` count as one: 0.25 is an angle of some 6 degrees of pen's target, a third of what counts as success there.

Legend: E episodes, F source episodes, G context dimensions, S and U distinct contexts of sources and of targets,
M target states, J pairs of a source context and a target context that agree.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from raystitch.data.context import still_dimensions
from raystitch.data.episodes import Bools, EpisodeDataset, Floats, Ints
from raystitch.data.normalise import Normalizer
from raystitch.errors import UserError

TOLERANCE = 0.25
# Searches count contexts that are the tolerance apart like states that are 8 standard deviations apart.
WEIGHT = 8.0 / TOLERANCE


@dataclass(frozen=True, kw_only=True, eq=False)
class Contexts:
    """The standardised contexts of a dataset's episodes.

    Attributes:
        name: of the dataset. dims: int64 [G], the observation dimensions that are a context.
        leave, enter: float32 [E, G], each episode's context as a source and as a target.
    """

    name: str
    dims: Ints
    leave: Floats
    enter: Floats

    @classmethod
    def find(cls, dataset: EpisodeDataset, normalizer: Normalizer, num_recorded: int) -> "Contexts | None":
        """Find the dimensions that are a context; None where there are none.

        Only the first ``num_recorded`` episodes decide: a stitched trajectory changes its context, within the
        tolerance, at every seam.
        """
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
        """Return True where contexts are within the tolerance; shapes broadcast."""
        return np.linalg.norm(self.leave[source_episode] - self.enter[target_episode], axis=-1) <= TOLERANCE

    def partners(self, source_F: Ints, target_episode_M: Ints) -> "tuple[Partners, Ints]":
        """Match sources with targets; also return the sources that have a target in another episode.

        Args:
            source_F: episodes. target_episode_M: the episode of each target state, ascending.

        Raises:
            UserError: when no source has a target in another episode, saying how many contexts there are.
        """
        from scipy.spatial import KDTree  # takes half a second, in every process that loads this module

        context_SG, group_F = np.unique(self.leave[source_F], axis=0, return_inverse=True)
        context_UG, group_M = np.unique(self.enter[target_episode_M], axis=0, return_inverse=True)
        agreeing = KDTree(context_UG).query_ball_point(context_SG, TOLERANCE, return_sorted=True)
        count_S = np.array([len(groups) for groups in agreeing], np.int64)
        size_U = np.bincount(group_M.ravel(), minlength=len(context_UG))
        group_E = np.full(len(self.leave), -1, np.int64)
        group_E[source_F] = group_F.ravel()
        everyone = Partners(
            group_of=group_E,
            entry_start=np.concatenate([[0], np.cumsum(count_S)]),
            entry_group=np.concatenate([np.asarray(groups, np.int64) for groups in agreeing]),
            states=np.argsort(group_M.ravel(), kind="stable"),
            state_start=np.concatenate([[0], np.cumsum(size_U)]),
            own_start=np.zeros_like(group_E),
            own=np.zeros_like(group_E),
        )
        partners = everyone.without_own(source_F, target_episode_M, group_M.ravel())
        matched = source_F[partners.count(source_F) > 0]
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
    """Target states by context, and the target contexts that each source context agrees with.

    Attributes:
        group_of: int64 [E], the source context (0 .. S - 1) of each episode, -1 for episodes that are no source.
        entry_start, entry_group: int64 [S + 1] and [J]; the target contexts (0 .. U - 1) that source context s agrees
            with are ``entry_group[entry_start[s] : entry_start[s + 1]]``.
        states, state_start: int64 [M] and [U + 1]; the target states of target context u are
            ``states[state_start[u] : state_start[u + 1]]``.
        own_start, own: int64 [E]; of the target states that agree with an episode, numbered, those from ``own_start``
            on, ``own`` in number, are its own, and left out.
    """

    group_of: Ints
    entry_start: Ints
    entry_group: Ints
    states: Ints
    state_start: Ints
    own_start: Ints
    own: Ints

    def without_own(self, source_F: Ints, target_episode_M: Ints, group_M: Ints) -> "Partners":
        """Leave out the sources' own target states; ``target_episode_M`` ascending, ``group_M`` their contexts."""
        count_E = np.bincount(target_episode_M, minlength=len(self.group_of))
        source_F = source_F[count_E[source_F] > 0]
        first_F = np.searchsorted(target_episode_M, source_F)
        group_F, num_groups = group_M[first_F], len(self.state_start) - 1
        entries = np.arange(len(self.entry_start) - 1) * num_groups
        entry_J = np.repeat(entries, np.diff(self.entry_start)) + self.entry_group  # ascending
        wanted_F = entries[self.group_of[source_F]] + group_F
        place_F = np.minimum(np.searchsorted(entry_J, wanted_F), len(entry_J) - 1)
        agree_F = entry_J[place_F] == wanted_F
        number_M = np.empty(len(self.states), np.int64)
        number_M[self.states] = np.arange(len(self.states))
        before_F = self._states_before[place_F] - self._states_before[self.entry_start[self.group_of[source_F]]]
        own_start, own = self.own_start.copy(), self.own.copy()
        own_start[source_F] = before_F + number_M[first_F] - self.state_start[group_F]
        own[source_F] = count_E[source_F] * agree_F
        return replace(self, own_start=own_start, own=own)

    def count(self, source_episode: Ints) -> Ints:
        """Number of target states of other episodes whose context agrees with each source's."""
        group = self.group_of[source_episode]
        all_of_them = self._states_before[self.entry_start[group + 1]] - self._states_before[self.entry_start[group]]
        return all_of_them - self.own[source_episode]

    def pick(self, source_episode: Ints, number: Ints) -> Ints:
        """The target state with this number, 0 .. count - 1, among those of other episodes that agree; shapes
        broadcast."""
        before = self._states_before
        number = number + self.own[source_episode] * (number >= self.own_start[source_episode])
        place = before[self.entry_start[self.group_of[source_episode]]] + number
        entry = np.minimum(np.searchsorted(before, place, side="right") - 1, len(self.entry_group) - 1)
        return self.states[self.state_start[self.entry_group[entry]] + place - before[entry]]

    @cached_property
    def _states_before(self) -> Ints:
        """Target states in all entries before each, int64 [J + 1]."""
        size_J = np.diff(self.state_start)[self.entry_group]
        return np.concatenate([[0], np.cumsum(size_J)])
