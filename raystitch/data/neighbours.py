"""Distances to the nearest of a few thousand reference states, exactly and without an index.

Legend: N states, D dimensions, K reference states, C neighbours.
"""

import numpy as np
from numpy.typing import NDArray

from raystitch.data.episodes import Floats, Ints
from raystitch.seeding import numpy_rng

NUM_REFERENCE = 4096
"""Reference states, at most."""
NUM_SPACED = 2048
"""States from whose distances to the reference a unit is found."""
FAR = 0.99
"""A distance of 1 is the quantile of theirs."""
CHUNK = 2048
"""States that are compared with the reference at a time."""


def reference_rows(rows: Ints, purpose: str) -> Ints:
    """Return all of ``rows``, or ``NUM_REFERENCE`` of them drawn once for all, in order."""
    if len(rows) <= NUM_REFERENCE:
        return rows
    return np.sort(numpy_rng(0, purpose).choice(rows, NUM_REFERENCE, replace=False))


def spaced_rows(count: int) -> Ints:
    """Return at most ``NUM_SPACED`` evenly spaced numbers below ``count``."""
    return np.unique(np.linspace(0, count - 1, NUM_SPACED).astype(np.int64))


def nearest_distances(states: Floats, reference: Floats, count: int) -> NDArray[np.float64]:
    """Return the L2 distances of states [N, D] to their ``count`` nearest reference states [K, D], float64 [N, C].

    They ascend. C is ``count``, or K if there are fewer.
    """
    count = min(count, len(reference))
    squares_K = (reference**2).sum(1)
    found = np.empty((len(states), count))
    for first in range(0, len(states), CHUNK):
        part = states[first : first + CHUNK]
        squares = (part**2).sum(1)[:, None] - 2 * part @ reference.T + squares_K
        rows = np.argpartition(squares, count - 1, axis=1)[:, :count]
        # The expanded squares lose digits exactly where the distance is small.
        found[first : first + CHUNK] = np.sqrt(((part[:, None] - reference[rows]) ** 2).sum(-1, dtype=np.float64))
    return np.sort(found, axis=1)
