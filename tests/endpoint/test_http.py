"""Headers: formats, encodings, ids, deadlines; what every answer carries."""

import gzip
import json
import logging
from typing import Any

import pyarrow as pa
import pytest

from raystitch.endpoint.models import Models
from tests.endpoint.conftest import (
    ARROW,
    JSON,
    STITCH,
    Served,
    assert_same,
    body,
    read_stream,
    refused,
    serving,
    stream,
    table,
)

pytestmark = pytest.mark.usefixtures("idle")
SECURITY = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}


def _zstd(content: bytes) -> bytes:
    return pa.Codec("zstd").compress(content).to_pybytes()


@pytest.mark.parametrize(
    ("accept", "sent", "answered"),
    [
        (None, JSON, JSON),
        (None, ARROW, ARROW),
        ("*/*", ARROW, ARROW),
        (ARROW, JSON, ARROW),
        (JSON, ARROW, JSON),
        ("application/*", JSON, JSON),
        ("text/html, Application/JSON;charset=utf-8", ARROW, JSON),
        ("*/*, application/json;q=0", JSON, ARROW),
        ("application/json; q=0.5", JSON, JSON),
        ("text/html", JSON, None),
        ("*/*;q=0", JSON, None),
        ("application/json;q=0.000", JSON, None),
    ],
)
def test_the_answers_format_is_negotiated(served: Served, accept: str | None, sent: str, answered: str | None) -> None:
    headers = {"Accept": accept if accept is not None else ""}
    request = body(num_candidates=1)
    content = stream(table(request)) if sent == ARROW else request
    response = served.post(content, headers=headers)
    if answered is None:
        refused(response, 406)
        return
    assert response.status_code == 200
    assert response.headers["content-type"] == answered
    assert_same(served.post(request).json(), response.json() if answered == JSON else read_stream(response.content))


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("ZSTD", _zstd), ("identity", bytes)])
@pytest.mark.parametrize("kind", [JSON, ARROW])
def test_bodies_may_be_compressed(served: Served, encoding: str, compress: Any, kind: str) -> None:
    request = body(num_candidates=1)
    plain = json.dumps(request).encode() if kind == JSON else stream(table(request))
    headers = {"Content-Type": f"{kind}; charset=utf-8", "Content-Encoding": encoding, "Accept": JSON}
    response = served.request("POST", STITCH, content=compress(plain), headers=headers)
    assert response.status_code == 200
    assert_same(served.post(request).json(), response.json())


