"""Concurrent requests in one call of the sampler, on a thread of its own.

The event loop only counts and waits. A call takes what waits when the sampler is free, up to ``max_candidates``; it
waits for requests that are being received or likely to come, for a bounded time. Rows depend on their own seed alone,
so the answer does not depend on the company.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from raystitch.data.episodes import Episode
from raystitch.endpoint.config import BatchingConfig
from raystitch.endpoint.metrics import Recorder
from raystitch.endpoint.models import ServedModel
from raystitch.endpoint.problems import Problem, busy, invalid, unavailable
from raystitch.endpoint.request import ROLES, GivenTrajectory, Role, StitchRequest
from raystitch.errors import UserError
from raystitch.stitching.candidates import Candidates, Pairs
from raystitch.stitching.draws import child_seeds
from raystitch.stitching.pairs import cut_trajectories, given_trajectory

_SEED_STREAM = 40


@dataclass(frozen=True, eq=False)
class Stitched:
    """A request's candidates and its two trajectories with what was inferred."""

    source: Episode
    target: Episode
    candidates: Candidates


@dataclass(eq=False)
class Job:
    """A request on its way."""

    model: ServedModel
    request: StitchRequest
    request_id: str
    entered: float = field(default_factory=time.monotonic)
    result: "Future[Stitched]" = field(default_factory=Future)

    @property
    def count(self) -> int:
        return self.request.options.num_candidates

    @property
    def kind(self) -> tuple[int, bool]:
        """Requests of one kind can share a call."""
        return id(self.model), self.request.options.gap is not None


