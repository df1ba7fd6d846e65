"""Retries, pauses and time-outs against a server that misbehaves as told."""

import asyncio
import email.utils
import gzip
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raystitch.client import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    StitchError,
    Trajectory,
    Unauthorized,
)
from raystitch.client.exchange import pause_seconds, preferred_wait, retry_after_seconds
from tests.client.conftest import (
    JSON,
    Ask,
    Received,
    Server,
    answer,
    as_arrow,
    encoded,
    good,
    hang_up,
    models,
    problem,
    send,
)

Pair = tuple[Trajectory, Trajectory]
LATE_SECONDS = 1.0
"""How much later than asked an answer may come on a busy machine."""


def test_pauses_grow_and_keep_what_the_server_asks_for() -> None:
    assert [pause_seconds(attempt, None, 1.0) for attempt in range(7)] == [0.25, 0.5, 1, 2, 4, 8, 8]
    assert pause_seconds(3, None, 0.0) == 0
    assert pause_seconds(1, 3.0, 0.5) == 3.25
    assert pause_seconds(1, 3600.0, 0.0) == 60


def test_retry_after_is_seconds_or_a_date() -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert retry_after_seconds("7", now) == 7
    assert retry_after_seconds("Fri, 02 Jan 2026 03:04:15 GMT", now) == 10
    assert retry_after_seconds("Fri, 02 Jan 2026 03:04:00 GMT", now) == 0
    for nothing in (None, "", "soon", "-1", "1.5", "²", "Fri, 02 Jan 2026 03:04:15 -0000"):
        assert retry_after_seconds(nothing, now) is None, nothing


def test_the_server_is_told_a_little_less_than_what_is_left() -> None:
    assert [preferred_wait(left) for left in (29.999, 2.0, 1.0, 0.01)] == [
        "wait=29",
        "wait=2",
        "wait=0.800",
        "wait=0.008",
    ]


@pytest.mark.usefixtures("quick")
def test_what_may_pass_is_tried_again(server: Server, ask: Ask, pair: Pair) -> None:
    server.script = [problem(429), problem(500), hang_up, half_an_answer, problem(503), problem(502), good]
    result = ask(server.url, "stitch", *pair, client={"max_retries": 6})
    assert result.accepted
    assert len(server.received) == 7
    (name,) = {each.headers["x-request-id"] for each in server.received}
    assert result.request_id == name
    assert len({each.body for each in server.received}) == 1


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequest),
        (401, Unauthorized),
        (403, Unauthorized),
        (404, InvalidRequest),
        (406, StitchError),
        (408, DeadlineExceeded),
        (413, InvalidRequest),
        (415, InvalidRequest),
        (422, InvalidRequest),
        (501, StitchError),
        (504, DeadlineExceeded),
    ],
)
def test_what_cannot_pass_is_not_tried_again(
    server: Server, ask: Ask, pair: Pair, status: int, kind: type[StitchError]
) -> None:
    errors = [{"field": "options.gap", "message": "99 is outside 4..24"}]
    server.script = [problem(status, "why", errors)]
    with pytest.raises(StitchError, match=rf"^{status}: why \(request of-server\)$") as caught:
        ask(server.url, "stitch", *pair)
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.detail, caught.value.request_id) == (status, "why", "of-server")
    assert caught.value.errors == tuple(errors)
    assert len(server.received) == 1


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("max_retries", [0, 2])
def test_attempts_are_counted(server: Server, ask: Ask, pair: Pair, max_retries: int) -> None:
    server.script = [problem(503, "starting")]
    with pytest.raises(Overloaded, match="503: starting"):
        ask(server.url, "stitch", *pair, client={"max_retries": max_retries})
    assert len(server.received) == 1 + max_retries


@pytest.mark.usefixtures("quick")
def test_retry_after_is_waited_for(server: Server, ask: Ask, pair: Pair) -> None:
    server.script = [problem(429, Retry_After="1"), good]
    assert ask(server.url, "stitch", *pair).accepted
    first, second = server.received
    assert second.at - first.at >= 1
    assert [each.headers["prefer"] for each in server.received] == ["wait=29", "wait=28"]


@pytest.mark.usefixtures("quick")
def test_a_date_is_waited_for(server: Server, ask: Ask) -> None:
    then = datetime.now(UTC) + timedelta(seconds=2)  # 1 to 2 seconds from now: dates have whole seconds
    server.script = [problem(503, Retry_After=email.utils.format_datetime(then, usegmt=True)), models]
    ask(server.url, "models")
    first, second = server.received
    assert second.at - first.at >= 0.9


