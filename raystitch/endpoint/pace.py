"""How long the sampler's calls take, learnt from those that it has made; and how long the one at hand has taken."""

import statistics
import threading
import time
from collections import deque

CALLS = 32
"""Calls that are remembered."""
LATEST = 5
"""The latest of them, whose median counts where it is the larger."""
HALF_LIFE = 5.0
"""Seconds without a call after which an estimate counts half. One that is too high refuses the very calls that would
correct it."""


class Pace:
    """A call takes a fixed time and so much per candidate: medians over recent calls, so that a slow one among them
    changes nothing. The first call, which is slow, says nothing; of two the quicker one counts.

    Written by the sampler's thread, read by any.
    """

    def __init__(self) -> None:
        self._calls: deque[tuple[int, float]] = deque(maxlen=CALLS)
        self._fitted = (0.0, 0.0, 0)  # fixed seconds, seconds per candidate, the largest call
        self._begun: tuple[float, float] | None = None  # when the call at hand began, and what it should take
        self._ended = time.monotonic()
        self._lock = threading.Lock()

    def begin(self, candidates: int) -> None:
        """A call begins."""
        expected = self.seconds(candidates)
        with self._lock:
            self._begun = time.monotonic(), expected

    def end(self, candidates: int) -> None:
        """The call ends; 0 candidates when it failed, which says nothing about the next."""
        with self._lock:
            assert self._begun is not None
            self._ended = time.monotonic()
            if candidates:
                self._calls.append((candidates, self._ended - self._begun[0]))
                self._fitted = _fit(list(self._calls))
            self._begun = None

    @property
    def running(self) -> float:
        """Seconds that the call at hand has taken; 0 when there is none."""
        begun = self._begun
        return 0.0 if begun is None else time.monotonic() - begun[0]

    @property
    def remaining(self) -> float:
        """Seconds until the call at hand should end. One that is overdue by so much may well take as long again."""
        begun = self._begun
        return 0.0 if begun is None else abs(time.monotonic() - begun[0] - begun[1])

    def seconds(self, candidates: int, *, beyond: float = 0.25) -> float:
        """Return the seconds that a call should take.

        Args:
            beyond: how much of a candidate's time counts for those beyond the largest call so far. A small call is
                mostly its fixed part, and says little about a large one.
        """
        with self._lock:
            fixed, each, largest = self._fitted
            idle = 0.0 if self._begun is not None else time.monotonic() - self._ended
        known = min(candidates, largest)
        return (fixed + each * (known + beyond * (candidates - known))) * 0.5 ** (idle / HALF_LIFE)

    def backlog(self, candidates: int, call: int) -> float:
        """Return the seconds that the candidates should take in calls of at most ``call`` each."""
        whole, rest = divmod(candidates, call)
        return whole * self.seconds(call) + (self.seconds(rest) if rest else 0.0)


def _fit(calls: list[tuple[int, float]]) -> tuple[float, float, int]:
    largest = max(count for count, _ in calls)
    if len(calls) == 1:
        return 0.0, 0.0, largest
    large = [seconds / count for count, seconds in calls if 2 * count >= largest]
    # A machine that becomes slower is noticed after three calls, one that becomes quicker is believed later.
    each = min(large) if len(large) <= 2 else max(statistics.median_low(large), statistics.median_low(large[-LATEST:]))
    small = [seconds - each * count for count, seconds in calls if 2 * count < largest]
    return max(0.0, statistics.median(small)) if small else 0.0, each, largest