class Batcher:
    """Queue and thread of one replica.

    Args:
        receiving: how many requests are being received at the moment.

    Attributes:
        cpu_seconds: of the thread's calls (torch's further threads not counted).
    """

    def __init__(self, config: BatchingConfig, recorder: Recorder, receiving: Callable[[], int] = lambda: 0) -> None:
        self.config = config
        self._recorder = recorder
        self._receiving = receiving
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._num_queued = 0
        self._seconds_per_candidate = 0.002
        self._last_requests = 0
        self.cpu_seconds = 0.0
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="sampler", daemon=True)
        self._thread.start()

    @property
    def num_queued(self) -> int:
        """Candidates that wait or are computed."""
        return self._num_queued

    @property
    def alive(self) -> bool:
        """Whether the thread works, or was closed."""
        return self._closed or self._thread.is_alive()

    async def stitch(self, model: ServedModel, request: StitchRequest, request_id: str, deadline: float) -> Stitched:
        """Waits for the request's turn, until ``deadline`` in ``time.monotonic`` seconds.

        Raises:
            Problem: 429 when the queue is full, 504 at the deadline, 422 for trajectories that cannot be stitched, 503
                when the endpoint stops.
        """
        job = Job(model, request, request_id)
        self._submit(job)
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                return await asyncio.wrap_future(job.result)
        except TimeoutError:
            raise Problem(
                504, "the deadline passed before the bridges were made; ask for fewer candidates, or later"
            ) from None
        finally:
            self._forget(job)

    def close(self) -> None:
        """Ends the thread after the call at hand; what waits is refused with 503."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def check_room(self, count: int = 1) -> None:
        """Whether so many more candidates may wait; a request larger than the whole queue may when nothing else does.

        Raises:
            Problem: 429.
        """
        if self._num_queued and self._num_queued + count > self.config.max_queued_candidates:
            raise busy(
                f"{self._num_queued} candidates are waiting already; try again later",
                self._num_queued * self._seconds_per_candidate,
            )

    def _submit(self, job: Job) -> None:
        with self._changed:
            if self._closed:
                raise unavailable("the endpoint is stopping")
            self.check_room(job.count)
            self._num_queued += job.count
            self._waiting.append(job)
            self._changed.notify()

    def _forget(self, job: Job) -> None:
        """Makes room at once when nobody waits for the job any more: the deadline passed, or the client went away."""
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                self._num_queued -= job.count

    def _work(self) -> None:
        while (jobs := self._next()) is not None:
            if jobs:
                self._run(jobs)

    def _next(self) -> list[Job] | None:
        """The jobs of the next call, oldest first; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            until = time.monotonic() + self.config.wait_seconds
            while not self._closed and self._expects_more():
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            if self._closed:
                for job in self._waiting:
                    if job.result.set_running_or_notify_cancel():
                        self._finish(job, unavailable("the endpoint is stopping"))
                    else:
                        self._num_queued -= job.count
                self._waiting.clear()
                return None
            return self._take()

    def _expects_more(self) -> bool:
        """Whether there is room, and requests are being received or fewer are here than the last call had: those who
        got an answer often ask again at once."""
        if sum(job.count for job in self._waiting) >= self.config.max_candidates:
            return False
        return self._receiving() > 0 or len(self._waiting) < self._last_requests

    def _take(self) -> list[Job]:
        """Removes the oldest job and those of its kind that fit in."""
        jobs: list[Job] = []
        left: deque[Job] = deque()
        count = 0
        for job in self._waiting:
            fits = not jobs or (job.kind == jobs[0].kind and count + job.count <= self.config.max_candidates)
            if not fits:
                left.append(job)
            elif job.result.set_running_or_notify_cancel():
                jobs.append(job)
                count += job.count
            else:
                self._num_queued -= job.count
        self._waiting = left
        self._last_requests = len(jobs)
        return jobs

    def _run(self, jobs: Sequence[Job]) -> None:
        begun, cpu = time.monotonic(), time.thread_time()
        for job in jobs:
            self._recorder.queued(begun - job.entered)
        ready = [(job, pairs) for job in jobs if (pairs := self._prepare(job)) is not None]
        if ready:
            self._attempt(ready, begun)
        self.cpu_seconds += time.thread_time() - cpu

    def _prepare(self, job: Job) -> "_Prepared | None":
        """The request's pairs; None, with its answer, when there are none."""
        try:
            return _Prepared(job.model, job.request)
        except UserError as error:
            field, _, message = str(error).partition(": ")
            named = field.partition(".")[0] in ROLES
            self._finish(job, invalid(field, message) if named else invalid("body", str(error)))
        except Exception as error:
            self._fail(job, error)
        return None

    def _attempt(self, ready: "Sequence[tuple[Job, _Prepared]]", begun: float) -> None:
        """One call; where it fails, one for each request, so that nobody pays for another's request."""
        try:
            self._stitch(ready, begun)
        except Exception as error:
            if len(ready) == 1:
                self._fail(ready[0][0], error)
                return
            for one in ready:
                self._attempt([one], time.monotonic())

    def _fail(self, job: Job, error: Exception) -> None:
        """A fault of ours: this request gets a 503, the next one its chance."""
        self._recorder.fault(error, [job.request_id])
        self._finish(job, unavailable("stitching failed unexpectedly; it was logged under this request's id"))

    def _stitch(self, ready: "Sequence[tuple[Job, _Prepared]]", begun: float) -> None:
        pairs = Pairs.concatenate([prepared.pairs for _, prepared in ready])
        seeds = np.concatenate([prepared.seeds for _, prepared in ready])
        candidates = ready[0][0].model.stitcher.stitch(pairs, seeds)
        seconds = time.monotonic() - begun
        self._seconds_per_candidate += 0.2 * (seconds / len(pairs) - self._seconds_per_candidate)
        self._recorder.called(len(ready), len(pairs), seconds)
        first = 0
        for job, prepared in ready:
            mine = candidates.take((candidates.first_row >= first) & (candidates.first_row < first + job.count))
            mine.first_row = mine.first_row - first
            self._finish(job, Stitched(prepared.source, prepared.target, mine))
            first += job.count

    def _finish(self, job: Job, result: Stitched | Problem) -> None:
        with self._changed:  # re-entrant: also called with the lock held
            if job.result.done():
                return
            self._num_queued -= job.count
        if isinstance(result, Problem):
            job.result.set_exception(result)
        else:
            job.result.set_result(result)


class _Prepared:
    """Trajectories completed, pairs and seeds of one request."""

    def __init__(self, model: ServedModel, request: StitchRequest) -> None:
        options, config = request.options, model.stitcher.config
        self.source = self._complete(model, "source", request.source)
        self.target = self._complete(model, "target", request.target)
        self.seeds = child_seeds(np.array([options.seed], np.int64), options.num_candidates, _SEED_STREAM)[0]
        self.pairs = cut_trajectories(
            model.bundle,
            self.source,
            self.target,
            options.num_candidates,
            cut=options.cut,
            gap=options.gap,
            config=config.pairs,
        )

    @staticmethod
    def _complete(model: ServedModel, role: Role, given: GivenTrajectory) -> Episode:
        return given_trajectory(
            model.bundle, role, given.observations, given.actions, given.rewards, terminated=given.terminated
        )
