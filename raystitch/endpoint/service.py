"""The path of one request: read, check, stitch together with others, answer.

The routes of ``app`` call it. It handles headers, a body and an answer, and no other part of HTTP.
"""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from raystitch.endpoint import arrow_wire, documents, json_wire
from raystitch.endpoint.answer import Answer, make_answer
from raystitch.endpoint.batcher import Batcher
from raystitch.endpoint.body import check_encoding, decompress, read_body
from raystitch.endpoint.config import EndpointConfig
from raystitch.endpoint.intake import Held, Intake
from raystitch.endpoint.metrics import NoRecorder, Recorder
from raystitch.endpoint.models import Models, ModelSet, ServedModel
from raystitch.endpoint.problems import Problem, busy, invalid, unavailable
from raystitch.endpoint.queue import Stitched
from raystitch.endpoint.request import GivenTrajectory, Options, StitchRequest, validation_problem
from raystitch.endpoint.security import client_of
from raystitch.errors import UserError

logger = logging.getLogger(__name__)

_READERS = {json_wire.MEDIA_TYPE: json_wire.read_json_request, arrow_wire.MEDIA_TYPE: arrow_wire.read_arrow_request}
_WRITERS: dict[str, Callable[[Answer], bytes]] = {
    json_wire.MEDIA_TYPE: lambda answer: json_wire.write_json(answer.to_json()),
    arrow_wire.MEDIA_TYPE: arrow_wire.write_arrow,
}
_SMALL_BODY = 32 * 1024
_REPLACED_SECONDS = 10
_WARM_UP = (1, 8, 8)
Scrape = Callable[[], Awaitable[str]]
Choose = Callable[[str, str], Awaitable[None]]
_VERSION_BYTES = 1000


