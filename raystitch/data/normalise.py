"""Standardisation by the original data's mean and standard deviation, and the recorded states that lie near others.

Legend: E episodes, N transitions, M = N + E observation rows, O observation size, D active dimensions.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from raystitch.data.episodes import Bools, EpisodeDataset, Floats, Ints

RELATIVE_STD_FLOOR = 1e-3
CHUNK = 1 << 15
"""States that are looked up at a time."""


@dataclass(frozen=True, eq=False)
class Normalizer:
    """Per-dimension standardisation of observations.

    Attributes:
        mean, std: float32 [O]; std is floored at 1e-3 times the dimension's largest magnitude or the median std of the
            varying dimensions, whichever is smaller. The floor keeps noise in nearly constant dimensions from being
            amplified; a dimension in tiny units counts like any other.
        active: bool [O]; False for constant dimensions, which every distance and residual leaves out.
    """

    mean: Floats
    std: Floats
    active: Bools

    @classmethod
    def fit(cls, observations: Floats) -> "Normalizer":
        wide = observations.astype(np.float64)
        mean, std = wide.mean(0), wide.std(0)
        active = std > 1e-9 * np.maximum(1.0, np.abs(mean))
        typical = float(np.median(std[active])) if active.any() else 1.0
        floor = RELATIVE_STD_FLOOR * np.minimum(typical, np.abs(wide).max(0, initial=0.0))
        floored = np.where(active, np.maximum(std, floor), 1.0)
        return cls(mean.astype(np.float32), floored.astype(np.float32), active)

    def encode(self, observations: Floats) -> Floats:
        """Raw units to standardised units, any leading shape."""
        return ((observations - self.mean) / self.std).astype(np.float32)

    def decode(self, standardised: Floats) -> Floats:
        """Standardised units back to raw units."""
        return (standardised * self.std + self.mean).astype(np.float32)


@dataclass(frozen=True, eq=False)
class NearStates:
    """The observations of a dataset in standard deviations, and a radius: the median of its recorded steps."""

    dataset: EpisodeDataset

    @cached_property
    def _normalizer(self) -> Normalizer:
        return Normalizer.fit(self.dataset.observations)

    def _encode(self, observations: Floats) -> Floats:
        return self._normalizer.encode(observations)[:, self._normalizer.active]

    @cached_property
    def points(self) -> Floats:
        """Observations in standard deviations, constant dimensions left out, float32 [M, D]."""
        return self._encode(self.dataset.observations)

    @cached_property
    def radius(self) -> float:
        """The median length of a recorded step; 0 without one."""
        rows = self.dataset.obs_index[self.dataset.next_observed]
        if not len(rows):
            return 0.0
        return float(np.median(np.linalg.norm(self.points[rows + 1] - self.points[rows], axis=1)))

    @cached_property
    def episode_of_row(self) -> NDArray[np.int32]:
        """Episode of each observation, int32 [M]."""
        return np.repeat(np.arange(self.dataset.num_episodes, dtype=np.int32), self.dataset.lengths + 1)

    def neighbours(self, rows: Ints, among: Bools, most: int) -> tuple[NDArray[np.int32], int]:
        """Find the observations of other episodes within ``radius`` of some, the nearest first.

        Args:
            rows: int64 [Q], observations to look around. among: bool [M], those that may be found.
            most: neighbours looked at per row, those of its own episode included.

        Returns:
            int32 [Q, most] observation rows, -1 for none; and how many rows had ``most`` neighbours, so that some may
            be missing.
        """
        from scipy.spatial import KDTree  # takes long to import, in every process that loads a dataset

        candidates = np.flatnonzero(among)
        found = np.full((len(rows), most), -1, np.int32)
        if not len(candidates) or not self.points.shape[1]:
            return found, 0
        tree, full = KDTree(self.points[candidates], leafsize=30, balanced_tree=False), 0
        candidates = np.append(candidates, -1).astype(np.int32)  # what the tree answers where there are fewer
        for first in range(0, len(rows), CHUNK):
            own = rows[first : first + CHUNK]
            _, at = tree.query(self.points[own], k=most, distance_upper_bound=self.radius * (1 + 1e-6) + 1e-12)
            near = candidates[np.reshape(at, (len(own), most))]
            full += int((near[:, -1] >= 0).sum())
            near[self.episode_of_row[near] == self.episode_of_row[own][:, None]] = -1
            found[first : first + CHUNK] = near
        return found, full

    def around(self, states: Floats, among: Bools) -> Ints:
        """Return the observations within ``radius`` of each of ``states``, raw [K, O], or the one nearest to it.

        Args:
            among: bool [M], those that may be found; at least one.

        Returns:
            int64, each once, ascending.
        """
        from scipy.spatial import KDTree

        candidates = np.flatnonzero(among)
        if not self.points.shape[1]:
            return candidates
        tree, asked = KDTree(self.points[candidates], balanced_tree=False), self._encode(states)
        within = tree.query_ball_point(asked, self.radius)
        nearest = np.asarray(tree.query(asked)[1]).tolist()
        near = [inside or [closest] for inside, closest in zip(within, nearest, strict=True)]
        return np.unique(candidates[np.concatenate(near).astype(np.int64)])
