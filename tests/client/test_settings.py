"""Settings, the token that is never shown, and names of requests."""

import base64
import pickle
import traceback
from typing import Any

import pytest

from raystitch.client import AsyncClient, Client, InvalidRequest, StitchError, Trajectory
from tests.client.conftest import Ask, Server, hang_up, models, problem

Pair = tuple[Trajectory, Trajectory]
SECRET = "s3cret-t0ken"


@pytest.mark.usefixtures("quick")
def test_the_token_is_sent_and_never_shown(
    server: Server, ask: Ask, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.script = [problem(401), hang_up]
    shown = []
    for _ in range(2):
        with pytest.raises(StitchError) as caught:
            ask(server.url, "stitch", *pair, client={"token": SECRET})
        shown += traceback.format_exception(caught.value)
        shown += [repr(caught.value), repr(vars(caught.value)), repr(vars(caught.value.__cause__ or caught.value))]
    client = Client(server.url, token=SECRET)
    shown += [repr(client), str(client), repr(vars(client)), repr(client._settings)]
    client.close()
    assert not any(SECRET in text or base64.b64encode(SECRET.encode()).decode() in text for text in shown)
    assert {each.headers["authorization"] for each in server.received} == {f"Bearer {SECRET}"}

    server.script = [models]
    monkeypatch.setenv("RAYSTITCH_TOKEN", f"{SECRET}-of-the-environment\n")
    ask(server.url, "models")
    ask(server.url, "models", client={"token": ""})
    assert server.received[-2].headers["authorization"] == f"Bearer {SECRET}-of-the-environment"
    assert "authorization" not in server.received[-1].headers


@pytest.mark.parametrize("token", [f"{SECRET}\r\nX: y", f"{SECRET} b", f"{SECRET}é"])
def test_a_token_that_no_header_can_carry_is_not_quoted(token: str) -> None:
    with pytest.raises(ValueError, match=r"^token must be printable ASCII without spaces$"):
        Client("http://h", token=token)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "127.0.0.1:8000"}, "url must be http://HOST:PORT"),
        ({"url": "ftp://h"}, "url must be http://HOST:PORT"),
        ({"url": "http://h:port"}, "url must be http://HOST:PORT"),
        ({"url": "http://"}, "url must be http://HOST:PORT"),
        ({"url": f"http://user:{SECRET}@h"}, "^url must be http://HOST:PORT or https://HOST:PORT, without a name or"),
        ({"timeout": 0}, "timeout must be a number of seconds > 0, got timeout=0"),
        ({"timeout": float("nan")}, "timeout must be a number of seconds > 0, got timeout=nan"),
        ({"max_retries": -1}, "max_retries must be >= 0, got max_retries=-1"),
        ({"wire": "xml"}, "wire must be 'arrow' or 'json', got wire='xml'"),
        ({"compression": "lz4"}, "compression must be 'gzip', 'zstd' or None, got compression='lz4'"),
    ],
)
def test_a_wrong_setting_is_refused(settings: dict[str, Any], message: str) -> None:
    kind: Any
    for kind in (Client, AsyncClient):
        with pytest.raises(ValueError, match=message):
            kind(**({"url": "http://h"} | settings))


@pytest.mark.parametrize("name", ["", "a b", "é", "a\r\nb", "a" * 129])
def test_a_wrong_request_id_is_refused(server: Server, ask: Ask, pair: Pair, name: str) -> None:
    with pytest.raises(ValueError, match="request_id must be 1 to 128 printable ASCII characters"):
        ask(server.url, "stitch", *pair, request_id=name)
    assert server.received == []


def test_errors_survive_pickling() -> None:
    error = InvalidRequest("why", 422, ({"field": "a", "message": "b"},), "id", 2.0)
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (type(again), str(again), vars(again)) == (InvalidRequest, str(error), vars(error))