def test_a_pause_past_the_timeout_is_not_begun(server: Server, ask: Ask, pair: Pair) -> None:
    server.script = [problem(429, "queue full", Retry_After="20")]
    begun = time.monotonic()
    with pytest.raises(Overloaded, match="429: queue full") as caught:
        ask(server.url, "stitch", *pair, client={"timeout": 5})
    assert time.monotonic() - begun < LATE_SECONDS
    assert caught.value.retry_after == 20
    assert len(server.received) == 1


def test_retries_end_with_the_timeout(server: Server, ask: Ask, pair: Pair) -> None:
    server.script = [problem(503, Retry_After="0")]
    begun = time.monotonic()
    # The last attempt may be the one that has no answer in time.
    with pytest.raises((Overloaded, DeadlineExceeded), match="503"):
        ask(server.url, "stitch", *pair, client={"timeout": 1, "max_retries": 1000})
    assert time.monotonic() - begun < 1 + LATE_SECONDS
    assert 2 <= len(server.received) < 1000  # the timeout ended it, not the number of retries


def test_an_attempt_without_an_answer_tells_of_the_one_before(server: Server, ask: Ask, pair: Pair) -> None:
    server.script = [problem(503, "starting", Retry_After="0"), slow]
    with pytest.raises(DeadlineExceeded, match="in time; the attempt before: 503: starting"):
        ask(server.url, "stitch", *pair, client={"timeout": 2})


def slow(handler: BaseHTTPRequestHandler, received: Received) -> None:
    time.sleep(4)
    good(handler, received)


def dribble(handler: BaseHTTPRequestHandler, received: Received) -> None:
    """Would take ten seconds, but is never silent for long."""
    _begin(handler)
    for _ in range(100):
        try:
            handler.wfile.write(b" ")
        except OSError:
            return
        time.sleep(0.1)


def stall(handler: BaseHTTPRequestHandler, received: Received) -> None:
    """Most of the timeout for the head, a part of the body, then nothing."""
    time.sleep(1.2)
    _begin(handler)
    handler.wfile.write(b" ")
    time.sleep(3)


def half_an_answer(handler: BaseHTTPRequestHandler, received: Received) -> None:
    _begin(handler)
    handler.wfile.write(b" ")
    handler.close_connection = True


def _begin(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()


@pytest.mark.parametrize("misbehaviour", [slow, dribble, stall])
def test_no_answer_takes_longer_than_the_timeout(server: Server, ask: Ask, pair: Pair, misbehaviour: Any) -> None:
    server.script = [misbehaviour]
    begun = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"no answer from http://127\.0\.0\.1:.* in time") as caught:
        ask(server.url, "stitch", *pair, client={"timeout": 1.5}, request_id="mine")
    assert 1.4 < time.monotonic() - begun < 1.5 + LATE_SECONDS
    assert (caught.value.status, caught.value.request_id) == (None, "mine")
    assert len(server.received) == 1


@pytest.mark.usefixtures("quick")
def test_a_server_that_is_not_there(ask: Ask, pair: Pair) -> None:
    url = f"http://127.0.0.1:{_free_port()}"
    with pytest.raises(StitchError, match=rf"^no answer from {url}: ") as caught:
        ask(url, "stitch", *pair)
    assert type(caught.value) is StitchError
    assert ask(url, "ready") is False


def test_a_server_that_comes_up_meanwhile(ask: Ask) -> None:
    """As after a restart: the connection is refused at first."""
    port, stop = _free_port(), threading.Event()

    def serve() -> None:
        stop.wait(0.3)
        with socket.create_server(("127.0.0.1", port)) as listening:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                body = b'{"models": []}'
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    thread = threading.Thread(target=serve)
    thread.start()
    assert ask(f"http://127.0.0.1:{port}", "models", client={"max_retries": 1000, "timeout": 10}) == []
    thread.join()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_answers_of_others_than_the_endpoint(server: Server, ask: Ask, pair: Pair) -> None:
    server.script = [
        lambda handler, _: send(handler, 413, b"<html>nginx</html>", "text/html"),
        lambda handler, _: send(handler, 307, b"", Location="http://127.0.0.1:9/"),
        lambda handler, _: send(handler, 404, b"[1]"),
        lambda handler, _: send(handler, 200, b"<html>welcome</html>", "text/html"),
        lambda handler, _: send(handler, 200, b"no gzip", Content_Encoding="gzip"),
    ]
    for message in (
        r"^413: Request Entity Too Large \(request",
        r"^307: Temporary Redirect \(request",
        r"^404: Not Found \(request",
        r"^200: the answer cannot be read",
        r"^no answer from http.*: ",
    ):
        with pytest.raises(StitchError, match=message):
            ask(server.url, "stitch", *pair)
    assert len(server.received) == 5


