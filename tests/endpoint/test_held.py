"""What one endpoint holds for its callers: bytes, room in the queue, a sampler that hangs, the bundle of a request."""

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from raystitch.data.d4rl import write_d4rl
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.load import load_dataset
from raystitch.endpoint import service
from raystitch.endpoint.config import BatchingConfig, EndpointConfig, LimitsConfig, ModelConfig
from raystitch.endpoint.models import Models
from raystitch.models.config import FitConfig
from raystitch.models.fit import fit_bundle
from tests.endpoint.conftest import JSON, STITCH, Served, body, listening, refused, serving
from tests.endpoint.test_operation import after, held, post

REQUEST = json.dumps(body(num_candidates=1)).encode()
MIB = 2**20


def upload(port: int, size: int, sent: int, *, chunked: bool = False, headers: str = "") -> socket.socket:
    """A connection on which so much of a body of ``size`` bytes was sent."""
    made = socket.create_connection(("127.0.0.1", port), timeout=10)
    sized = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
    head = f"POST {STITCH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {JSON}\r\n{headers}{sized}\r\n\r\n".encode()
    with contextlib.suppress(OSError):  # refused before all of it was sent
        made.sendall(head + (b"%x\r\n" % sent if chunked else b"") + b" " * sent)
    return made


def status(connection: socket.socket) -> int:
    """Of the answer; 0 when there is none yet."""
    connection.settimeout(0.05)
    try:
        received = connection.recv(65536)
    except TimeoutError:
        return 0
    except ConnectionError:
        return -1
    return int(received.split(b" ")[1]) if received else -1


@contextlib.contextmanager
def live(models: Models, **config: Any) -> Iterator[tuple[Served, int]]:
    with serving(models, **config) as served, listening(served.app) as port:
        yield served, port


