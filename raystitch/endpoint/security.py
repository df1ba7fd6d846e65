"""The token, request ids and headers: ASGI layers around everything else."""

import hmac
import logging
import os
import re
import secrets
from pathlib import Path
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raystitch.endpoint.problems import Problem, unavailable
from raystitch.errors import UserError

logger = logging.getLogger(__name__)

TOKEN_VARIABLE, TOKEN_FILE_VARIABLE = "RAYSTITCH_TOKEN", "RAYSTITCH_TOKEN_FILE"
PROTECTED = ("/v1/", "/metrics")
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


def read_token() -> str | None:
    """The token of the environment: ``RAYSTITCH_TOKEN``, or what the file ``RAYSTITCH_TOKEN_FILE`` holds.

    Raises:
        UserError: both are set, the file cannot be read, or the token is empty or not printable ASCII.
    """
    token, file = os.environ.get(TOKEN_VARIABLE), os.environ.get(TOKEN_FILE_VARIABLE)
    if token is not None and file is not None:
        raise UserError(f"{TOKEN_VARIABLE} and {TOKEN_FILE_VARIABLE} are both set; unset one")
    where = TOKEN_VARIABLE
    if file is not None:
        where = f"{TOKEN_FILE_VARIABLE}={file}"
        try:
            token = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{where} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if token is None:
        return None
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise UserError(f"{where}: the token must be printable ASCII without spaces, and not empty")
    return token


def fault_problem() -> Problem:
    """503 for a fault of ours, about which a stranger learns nothing more."""
    return unavailable(_FAULT)


def _is_below(scope: Scope, *prefixes: str) -> bool:
    """Whether the address is of one of these, also where the application is mounted at a path of its own."""
    path: str = scope["path"]
    return path.startswith(prefixes) or path.removeprefix(scope.get("root_path", "")).startswith(prefixes)


class TokenCheck:
    """Asks for the token. Below ``Guard``, whose id its refusal carries, and below CORS, so that pages may read it."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._lets_in(scope):
            await self._app(scope, receive, send)
            return
        refusal = Problem(
            401,
            "this endpoint needs a token: send the header `Authorization: Bearer TOKEN`",
            headers={"WWW-Authenticate": 'Bearer realm="raystitch"'},
        )
        await refusal.response(scope["state"]["request_id"])(scope, receive, send)

    def _lets_in(self, scope: Scope) -> bool:
        # A browser asks with OPTIONS, and without a token, whether it may ask.
        if scope["method"] == "OPTIONS" or not _is_below(scope, *PROTECTED):
            return True
        scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
        # Compared in constant time, also when there is none.
        right = hmac.compare_digest(token.strip().encode("utf-8", "surrogateescape"), self._token)
        return right and scheme.lower() == "bearer"


class Guard:
    """Gives every request an id, and every answer its id and headers; answers faults.

    Args:
        sends_id: False where a proxy before this writes the id into the answer, as Serve's does.
    """

    def __init__(self, app: ASGIApp, *, sends_id: bool = True) -> None:
        self._app = app
        self._sends_id = sends_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
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
                if _is_below(scope, "/v1/"):
                    out.setdefault("Cache-Control", "no-store")
                # Quoted: a line feed in an address shall not begin a line of the log.
                path = quote(scope["path"], errors="replace")
                logger.info("%s %s %s %s", request_id, scope["method"], path, message["status"])
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
