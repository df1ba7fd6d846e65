"""Through a real server and real sockets: slow bodies, lies about their length, and callers who leave."""

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest

from raystitch.endpoint.config import BatchingConfig, LimitsConfig
from raystitch.endpoint.models import Models
from tests.endpoint.conftest import JSON, STITCH, Served, assert_same, body, listening, serving

REQUEST = json.dumps(body(num_candidates=1)).encode()


@dataclass
class Live:
    served: Served
    port: int

    def open(self, length: int | None, first: bytes = b"", *, kind: str = JSON) -> socket.socket:
        """A connection on which a request has begun."""
        made = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        sized = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
        head = f"POST {STITCH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n{sized}\r\n\r\n"
        made.sendall(head.encode() + first)
        return made

    def until_receiving(self, count: int) -> None:
        end = time.monotonic() + 5
        while self.served.endpoint.receiving != count:
            assert time.monotonic() < end, self.served.endpoint.receiving
            time.sleep(0.002)


@pytest.fixture(scope="module")
def live(models: Models) -> Iterator[Live]:
    limits = LimitsConfig(body_seconds=0.5, max_body_bytes=200_000)
    with (
        serving(models, limits=limits, batching=BatchingConfig(max_receiving=4)) as served,
        listening(served.app) as port,
    ):
        yield Live(served, port)


@pytest.fixture(autouse=True)
def idle(live: Live) -> Iterator[None]:
    yield
    assert live.served.is_idle()
    response = httpx.post(f"http://127.0.0.1:{live.port}{STITCH}", content=REQUEST, headers={"Content-Type": JSON})
    assert response.status_code == 200


def answer(connection: socket.socket) -> tuple[int, bytes]:
    """Status, and everything until the other side closes."""
    received = b""
    while part := connection.recv(65536):
        received += part
    return int(received.split(b" ")[1]), received


@pytest.mark.parametrize("length", [len(REQUEST), None])
def test_a_slow_body_is_408_and_the_connection_is_closed(live: Live, length: int | None) -> None:
    first = REQUEST[:100] if length is not None else b"64\r\n" + REQUEST[:100] + b"\r\n"
    begun = time.monotonic()
    with live.open(length, first) as connection:
        status, received = answer(connection)
    assert status == 408 and b"within 0.5 s" in received and b"onnection: close" in received
    assert 0.45 < time.monotonic() - begun < 3


def test_a_body_that_trickles_is_408_too(live: Live) -> None:
    with live.open(len(REQUEST)) as connection:
        for index in range(4):
            connection.sendall(REQUEST[index : index + 1])
            time.sleep(0.1)
        assert answer(connection)[0] == 408


def test_a_body_of_several_parts_is_read(live: Live) -> None:
    with live.open(len(REQUEST)) as connection:
        for start in range(0, len(REQUEST), 1000):
            connection.sendall(REQUEST[start : start + 1000])
            time.sleep(0.01)
        assert b" 200 OK" in connection.recv(65536)


def test_a_caller_who_leaves_in_the_middle_of_a_body_leaves_nothing(live: Live) -> None:
    connections = [live.open(len(REQUEST), REQUEST[:50]) for _ in range(4)]
    live.until_receiving(4)
    for connection in connections:
        connection.close()
    live.until_receiving(0)


def test_too_many_bodies_at_once_are_429(live: Live) -> None:
    with httpx.Client() as client:  # made before the bodies begin, which have half a second
        connections = [live.open(len(REQUEST), REQUEST[:50]) for _ in range(4)]
        live.until_receiving(4)
        url = f"http://127.0.0.1:{live.port}{STITCH}"
        response = client.post(url, content=REQUEST, headers={"Content-Type": JSON})
    assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1
    for connection in connections:
        connection.sendall(REQUEST[50:])
        assert b" 200 OK" in connection.recv(65536)
        connection.close()


def test_a_caller_who_leaves_while_waiting_leaves_nothing(live: Live) -> None:
    for _ in range(5):
        live.open(len(REQUEST), REQUEST).close()
    assert live.served.is_idle()


def test_more_than_was_announced_is_the_next_request(live: Live) -> None:
    with live.open(
        len(REQUEST), REQUEST + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    ) as sent:
        _, received = answer(sent)
    assert received.count(b"HTTP/1.1 200 OK") == 2 and received.endswith(b'{"status":"ok"}')


@pytest.mark.parametrize("length", [200_001, 10**15])
def test_too_much_is_refused_before_it_is_sent(live: Live, length: int) -> None:
    with live.open(length) as connection:
        status, received = answer(connection)
    assert status == 413 and b"200,000 bytes" in received


def test_too_much_in_chunks_is_refused_on_the_way(live: Live) -> None:
    with live.open(None) as connection:
        sent = 0
        try:
            while sent < 50_000_000:
                connection.sendall(b"2710\r\n" + b" " * 10_000 + b"\r\n")
                sent += 10_000
        except OSError:
            pass
        assert sent < 20_000_000
    assert live.served.is_idle()


def test_a_connection_serves_many_requests_good_and_bad(live: Live) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{live.port}") as client:
        expected = client.post(STITCH, content=REQUEST, headers={"Content-Type": JSON}).json()
        for _ in range(5):
            assert client.post(STITCH, content=b"{", headers={"Content-Type": JSON}).status_code == 400
            assert client.post(STITCH, content=b"x", headers={"Content-Type": "x/y"}).status_code == 415
            assert client.get("/v1/models/none").status_code == 404
            again = client.post(STITCH, content=REQUEST, headers={"Content-Type": JSON})
            assert_same(expected, again.json())


def test_a_smuggled_length_does_not_get_through(live: Live) -> None:
    head = f"POST {STITCH} HTTP/1.1\r\nHost: x\r\nContent-Type: {JSON}\r\n"
    for lines in (
        "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 2\r\nContent-Length: 3\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: x\r\n",
    ):
        with socket.create_connection(("127.0.0.1", live.port), timeout=5) as connection:
            connection.sendall((head + lines + "\r\n{}").encode())
            connection.shutdown(socket.SHUT_WR)
            status, received = answer(connection)
            assert status in (400, 422) and received.count(b"HTTP/1.1") == 1
