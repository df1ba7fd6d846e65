"""Hosts, tokens, request ids and headers: ASGI layers around everything else."""

import logging
import re
import secrets
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TypeAlias
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raystitch.endpoint.config import EndpointConfig
from raystitch.endpoint.metrics import Recorder
from raystitch.endpoint.problems import Problem, busy, unavailable
from raystitch.endpoint.tokens import Allowance, Attempts, Tokens

logger = logging.getLogger(__name__)

Network: TypeAlias = IPv4Network | IPv6Network
PROTECTED = ("/v1/", "/metrics")
PROBES = ("/healthz", "/readyz")
_OWN_NAMES = ("localhost", "*.localhost")
_HOST_HEADER = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+?))\.?(?::[0-9]{1,5})?")
_FAULT = "the request failed unexpectedly; it was logged under this id"
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
}


def fault_problem() -> Problem:
    """Return the 503 for a fault of ours, without details for strangers."""
    return unavailable(_FAULT)


def route_of(scope: Scope) -> str:
    """The path below the one that the application is mounted at."""
    path, root = scope["path"], scope.get("root_path", "")
    return path[len(root) :] if root and (path == root or path.startswith(f"{root}/")) else path


def client_of(scope: Scope, trusted: Sequence[Network] = ()) -> str:
    """Return the caller's address; behind trusted proxies, the address that called the last of them."""
    client: str = (scope.get("client") or ("unknown",))[0]
    if not trusted:
        return client
    passed = ",".join(Headers(scope=scope).getlist("x-forwarded-for")).split(",")
    for address in [client, *(part.strip() for part in reversed(passed))]:
        known = _address(address)
        if known is None:
            break
        client = str(known)
        if not any(known in network for network in trusted):
            break
    return client


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        found = ip_address(text)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


class HostCheck:
    """Refuses requests that do not name this endpoint as their host.

    To a browser, a page of another site whose name points here (DNS rebinding) has the same origin, but it cannot hide
    that name. Addresses are let in: such a page always comes by a name, and a cluster probes by address.
    """

    def __init__(self, app: ASGIApp, allowed: Sequence[str], recorder: Recorder) -> None:
        self._app, self._recorder = app, recorder
        self._allowed = tuple(name.lower() for name in (*_OWN_NAMES, *allowed))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or route_of(scope) in PROBES or self.lets_in(Headers(scope=scope).getlist("host")):
            await self._app(scope, receive, send)
            return
        self._recorder.refused("host")
        detail = "this endpoint does not answer to the name in the Host header; `allowed_hosts` names those it does"
        await Problem(421, detail).response(scope["state"]["request_id"])(scope, receive, send)

    def lets_in(self, hosts: Sequence[str]) -> bool:
        """Return True if a request with these Host headers is meant for this endpoint."""
        match = _HOST_HEADER.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if match is None:
            return False
        name = (match[1] or match[2]).lower()
        if _address(name) is not None:
            return True
        return any(
            allowed in ("*", name) or (allowed.startswith("*.") and name.endswith(allowed[1:]))
            for allowed in self._allowed
        )


class TokenCheck:
    """Asks for a token. It sits below ``Guard``, whose id its refusal carries, and below CORS, so that pages may read
    it."""

    def __init__(self, app: ASGIApp, tokens: Tokens, config: EndpointConfig, recorder: Recorder) -> None:
        self._app, self._tokens, self._recorder = app, tokens, recorder
        self._allowance = Allowance(config.token_limits)
        self._attempts = Attempts(config.wrong_tokens_per_minute)
        self._trusted = config.trusted_networks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Browsers send preflight OPTIONS requests, without a token.
        if scope["type"] != "http" or scope["method"] == "OPTIONS" or not route_of(scope).startswith(PROTECTED):
            await self._app(scope, receive, send)
            return
        try:
            name = self._name_of(scope)
            scope["state"]["token"] = name
            if over := self._allowance.enter(name):
                self._recorder.refused("token_limit")
                raise busy(f"the token {name!r} may make {over[0]}; try again later", over[1])
        except Problem as refusal:
            await refusal.response(scope["state"]["request_id"])(scope, receive, send)
            return
        self._recorder.let_in(name)
        try:
            await self._app(scope, receive, send)
        finally:
            self._allowance.leave(name)

    def _name_of(self, scope: Scope) -> str:
        """Raises: Problem 401 without a token that is valid, 429 for a client that has shown too many wrong ones."""
        scheme, _, shown = Headers(scope=scope).get("authorization", "").partition(" ")
        secret = shown.strip().encode("utf-8", "surrogateescape")
        client = client_of(scope, self._trusted)
        if secret and (wait := self._attempts.wait(client)):
            self._recorder.refused("wrong_tokens")
            raise busy("too many wrong tokens came from this address; try again later", wait)
        # Compare in constant time even if no token was sent.
        name = self._tokens.name_of(secret)
        if name is not None and scheme.lower() == "bearer":
            return name
        if secret:
            self._attempts.failed(client, secret)
        self._recorder.refused("wrong_token" if secret else "no_token")
        raise Problem(
            401,
            "this endpoint needs a token: send the header `Authorization: Bearer TOKEN`",
            headers={"WWW-Authenticate": 'Bearer realm="raystitch"'},
        )


class Guard:
    """Gives every request an id, and every answer its id and headers; answers faults.

    Args:
        sends_id: False where a proxy before this writes the id into the answer, as Serve's does.
    """

    def __init__(self, app: ASGIApp, *, sends_id: bool = True) -> None:
        self._app = app
        self._sends_id = sends_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            # The endpoint has no websockets: refuse before the handshake.
            await send({"type": "websocket.close", "code": 1008, "reason": ""})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        started = ended = False

        async def finish(message: Message) -> None:
            nonlocal started, ended
            if message["type"] == "http.response.start":
                started = True
                out = MutableHeaders(scope=message)
                if self._sends_id:
                    out["X-Request-ID"] = request_id
                for name, value in _HEADERS.items():
                    out.setdefault(name, value)
                if route_of(scope).startswith("/v1/"):
                    out.setdefault("Cache-Control", "no-store")
                # Quoted, so that a line feed in an address does not begin a line of the log.
                path = quote(scope["path"], errors="replace")
                whose = f" {name}" if (name := scope["state"].get("token")) else ""
                logger.info("%s %s %s %s%s", request_id, scope["method"], path, message["status"], whose)
            elif message["type"] == "http.response.body":
                ended = not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, finish)
        except Exception:
            logger.exception("request %s failed", request_id)
            if not started:
                await fault_problem().response(request_id)(scope, receive, finish)
            elif not ended:
                raise
