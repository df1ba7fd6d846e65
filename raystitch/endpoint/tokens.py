"""The tokens that callers show: where they come from, their names, and their limits."""

import hashlib
import hmac
import logging
import os
import re
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from raystitch.endpoint.config import TokenLimitConfig
from raystitch.errors import UserError

logger = logging.getLogger(__name__)

TOKEN_VARIABLE, TOKEN_FILE_VARIABLE = "RAYSTITCH_TOKEN", "RAYSTITCH_TOKEN_FILE"
DEFAULT_NAME = "default"
MIN_LENGTH = 16
MAX_TOKENS = 64
_LOOK_SECONDS = 1.0
_MAX_CLIENTS = 10_000
_REMEMBERED = 32
_NAMED = re.compile(r"([A-Za-z0-9_.-]{1,32}):(.*)")
_MAKE = "python -c 'import secrets; print(secrets.token_urlsafe(24))'"


@dataclass(frozen=True)
class Token:
    """A secret and the name that logs and metrics know it by; the secret is in no representation."""

    name: str
    secret: bytes = field(repr=False)


def read_tokens() -> "Tokens | None":
    """The tokens of the environment: the one in ``RAYSTITCH_TOKEN``, or those in the file ``RAYSTITCH_TOKEN_FILE``.

    Raises:
        UserError: both are set, the file cannot be read, or a token is too short or not printable ASCII.
    """
    token, file = os.environ.get(TOKEN_VARIABLE), os.environ.get(TOKEN_FILE_VARIABLE)
    if token is not None and file is not None:
        raise UserError(f"{TOKEN_VARIABLE} and {TOKEN_FILE_VARIABLE} are both set; unset one")
    if file is not None:
        return TokenFile(Path(file))
    if token is None:
        return None
    return Tokens([Token(DEFAULT_NAME, _checked(token, TOKEN_VARIABLE))])


class Tokens:
    """Tokens that are all valid at the same time."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self._tokens = tuple(tokens)

    @classmethod
    def one(cls, secret: str) -> "Tokens":
        """A single token without a name of its own."""
        return cls([Token(DEFAULT_NAME, _checked(secret, "the token"))])

    @property
    def first(self) -> str:
        """The secret of the first token, for calls of our own."""
        return self._tokens[0].secret.decode()

    def name_of(self, secret: bytes) -> str | None:
        """Return the name of a valid token; every token is compared, in constant time."""
        found = None
        for token in self._tokens:
            if hmac.compare_digest(secret, token.secret):
                found = token.name
        return found


class TokenFile(Tokens):
    """Tokens of a file, one per line as ``TOKEN`` or ``NAME:TOKEN``; read again when it changes.

    After a change that is wrong or cannot be read, the earlier tokens stay valid; the log says why.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._state = _state(file)
        self._looked = time.monotonic()
        super().__init__(_read_file(file))

    def name_of(self, secret: bytes) -> str | None:
        now = time.monotonic()
        if now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            self._look()
        return super().name_of(secret)

    def _look(self) -> None:
        state = _state(self._file)
        if state == self._state:
            return
        self._state = state
        try:
            self._tokens = tuple(_read_file(self._file))
        except UserError as error:
            logger.warning("%s; the tokens from before stay valid", error)
        else:
            logger.info("the tokens changed; valid now: %s", ", ".join(token.name for token in self._tokens))


def _state(file: Path) -> tuple[int, int, int] | None:
    """A stamp that changes when the file does, or when its link names another file."""
    try:
        about = file.stat()
    except OSError:
        return None
    return about.st_mtime_ns, about.st_ino, about.st_size


def _read_file(file: Path) -> list[Token]:
    where = f"{TOKEN_FILE_VARIABLE}={file}"
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    tokens: list[Token] = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        named = _NAMED.fullmatch(text)
        name, secret = (named[1], named[2].strip()) if named else (DEFAULT_NAME, text)
        tokens.append(Token(name, _checked(secret, f"{where}, line {number}")))
    if not 0 < len(tokens) <= MAX_TOKENS:
        raise UserError(f"{where}: there must be 1 to {MAX_TOKENS} tokens, one a line, got {len(tokens)}")
    return tokens


