"""The two clients. They send and wait; ``calls.py`` makes all decisions."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Literal, Self, TypeAlias, TypeVar

import httpx

from . import calls
from .exchange import Answer, Call, Outcome, Pause, Send
from .values import Result, Trajectory
from .wire import Codec, WireName, plain_options

T = TypeVar("T")
Order: TypeAlias = Literal["return", "length", "index"]
"""By what a list of episodes is sorted."""

Cut: TypeAlias = Literal["best", "ends"]
"""Where the source is left and the target entered: at the best states, or end to start."""


class _Endpoint:
    _connect: Callable[..., Any]
    _http: Any

    def __init__(
        self,
        url: str,
        token: str | None = None,
        timeout: float = 30.0,
        max_retries: int = 4,
        wire: WireName = "arrow",
        compression: Codec | None = None,
    ) -> None:
        self._settings = calls.Settings(
            url=url, timeout=timeout, max_retries=max_retries, wire=wire, compression=compression
        )
        self._http = self._connect(**calls.connection(self._settings, token))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._settings.url!r}, wire={self._settings.wire!r})"


class Client(_Endpoint):
    """Talks to one endpoint; threads may share it. It keeps connections: make one, and close it or use it in ``with``.

    Every call raises ``Unauthorized``, ``InvalidRequest``, ``Overloaded``, ``DeadlineExceeded``, or their base
    ``StitchError`` where there is no connection or no answer that can be read.

    Args:
        url: where the endpoint is, such as ``http://127.0.0.1:8000``; a path in it is kept.
        token: where the server wants one; None: the environment's ``RAYSTITCH_TOKEN``.
        timeout: seconds that a call may take in all, retries and the pauses between them included. (Looking up the
            host's name has the system's own time-out; a server that dribbles its answer is left at its next drop.)
        max_retries: attempts after the first, on 429, 500, 502, 503 and broken connections.
        wire: ``arrow`` (quicker, smaller) or ``json``.
        compression: of requests from 32 KiB on, for slow networks: ``gzip`` or ``zstd``.

    Raises:
        ValueError: for a setting that cannot be.
    """

    _connect = httpx.Client
    _http: httpx.Client

    def stitch(
        self,
        source: Trajectory,
        target: Trajectory,
        *,
        delta: float | str | None = None,
        gap: int | None = None,
        num_candidates: int = 16,
        return_all: bool = False,
        seed: int = 0,
        cut: Cut = "best",
        model: str = "default",
        request_id: str | None = None,
    ) -> Result:
        """Join the start of ``source`` to the end of ``target``; the same arguments give the same answer.

        Args:
            delta: largest residual: a number, a quantile of real data such as ``q99``, ``auto``, or ``off``; None: the
                model's own.
            gap: number of states to generate; None: the model chooses.
            num_candidates: bridges to try; the best is returned.
            return_all: return all candidates too, to choose another threshold later (``Result.accepted_at``).
            cut: ``ends`` joins the last state of the source to the first of the target; ``best`` looks for both.
            request_id: for the server's log; printable, at most 128 characters; None: made here.

        Raises:
            ValueError: for arguments that cannot be right; nothing has been sent then.
            StitchError: as every call.
        """
        options = plain_options(
            delta=delta,
            gap=gap,
            num_candidates=num_candidates,
            return_all=return_all,
            seed=seed,
            cut=cut,
            model=model,
        )
        return self._run(calls.stitch(self._settings, source, target, options, request_id))

    def models(self) -> list[dict[str, Any]]:
        """Describe every model: name, sizes, gaps, thresholds, limits."""
        return self._run(calls.models(self._settings))

    def model(self, name: str = "default") -> dict[str, Any]:
        """Describe one model."""
        return self._run(calls.get(self._settings, calls.model_path(name)))

    def episodes(
        self,
        model: str = "default",
        *,
        order: Order = "return",
        descending: bool = True,
        offset: int = 0,
        limit: int = 50,
    ) -> dict[str, Any]:
        """Return a page of the served dataset: ``total``, and ``episodes``, each with index, steps, return and
        terminated."""
        params = {"order": order, "descending": descending, "offset": offset, "limit": limit}
        return self._run(calls.get(self._settings, calls.model_path(model, "episodes"), params))

    def episode(self, index: int, model: str = "default") -> Trajectory:
        """Return one episode of the served dataset."""
        return self._run(calls.episode(self._settings, index, model))

    def ready(self) -> bool:
        """Return True if the server is there and ready; asks once."""
        return self._run(calls.ready(self._settings))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, call: Call[T]) -> T:
        try:
            step = next(call)
            while True:
                step = call.send(self._do(step))
        except StopIteration as done:
            return done.value

    def _do(self, step: Send | Pause) -> Outcome | None:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        end = time.monotonic() + step.timeout
        try:
            with self._http.stream(**step.arguments, timeout=step.timeout) as response:
                # httpx limits each read, not all of them together, so the body's reads get the time that is left.
                response.request.extensions["timeout"]["read"] = max(1e-3, end - time.monotonic())
                parts: list[bytes] = []
                for part in response.iter_bytes():
                    parts.append(part)
                    if time.monotonic() > end:
                        raise httpx.ReadTimeout("the answer takes too long")
                return Answer(response.status_code, response.headers, b"".join(parts))
        except httpx.RequestError as error:
            return error


class AsyncClient(_Endpoint):
    """``Client`` for asyncio: the same arguments and errors, every call is awaited, and the timeout is exact."""

    _connect = httpx.AsyncClient
    _http: httpx.AsyncClient

    async def stitch(
        self,
        source: Trajectory,
        target: Trajectory,
        *,
        delta: float | str | None = None,
        gap: int | None = None,
        num_candidates: int = 16,
        return_all: bool = False,
        seed: int = 0,
        cut: Cut = "best",
        model: str = "default",
        request_id: str | None = None,
    ) -> Result:
        """As ``Client.stitch``."""
        options = plain_options(
            delta=delta,
            gap=gap,
            num_candidates=num_candidates,
            return_all=return_all,
            seed=seed,
            cut=cut,
            model=model,
        )
        return await self._run(calls.stitch(self._settings, source, target, options, request_id))

    async def models(self) -> list[dict[str, Any]]:
        """As ``Client.models``."""
        return await self._run(calls.models(self._settings))

    async def model(self, name: str = "default") -> dict[str, Any]:
        """As ``Client.model``."""
        return await self._run(calls.get(self._settings, calls.model_path(name)))

    async def episodes(
        self,
        model: str = "default",
        *,
        order: Order = "return",
        descending: bool = True,
        offset: int = 0,
        limit: int = 50,
    ) -> dict[str, Any]:
        """As ``Client.episodes``."""
        params = {"order": order, "descending": descending, "offset": offset, "limit": limit}
        return await self._run(calls.get(self._settings, calls.model_path(model, "episodes"), params))

    async def episode(self, index: int, model: str = "default") -> Trajectory:
        """As ``Client.episode``."""
        return await self._run(calls.episode(self._settings, index, model))

    async def ready(self) -> bool:
        """As ``Client.ready``."""
        return await self._run(calls.ready(self._settings))

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _run(self, call: Call[T]) -> T:
        try:
            step = next(call)
            while True:
                step = call.send(await self._do(step))
        except StopIteration as done:
            return done.value

    async def _do(self, step: Send | Pause) -> Outcome | None:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        try:
            async with asyncio.timeout(step.timeout):
                response = await self._http.request(**step.arguments, timeout=step.timeout)
            return Answer(response.status_code, response.headers, response.content)
        except TimeoutError:
            return httpx.ReadTimeout("the answer takes too long")
        except httpx.RequestError as error:
            return error
