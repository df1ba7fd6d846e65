"""The shipped nginx, the real one, in front of the endpoint: what it keeps from Serve, and what it leaves as it is."""

import json
import re
import socket
import ssl
import subprocess
from pathlib import Path

import httpx
import pytest
import yaml

from raystitch.endpoint.config import LimitsConfig
from tests.deploy.nginx import CONFIG, HOST, MIB, Ingress, Live, Recorder, ingress, received, swallow
from tests.endpoint.conftest import (
    ARROW,
    JSON,
    STITCH,
    assert_same,
    body,
    listening,
    read_stream,
    refused,
    stream,
    table,
)

STUDIO = Path(__file__).parents[2] / "raystitch" / "studio"


def test_json_arrow_and_ids_pass_as_they_are(live: Live) -> None:
    request = body(num_candidates=2, return_all=True)
    arrow = stream(table(request))
    with live.ingress.client() as client:
        for content, kind, read in (
            (json.dumps(request).encode(), JSON, json.loads),
            (arrow, ARROW, read_stream),
        ):
            headers = {"Content-Type": kind, "X-Request-ID": "mine/1:2"}
            expected = live.direct.post(STITCH, content=content, headers=headers)
            found = client.post(STITCH, content=content, headers=headers)
            assert (found.status_code, found.headers["content-type"]) == (200, expected.headers["content-type"])
            assert_same(read(expected.content), read(found.content))
            assert found.headers["x-request-id"] == "mine/1:2"
        wrong = client.post(STITCH, json={"source": 1})
        assert refused(wrong, 422)["detail"] == live.direct.post(STITCH, json={"source": 1}).json()["detail"]
        assert refused(client.post(STITCH, json=request, headers={"Prefer": "wait=0.0001"}), 504)
        # An endpoint below a prefix of its own takes bodies as large; here there is none.
        assert "/team/v1/stitch" in refused(client.post(f"/team{STITCH}", content=bytes(MIB)), 404)["detail"]


def test_the_studio_and_every_page_pass_as_they_are(live: Live) -> None:
    pages = ["/", "/docs", "/openapi.json", "/v1/models", "/v1/models/default/episodes?limit=3", "/healthz", "/readyz"]
    pages += [f"/studio/{file.name}" for file in STUDIO.iterdir() if file.suffix in (".js", ".css", ".svg")]
    assert len(pages) > 30
    with live.ingress.client("127.0.0.2") as client:
        for page in pages:
            expected, found = live.direct.get(page), client.get(page)
            assert found.status_code == expected.status_code == 200, page
            assert found.content == expected.content, page
            for name in ("content-type", "content-security-policy", "cache-control", "content-encoding", "etag"):
                assert found.headers.get(name) == expected.headers.get(name), (page, name)
        etag = client.get("/studio/main.js").headers["etag"]
        assert client.get("/studio/main.js", headers={"If-None-Match": etag}).status_code == 304
        asked = {
            "Origin": "https://page.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization",
        }
        preflight = client.options(STITCH, headers=asked)
        assert preflight.headers["access-control-allow-origin"] == "https://page.example"


