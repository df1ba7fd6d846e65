"""The token: who is let in, where it comes from, and that nobody reads it anywhere."""

import hmac
import logging
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from raystitch.endpoint.app import create_app
from raystitch.endpoint.models import Models
from raystitch.endpoint.security import read_token
from raystitch.errors import UserError
from tests.endpoint.conftest import STITCH, Served, body, refused, serving

TOKEN = "s3cret-T0ken.~"
PROTECTED = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/default"),
    ("GET", "/v1/models/default/episodes"),
    ("GET", "/v1/models/default/episodes/0"),
    ("GET", "/v1/none"),
    ("POST", STITCH),
    ("GET", "/metrics"),
    ("HEAD", "/v1/models"),
]


@pytest.fixture(scope="module")
def guarded(models: Models) -> Iterator[Served]:
    with serving(models, token=TOKEN) as served:
        yield served


@pytest.mark.parametrize(("method", "path"), PROTECTED)
@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN.upper()}",
        f"Bearer {TOKEN} {TOKEN}",
        f"Bearer\t{TOKEN}",
        "Bearer \xe9\xff",
    ],
)
def test_nobody_is_let_in_without_it(guarded: Served, method: str, path: str, header: str | None) -> None:
    headers = [] if header is None else [(b"authorization", header.encode("latin-1"))]
    response = guarded.request(method, path, headers=headers)
    assert response.headers["www-authenticate"].startswith("Bearer")
    if method != "HEAD":
        refused(response, 401)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer  "])
def test_the_scheme_is_written_in_any_case(guarded: Served, scheme: str) -> None:
    headers = {"Authorization": f"{scheme} {TOKEN}"}
    assert guarded.get("/v1/models", headers=headers).status_code == 200
    assert guarded.post(body(num_candidates=1), headers=headers).status_code == 200
    assert guarded.get("/metrics", headers=headers).status_code == 404  # let in; there are none here


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/docs", "/openapi.json", "/studio/main.js"])
def test_pages_and_health_need_none(guarded: Served, path: str) -> None:
    assert guarded.get(path).status_code == 200


def test_the_body_of_a_stranger_is_not_read(guarded: Served) -> None:
    async def endless() -> object:
        yield b"{"
        raise AssertionError("the body is read")

    refused(guarded.request("POST", STITCH, content=endless()), 401)


def test_tokens_are_compared_in_constant_time(guarded: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return real(one, other)

    monkeypatch.setattr("raystitch.endpoint.security.hmac.compare_digest", compare)
    for header in ({}, {"Authorization": "Basic x"}, {"Authorization": "Bearer wrong"}):
        refused(guarded.get("/v1/models", headers=header), 401)
    assert compared == [(b"", TOKEN.encode()), (b"x", TOKEN.encode()), (b"wrong", TOKEN.encode())]


def test_it_is_asked_for_below_a_prefix_too(guarded: Served) -> None:
    async def below(scope: object, receive: object, send: object) -> None:
        assert isinstance(scope, dict)
        if scope["type"] == "http":
            scope = scope | {"root_path": "/api", "path": "/api" + scope["path"]}
        await guarded.app(scope, receive, send)  # type: ignore[arg-type]

    mounted = Served(guarded.endpoint, below, guarded.counts)  # type: ignore[arg-type]
    refused(mounted.get("/v1/models"), 401)
    assert mounted.get("/v1/models", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert mounted.get("/healthz").status_code == 200


def test_it_is_in_no_answer_and_no_line_of_the_log(guarded: Served, caplog: pytest.LogCaptureFixture) -> None:
    said: list[httpx.Response] = []
    with caplog.at_level(logging.DEBUG):
        for given in (TOKEN, TOKEN + "x"):
            headers = {"Authorization": f"Bearer {given}"}
            said += [guarded.request(method, path, headers=headers) for method, path in PROTECTED]
            said += [guarded.get(path, headers=headers) for path in ("/openapi.json", "/docs", "/", "/readyz", "/none")]
    assert len(said) == 26 and caplog.records
    assert all(TOKEN not in one.text and TOKEN not in str(one.headers) for one in said)
    ours = [record for record in caplog.records if record.name.startswith("raystitch")]
    assert ours and all(TOKEN not in record.getMessage() and TOKEN not in str(record.args) for record in ours)
    assert TOKEN not in repr(guarded.app) + repr(guarded.endpoint)


def test_the_document_says_that_a_token_is_needed(guarded: Served, served: Served) -> None:
    document = guarded.get("/openapi.json").json()
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert (
                ("security" in operation) == ("401" in operation["responses"]) == (path not in ("/healthz", "/readyz"))
            )
    assert "securitySchemes" not in served.get("/openapi.json").json()["components"]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("RAYSTITCH_TOKEN", "RAYSTITCH_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_it_comes_from_the_environment_or_a_file(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert read_token() is None
    environment.setenv("RAYSTITCH_TOKEN", "abc")
    assert read_token() == "abc"
    environment.delenv("RAYSTITCH_TOKEN")
    (tmp_path / "token").write_text("def\n")
    environment.setenv("RAYSTITCH_TOKEN_FILE", str(tmp_path / "token"))
    assert read_token() == "def"


@pytest.mark.parametrize("value", ["", " ", "a b", "a\nb", "é", "a\tb"])
def test_a_token_that_no_header_can_carry_is_refused(
    environment: pytest.MonkeyPatch, tmp_path: Path, value: str
) -> None:
    environment.setenv("RAYSTITCH_TOKEN", value)
    with pytest.raises(UserError, match="RAYSTITCH_TOKEN: the token must be printable ASCII") as error:
        read_token()
    assert not value.strip() or value not in str(error.value)
    environment.delenv("RAYSTITCH_TOKEN")
    (tmp_path / "token").write_text(value, encoding="utf-8")
    environment.setenv("RAYSTITCH_TOKEN_FILE", str(tmp_path / "token"))
    with pytest.raises(UserError, match=r"RAYSTITCH_TOKEN_FILE=.*printable"):
        read_token()


def test_a_token_file_that_cannot_be_read_is_named(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"secret\xff\xfe")
    for name, why in (("none", "No such file"), (".", "directory"), ("binary", "decode")):
        environment.setenv("RAYSTITCH_TOKEN_FILE", str(tmp_path / name))
        with pytest.raises(UserError, match=f"RAYSTITCH_TOKEN_FILE=.*cannot be read: .*{why}") as error:
            read_token()
        assert "secret" not in str(error.value)
    environment.setenv("RAYSTITCH_TOKEN", "abc")
    with pytest.raises(UserError, match="both set; unset one"):
        read_token()


def test_an_application_without_a_token_lets_everybody_in(models: Models, served: Served) -> None:
    open_ = Served(served.endpoint, create_app(served.endpoint, None), served.counts)
    assert open_.get("/v1/models", headers={"Authorization": "Bearer anything"}).status_code == 200
