"""A real HTTP server that answers as it is told, and answers written from the endpoint's description alone."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pytest

from raystitch.client import AsyncClient, Client, Trajectory

ARROW, JSON = "application/vnd.apache.arrow.stream", "application/json"


@dataclass(frozen=True)
class Received:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at: float
    connection: tuple[str, int]


Reply = Callable[[BaseHTTPRequestHandler, Received], None]


@dataclass
class Server:
    """Replies in order; the last one again and again."""

    url: str
    script: list[Reply] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next_reply(self, received: Received) -> Reply:
        with self.lock:
            self.received.append(received)
            return self.script.pop(0) if len(self.script) > 1 else self.script[0]


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, kind: str = JSON, **headers: str) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(body)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def problem(status: int, detail: str = "no", errors: Any = None, **headers: str) -> Reply:
    """An application/problem+json answer."""

    def reply(handler: BaseHTTPRequestHandler, received: Received) -> None:
        content = {"type": "about:blank", "title": "..", "status": status, "detail": detail, "request_id": "of-server"}
        body = json.dumps(content | ({"errors": errors} if errors else {})).encode()
        send(handler, status, body, "application/problem+json", **headers)

    return reply


def good(handler: BaseHTTPRequestHandler, received: Received) -> None:
    """The answer of ``answer``, in the format of the request, with the request's own id."""
    content = answer() | {"request_id": received.headers.get("x-request-id", "")}
    kind = received.headers["accept"]
    send(handler, 200, encoded(content) if kind == JSON else as_arrow(content), kind)


def models(handler: BaseHTTPRequestHandler, received: Received) -> None:
    """The answer to ``Client.models``."""
    send(handler, 200, b'{"models": [{"name": "default"}]}')


def hang_up(handler: BaseHTTPRequestHandler, received: Received) -> None:
    """Closes the connection without an answer."""
    handler.close_connection = True


def candidate(**changes: Any) -> dict[str, Any]:
    fields = {
        "attempt": 0,
        "pair": 3,
        "accepted": True,
        "reason": "ok",
        "failed": [],
        "gap": 1,
        "source_step": 1,
        "target_step": 0,
        "residuals": [0.25, 0.5],
        "residual_max": 0.5,
        "delta": 0.75,
        "spread_max": 0.1,
        "rollout_deviation": 0.2,
        "termination_max": 0.3,
        "return_source": 1.5,
        "return_stitched": 2.5,
        "observations": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]],
        "actions": [[0.5], [0.25]],
        "rewards": [1.0, 2.0],
    }
    return fields | changes


def answer() -> dict[str, Any]:
    """Two source states, one generated, two target states; a second candidate whose numbers are not finite."""
    best = candidate()
    bad = candidate(pair=0, accepted=False, reason="non_finite", failed=["non_finite"], residual_max=None)
    bad |= {"residuals": [None, 0.5]}
    shown = ("accepted", "reason", "gap", "source_step", "target_step", "residuals", "delta")
    shown += ("return_source", "return_stitched")
    return {name: best[name] for name in shown} | {
        "request_id": "r",
        "inferred": ["source.actions"],
        "num_candidates": 2,
        "num_accepted": 1,
        "model": "sha256:ab",
        "seed": 7,
        "added_by_a_newer_server": 1,
        "trajectory": {
            "observations": [[0.0, 1.0], [1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]],
            "actions": [[0.0], [0.5], [0.25], [1.0]],
            "rewards": [0.0, 1.0, 2.0, 3.0],
            "is_synthetic": [False, True, True, False],
        },
        "candidates": [best, bad],
    }


def encoded(content: Any) -> bytes:
    return json.dumps(content).encode()


def as_arrow(content: dict[str, Any]) -> bytes:
    path = content["trajectory"]
    table = pa.table(
        {
            "step": pa.array(range(5), pa.int32()),
            "observation": pa.array(path["observations"], pa.list_(pa.float32(), 2)),
            "action": pa.array([*path["actions"], None], pa.list_(pa.float32(), 1)),
            "reward": pa.array([*path["rewards"], None], pa.float32()),
            "is_synthetic": pa.array([*path["is_synthetic"], None], pa.bool_()),
        },
        metadata={"result": json.dumps({name: value for name, value in content.items() if name != "trajectory"})},
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            received = Received(self.command, self.path, headers, body, time.monotonic(), self.client_address)
            state.next_reply(received)(self, received)

        do_GET = do_POST

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        block_on_close = False

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Clients that hang up are part of the tests."""

    with Quiet(("127.0.0.1", 0), Handler) as http:
        state.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield state
        http.shutdown()
        thread.join()


class Ask(Protocol):
    def __call__(self, url: str, call: str, *args: Any, client: dict[str, Any] = ..., **kwargs: Any) -> Any: ...


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Makes one call with a client of its own, of each kind."""

    def with_sync(url: str, call: str, *args: Any, client: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        with Client(url, **client or {}) as made:
            return getattr(made, call)(*args, **kwargs)

    def with_async(url: str, call: str, *args: Any, client: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        async def run() -> Any:
            async with AsyncClient(url, **client or {}) as made:
                return await getattr(made, call)(*args, **kwargs)

        return asyncio.run(run())

    return with_sync if request.param == "sync" else with_async


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of hundredths of seconds."""
    monkeypatch.setattr("raystitch.client.exchange.BACKOFF_SECONDS", 0.01)


@pytest.fixture
def pair() -> tuple[Trajectory, Trajectory]:
    """Three states without actions and rewards; four with both, terminated. O = 2, A = 1."""
    source = Trajectory(np.arange(6).reshape(3, 2))
    target = Trajectory(np.arange(8).reshape(4, 2) / 8, [[0.5], [0.25], [1]], [1, 2, 3], terminated=True)
    return source, target
