"""Requests that wait for the sampler: which are admitted, and which share the next call.

The earliest deadline goes first. A request is admitted only if it, and every request that it would overtake, can be
answered in time. A request that can no longer be answered in time is dropped, so that no call is wasted on it.
"""

import bisect
import math
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

from raystitch.data.episodes import Episode
from raystitch.endpoint.config import BatchingConfig
from raystitch.endpoint.models import ServedModel
from raystitch.endpoint.pace import Pace
from raystitch.endpoint.problems import Problem, busy
from raystitch.endpoint.request import StitchRequest
from raystitch.stitching.candidates import Candidates

SLACK = 1.25
"""Factor by which a call may take longer than expected before a request in it is late."""
WAIT_SLACK = 1.5
"""The same factor for the wait: it covers many calls, and the machine does other things meanwhile. It makes the queue
shorter, not the sampler idle."""
_SIZES = 64
"""Number of requests whose sizes are remembered."""
_RESERVE = 0.25
"""Share of the remaining time that is kept free for a larger request."""


@dataclass(frozen=True, eq=False)
class Stitched:
    """A request's candidates and its two trajectories, inferred columns included."""

    source: Episode
    target: Episode
    candidates: Candidates


@dataclass(eq=False)
class QueuedRequest:
    """A request on its way; ``deadline`` in ``time.monotonic`` seconds."""

    model: ServedModel
    request: StitchRequest
    request_id: str
    deadline: float
    entered: float = field(default_factory=time.monotonic)
    result: "Future[Stitched]" = field(default_factory=Future)

    @property
    def count(self) -> int:
        return self.request.options.num_candidates

    @property
    def kind(self) -> tuple[int, bool]:
        """Requests of one kind can share a call."""
        return id(self.model), self.request.options.gap is not None


class JobQueue:
    """Requests in the order of their deadlines. Callers hold the batcher's lock.

    Attributes:
        candidates: of the jobs that wait.
    """

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._jobs: list[QueuedRequest] = []
        self._sizes: deque[int] = deque(maxlen=_SIZES)
        self.candidates = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[QueuedRequest]:
        return iter(self._jobs)

    def check(self, count: int, deadline: float, config: BatchingConfig) -> None:
        """Refuse a request that cannot be answered in time.

        All sizes find the queue full at the same length, as if each were the largest of late: otherwise small requests
        would take every moment that comes free, and a large one would never find room. It also lets a request be
        refused before its size is known.

        Raises:
            Problem: 504 when not even an idle sampler could, else 429 with the time until it could be let in.
        """
        now = time.monotonic()
        left = deadline - now
        alone = self._pace.seconds(count)
        if alone and SLACK * alone > left:
            raise Problem(
                504,
                f"the deadline is {max(0.0, left):.1f} s away and {count} candidates take about {SLACK * alone:.1f} s "
                "here; ask for fewer candidates or a longer wait",
            )
        if not self._jobs and not self._pace.running:
            return
        largest = self._pace.seconds(max(self._sizes, default=count))
        reserve = min(largest, _RESERVE * left)
        ahead = sum(job.count for job in self._jobs if job.deadline <= deadline)
        excess = WAIT_SLACK * self._wait(ahead, config) + SLACK * max(alone, reserve) - left
        behind = ahead + count
        for job in self._jobs[bisect.bisect_right(self._jobs, deadline, key=_deadline) :]:
            behind += job.count
            excess = max(excess, WAIT_SLACK * self._wait(behind, config) - (job.deadline - now))
        if excess > 0:
            # The size may not be known yet: tell when there is room for a request as large as any of late.
            unknown = SLACK * max(0.0, largest - max(alone, reserve))
            raise busy(
                f"{self.candidates} candidates are waiting already, more than can be computed before this request's "
                "deadline; try again later",
                math.ceil((excess + unknown) / WAIT_SLACK),
            )

    def _wait(self, candidates: int, config: BatchingConfig) -> float:
        """Seconds until the current call and ``count`` candidates are done."""
        return self._pace.remaining + self._pace.backlog(candidates, config.max_candidates) + config.wait_seconds

    def seen(self, count: int) -> None:
        """Record that a request of this size came, admitted or not."""
        self._sizes.append(count)

    def add(self, job: QueuedRequest) -> None:
        bisect.insort_right(self._jobs, job, key=_deadline)
        self.candidates += job.count

    def discard(self, job: QueuedRequest) -> bool:
        """Remove a request. Return True if it was there."""
        if job not in self._jobs:
            return False
        self._jobs.remove(job)
        self.candidates -= job.count
        return True

    def clear(self) -> list[QueuedRequest]:
        """Remove and return all requests."""
        jobs, self._jobs, self.candidates = self._jobs, [], 0
        return jobs

    def drop_late(self) -> list[QueuedRequest]:
        """Remove and return the requests that can no longer be answered in time, even if they were next."""
        now = time.monotonic()
        late = [job for job in self._jobs if now + self._pace.seconds(job.count) > job.deadline]
        for job in late:
            self.discard(job)
        return late

    def take(self, config: BatchingConfig) -> list[QueuedRequest]:
        """Remove and return the first request and the requests of its kind that fit into its call: up to
        ``max_candidates``, and without making any request late, whether it is in the call or passed over."""
        if not self._jobs:
            return []
        jobs: list[QueuedRequest] = []
        left: list[QueuedRequest] = []
        count, now, end_by = 0, time.monotonic(), self._jobs[0].deadline
        for job in self._jobs:
            together = count + job.count
            fits = not jobs or (
                job.kind == jobs[0].kind
                and together <= config.max_candidates
                and now + SLACK * self._pace.seconds(together, beyond=1.0) <= end_by
            )
            if fits:
                jobs.append(job)
                count = together
            else:
                left.append(job)
                end_by = min(end_by, job.deadline - self._pace.seconds(job.count))
        self._jobs = left
        self.candidates -= count
        return jobs

    def start_by(self) -> float:
        """The moment when the first request's call must begin, so that it is answered in time."""
        first = self._jobs[0]
        return first.deadline - SLACK * self._pace.seconds(first.count)


def _deadline(job: QueuedRequest) -> float:
    return job.deadline
