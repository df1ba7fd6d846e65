"""Estimates of how long the sampler's calls take, from past calls, and the time that the current call has taken."""

import statistics
import threading
import time
from collections import deque

CALLS = 32
"""Number of calls that are remembered."""
LATEST = 5
"""The latest calls, whose median counts when it is larger."""
HALF_LIFE = 5.0
"""Seconds without a call after which an estimate counts half. An estimate that is too high refuses the very calls that
would correct it."""


class Pace:
    """A call takes a fixed time plus a time per candidate. Both are medians over recent calls, so that one slow call
    changes nothing. The first call is slow and is ignored; of two calls the quicker one counts.

    Written by the sampler's thread, read by any.
    """

    def __init__(self) -> None:
        self._calls: deque[tuple[int, float]] = deque(maxlen=CALLS)
        self._fitted = (0.0, 0.0, 0)  # fixed seconds, seconds per candidate, the largest call
        self._begun: tuple[float, float] | None = None  # when the current call began, and how long it should take
        self._ended = time.monotonic()
        self._lock = threading.Lock()

    def begin(self, candidates: int) -> None:
        """A call begins."""
        expected = self.seconds(candidates)
        with self._lock:
            self._begun = time.monotonic(), expected

    def end(self, candidates: int) -> None:
        """The call ends. A failed call has 0 candidates: it says nothing about the next one."""
        with self._lock:
            assert self._begun is not None
            self._ended = time.monotonic()
            if candidates:
                self._calls.append((candidates, self._ended - self._begun[0]))
                self._fitted = _fit(list(self._calls))
            self._begun = None

    @property
    def running(self) -> float:
        """Seconds that the current call has taken; 0 when there is none."""
        begun = self._begun
        return 0.0 if begun is None else time.monotonic() - begun[0]

    @property
    def remaining(self) -> float:
        """Seconds until the current call should end. A call that is overdue may well need as long again as it is
        overdue."""
        begun = self._begun
        return 0.0 if begun is None else abs(time.monotonic() - begun[0] - begun[1])

    def seconds(self, candidates: int, *, beyond: float = 0.25) -> float:
        """Return the seconds that a call should take.

        Args:
            beyond: share of a candidate's time that counts beyond the largest call so far. A small call is
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
    # Three calls are enough to notice a slower machine; a faster one takes more.
    each = min(large) if len(large) <= 2 else max(statistics.median_low(large), statistics.median_low(large[-LATEST:]))
    small = [seconds - each * count for count, seconds in calls if 2 * count < largest]
    return max(0.0, statistics.median(small)) if small else 0.0, each, largest
