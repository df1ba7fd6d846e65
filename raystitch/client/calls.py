"""Settings, and every call as a generator of what to send; ``clients.py`` carries them out."""

import functools
import json
import operator
import os
import ssl
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

from .exchange import Answer, Call, Send, exchange
from .values import Result, Trajectory, check_pair
from .wire import WIRES, Codec, WireName, compressed, decoded


@dataclass(frozen=True, kw_only=True)
class Settings:
    """See ``Client``. The token is not among them: it is in the headers that the httpx client holds."""

    url: str
    timeout: float
    max_retries: int
    wire: WireName
    compression: Codec | None

    def __post_init__(self) -> None:
        if not _is_address(self.url):  # not quoted, because there may be a password in it
            raise ValueError("url must be http://HOST:PORT or https://HOST:PORT, without a name or password in it")
        if not 0 < self.timeout < float("inf"):
            raise ValueError(f"timeout must be a number of seconds > 0, got timeout={self.timeout}")
        if self.max_retries < 0:
            raise ValueError(f"max_retries must be >= 0, got max_retries={self.max_retries}")
        if self.wire not in WIRES:
            raise ValueError(f"wire must be 'arrow' or 'json', got wire={self.wire!r}")
        if self.compression not in (None, "gzip", "zstd"):
            raise ValueError(f"compression must be 'gzip', 'zstd' or None, got compression={self.compression!r}")


def connection(settings: Settings, token: str | None) -> dict[str, Any]:
    """Return the arguments of the httpx client.

    Raises:
        ValueError: for a token that no header can carry; does not quote it, as httpx would.
    """
    token = (os.environ.get("RAYSTITCH_TOKEN", "") if token is None else token).strip()
    if not _is_visible(token):
        raise ValueError("token must be printable ASCII without spaces")
    return {
        "base_url": settings.url,
        "verify": _certificates(),
        "headers": {"Authorization": f"Bearer {token}"} if token else {},
        # No limit on threads or tasks. Idle connections are closed before uvicorn closes them (after 5 s).
        "limits": httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=4),
    }


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Return the certificate authorities of certifi, or of ``SSL_CERT_FILE``. Reading them takes a tenth of a second,
    so it is done once."""
    return httpx.create_ssl_context()


def stitch(
    settings: Settings, source: Trajectory, target: Trajectory, options: Mapping[str, Any], request_id: str | None
) -> Call[Result]:
    """Raises: ValueError before anything is sent; StitchError afterwards."""
    check_pair(source, target)
    # One id for all attempts, known here even when no answer comes.
    name = uuid.uuid4().hex if request_id is None else request_id
    if not 0 < len(name) <= 128 or not _is_visible(name):
        raise ValueError(f"request_id must be 1 to 128 printable ASCII characters, no spaces, got request_id={name!r}")
    wire = WIRES[settings.wire]
    content, headers = compressed(wire.encode(source, target, options), settings.compression)
    headers |= {"Content-Type": wire.media_type, "Accept": wire.media_type, "X-Request-ID": name}
    answer = yield from _exchange(settings, headers, method="POST", url="v1/stitch", content=content)
    return decoded(answer.body, wire.decode)


def get(settings: Settings, path: str, params: Mapping[str, Any] | None = None) -> Call[dict[str, Any]]:
    headers = {"Accept": "application/json"}
    answer = yield from _exchange(settings, headers, method="GET", url=path, params=params)
    return decoded(answer.body, json.loads)


def models(settings: Settings) -> Call[list[dict[str, Any]]]:
    found = yield from get(settings, "v1/models")
    return found["models"]


def episode(settings: Settings, index: int, model: str) -> Call[Trajectory]:
    found = yield from get(settings, model_path(model, "episodes", operator.index(index)))
    return Trajectory(found["observations"], found["actions"], found["rewards"], found["terminated"])


def ready(settings: Settings) -> Call[bool]:
    outcome = yield Send({"method": "GET", "url": "readyz"}, settings.timeout)
    return isinstance(outcome, Answer) and outcome.status == 200


def model_path(model: str, *parts: object) -> str:
    return "/".join(["v1/models", *(quote(str(part), safe="") for part in (model, *parts))])


def _exchange(settings: Settings, headers: Mapping[str, str], **arguments: Any) -> Call[Answer]:
    return exchange(settings.url, settings.timeout, settings.max_retries, headers, **arguments)


def _is_address(url: str) -> bool:
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    return parts.scheme in ("http", "https") and bool(parts.host) and not parts.userinfo


def _is_visible(text: str) -> bool:
    """ASCII without spaces and control characters."""
    return all("!" <= character <= "~" for character in text)