@dataclass(eq=False)
class Endpoint:
    """The state that all routes share.

    Attributes:
        receiving: requests that are being read. ongoing: those that are not answered yet.
        stopping: nothing new is taken on.
        scrape: the metrics as Prometheus text; None where there are none.
        choose: brings a version of a model back, here and in the other replicas; None: here alone.
        exits: end the process when a call of the sampler hangs.
        intake: bytes of the requests that are received or wait.
    """

    config: EndpointConfig
    models: Models
    recorder: Recorder = field(default_factory=NoRecorder)
    scrape: Scrape | None = None
    receiving: int = 0
    ongoing: int = 0
    stopping: bool = False
    choose: Choose | None = None
    exits: bool = False
    intake: Intake = field(default_factory=Intake)

    def __post_init__(self) -> None:
        self.batcher = Batcher(self.config, self.recorder, lambda: self.receiving, exits=self.exits)
        self._workers = ThreadPoolExecutor(2, thread_name_prefix="wire")

    async def run(self, work: Callable[..., Any], *args: Any, inline: bool) -> Any:
        """Run quick work at once and longer work off the event loop."""
        if inline:
            return work(*args)
        return await asyncio.get_running_loop().run_in_executor(self._workers, work, *args)

    def configure(self, config: EndpointConfig) -> None:
        """Replace the settings from the next request on."""
        self.config = config
        self.batcher.config = config

    def close(self) -> None:
        """End the threads; the computation in progress is finished."""
        self.stopping = True
        self.batcher.close()
        self._workers.shutdown(wait=False)

    async def warm_up(self) -> None:
        """Stitch made-up trajectories, so that the first call is quick and the duration of the next ones is known."""
        for model in self.models:
            try:
                for count in _WARM_UP:
                    until = time.monotonic() + self.config.limits.longest_call
                    await self.batcher.stitch(model, _made_up(model, count), "warm-up", until)
            except Problem as problem:
                logger.warning("model %s cannot be tried out: %s", model.name, problem.detail)

    def check_health(self) -> None:
        """Raises: Problem 503 when the sampler's thread hangs or is gone; only another process helps."""
        if self.batcher.hung or not self.batcher.alive:
            state = "hangs" if self.batcher.hung else "has ended"
            raise unavailable(f"the sampler {state}; this replica is being replaced", _REPLACED_SECONDS)

    async def choose_version(self, name: str, request: Request) -> ServedModel:
        """Serve the version of a model that the request's body names.

        Raises:
            Problem: 404 for a model that is not served, 422 for a version that is not kept.
        """
        model = self.models.get(name)
        with self.intake.hold(_client(request, self.config), self.config.batching) as held:
            limits = replace(self.config.limits, max_body_bytes=_VERSION_BYTES)
            body = await read_body(request, limits, held)
        try:
            version = documents.VersionBody.model_validate_json(body).hash
        except ValidationError as error:
            raise validation_problem(error) from None
        wanted = model.previous if version == "previous" else version
        if wanted is None:
            raise invalid("hash", f"there is no version before {model.bundle.hash} here")
        try:
            if self.choose is not None:
                await self.choose(name, wanted)
            else:
                await self.choose_here(name, wanted)
        except UserError as error:
            raise invalid("hash", str(error)) from None
        return self.models.get(name)

    async def choose_here(self, name: str, version: str) -> None:
        """Raises: UserError when the version is not kept on this machine."""
        await asyncio.to_thread(self.models.choose, name, version, self.config)

    def check_ready(self) -> None:
        """Raises: Problem 503 while starting and stopping, and when the sampler hangs."""
        self.check_health()
        if self.stopping:
            raise unavailable("the endpoint is stopping")
        if not len(self.models):
            raise unavailable("the models are being loaded")

    async def stitch(self, request: Request) -> Response:
        """Answer one request of ``/v1/stitch``."""
        begun, outcome = time.monotonic(), "fault"
        self.ongoing += 1
        try:
            answer, writer, media_type = await self._answer(request)
            outcome = "accepted" if answer.summary["accepted"] else "rejected"
            content = await self.run(writer, answer, inline=answer.summary["candidates"] is None)
            return Response(content, media_type=media_type)
        except Problem as problem:
            outcome = "disconnected" if isinstance(problem, _Left) else str(problem.status)
            raise
        except asyncio.CancelledError:
            outcome = "disconnected"
            raise
        finally:
            self.ongoing -= 1
            self.recorder.answered(outcome, time.monotonic() - begun)

    async def _answer(self, request: Request) -> tuple[Answer, Callable[[Answer], bytes], str]:
        request_id: str = request.state.request_id
        self.check_ready()
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in _READERS:
            accepted = ", ".join(_READERS)
            raise Problem(415, f"Content-Type {kind[:80]!r} is not one of {accepted}", headers={"Accept": accepted})
        answer_kind = _negotiate(request.headers.get("accept", ""), kind)
        # A request keeps the settings and bundles it started with, even across a reload.
        config, models = self.config, self.models.now()
        wait = _preferred_wait(request.headers.get("prefer", ""), config.limits.deadline_seconds)
        self._check_room(wait)
        with self.intake.hold(_client(request, config), config.batching) as held:
            checked, received = await self._receive(request, kind, config, models, held)
            held.settle(_size(checked))
            deadline = received + wait
            model = models.get(checked.options.model, field="options.model")
            stitched = await _unless_left(request, self.batcher.stitch(model, checked, request_id, deadline))
        answer = _describe(model, checked, stitched, request_id)
        self.recorder.judged(answer.reasons, stitched.candidates.residual_max)
        return answer, _WRITERS[answer_kind], answer_kind

    def _check_room(self, wait: float) -> None:
        """Refuse early: a request that is bound to be refused must cost little, so its body is not read.

        Raises:
            Problem: 429, 504.
        """
        batching = self.config.batching
        if self.receiving >= batching.max_receiving:
            raise busy(f"{self.receiving} requests are being received already; try again", 1)
        if self.ongoing > batching.max_requests:
            raise busy(f"{self.ongoing - 1} requests wait for their answers already; try again", 1)
        self.batcher.check_room(time.monotonic() + wait)

    async def _receive(
        self, request: Request, kind: str, config: EndpointConfig, models: ModelSet, held: Held
    ) -> tuple[StitchRequest, float]:
        """Return the request, and when its last byte came."""
        limits, encoding = config.limits, check_encoding(request.headers.get("content-encoding", ""))
        self.receiving += 1
        try:
            body = await read_body(request, limits, held)
            received = time.monotonic()

            def read() -> StitchRequest:
                plain = decompress(body, encoding, limits)
                if kind == json_wire.MEDIA_TYPE:
                    json_wire.refuse_floods(plain, limits, models.numbers_per_step)
                return _READERS[kind](plain, lambda name: models.get(name, field="options.model").sizes, limits)

            return await self.run(read, inline=not encoding and len(body) <= _SMALL_BODY), received
        finally:
            self.receiving -= 1


