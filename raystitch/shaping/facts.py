"""Numbers of the whole data that rules for rewards measure single steps by; the same for every portion of steps.

Legend: N states, O observation size, G gaps, K reference states.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from raystitch.data.episodes import EpisodeDataset, Floats, Ints
from raystitch.data.neighbours import FAR, nearest_distances, reference_rows, spaced_rows
from raystitch.data.normalise import Normalizer
from raystitch.errors import UserError


@dataclass(frozen=True, kw_only=True, eq=False)
class DataFacts:
    """Numbers of all recorded steps, and the limits of the bridges' criteria on real windows.

    Attributes:
        dataset: as recorded.
        limits: criterion -> float32 [G], the 99 % quantile over real windows by gap from ``first_gap`` on:
            ``residual`` and ``spread`` of the largest number of a window's steps, ``residual_sum`` and ``spread_sum``
            of what they add up to. Empty where there is no calibration.
    """

    dataset: EpisodeDataset
    limits: Mapping[str, Floats] = field(default_factory=dict[str, Floats])
    first_gap: int = 0

    @cached_property
    def mean(self) -> float:
        """Mean of the recorded rewards."""
        return self._known("mean", float(self.dataset.rewards.mean(dtype=np.float64)))

    @cached_property
    def size(self) -> float:
        """Mean of the recorded rewards' absolute values."""
        return self._known("size", float(np.abs(self.dataset.rewards).mean(dtype=np.float64)))

    @cached_property
    def spread(self) -> float:
        """Standard deviation of the recorded rewards."""
        return self._known("standard deviation", float(self.dataset.rewards.std(dtype=np.float64)))

    def _known(self, what: str, value: float) -> float:
        if not value:
            raise UserError(
                f"{self.dataset.name}: rewards cannot be measured by their {what}, which is 0; use rewards: recorded"
            )
        return value

    def limit(self, criterion: str, gap: Ints) -> Floats:
        """Return the limit of a criterion for bridges of these gaps, float32 like ``gap``.

        Raises:
            UserError: where there is no calibration: of bridges that are not from a buffer.
        """
        if self.limits and criterion not in self.limits:
            raise UserError(
                f"rewards need the {criterion} on real data, which the calibration of an earlier version does not "
                "have; fit and augment again"
            )
        if not self.limits:
            raise UserError(f"rewards need the {criterion} on real data, which only a buffer of bridges comes with")
        limits = self.limits[criterion]
        return limits[np.clip(gap - self.first_gap, 0, len(limits) - 1)]

    def novelty(self, states: Floats, neighbours: int) -> Floats:
        """Return how far states are from recorded ones: 1 is as far as 99 % of the recorded states are from others.

        The mean distance (L2, standardised) to the ``neighbours`` nearest of at most ``NUM_REFERENCE`` recorded states;
        one that is the state itself does not count.

        Args:
            states: float32 [N, O], raw.
        """
        return self._distances(states, neighbours) / np.float32(self._far(neighbours))

    @cached_property
    def _normalizer(self) -> Normalizer:
        return Normalizer.fit(self.dataset.observations)

    @cached_property
    def _reference(self) -> Floats:
        """Recorded states, standardised, float32 [K, O]: all of them, or some drawn once for all."""
        observations = self.dataset.observations
        return self._normalizer.encode(observations[reference_rows(np.arange(len(observations)), "novelty")])

    def _far(self, neighbours: int) -> float:
        if neighbours not in self._scales:
            observations = self.dataset.observations
            rows = spaced_rows(len(observations))
            far = float(np.quantile(self._distances(observations[rows], neighbours), FAR))
            self._scales[neighbours] = self._known_novelty(far)
        return self._scales[neighbours]

    @cached_property
    def _scales(self) -> dict[int, float]:
        return {}

    def _known_novelty(self, far: float) -> float:
        if not far > 0:
            raise UserError(f"{self.dataset.name}: novelty cannot be measured, because all of its states are the same")
        return far

    def _distances(self, states: Floats, neighbours: int) -> Floats:
        """Return the mean distance of raw states to their nearest reference states, float32 [N]."""
        near = nearest_distances(self._normalizer.encode(states), self._reference, neighbours + 1)
        itself = near[:, 0] < 1e-6
        kept = np.where(itself[:, None], np.roll(near, -1, axis=1), near)[:, : max(1, near.shape[1] - 1)]
        return kept.mean(1).astype(np.float32)
