"""Seeds form a tree keyed by what the work is (shard 42, row 3), never by the worker that does it."""

import zlib

import numpy as np
from numpy.typing import NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""The increment of SplitMix64's counter."""


def _key(part: int | str) -> int:
    return zlib.crc32(part.encode()) if isinstance(part, str) else int(part)


def derive_seed(root: int, *path: int | str) -> int:
    """A 63-bit seed for the node ``path`` below ``root``; equal paths give equal seeds on every machine."""
    sequence = np.random.SeedSequence(root, spawn_key=tuple(_key(part) for part in path))
    high, low = sequence.generate_state(2, np.uint32)
    return int(high) >> 1 << 32 | int(low)


def numpy_rng(root: int, *path: int | str) -> np.random.Generator:
    """A generator for the node ``path`` below ``root``."""
    return np.random.Generator(np.random.PCG64(derive_seed(root, *path)))


def splitmix64(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al., OOPSLA 2014): a bijection that turns a counter into random bits."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