@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
def test_slow_uploads_hold_no_more_than_their_share(models: Models, chunked: bool) -> None:
    """Forty callers who send most of a large body and then nothing."""
    batching = BatchingConfig(max_held_bytes=8 * MIB, max_client_bytes=8 * MIB)
    limits = LimitsConfig(max_body_bytes=2 * MIB, body_seconds=20)
    with live(models, limits=limits, batching=batching) as (served, port):
        most = 0
        connections: list[socket.socket] = []
        for _ in range(40):
            connections.append(upload(port, 3 * MIB // 2, MIB, chunked=chunked))
            most = max(most, served.endpoint.intake.total)
        until = time.monotonic() + 5
        refusals = 0
        while refusals < 30 and time.monotonic() < until:
            refusals += sum(status(one) == 429 for one in connections)
            most = max(most, served.endpoint.intake.total)
        assert most <= 8 * MIB and refusals >= 30
        for one in connections:
            one.close()
        assert served.is_idle() and served.endpoint.intake.total == 0
        answer = httpx.post(f"http://127.0.0.1:{port}{STITCH}", content=REQUEST, headers={"Content-Type": JSON})
        assert answer.status_code == 200


def test_one_client_does_not_take_the_room_of_all(models: Models) -> None:
    batching = BatchingConfig(max_held_bytes=8 * MIB, max_client_bytes=2 * MIB)
    with serving(models, limits=LimitsConfig(max_body_bytes=4 * MIB), batching=batching) as served:
        kept = served.endpoint.intake.hold("token mine", batching)
        with kept as held_bytes:
            held_bytes.grow(2 * MIB)
            with (
                served.endpoint.intake.hold("token mine", batching) as more,
                pytest.raises(Exception, match="this client"),
            ):
                more.grow(1)
            with served.endpoint.intake.hold("token other", batching) as others:
                others.grow(4 * MIB)  # more than a client's share, but its only request
        assert served.endpoint.intake.total == 0


def test_a_body_that_finds_no_room_is_429_before_it_is_read(models: Models) -> None:
    batching = BatchingConfig(max_held_bytes=MIB, max_client_bytes=MIB)

    async def unread() -> Any:
        raise AssertionError("the body is read")
        yield b""

    with serving(models, batching=batching) as served, served.endpoint.intake.hold("address", batching) as others:
        others.grow(MIB)
        headers = {"Content-Type": JSON, "Content-Length": "1000"}
        response = served.request("POST", STITCH, content=unread(), headers=headers)
        assert "1,048,576 bytes of requests are held already" in refused(response, 429)["detail"]
        assert int(response.headers["retry-after"]) >= 1


def test_requests_that_wait_count_with_what_was_read_of_them(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(models) as served, held(monkeypatch) as release:

        async def look(_: httpx.AsyncClient) -> int:
            total = served.endpoint.intake.total
            release.set()
            return total

        answers = served.together([post(2), after(0.3, look)])
        floats = (14 + 12) * 4 + (13 + 11) * 3  # observations, actions and rewards of both
        assert answers[1] == 4 * floats
        assert answers[0].status_code == 200 and served.endpoint.intake.total == 0


def test_a_body_slower_than_the_least_rate_is_given_up(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raystitch.endpoint.body._GRACE_SECONDS", 0.2)
    limits = LimitsConfig(body_seconds=20, min_body_rate=10_000)
    with live(models, limits=limits) as (_, port):
        begun = time.monotonic()
        connection = upload(port, 100_000, 1000)
        connection.settimeout(10)
        received = connection.recv(65536)
        assert b" 408 " in received and time.monotonic() - begun < 3
        while part := connection.recv(65536):
            received += part
        assert b"slower than 10,000 bytes per second" in received
        connection.close()


@pytest.mark.parametrize("headers", ["", "X-Request-Disconnect-Disabled: ?1\r\nX-Request-Timeout-Seconds: 0\r\n"])
def test_whoever_leaves_is_dropped_from_the_queue_whatever_the_headers_say(
    models: Models, monkeypatch: pytest.MonkeyPatch, headers: str
) -> None:
    """A server tells an application that the caller left; it does not stop it."""
    with live(models) as (served, port), held(monkeypatch) as release:
        first = upload(port, len(REQUEST), 0)
        first.sendall(REQUEST)
        until = time.monotonic() + 60  # a busy machine
        while served.endpoint.batcher.num_queued < 1 and time.monotonic() < until:
            time.sleep(0.01)
        second = upload(port, len(REQUEST), 0, headers=headers)
        second.sendall(REQUEST)
        while served.endpoint.batcher.num_queued < 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert served.endpoint.batcher.num_queued == 2
        second.close()
        while served.endpoint.batcher.num_queued > 1 and time.monotonic() < until:
            time.sleep(0.01)
        assert served.endpoint.batcher.num_queued == 1, "it still waits for nobody"
        release.set()
        first.settimeout(10)
        assert b" 200 " in first.recv(65536)
        first.close()
        assert served.is_idle()
        assert "disconnected" in served.counts.outcomes
        assert sum(count for count, _ in served.counts.calls) == 1


def test_a_sampler_that_hangs_makes_the_replica_unhealthy(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        serving(models, limits=LimitsConfig(deadline_seconds=0.3, hung_after=2)) as served,
        held(monkeypatch) as release,
    ):
        asked = time.monotonic()
        response = served.post(body(num_candidates=1))
        assert response.status_code == 504
        assert served.get("/healthz").status_code == 200, "it may only be slow"
        time.sleep(max(0.0, 0.7 - (time.monotonic() - asked)))
        for path in ("/healthz", "/readyz"):
            assert "the sampler hangs" in refused(served.get(path), 503)["detail"]
        response = served.post(body(num_candidates=1))
        assert "the sampler hangs" in refused(response, 503)["detail"]
        assert int(response.headers["retry-after"]) >= 1
        begun = time.monotonic()
        served.endpoint.close()
        assert time.monotonic() - begun < 1, "stopping waits for a call that does not end"
        release.set()
        assert served.is_idle() and not served.endpoint.batcher.hung


def test_a_sampler_that_was_only_slow_is_healthy_again(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(models, limits=LimitsConfig(deadline_seconds=0.2, hung_after=1)) as served:
        with held(monkeypatch) as release:
            served.post(body(num_candidates=1))
            time.sleep(0.1)
            assert served.get("/healthz").status_code == 503
            release.set()
        assert served.is_idle()
        assert served.get("/healthz").status_code == 200


_HANGS = """
import ctypes, sys, time
from raystitch.endpoint import batcher
from raystitch.endpoint.config import EndpointConfig, LimitsConfig
from raystitch.endpoint.metrics import NoRecorder
config = EndpointConfig(limits=LimitsConfig(deadline_seconds=0.5, hung_after=1))
made = batcher.Batcher(config, NoRecorder(), exits=True)
made._prepare = lambda job: ctypes.PyDLL(None).sleep(60)
class Options: num_candidates, gap = 1, None
class Request: options = Options
made._submit(batcher.QueuedRequest(None, Request, "one", time.monotonic() + 60))
time.sleep(60)
"""


@pytest.mark.slow
def test_a_process_whose_interpreter_hangs_ends() -> None:
    """Foreign code that keeps the interpreter's lock: no thread of Python can notice."""
    begun = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", _HANGS], capture_output=True, text=True, timeout=50, check=False)
    assert ended.returncode == 1 and time.monotonic() - begun < 45
    assert "Timeout" in ended.stderr and "<lambda>" in ended.stderr, "the log says where every thread was"


@pytest.fixture(scope="module")
def wider(tmp_path_factory: pytest.TempPathFactory, drift: EpisodeDataset, tiny_fit: FitConfig) -> ModelConfig:
    """A bundle for trajectories with one more number per state."""
    root = tmp_path_factory.mktemp("wider")
    padded = np.concatenate([drift.observations, drift.observations[:, :1] * 2], axis=1)
    write_d4rl(replace(drift, observations=padded), root / "wider.hdf5")
    fit_bundle(load_dataset(f"d4rl:{root / 'wider.hdf5'}"), tiny_fit, root / "stitcher", "cpu")
    return ModelConfig(stitcher=str(root / "stitcher"))


@pytest.mark.parametrize("kind", ["other sizes", "gone"])
def test_a_request_keeps_its_bundle_from_the_first_check_to_the_answer(
    files: ModelConfig, wider: ModelConfig, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A reload between a request's check and its use."""
    models = Models()
    models.load(EndpointConfig(models={"default": files}, device="cpu"))
    later = EndpointConfig(models={"default": wider} if kind == "other sizes" else {"other": files}, device="cpu")
    real = service.Endpoint.run

    async def reload(self: service.Endpoint, work: Any, *args: Any, inline: bool) -> Any:
        found = await real(self, work, *args, inline=inline)
        await asyncio.to_thread(models.load, later)
        return found

    with serving(models) as served:
        before = served.get("/v1/models/default").json()["hash"]
        monkeypatch.setattr(service.Endpoint, "run", reload)
        response = served.post(body(num_candidates=1))
        assert response.status_code == 200, response.text
        assert response.json()["model"] == before


def test_settings_are_those_that_a_request_began_with(models: Models) -> None:
    """Its limits, too: what was let in under one is not refused under the next."""
    with serving(models) as served:
        content = iter([REQUEST[:100], REQUEST[100:]])

        async def slowly() -> Any:
            yield next(content)
            served.endpoint.configure(EndpointConfig(limits=LimitsConfig(max_body_bytes=10, max_steps=2), device="cpu"))
            yield next(content)

        assert served.request("POST", STITCH, content=slowly(), headers={"Content-Type": JSON}).status_code == 200
        assert served.request("POST", STITCH, content=REQUEST, headers={"Content-Type": JSON}).status_code == 413
