"""Rows in portions that fit the memory."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch

from raystitch.data.episodes import Ints
from raystitch.errors import RunError

T = TypeVar("T")


class MicroBatches:
    """Runs work on portions of rows. When memory runs out the portion is halved, stays so, and the work goes on."""

    def __init__(self, size: int) -> None:
        self.size = size

    def run(self, count: int, work: Callable[[Ints], T]) -> list[T]:
        """``work(rows)`` for consecutive portions of 0 .. count - 1 (once with no rows where count is 0).

        Raises:
            RunError: when a single row does not fit.
        """
        done: list[T] = []
        start = 0
        while start < count or not done:
            rows = np.arange(start, min(start + self.size, count))
            try:
                done.append(work(rows))
            except (MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                if len(rows) <= 1:
                    raise RunError(f"not enough memory for a single bridge: {error}") from error
                self.size = len(rows) // 2
            else:
                start += len(rows)
                continue
            # Outside the handler, whose traceback keeps the tensors of the failed attempt alive.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return done


def _is_out_of_memory(error: Exception) -> bool:
    # torch has a class of its own on accelerators; its CPU allocator raises a plain RuntimeError.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
