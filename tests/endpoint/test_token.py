"""The token: who is let in, where it comes from, and that nobody reads it anywhere."""

import asyncio
import hmac
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from raystitch.endpoint.app import create_app
from raystitch.endpoint.config import TokenLimitConfig
from raystitch.endpoint.models import Models
from raystitch.endpoint.tokens import Token, TokenFile, Tokens, read_tokens
from raystitch.errors import UserError
from tests.endpoint.conftest import STITCH, Served, body, refused, serving

TOKEN = "s3cret-T0ken.~:of-tests"
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

    monkeypatch.setattr("raystitch.endpoint.tokens.hmac.compare_digest", compare)
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


FIRST, SECOND = "first-of-two-tokens", "second-of-two-tokens"


def test_it_comes_from_the_environment_or_a_file(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert read_tokens() is None
    environment.setenv("RAYSTITCH_TOKEN", TOKEN)
    one = read_tokens()
    assert one is not None and one.name_of(TOKEN.encode()) == "default" and one.name_of(b"") is None
    environment.delenv("RAYSTITCH_TOKEN")
    (tmp_path / "token").write_text(f"# of the team\n\nci:{FIRST}\n  {SECOND}  \n")
    environment.setenv("RAYSTITCH_TOKEN_FILE", str(tmp_path / "token"))
    both = read_tokens()
    assert both is not None
    assert [both.name_of(text.encode()) for text in (FIRST, SECOND, f"ci:{FIRST}", TOKEN)] == [
        "ci",
        "default",
        None,
        None,
    ]


@pytest.mark.parametrize("value", ["", " ", "a b", "é", "a\tb"])
def test_a_token_that_no_header_can_carry_is_refused(
    environment: pytest.MonkeyPatch, tmp_path: Path, value: str
) -> None:
    environment.setenv("RAYSTITCH_TOKEN", value)
    with pytest.raises(UserError, match="RAYSTITCH_TOKEN: the token must be printable ASCII") as error:
        read_tokens()
    assert not value.strip() or value not in str(error.value)
    environment.delenv("RAYSTITCH_TOKEN")
    (tmp_path / "token").write_text(value, encoding="utf-8")
    environment.setenv("RAYSTITCH_TOKEN_FILE", str(tmp_path / "token"))
    with pytest.raises(UserError, match=r"RAYSTITCH_TOKEN_FILE=.*(line 1: .*printable|1 to 64 tokens, .* got 0)"):
        read_tokens()


def test_a_short_token_is_refused_with_the_command_that_makes_one(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment.setenv("RAYSTITCH_TOKEN", "fifteen-letters")
    with pytest.raises(
        UserError,
        match=r"RAYSTITCH_TOKEN: the token has 15 characters and must have at least 16; make one with `python",
    ) as error:
        read_tokens()
    assert "fifteen-letters" not in str(error.value)
    environment.delenv("RAYSTITCH_TOKEN")
    (tmp_path / "token").write_text(f"{FIRST}\nci:short\n")
    environment.setenv("RAYSTITCH_TOKEN_FILE", str(tmp_path / "token"))
    with pytest.raises(UserError, match=r"/token, line 2: the token has 5 characters"):
        read_tokens()


def test_a_token_file_that_cannot_be_read_is_named(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"secret\xff\xfe")
    for name, why in (("none", "No such file"), (".", "directory"), ("binary", "decode")):
        environment.setenv("RAYSTITCH_TOKEN_FILE", str(tmp_path / name))
        with pytest.raises(UserError, match=f"RAYSTITCH_TOKEN_FILE=.*cannot be read: .*{why}") as error:
            read_tokens()
        assert "secret" not in str(error.value)
    environment.setenv("RAYSTITCH_TOKEN", TOKEN)
    with pytest.raises(UserError, match="both set; unset one"):
        read_tokens()


def test_an_application_without_a_token_lets_everybody_in(models: Models, served: Served) -> None:
    open_ = Served(served.endpoint, create_app(served.endpoint, None), served.counts)
    assert open_.get("/v1/models", headers={"Authorization": "Bearer anything"}).status_code == 200


def status(served: Served, token: str, path: str = "/v1/models") -> int:
    return served.get(path, headers={"Authorization": f"Bearer {token}"}).status_code


def test_a_file_that_changes_is_read_again(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Rotation: the new one beside the old one, then the new one alone; what is wrong changes nothing."""
    monkeypatch.setattr("raystitch.endpoint.tokens._LOOK_SECONDS", 0)
    file = tmp_path / "token"
    file.write_text(f"old:{FIRST}\n")
    with serving(models, tokens=TokenFile(file)) as served, caplog.at_level(logging.INFO):
        assert (status(served, FIRST), status(served, SECOND)) == (200, 401)
        file.write_text(f"old:{FIRST}\nnew:{SECOND}\n")
        assert (status(served, FIRST), status(served, SECOND)) == (200, 200)
        (tmp_path / "next").write_text(f"new:{SECOND}\n")
        (tmp_path / "next").replace(file)  # as a mounted secret changes
        assert (status(served, FIRST), status(served, SECOND)) == (401, 200)
        for wrong in ("", "short", "two words of a token"):
            file.write_text(wrong)
            assert status(served, SECOND) == 200
        file.unlink()
        assert status(served, SECOND) == 200
        assert served.counts.names == ["old", "old", "new", "new", *["new"] * 4]
        assert served.counts.refusals == ["wrong_token"] * 2
    said = [record.getMessage() for record in caplog.records if record.name == "raystitch.endpoint.tokens"]
    assert said[:2] == ["the tokens changed; valid now: old, new", "the tokens changed; valid now: new"]
    assert len(said) == 6 and all("the tokens from before stay valid" in line for line in said[2:])
    assert all(FIRST not in line and SECOND not in line for line in caplog.text.splitlines())


def test_the_log_has_a_token_s_name(models: Models, caplog: pytest.LogCaptureFixture) -> None:
    tokens = Tokens([Token("ci", FIRST.encode()), Token("team-a", SECOND.encode())])
    with serving(models, tokens=tokens) as served, caplog.at_level(logging.INFO):
        status(served, SECOND)
        status(served, "wrong")
        served.get("/healthz")
    lines = [record.getMessage() for record in caplog.records if record.name == "raystitch.endpoint.security"]
    assert [line.split(" ", 1)[1] for line in lines] == [
        "GET /v1/models 200 team-a",
        "GET /v1/models 401",
        "GET /healthz 200",
    ]


def test_refusals_are_counted(guarded: Served) -> None:
    guarded.counts.refusals.clear()
    guarded.get("/v1/models")
    guarded.get("/metrics", headers={"Authorization": "Bearer other-than-that"})
    assert guarded.counts.refusals == ["no_token", "wrong_token"]


def test_a_name_may_ask_for_so_much(models: Models) -> None:
    tokens = Tokens([Token("ci", FIRST.encode()), Token("free", SECOND.encode())])
    limits = {"ci": TokenLimitConfig(requests_per_second=2)}
    with serving(models, tokens=tokens, token_limits=limits) as served:
        assert [status(served, FIRST) for _ in range(3)] == [200, 200, 429]
        over = served.get("/v1/models", headers={"Authorization": f"Bearer {FIRST}"})
        assert refused(over, 429)["detail"] == "the token 'ci' may make 2 requests per second; try again later"
        assert over.headers["retry-after"] == "1"
        assert {status(served, SECOND) for _ in range(6)} == {200}
        time.sleep(0.6)
        assert status(served, FIRST) == 200
        assert served.counts.refusals == ["token_limit"] * 2


def test_a_name_may_have_so_many_requests_at_a_time(models: Models) -> None:
    limits = {"default": TokenLimitConfig(max_ongoing=1)}
    with serving(models, token=TOKEN, token_limits=limits) as served:
        served.headers = {"Authorization": f"Bearer {TOKEN}"}
        answers = served.together([lambda client: client.post(STITCH, json=body(num_candidates=1))] * 3)
        assert sorted(answer.status_code for answer in answers) == [200, 429, 429]
        assert status(served, TOKEN) == 200  # what ended, and what was refused, counts no more


def from_client(served: Served, address: str, token: str, **headers: str) -> int:
    """The status of a request that comes from another address."""

    async def ask() -> int:
        transport = httpx.ASGITransport(served.app, client=(address, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            given = {"Authorization": f"Bearer {token}"} | {n.replace("_", "-"): v for n, v in headers.items()}
            return (await client.get("/v1/models", headers=given)).status_code

    return asyncio.run(ask())


def test_who_guesses_has_to_wait(models: Models) -> None:
    with serving(models, token=TOKEN, wrong_tokens_per_minute=3) as served:
        guesses = [from_client(served, "10.0.0.1", f"guess-{number}") for number in range(6)]
        assert guesses == [401, 401, 401, 429, 429, 429]
        # The right one would tell a guesser that it is right.
        assert from_client(served, "10.0.0.1", TOKEN) == 429
        assert from_client(served, "10.0.0.2", TOKEN) == 200
        assert served.counts.refusals == ["wrong_token"] * 3 + ["wrong_tokens"] * 4


def test_the_same_wrong_token_again_is_no_guess(models: Models) -> None:
    with serving(models, token=TOKEN, wrong_tokens_per_minute=3) as served:
        assert {from_client(served, "10.0.0.1", "the-one-of-last-week") for _ in range(9)} == {401}
        assert from_client(served, "10.0.0.1", TOKEN) == 200


def test_behind_a_trusted_proxy_clients_are_told_apart(models: Models) -> None:
    proxy = "10.1.2.3"
    with serving(models, token=TOKEN, wrong_tokens_per_minute=1, trusted_proxies=("10.0.0.0/8",)) as served:
        guess = {"x_forwarded_for": "9.9.9.9, 192.0.2.7, 10.9.9.9"}
        assert [from_client(served, proxy, f"guess-{n}", **guess) for n in range(2)] == [401, 429]
        assert from_client(served, proxy, TOKEN, x_forwarded_for="192.0.2.7") == 429
        assert from_client(served, proxy, TOKEN, x_forwarded_for="9.9.9.9") == 200
        # Anybody may write the header; only what a trusted proxy wrote counts.
        assert from_client(served, "192.0.2.7", TOKEN, x_forwarded_for="9.9.9.9") == 429
        assert from_client(served, "192.0.2.8", TOKEN, x_forwarded_for="192.0.2.7") == 200
