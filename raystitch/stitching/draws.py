"""Random numbers of a row from its seed alone: a counter-based hash, vectorised over rows."""

import numpy as np
from numpy.typing import NDArray

from raystitch.data.episodes import Ints
from raystitch.seeding import GOLDEN, splitmix64


def _hash(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        return splitmix64(value + GOLDEN)


def uniforms(seeds: Ints, count: int, stream: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), float64 [N, count]; a row depends on its seed, ``stream`` and nothing else."""
    keys = _hash(_hash(np.asarray(seeds, np.int64).view(np.uint64)) ^ np.uint64(stream))
    counters = np.arange(count, dtype=np.uint64)
    bits = _hash(keys[:, None] ^ _hash(counters)[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(uniform: NDArray[np.float64], bound: int | Ints) -> Ints:
    """Maps uniform numbers in [0, 1) to integers in 0 .. bound - 1."""
    return np.minimum((uniform * bound).astype(np.int64), np.asarray(bound, np.int64) - 1)


def child_seeds(seeds: Ints, count: int, stream: int) -> Ints:
    """``count`` seeds per row for its sub-tasks, int64 [N, count]."""
    return (uniforms(seeds, count, stream) * 2.0**53).astype(np.int64)
