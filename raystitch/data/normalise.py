"""Standardisation by the original data's mean and standard deviation."""

from dataclasses import dataclass

import numpy as np

from raystitch.data.episodes import Bools, Floats

RELATIVE_STD_FLOOR = 1e-3


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