def _checked(secret: str, where: str) -> bytes:
    if not re.fullmatch(r"[\x21-\x7e]+", secret):
        raise UserError(f"{where}: the token must be printable ASCII without spaces, and not empty")
    if len(secret) < MIN_LENGTH:
        raise UserError(
            f"{where}: the token has {len(secret)} characters and must have at least {MIN_LENGTH}; make one with "
            f"`{_MAKE}`"
        )
    return secret.encode()


@dataclass
class Bucket:
    """A rate limit: ``burst`` at once, then ``rate`` per second."""

    rate: float
    burst: float
    left: float = field(init=False)
    at: float = field(init=False)

    def __post_init__(self) -> None:
        self.left, self.at = self.burst, time.monotonic()

    def wait(self) -> float:
        """Return the seconds until one more is allowed; 0: now."""
        now = time.monotonic()
        self.left, self.at = min(self.burst, self.left + (now - self.at) * self.rate), now
        return 0.0 if self.left >= 1 else (1 - self.left) / self.rate

    def take(self) -> None:
        self.left -= 1

    def is_full(self) -> bool:
        return self.wait() == 0 and self.left >= self.burst


class Allowance:
    """Counts what the tokens of each name ask for, against their limits; each replica counts for itself."""

    def __init__(self, limits: Mapping[str, TokenLimitConfig]) -> None:
        self._limits = limits
        self._rates: dict[str, Bucket] = {}
        self._ongoing: dict[str, int] = {}

    def enter(self, name: str) -> tuple[str, float] | None:
        """Admit one request. Otherwise return the limit that it would exceed and the seconds to wait."""
        limit = self._limits.get(name) or self._limits.get(DEFAULT_NAME)
        if limit is not None and limit.max_ongoing is not None and self._ongoing.get(name, 0) >= limit.max_ongoing:
            return f"{limit.max_ongoing} requests at a time", 1.0
        if limit is not None and limit.requests_per_second is not None:
            rate = limit.requests_per_second
            bucket = self._rates.setdefault(name, Bucket(rate, max(1.0, rate)))
            if wait := bucket.wait():
                return f"{rate:g} requests per second", wait
            bucket.take()
        self._ongoing[name] = self._ongoing.get(name, 0) + 1
        return None

    def leave(self, name: str) -> None:
        self._ongoing[name] -= 1


class Attempts:
    """Limits wrong tokens per client: a few at once, then one every so often.

    The same wrong token again does not count: a program with an old one is no guesser, and may share its address with
    those that have the right one.

    Args:
        per_minute: 0 does not limit them.
    """

    def __init__(self, per_minute: float) -> None:
        self._per_minute = per_minute
        self._clients: dict[str, _Guesses] = {}

    def wait(self, client: str) -> float:
        """Return the seconds until this client may try again; 0: now."""
        guesses = self._clients.get(client)
        return 0.0 if guesses is None else guesses.bucket.wait()

    def failed(self, client: str, secret: bytes) -> None:
        """Count a wrong token."""
        if not self._per_minute:
            return
        if client not in self._clients:
            if len(self._clients) >= _MAX_CLIENTS:
                self._forget()
            self._clients[client] = _Guesses(Bucket(self._per_minute / 60, max(1.0, self._per_minute)))
        guesses, digest = self._clients[client], hashlib.sha256(secret).digest()
        if digest not in guesses.seen:
            guesses.seen.append(digest)
            guesses.bucket.take()

    def _forget(self) -> None:
        """Make room: drop the clients that may try as often as anybody, or the oldest."""
        idle = [name for name, guesses in self._clients.items() if guesses.bucket.is_full()]
        for name in idle or [next(iter(self._clients))]:
            del self._clients[name]


@dataclass
class _Guesses:
    bucket: Bucket
    seen: deque[bytes] = field(default_factory=lambda: deque[bytes](maxlen=_REMEMBERED))