class _Left(Problem):
    """The caller went away, so nobody reads this answer."""


async def _unless_left(request: Request, work: Coroutine[Any, Any, Stitched]) -> Stitched:
    """Return the result of the work, unless the caller leaves first.

    A server cancels a request whose caller leaves, or it does not: Serve's proxy leaves it to a header of the caller's.
    """
    left = asyncio.ensure_future(request.receive())  # the body has been read, so only http.disconnect can follow
    working = asyncio.ensure_future(work)
    try:
        await asyncio.wait((working, left), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise _Left(400, "the caller left before the answer")
    finally:
        for task in (working, left):
            task.cancel()


def _made_up(model: ServedModel, count: int) -> StitchRequest:
    """Make a request for bridges between two short walks about the mean of the model's data."""
    rng, bundle = np.random.default_rng(0), model.bundle

    def walk() -> GivenTrajectory:
        steps = rng.normal(0, 0.1, (model.sizes.gap_max + 2, bundle.obs_dim)).cumsum(0)
        observations = bundle.normalizer.decode(steps.astype(np.float32))
        return GivenTrajectory(observations=observations, actions=None, rewards=None, terminated=False)

    return StitchRequest(source=walk(), target=walk(), options=Options.model_validate({"num_candidates": count}))


def _client(request: Request, config: EndpointConfig) -> str:
    """Return the client that a request counts for: the name of its token, else the address that it came from."""
    name = request.scope["state"].get("token")
    return f"token {name}" if name else client_of(request.scope, config.trusted_networks)


def _size(request: StitchRequest) -> int:
    """Bytes of a request that was read."""
    return sum(
        column.nbytes
        for given in (request.source, request.target)
        for column in (given.observations, given.actions, given.rewards)
        if column is not None
    )


def _describe(model: ServedModel, request: StitchRequest, stitched: Stitched, request_id: str) -> Answer:
    options, config = request.options, model.stitcher.config.qualify
    given = {"source": request.source, "target": request.target}
    return make_answer(
        model.bundle,
        config,
        stitched.source,
        stitched.target,
        stitched.candidates,
        delta=config.delta if options.delta is None else options.delta,
        return_all=options.return_all,
        about={
            "request_id": request_id,
            "model": model.bundle.hash,
            "seed": options.seed,
            "inferred": [
                f"{role}.{column}"
                for role, trajectory in given.items()
                for column in ("actions", "rewards")
                if getattr(trajectory, column) is None
            ],
        },
    )


def _negotiate(accept: str, kind: str) -> str:
    """Return the answer's type: the request's own where the client accepts it.

    Raises:
        Problem: 406.
    """
    ranges = [part.partition(";")[0].strip().lower() for part in accept.split(",") if part.strip()]
    refused = {
        part.partition(";")[0].strip().lower() for part in accept.split(",") if re.search(r";\s*q=0(\.0*)?$", part)
    }
    wanted = [value for value in ranges if value not in refused] or (["*/*"] if not ranges else [])
    for offered in (kind, *_WRITERS):
        if offered not in refused and {offered, offered.partition("/")[0] + "/*", "*/*"} & set(wanted):
            return offered
    raise Problem(406, f"Accept names none of {', '.join(_WRITERS)}")


def _preferred_wait(prefer: str, longest: float) -> float:
    """Seconds until the deadline: ``Prefer: wait=N`` (RFC 7240), at most the endpoint's own."""
    match = re.search(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,9}(?:\.\d{1,6})?)", prefer)
    return min(float(match[1]), longest) if match else longest