@pytest.mark.parametrize("wire", ["arrow", "json"])
def test_what_is_sent(server: Server, ask: Ask, pair: Pair, wire: str) -> None:
    server.script = [good]
    result = ask(
        f"{server.url}/behind/a/proxy/", "stitch", *pair, client={"wire": wire}, delta=0.5, seed=3, request_id="mine"
    )
    assert result.request_id == "mine"
    (sent,) = server.received
    assert (sent.method, sent.path) == ("POST", "/behind/a/proxy/v1/stitch")
    kind = {"arrow": "application/vnd.apache.arrow.stream", "json": JSON}[wire]
    assert (sent.headers["content-type"], sent.headers["accept"]) == (kind, kind)
    assert b'"delta": 0.5' in sent.body or b'"delta":0.5' in sent.body


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
@pytest.mark.parametrize("wire", ["arrow", "json"])
def test_compression_both_ways(server: Server, ask: Ask, wire: str, codec: str) -> None:
    def packed(handler: BaseHTTPRequestHandler, received: Received) -> None:
        kind = received.headers["accept"]
        body = gzip.compress(encoded(answer()) if kind == JSON else as_arrow(answer()))
        send(handler, 200, body, kind, Content_Encoding="gzip")

    long = Trajectory(np.zeros((5000, 4)))
    server.script = [packed]
    for compression in (None, codec):
        assert ask(server.url, "stitch", long, long, client={"wire": wire, "compression": compression}).accepted
    plain, small = server.received
    assert "content-encoding" not in plain.headers
    assert small.headers["content-encoding"] == codec
    assert pa.CompressedInputStream(pa.BufferReader(small.body), codec).read() == plain.body
    assert len(small.body) < len(plain.body) / 2


def test_the_other_calls(server: Server, ask: Ask) -> None:
    episode = {"index": 3, "return": 1.0, "observations": [[0], [1]], "actions": [[2]], "rewards": [3]}
    server.script = [models, problem(404)]
    assert ask(server.url, "models") == [{"name": "default"}]
    server.script = [lambda handler, _: send(handler, 200, encoded({"name": "a/b"}))]
    assert ask(server.url, "model", "a/b") == {"name": "a/b"}
    server.script = [lambda handler, _: send(handler, 200, encoded({"total": 0, "episodes": []}))]
    assert ask(server.url, "episodes", order="length", limit=5) == {"total": 0, "episodes": []}
    server.script = [lambda handler, _: send(handler, 200, encoded(episode | {"terminated": True}))]
    found = ask(server.url, "episode", np.int64(3))
    assert (found.observations.tolist(), found.actions.tolist(), found.rewards.tolist()) == ([[0], [1]], [[2]], [3])
    assert found.terminated
    assert ask(server.url, "ready") is True
    server.script = [problem(503)]
    assert ask(server.url, "ready") is False
    assert [each.path for each in server.received] == [
        "/v1/models",
        "/v1/models/a%2Fb",
        "/v1/models/default/episodes?order=length&descending=true&offset=0&limit=5",
        "/v1/models/default/episodes/3",
        "/readyz",
        "/readyz",
    ]


def test_threads_share_a_client(server: Server, pair: Pair) -> None:
    server.script = [good]
    with Client(server.url) as client, ThreadPoolExecutor(8) as pool:
        names = [f"request-{index}" for index in range(80)]
        results = list(pool.map(lambda name: client.stitch(*pair, request_id=name), names))
    assert [result.request_id for result in results] == names
    assert len({each.connection for each in server.received}) <= 8


def test_tasks_share_a_client(server: Server, pair: Pair) -> None:
    server.script = [good]

    async def run() -> list[str]:
        async with AsyncClient(server.url) as client:
            results = await asyncio.gather(*(client.stitch(*pair, request_id=f"r{index}") for index in range(20)))
            await client.stitch(*pair)
            return [result.request_id for result in results]

    assert asyncio.run(run()) == [f"r{index}" for index in range(20)]
    assert len({each.connection for each in server.received}) <= 20


def test_a_task_can_be_cancelled(server: Server, pair: Pair) -> None:
    """The caller's own time-out is not taken for the client's."""
    server.script = [slow]

    async def run() -> None:
        async with AsyncClient(server.url) as client:
            async with asyncio.timeout(0.3):
                await client.stitch(*pair)

    with pytest.raises(TimeoutError) as caught:
        asyncio.run(run())
    assert not isinstance(caught.value, StitchError)
