"""What happens to one request: read, checked, stitched with others, answered.

The routes of ``app`` call it; it knows HTTP only as headers, a body and an answer.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from raystitch.endpoint import arrow_wire, json_wire
from raystitch.endpoint.answer import Answer, make_answer
from raystitch.endpoint.batcher import Batcher, Stitched
from raystitch.endpoint.body import check_encoding, decompress, read_body
from raystitch.endpoint.config import EndpointConfig
from raystitch.endpoint.metrics import NoRecorder, Recorder
from raystitch.endpoint.models import Models, ServedModel
from raystitch.endpoint.problems import Problem, busy, unavailable
from raystitch.endpoint.request import StitchRequest

_READERS = {json_wire.MEDIA_TYPE: json_wire.read_json_request, arrow_wire.MEDIA_TYPE: arrow_wire.read_arrow_request}
_WRITERS: dict[str, Callable[[Answer], bytes]] = {
    json_wire.MEDIA_TYPE: lambda answer: json_wire.write_json(answer.to_json()),
    arrow_wire.MEDIA_TYPE: arrow_wire.write_arrow,
}
_SMALL_BODY = 32 * 1024
Scrape = Callable[[], Awaitable[str]]


@dataclass(eq=False)
class Endpoint:
    """What the routes share.

    Attributes:
        receiving: requests that are being read. ongoing: those that are not answered yet.
        stopping: nothing new is taken on.
        scrape: the metrics as Prometheus text; None where there are none.
    """

    config: EndpointConfig
    models: Models
    recorder: Recorder = field(default_factory=NoRecorder)
    scrape: Scrape | None = None
    receiving: int = 0
    ongoing: int = 0
    stopping: bool = False

    def __post_init__(self) -> None:
        self.batcher = Batcher(self.config.batching, self.recorder, lambda: self.receiving)
        self._workers = ThreadPoolExecutor(2, thread_name_prefix="wire")

    async def run(self, work: Callable[..., Any], *args: Any, inline: bool) -> Any:
        """A moment's work at once, more of it off the event loop."""
        if inline:
            return work(*args)
        return await asyncio.get_running_loop().run_in_executor(self._workers, work, *args)

    def configure(self, config: EndpointConfig) -> None:
        """Other settings from the next request on."""
        self.config = config
        self.batcher.config = config.batching

    def close(self) -> None:
        """Ends the threads; what is being computed is finished."""
        self.stopping = True
        self.batcher.close()
        self._workers.shutdown(wait=False)

    def check_ready(self) -> None:
        """Raises: Problem 503 while starting and stopping."""
        if self.stopping:
            raise unavailable("the endpoint is stopping")
        if not len(self.models):
            raise unavailable("the models are being loaded")

    async def stitch(self, request: Request) -> Response:
        """One request of ``/v1/stitch``."""
        begun, outcome = time.monotonic(), "fault"
        self.ongoing += 1
        try:
            answer, writer, media_type = await self._answer(request)
            outcome = "accepted" if answer.summary["accepted"] else "rejected"
            content = await self.run(writer, answer, inline=answer.summary["candidates"] is None)
            return Response(content, media_type=media_type)
        except Problem as problem:
            outcome = str(problem.status)
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
        wait = _preferred_wait(request.headers.get("prefer", ""), self.config.limits.deadline_seconds)
        checked = await self._receive(request, kind)
        deadline = time.monotonic() + wait
        model = self.models.get(checked.options.model, field="options.model")
        stitched = await self.batcher.stitch(model, checked, request_id, deadline)
        answer = _describe(model, checked, stitched, request_id)
        self.recorder.judged(answer.reasons, stitched.candidates.residual_max)
        return answer, _WRITERS[answer_kind], answer_kind

    async def _receive(self, request: Request, kind: str) -> StitchRequest:
        if self.receiving >= self.config.batching.max_receiving:
            raise busy(f"{self.receiving} requests are being received already; try again", 1)
        self.batcher.check_room()  # before the body is read: refusing must cost little
        limits, encoding = self.config.limits, check_encoding(request.headers.get("content-encoding", ""))
        self.receiving += 1
        try:
            body = await read_body(request, limits)

            def read() -> StitchRequest:
                plain = decompress(body, encoding, limits)
                if kind == json_wire.MEDIA_TYPE:
                    json_wire.refuse_floods(plain, limits, self.models.numbers_per_step)
                return _READERS[kind](plain, self._sizes, limits)

            return await self.run(read, inline=not encoding and len(body) <= _SMALL_BODY)
        finally:
            self.receiving -= 1

    def _sizes(self, name: str) -> Any:
        return self.models.get(name, field="options.model").sizes


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
    """The answer's type: the request's own where that is accepted.

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
