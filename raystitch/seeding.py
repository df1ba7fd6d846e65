"""Seeds and random numbers keyed by what the work is (shard 42, row 3), never by the worker that does it.

There are two levels. ``derive_seed`` walks a tree of named work down to the seed of a shard or a trial, which
``numpy_rng`` turns into a generator. Within a batch every row has its own seed (int64 [N]), from which ``uniforms`` and
``child_seeds`` draw by counter, for all rows at once: a row's numbers do not depend on the rows beside it.
"""

import zlib

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""The increment of SplitMix64's counter."""


def derive_seed(root: int, *path: int | str) -> int:
    """Return a 63-bit seed for the node ``path`` below ``root``; equal paths give equal seeds on every machine."""
    sequence = np.random.SeedSequence(root, spawn_key=tuple(_key(part) for part in path))
    high, low = sequence.generate_state(2, np.uint32)
    return int(high) >> 1 << 32 | int(low)


def numpy_rng(root: int, *path: int | str) -> np.random.Generator:
    """A generator for the node ``path`` below ``root``."""
    return np.random.Generator(np.random.PCG64(derive_seed(root, *path)))


def uniforms(seeds: Ints, count: int, stream: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), float64 [N, count]; a row depends on its seed and ``stream`` alone.

    Args:
        stream: a number for each use of the seeds, so that two uses draw independently.
    """
    keys = _hash(_hash(np.asarray(seeds, np.int64).view(np.uint64)) ^ np.uint64(stream))
    counters = np.arange(count, dtype=np.uint64)
    bits = _hash(keys[:, None] ^ _hash(counters)[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def child_seeds(seeds: Ints, count: int, stream: int) -> Ints:
    """Seeds for ``count`` sub-tasks of each row, int64 [N, count]."""
    return (uniforms(seeds, count, stream) * 2.0**53).astype(np.int64)


def integers(uniform: NDArray[np.float64], bound: int | Ints) -> Ints:
    """Map uniform numbers in [0, 1) to integers in 0 .. bound - 1; shapes broadcast."""
    return np.minimum((uniform * bound).astype(np.int64), np.asarray(bound, np.int64) - 1)


def splitmix64(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al., OOPSLA 2014): a bijection that turns a counter into random bits."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _hash(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        return splitmix64(value + GOLDEN)


def _key(part: int | str) -> int:
    return zlib.crc32(part.encode()) if isinstance(part, str) else int(part)