def test_large_answers_are_compressed_for_those_who_can_read_it(served: Served) -> None:
    large = body(300, 300, num_candidates=2)
    plain = served.post(large, headers={"Accept-Encoding": "identity"})
    packed = served.post(large, headers={"Accept-Encoding": "gzip"})
    small = served.post(body(num_candidates=1), headers={"Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip" and "accept-encoding" in packed.headers["vary"].lower()
    assert "content-encoding" not in plain.headers and "content-encoding" not in small.headers
    assert int(packed.headers["content-length"]) < len(plain.content) / 1.5
    assert_same(plain.json(), packed.json())


@pytest.mark.parametrize("given", ["a", "x" * 128, "~!{}[]\"'<>", "0123-abc"])
def test_an_id_of_the_callers_is_taken_over(served: Served, given: str) -> None:
    response = served.post(body(num_candidates=1), headers={"X-Request-ID": given})
    assert response.headers["x-request-id"] == response.json()["request_id"] == given
    assert refused(served.get("/v1/models/none", headers={"X-Request-ID": given}), 404)["request_id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a\tb", "\xe9", "\x7f"])
def test_any_other_id_is_replaced(served: Served, given: str) -> None:
    responses = [served.get("/healthz", headers=[(b"x-request-id", given.encode("latin-1"))]) for _ in range(2)]
    ids = [response.headers["x-request-id"] for response in responses]
    assert ids[0] != ids[1] and given not in ids and all(len(made) == 16 for made in ids)


@pytest.mark.parametrize("wait", ["wait=0", "respond-async, wait=0", 'wait="0"', "wait = 0"])
def test_a_caller_may_ask_for_an_earlier_deadline(served: Served, wait: str) -> None:
    refused(served.post(body(num_candidates=1), headers={"Prefer": wait}), 504)


@pytest.mark.parametrize(
    "wait", ["wait=20", "handling=lenient; wait=30", "wait=x", "await=0", "wait=-1", "wait=999999"]
)
def test_other_preferences_change_nothing(served: Served, wait: str) -> None:
    assert served.post(body(num_candidates=1), headers={"Prefer": wait}).status_code == 200


ADDRESSES = [
    ("GET", "/", 200),
    ("GET", "/docs", 200),
    ("GET", "/openapi.json", 200),
    ("GET", "/studio/main.js", 200),
    ("GET", "/docs/viewer/swagger-ui.css", 200),
    ("GET", "/healthz", 200),
    ("GET", "/v1/models", 200),
    ("GET", "/v1/models/", 404),
    ("GET", "/v1", 404),
    ("GET", "/metrics", 404),
    ("GET", "/studio", 404),
    ("GET", "/studio/", 404),
    ("GET", "/studio/%00", 404),
    ("GET", "/studio/..%2fendpoint%2fapp.py", 404),
    ("GET", "/studio/%2e%2e/endpoint/app.py", 404),
    ("GET", "/studio/" + "a" * 3000, 404),
    ("GET", "/v1/models/bare/episodes", 404),
    ("GET", "/v1/models/bare/episodes/0", 404),
    ("GET", "/v1/models/default/episodes/40", 404),
    ("GET", "/v1/models/default/episodes/-1", 404),
    ("GET", "/v1/models/default/episodes/x", 422),
    ("GET", "/v1/models/default/episodes/" + "9" * 5000, 422),
    ("GET", "/v1/models/default/episodes?limit=501", 422),
    ("GET", "/v1/models/default/episodes?limit=0", 422),
    ("GET", "/v1/models/default/episodes?offset=-1", 422),
    ("GET", "/v1/models/default/episodes?order=%ff", 422),
    ("GET", "/v1/models/%00%0a%f0%9f%92%a9", 404),
    ("DELETE", "/v1/models", 405),
    ("GET", STITCH, 405),
    ("PUT", "/", 405),
    ("POST", "/studio/main.js", 405),
]


@pytest.mark.parametrize(("method", "path", "status"), ADDRESSES, ids=[f"{m} {p[:40]}" for m, p, _ in ADDRESSES])
def test_every_answer_carries_the_security_headers_and_an_id(
    served: Served, method: str, path: str, status: int
) -> None:
    response = served.request(method, path)
    assert response.status_code == status
    assert SECURITY.items() <= dict(response.headers).items()
    assert "default-src 'self'" in response.headers["content-security-policy"]
    assert len(response.headers["x-request-id"]) == 16
    assert (response.headers.get("cache-control") == "no-store") == path.startswith("/v1/")
    assert "access-control-allow-origin" not in response.headers
    if status >= 400:
        refused(response, status)


def test_a_stranger_does_not_choose_where_answers_lead(served: Served) -> None:
    for host in ("evil.example", "[::1", "a:b:c", ""):
        response = served.get("/v1/models/", headers={"Host": host})
        assert response.status_code == 421 and "location" not in response.headers


def test_an_address_cannot_begin_a_line_of_the_log(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        served.get("/v1/x%0aINFO%20forged", headers={"X-Request-ID": "here"})
    (line,) = [record.getMessage() for record in caplog.records if "here" in record.getMessage()]
    assert "\n" not in line and line == "here GET /v1/x%0AINFO%20forged 404"


def test_cross_origin_calls_are_for_configured_origins_only(served: Served, models: Models) -> None:
    asks = {
        "Origin": "https://a.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    assert served.request("OPTIONS", STITCH, headers=asks).status_code == 405
    with serving(models, token="a-secret-of-tests", cors_origins=("https://a.example",)) as configured:
        allowed = configured.request("OPTIONS", STITCH, headers=asks)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://a.example"
        other = configured.request("OPTIONS", STITCH, headers=asks | {"Origin": "https://b.example"})
        assert "access-control-allow-origin" not in other.headers
        said = configured.post(
            body(num_candidates=1), headers={"Origin": "https://a.example", "Authorization": "Bearer a-secret-of-tests"}
        )
        assert said.status_code == 200 and said.headers["access-control-allow-origin"] == "https://a.example"
        assert "x-request-id" in said.headers["access-control-expose-headers"].lower()
        stranger = configured.get("/v1/models", headers={"Origin": "https://a.example"})
        assert refused(stranger, 401) and stranger.headers["access-control-allow-origin"] == "https://a.example"
        assert configured.is_idle()


def test_episodes_are_listed_in_order_and_in_pages(served: Served) -> None:
    def listed(query: str) -> list[dict[str, Any]]:
        said = served.get(f"/v1/models/default/episodes?{query}").json()
        assert said["total"] == 40
        return said["episodes"]

    everything = listed("limit=500")
    assert [one["index"] for one in everything] == list(range(40))
    assert listed("offset=3&limit=2") == everything[3:5]
    assert listed("offset=40") == listed("offset=1000000000000") == []
    for order, key in (("return", "return"), ("length", "steps"), ("index", "index")):
        values = [one[key] for one in listed(f"order={order}&descending=true")]
        assert values == sorted(values, reverse=True)
    one = served.get("/v1/models/default/episodes/4").json()
    assert len(one["observations"]) == len(one["actions"]) + 1 == len(one["rewards"]) + 1
    assert len(one["actions"]) == everything[4]["steps"] and one["terminated"] is everything[4]["terminated"] is True
    stitched = {"source": {k: one[k] for k in ("observations", "actions", "rewards")}, "target": body()["target"]}
    assert served.post(stitched).status_code == 200


def test_models_say_what_they_are(served: Served) -> None:
    said = served.get("/v1/models").json()["models"]
    assert [one["name"] for one in said] == ["default", "bare"]
    assert said[0] == served.get("/v1/models/default").json()
    assert said[0]["dataset"]["num_episodes"] == 40 and said[1]["dataset"] is None
    assert (said[0]["obs_dim"], said[0]["act_dim"], said[0]["gap_min"], said[0]["gap_max"]) == (4, 2, 2, 8)
    table_ = said[0]["delta"]
    assert table_["default"] == "q99" and len(table_["values"]) == len(table_["gaps"])
    assert all(row == sorted(row) and len(row) == len(table_["quantiles"]) for row in table_["values"])
    assert said[0]["limits"]["max_steps"] == 10_000 and said[0]["error"] is None
    assert said[0]["view"]["kind"] == "maze"
