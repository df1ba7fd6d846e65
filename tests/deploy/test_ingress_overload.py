"""The shipped nginx, the real one, against slow, endless and too many requests."""

import select
import socket
import time
from pathlib import Path

import pytest

from tests.deploy.nginx import HEAD, HOST, MIB, QUICK, Live, Recorder, ingress, received, swallow
from tests.endpoint.conftest import (
    STITCH,
    body,
    listening,
    refused,
)


def test_half_a_head_is_cut_though_it_trickles_on(live: Live) -> None:
    address = live.direct.base_url
    with (
        socket.create_connection((address.host, address.port or 0)) as bare,
        live.ingress.open(HEAD, "127.0.0.4") as slow,
        live.ingress.open("", "127.0.0.4") as silent,
    ):
        bare.sendall(HEAD.replace("\n", "\r\n").encode())
        begun = time.monotonic()
        slow.settimeout(0.2)
        while time.monotonic() - begun < 8:
            try:
                slow.sendall(b"x")
                if slow.recv(100) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        assert 0.9 < time.monotonic() - begun < 4
        assert received(silent) == b""
        assert time.monotonic() - begun < 5
        bare.settimeout(0.1)
        with pytest.raises(TimeoutError):  # without nginx it is still open
            bare.recv(1)


def pour(connection: socket.socket, total: int) -> int:
    """Sends chunks until the other side will have no more; returns the bytes that were taken."""
    chunk = b"%x\r\n" % MIB + bytes(MIB) + b"\r\n"
    sent = 0
    try:
        while sent < total:
            connection.sendall(chunk)
            sent += MIB
    except OSError:
        pass
    return sent


def test_an_endless_body_without_a_replica_ends_at_the_endpoints_limit(tmp_path: Path) -> None:
    recorder = Recorder(swallow)
    total = 100 * MIB
    chunked = f"POST {STITCH} HTTP/1.1\nHost: {{host}}\nTransfer-Encoding: chunked\n\n"
    with listening(recorder) as port:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as bare:
            bare.sendall(chunked.format(host="localhost").replace("\n", "\r\n").encode())
            assert pour(bare, total) == total
        assert recorder.num_bytes > 90 * MIB
        with ingress(tmp_path, port, [QUICK]) as front:
            recorder.heads.clear()
            recorder.num_bytes = 0
            with front.open(chunked.format(host=HOST)) as connection:
                connection.settimeout(2)
                pour(connection, total)
                answer = received(connection)
            assert b" 413 " in answer.partition(b"\r\n")[0]
            assert b'"status":413' in answer
            with front.open(HEAD + f"Content-Length: {700 * MIB}\n\n") as connection:
                assert b" 413 " in received(connection).partition(b"\r\n")[0]
            kept = sum(file.stat().st_size for file in (tmp_path / "body").rglob("*") if file.is_file())
    assert kept <= 32 * MIB
    assert (recorder.heads, recorder.num_bytes) == ([], 0)


def test_slow_uploads_stay_out_and_one_address_has_its_share(live: Live, reached: Recorder) -> None:
    head = HEAD + f"Content-Length: {30 * MIB}\n\n"
    connections = [live.ingress.open(head, "127.0.0.5") for _ in range(40)]
    for connection in connections:
        connection.sendall(bytes(10_000))
    time.sleep(0.3)
    refused_ones, _, _ = select.select(connections, [], [], 0)
    assert len(refused_ones) == 8
    assert all(received(connection).startswith(b"HTTP/1.1 429 ") for connection in refused_ones)
    assert (reached.heads, reached.num_bytes) == ([], 0)
    with live.ingress.client("127.0.0.6") as client:  # others are served meanwhile
        assert client.post(STITCH, json=body(num_candidates=1)).status_code == 200
    begun = time.monotonic()
    for connection in connections:  # they pause for longer than client_body_timeout
        assert received(connection) == b""
        connection.close()
    assert time.monotonic() - begun < 8
    assert len(reached.heads) == 1


def test_too_many_requests_are_the_endpoints_429(live: Live) -> None:
    """100 at once and 20 a second, whatever the pace of this machine: nothing earlier, nothing beyond."""
    late = []
    num_served = 0
    begun = time.monotonic()
    with live.ingress.client("127.0.0.7") as client:
        while len(late) < 20 and time.monotonic() - begun < 60:
            answer = client.get("/healthz", headers={"X-Request-ID": "r"})
            if answer.status_code == 200:
                num_served += 1
                assert num_served <= 102 + 20 * (time.monotonic() - begun)
            else:
                assert num_served > 100
                late.append(answer)
    assert len(late) == 20
    for answer in late:
        problem = refused(answer, 429)
        assert problem["request_id"] == "r"
        assert int(answer.headers["retry-after"]) >= 1
        assert problem.keys() == refused(live.direct.get("/none"), 404).keys()