def test_switches_of_serve_and_hop_by_hop_headers_do_not_pass(live: Live, reached: Recorder) -> None:
    sent = {
        "X-Request-Disconnect-Disabled": "?1",
        "X-Request-Timeout-Seconds": "0.001",
        "Serve-Multiplexed-Model-Id": "x",
        "Serve_Multiplexed_Model_Id": "x",
        "X-Session-Id": "x",
        "Connection": "close, X-Secret",
        "X-Secret": "x",
        "TE": "trailers",
        "Upgrade": "h2c",
        "Proxy-Authorization": "x",
        "Cookie": "a=b",
        "X-Forwarded-For": "192.0.2.1",
        "Forwarded": "for=192.0.2.1",
        "Authorization": "Bearer mine",
        "Prefer": "wait=20",
    }
    with live.ingress.client("127.0.0.3") as client:
        assert client.post(STITCH, json=body(num_candidates=1), headers=sent).status_code == 200
    (head,) = reached.heads
    assert head.keys() == {
        *("host", "x-request-id", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "authorization"),
        *("content-type", "content-length", "accept", "accept-encoding", "prefer"),
    }
    assert head["x-forwarded-for"] == "127.0.0.3"
    assert (head["x-forwarded-host"], head["authorization"], head["prefer"]) == (HOST, "Bearer mine", "wait=20")


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", {"Host": "rebound.example"}, 421),
        ("GET", "/-/routes", {}, 404),
        ("GET", "/_problem", {}, 404),
        ("TRACE", "/", {}, 405),
        ("GET", "/" + 9000 * "a", {}, 414),
        ("GET", "/", {"X-Long": 9000 * "a"}, 400),
        ("GET", "/-/healthz", {"X-Request-ID": 'a"b'}, 404),
    ],
)
def test_refusals_are_the_endpoints_problems(
    live: Live, reached: Recorder, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    with live.ingress.client("127.0.0.8") as client:
        answer = client.request(method, path, headers=headers)
    problem = refused(answer, status)
    assert problem["title"] and problem["type"] == "about:blank"
    assert answer.headers["server"] == "nginx"
    assert reached.heads == []


def test_a_load_balancer_asks_by_address_whether_it_is_ready(live: Live, reached: Recorder) -> None:
    with live.ingress.client("127.0.0.10", host="10.0.0.1") as client:
        ready = client.get("/readyz", headers={"X-Request-Timeout-Seconds": "1"})
        assert (ready.status_code, ready.json()) == (200, {"status": "ready"})
        assert "x-request-timeout-seconds" not in reached.heads[0]
        assert refused(client.get("/v1/models"), 421)
    assert len(reached.heads) == 1


def test_pages_of_serves_proxy_are_not_reached_by_another_spelling(live: Live, reached: Recorder) -> None:
    for path in ("/%2d/routes", "//-//routes", "/studio/../-/routes", "/./-/healthz?x"):
        with live.ingress.open(f"GET {path} HTTP/1.1\nHost: {HOST}\nConnection: close\n\n", "127.0.0.8") as connection:
            assert b'"detail":"there is no such page"' in received(connection), path
    assert reached.heads == []


def test_a_request_that_is_no_http_is_refused(live: Live, reached: Recorder) -> None:
    for head in (
        f"GET / HTTP/1.1\nHost: {HOST}\nHost: {HOST}\n\n",
        f"POST {STITCH} HTTP/1.1\nHost: {HOST}\nContent-Length: 2\nTransfer-Encoding: chunked\n\n0\n\n",
        "GET / HTTP/1.1\n\n",
        "GET nothing\n\n",
    ):
        with live.ingress.open(head, "127.0.0.9") as connection:
            assert b'"status":400' in received(connection), head
    assert reached.heads == []


def test_an_endpoint_that_is_down_is_503_and_nginx_lives(tmp_path: Path) -> None:
    with ingress(tmp_path, 1) as front, front.client() as client:
        answer = client.post(STITCH, json=body())
        assert int(answer.headers["retry-after"]) >= 1
        assert refused(answer, 503)
        assert httpx.get(f"http://127.0.0.1:{front.probe}/healthz").text == "ok\n"


def test_an_endpoint_that_hangs_is_504(tmp_path: Path) -> None:
    changes = [(r"proxy_read_timeout \w+;", "proxy_read_timeout 300ms;")]
    with listening(Recorder(swallow)) as port, ingress(tmp_path, port, changes) as front, front.client() as client:
        assert refused(client.post(STITCH, json=body()), 504)


def test_clients_are_told_apart_by_address_and_only_a_balancer_is_believed(live: Live, tmp_path: Path) -> None:
    few = (r"rate=20r/s", "rate=1r/m"), (r"burst=100", "burst=1")
    port = live.direct.base_url.port or 0

    def statuses(front: Ingress, *addresses: str) -> list[int]:
        with front.client() as client:
            return [client.get("/healthz", headers={"X-Forwarded-For": one}).status_code for one in addresses]

    with ingress(tmp_path / "bare", port, few) as front:
        assert statuses(front, "192.0.2.1", "192.0.2.2", "192.0.2.3") == [200, 200, 429]
    balanced = [(r"#   (set_real_ip_from) 10.0.0.0/8", r"\1 127.0.0.0/8"), (r"#   (real_ip)", r"\1")]
    with ingress(tmp_path / "balanced", port, [*few, *balanced]) as front:
        assert statuses(front, "192.0.2.1", "192.0.2.2", "192.0.2.3") == [200, 200, 200]
        whole = [f"2001:db8:1:2:a:b:c:{n}" for n in range(3)]
        short = [f"2001:db9::{n}" for n in range(1, 4)]
        assert statuses(front, *whole) == statuses(front, *short) == [200, 200, 429]
        assert statuses(front, "2001:db8:1:3:a:b:c:1") == [200]


def test_with_tls_filled_in_it_speaks_tls(live: Live, tmp_path: Path) -> None:
    key, certificate = tmp_path / "tls.key", tmp_path / "tls.crt"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", f"/CN={HOST}"]
    made += ["-addext", f"subjectAltName=DNS:{HOST}", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(made, check=True, capture_output=True)
    changes = [(r"#   (listen|ssl_|add_header)", r"\1"), (r"/etc/raystitch-tls", str(tmp_path))]
    context = ssl.create_default_context(cafile=str(certificate))
    with ingress(tmp_path / "nginx", live.direct.base_url.port or 0, changes) as front:

        def head(name: str) -> bytes:
            with (
                socket.create_connection(("127.0.0.1", front.tls), timeout=5) as plain,
                context.wrap_socket(plain, server_hostname=name) as secure,
            ):
                secure.sendall(f"GET /readyz HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
                return received(secure)

        answer = head(HOST)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"Strict-Transport-Security" in answer
        with pytest.raises(ssl.SSLError):
            head("rebound.example")


def test_limits_are_those_of_the_endpoint(deploy: Path) -> None:
    text = CONFIG.read_text()

    def value(pattern: str) -> int:
        (found,) = re.findall(pattern, text)
        return int(found)

    limits = LimitsConfig()
    assert value(r"client_max_body_size (\d+)m;") * MIB == limits.max_body_bytes
    options = yaml.safe_load((deploy / "serve.yaml").read_text())["http_options"]
    assert value(r"proxy_read_timeout (\d+)s;") > options["request_timeout_s"] > limits.deadline_seconds
    from ray.serve.config import HTTPOptions

    assert value(r"\bkeepalive_timeout (\d)s;") < HTTPOptions().keep_alive_timeout_s
