"""Steps that float32 cannot hold, found while the numbers are still wider.

Legend: N rows, O observation size.
"""

import numpy as np
from numpy.typing import NDArray

from raystitch.data.checks import Problem, problem

WIDE = 16.0
"""Around smaller values float32 resolves a millionth, which nobody means."""
LOST_SHARE = 0.5


class Resolution:
    """Counts, over arrays [N, O] of successive observations, the steps that vanish in float32."""

    def __init__(self) -> None:
        self.moved = np.zeros(0, np.int64)
        self.lost = np.zeros(0, np.int64)
        self.largest = np.zeros(0)
        self.step = np.zeros(0)

    def add(self, observations: NDArray[np.generic]) -> None:
        """Observations [N, O] that follow each other; arrays of float32 and smaller lose nothing."""
        if observations.dtype.itemsize < 8 or len(observations) < 2:
            return
        with np.errstate(invalid="ignore", over="ignore"):
            largest = np.abs(observations).max(0).astype(np.float64)
            if not self.moved.size:
                self.moved, self.lost = (np.zeros(len(largest), np.int64) for _ in range(2))
                self.largest, self.step = np.zeros(len(largest)), np.zeros(len(largest))
            if not (largest > WIDE).any():
                return
            steps = np.abs(np.diff(observations, axis=0))
            narrow = np.diff(observations.astype(np.float32), axis=0)
        self.moved += (steps > 0).sum(0)
        self.lost += ((steps > 0) & (narrow == 0)).sum(0)
        self.step += np.where(np.isfinite(steps), steps, 0.0).sum(0)
        self.largest = np.fmax(self.largest, largest)

    def problems(self) -> list[Problem]:
        """One problem that names the dimensions most of whose steps vanished."""
        found = np.flatnonzero((self.lost > LOST_SHARE * self.moved) & (self.largest > WIDE))
        found = found[self.step[found] / self.moved[found] > 1e-6] if len(found) else found
        if not len(found):
            return []
        first = found[0]
        spacing = np.spacing(np.float32(self.largest[first]))
        message = (
            f"observation dimensions {', '.join(map(str, found[:8]))}{', ...' if len(found) > 8 else ''} move in steps "
            f"that float32 cannot hold (dimension {first}: {self.step[first] / self.moved[first]:.3g} a step around "
            f"{self.largest[first]:.3g}, where float32 is {spacing:.3g} apart), so they seem to stand still; subtract "
            "an offset, such as the episode's first value, before writing them"
        )
        return [problem("float32_resolution", message, len(found))]
