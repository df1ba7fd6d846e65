"""By which names the endpoint may be called, what pages of other sites get, and life below a prefix."""

import asyncio
from typing import Any

import httpx
import pytest
import websockets

from raystitch.client import Client
from raystitch.endpoint.config import EndpointConfig
from raystitch.endpoint.models import Models
from tests.endpoint.conftest import STITCH, Served, body, listening, refused, serving

PATHS = ("/", "/docs", "/openapi.json", "/studio/main.js", "/v1/models", "/metrics", "/nowhere")


def called(served: Served, host: str, path: str = "/v1/models") -> httpx.Response:
    return served.get(path, headers={"Host": host})


@pytest.mark.parametrize("path", PATHS)
def test_a_name_that_was_pointed_here_is_refused_everywhere(served: Served, path: str) -> None:
    answer = called(served, "rebound.example:8000", path)
    assert "allowed_hosts" in refused(answer, 421)["detail"]
    assert "rebound.example" not in answer.text


def test_the_body_of_a_rebound_page_is_not_read(served: Served) -> None:
    refused(served.post(body(num_candidates=1), headers={"Host": "rebound.example"}), 421)
    assert served.counted() == (0, 0, 0)


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_probes_may_use_any_name(served: Served, path: str) -> None:
    assert called(served, "raystitch-head-svc.default.svc", path).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8000",
        "a.localhost",
        "localhost.",
        "127.0.0.1",
        "127.0.0.1:8000",
        "[::1]:8000",
        "10.1.2.3:80",
    ],
)
def test_loopback_names_and_addresses_are_answered(served: Served, host: str) -> None:
    assert called(served, host).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "",
        "localhost.evil.example",
        "evil-localhost",
        "localhost@evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1@evil.example",
        "localhost:8000:9",
        "[::1].evil.example",
        "[evil.example]",
        "localhost, evil.example",
        "2130706433",
        "0x7f.1",
    ],
)
def test_what_only_looks_like_one_is_not(served: Served, host: str) -> None:
    refused(called(served, host), 421)


def test_two_host_headers_are_none(served: Served) -> None:
    answer = served.get("/v1/models", headers=[("Host", "localhost"), ("Host", "evil.example")])
    refused(answer, 421)


def test_configured_names_are_answered(models: Models) -> None:
    with serving(models, allowed_hosts=("Stitch.example.org", "*.svc.cluster.local")) as served:
        for host in ("stitch.example.org", "STITCH.example.org:443", "a.b.svc.cluster.local", "localhost"):
            assert called(served, host).status_code == 200, host
        for host in ("x.stitch.example.org", "svc.cluster.local", "asvc.cluster.local", "example.org"):
            assert called(served, host).status_code == 421, host
        assert served.counts.refusals == ["host"] * 4
    with serving(models, allowed_hosts=("*",)) as served:
        assert called(served, "any.example").status_code == 200


@pytest.mark.parametrize(
    "name", ["", "a b", "http://a.example", "a.example:80", "*a.example", "a.*.example", "10.0.0.0/8"]
)
def test_a_wrong_name_is_quoted(name: str) -> None:
    with pytest.raises(ValueError, match="allowed_hosts: a name such as"):
        EndpointConfig(allowed_hosts=(name,))


def test_a_page_of_another_site_can_neither_ask_nor_compute(served: Served) -> None:
    """What a browser sends for a page without asking first is not taken, and it is not let read anything."""
    origin = {"Origin": "https://evil.example"}
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        assert (
            served.request("POST", STITCH, content=b"{}", headers={**origin, "Content-Type": kind}).status_code == 415
        )
    asked = served.request("OPTIONS", STITCH, headers={**origin, "Access-Control-Request-Method": "POST"})
    assert asked.status_code == 405
    for answer in (asked, served.get("/v1/models", headers=origin)):
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("path", ["/", "/v1/stitch", "/docs/viewer/x", "/studio/main.js"])
def test_there_are_no_websockets(models: Models, path: str) -> None:
    async def connect(port: int) -> None:
        async with websockets.connect(f"ws://127.0.0.1:{port}{path}"):
            pass

    with serving(models) as own, listening(own.app) as port, pytest.raises(websockets.InvalidStatus, match="403"):
        asyncio.run(connect(port))


class Mounted:
    """The application below a prefix, as Serve's proxy hands it requests."""

    def __init__(self, served: Served, prefix: str) -> None:
        self._app, self._prefix = served.app, prefix

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._app(scope | ({"root_path": self._prefix} if scope["type"] == "http" else {}), receive, send)


@pytest.mark.parametrize("prefix", ["/team", "/v1", "/a/b"])
def test_everything_works_below_a_prefix(models: Models, prefix: str) -> None:
    with serving(models) as own, listening(Mounted(own, prefix)) as port:
        base = f"http://127.0.0.1:{port}{prefix}"
        with httpx.Client(follow_redirects=True) as http:
            first = http.get(base)
            assert first.url.path == f"{prefix}/" and "Stitch" in first.text
            for page in ("/", "/docs"):
                text = http.get(base + page)
                parts = [part.split('"')[0] for mark in ('href="', 'src="') for part in text.text.split(mark)[1:]]
                assert len(parts) >= 4
                for part in parts:
                    assert http.get(text.url.join(part)).status_code == 200, part
            assert [server["url"] for server in http.get(f"{base}/openapi.json").json()["servers"]] == [prefix]
            assert http.get(f"{base}/healthz").json() == {"status": "ok"}
            assert http.get(f"{base}/none").status_code == 404
        with Client(base) as client:
            assert client.ready() and client.models()[0]["name"] == "default"
            source, target = client.episode(1), client.episode(2)
            assert client.stitch(source, target, num_candidates=1).trajectory.observations.shape[1] == 4


@pytest.mark.parametrize("prefix", ["/team", "/v1", "/metrics"])
def test_below_a_prefix_the_same_paths_are_protected(models: Models, prefix: str) -> None:
    with serving(models, token="a-secret-of-tests") as own, listening(Mounted(own, prefix)) as port:
        base = f"http://127.0.0.1:{port}{prefix}"
        assert httpx.get(f"{base}/v1/models").status_code == 401
        assert httpx.get(f"{base}/metrics").status_code == 401
        for path in ("/", "/healthz", "/readyz", "/docs", "/openapi.json"):
            assert httpx.get(base + path).status_code == 200, path
