"""Concurrent requests in one call of the sampler, on a thread of its own.

The event loop only counts and waits. A call takes what waits when the sampler is free, up to ``max_candidates``; it
waits for requests that are being received or likely to come, for a bounded time. Rows depend on their own seed alone,
so the answer does not depend on the company.
"""

import asyncio
import faulthandler
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from raystitch.data.episodes import Episode
from raystitch.endpoint.config import EndpointConfig
from raystitch.endpoint.metrics import Recorder
from raystitch.endpoint.models import ServedModel
from raystitch.endpoint.pace import Pace
from raystitch.endpoint.problems import Problem, busy, invalid, unavailable
from raystitch.endpoint.queue import JobQueue, QueuedRequest, Stitched
from raystitch.endpoint.request import ROLES, GivenTrajectory, Role, StitchRequest
from raystitch.errors import UserError
from raystitch.seeding import child_seeds
from raystitch.stitching.candidates import Pairs
from raystitch.stitching.pairs import cut_trajectories, given_trajectory

_SEED_STREAM = 40
_LATE = "the deadline passed before the bridges were made; ask for fewer candidates, or later"
EXIT_SECONDS = 1.0
"""Seconds from the moment a call counts as hung to the end of the process: time to log it."""


class Batcher:
    """Queue and thread of one replica.

    Args:
        receiving: how many requests are being received at the moment.
        exits: end the process when a call hangs. A thread cannot be stopped, and one that is stuck in foreign code may
            even keep all others from running; the process that replaces this one begins afresh.

    Attributes:
        config: settings of batches, and of what a call may take.
        cpu_seconds: of the thread's calls (torch's further threads not counted).
    """

    def __init__(
        self,
        config: EndpointConfig,
        recorder: Recorder,
        receiving: Callable[[], int] = lambda: 0,
        *,
        exits: bool = False,
    ) -> None:
        self.config = config
        self._recorder = recorder
        self._receiving = receiving
        self._exits = exits
        self._changed = threading.Condition()
        self._pace = Pace()
        self._waiting = JobQueue(self._pace)
        self._num_running = 0
        self._last_requests = 0
        self.cpu_seconds = 0.0
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="sampler", daemon=True)
        self._thread.start()

    @property
    def num_queued(self) -> int:
        """Candidates that wait or are computed."""
        return self._waiting.candidates + self._num_running

    @property
    def alive(self) -> bool:
        """True while the thread works, and after it was closed."""
        return self._closed or self._thread.is_alive()

    @property
    def hung(self) -> bool:
        """True while the current call has run longer than any call should."""
        return self._pace.running > self.config.limits.longest_call

    async def stitch(self, model: ServedModel, request: StitchRequest, request_id: str, deadline: float) -> Stitched:
        """Wait for the request's turn, until ``deadline`` in ``time.monotonic`` seconds.

        Raises:
            Problem: 429 when the queue is full, 504 at the deadline or when it cannot be met, 422 for trajectories
                that cannot be stitched, 503 when the endpoint stops.
        """
        job = QueuedRequest(model, request, request_id, deadline)
        self._submit(job)
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                return await asyncio.wrap_future(job.result)
        except TimeoutError:
            raise Problem(504, _LATE) from None
        finally:
            self._forget(job)

    def close(self) -> None:
        """End the thread after the current call, unless that hangs; waiting requests are refused with 503."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(max(0.0, self.config.limits.longest_call - self._pace.running))

    def check_room(self, deadline: float, count: int = 1) -> None:
        """Refuse a request if the queue has no room for ``count`` candidates or they cannot be done by ``deadline``.

        A request larger than the whole queue may wait when nothing else does.

        Raises:
            Problem: 429, or 504 for a deadline that cannot be met at all.
        """
        with self._changed:
            config, queued = self.config.batching, self.num_queued
            if queued and queued + count > config.max_queued_candidates:
                excess = max(0, self._waiting.candidates + count - config.max_queued_candidates)
                seconds = self._pace.remaining + self._pace.backlog(excess, config.max_candidates)
                raise busy(f"{queued} candidates are waiting already; try again later", math.ceil(seconds))
            self._waiting.check(count, deadline, config)

    def _submit(self, job: QueuedRequest) -> None:
        with self._changed:
            if self._closed:
                raise unavailable("the endpoint is stopping")
            self._waiting.seen(job.count)
            self.check_room(job.deadline, job.count)
            self._waiting.add(job)
            self._changed.notify()

    def _forget(self, job: QueuedRequest) -> None:
        """Make room at once when nobody waits for the request any more: the deadline passed, or the client went
        away."""
        with self._changed:
            self._waiting.discard(job)

    def _work(self) -> None:
        while (jobs := self._next()) is not None:
            if jobs:
                self._run(jobs)

    def _next(self) -> list[QueuedRequest] | None:
        """Return the requests of the next call; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            until = time.monotonic() + self.config.batching.wait_seconds
            while not self._closed and self._expects_more():
                left = min(until, self._waiting.start_by()) - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            if self._closed:
                for job in self._waiting.clear():
                    _refuse(job, unavailable("the endpoint is stopping"))
                return None
            for job in self._waiting.drop_late():
                _refuse(job, Problem(504, _LATE))
            jobs = [
                job for job in self._waiting.take(self.config.batching) if job.result.set_running_or_notify_cancel()
            ]
            self._last_requests = len(jobs)
            self._num_running = sum(job.count for job in jobs)
            return jobs

    def _expects_more(self) -> bool:
        """Return True if it pays to wait: there is room, and requests are being received or fewer have come than the
        last call had. Clients that got an answer often ask again at once."""
        if not self._waiting or self._waiting.candidates >= self.config.batching.max_candidates:
            return False
        return self._receiving() > 0 or len(self._waiting) < self._last_requests

    def _run(self, jobs: Sequence[QueuedRequest]) -> None:
        begun, cpu = time.monotonic(), time.thread_time()
        for job in jobs:
            self._recorder.queued(begun - job.entered)
        self._attempt(jobs)
        self.cpu_seconds += time.thread_time() - cpu

    def _attempt(self, jobs: Sequence[QueuedRequest]) -> None:
        """Make one call for all requests. If it fails, make one for each, so that nobody suffers from another's
        request."""
        ready: list[tuple[QueuedRequest, _Prepared]] = []
        computed = 0
        self._pace.begin(sum(job.count for job in jobs))
        try:
            with self._watched():
                ready += [(job, prepared) for job in jobs if (prepared := self._prepare(job)) is not None]
                if ready:
                    self._stitch(ready)
                computed = sum(job.count for job, _ in ready)
        except Exception as error:
            if len(ready) == 1:
                self._fail(ready[0][0], error)
                ready = []
        finally:
            self._pace.end(computed)
        if not computed:
            for job, _ in ready:
                self._attempt([job])

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Run a call; if it hangs, the process ends with every thread's stack in the log. The timer needs no Python
        thread, because foreign code that hangs may keep all of them from running."""
        if self._exits:
            faulthandler.dump_traceback_later(self.config.limits.longest_call + EXIT_SECONDS, exit=True)
        try:
            yield
        finally:
            if self._exits:
                faulthandler.cancel_dump_traceback_later()

    def _prepare(self, job: QueuedRequest) -> "_Prepared | None":
        """Return the request's pairs. When there are none, answer the request and return None."""
        try:
            return _Prepared(job.model, job.request)
        except UserError as error:
            field, _, message = str(error).partition(": ")
            named = field.partition(".")[0] in ROLES
            self._finish(job, invalid(field, message) if named else invalid("body", str(error)))
        except Exception as error:
            self._fail(job, error)
        return None

    def _fail(self, job: QueuedRequest, error: Exception) -> None:
        """Answer 503 for a fault of ours. The thread goes on with the next request."""
        self._recorder.fault(error, [job.request_id])
        self._finish(job, unavailable("stitching failed unexpectedly; it was logged under this request's id"))

    def _stitch(self, ready: "Sequence[tuple[QueuedRequest, _Prepared]]") -> None:
        pairs = Pairs.concatenate([prepared.pairs for _, prepared in ready])
        seeds = np.concatenate([prepared.seeds for _, prepared in ready])
        candidates = ready[0][0].model.stitcher.stitch(pairs, seeds)
        self._recorder.called(len(ready), len(pairs), self._pace.running)
        first = 0
        for job, prepared in ready:
            mine = candidates.take((candidates.first_row >= first) & (candidates.first_row < first + job.count))
            mine.first_row = mine.first_row - first
            self._finish(job, Stitched(prepared.source, prepared.target, mine))
            first += job.count

    def _finish(self, job: QueuedRequest, result: Stitched | Problem) -> None:
        if job.result.done():
            return
        self._num_running -= job.count
        _settle(job, result)


def _settle(job: QueuedRequest, result: Stitched | Problem) -> None:
    if isinstance(result, Problem):
        job.result.set_exception(result)
    else:
        job.result.set_result(result)


def _refuse(job: QueuedRequest, problem: Problem) -> None:
    """Answer a waiting request, unless nobody wants the answer any more."""
    if job.result.set_running_or_notify_cancel():
        _settle(job, problem)


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
