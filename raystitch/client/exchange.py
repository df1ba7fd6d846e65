"""From a request to the final answer: what to send, how long to wait, and when to try again. Nothing is sent here.

Stitching is a pure function of the request (its seed included), so asking again is always safe: whether the first
attempt was refused, broke down half way, or was computed and its answer lost. After 504 there is no further attempt,
because the time is spent.
"""

import email.utils
import http.client
import itertools
import json
import random
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias, TypeVar

import httpx

from .errors import BY_STATUS, DeadlineExceeded, StitchError

T = TypeVar("T")

RETRIED_STATUS = frozenset({429, 500, 502, 503})
BACKOFF_SECONDS = 0.25
BACKOFF_MAX_SECONDS = 8.0
RETRY_AFTER_MAX_SECONDS = 60.0


@dataclass(frozen=True)
class Send:
    """One attempt: arguments of an httpx request, and the seconds it may take."""

    arguments: Mapping[str, Any]
    timeout: float


@dataclass(frozen=True)
class Pause:
    seconds: float


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


Outcome: TypeAlias = Answer | httpx.RequestError
# A call yields its next step and is sent the result (None after a pause); only the two clients act.
Call: TypeAlias = Generator[Send | Pause, Outcome | None, T]


def exchange(
    endpoint: str, timeout: float, max_retries: int, headers: Mapping[str, str], **arguments: Any
) -> Call[Answer]:
    """Send until there is an answer of status 200, or no attempt or no time is left.

    Args:
        endpoint: its address, for messages.
        timeout: seconds for everything, the pauses included.
        arguments: of the httpx request.

    Raises:
        StitchError: what the last attempt came to.
    """
    deadline = time.monotonic() + timeout
    earlier: StitchError | None = None
    for attempt in itertools.count():
        left = deadline - time.monotonic()
        outcome = yield Send({**arguments, "headers": {**headers, "Prefer": preferred_wait(left)}}, left)
        assert outcome is not None
        if isinstance(outcome, Answer) and outcome.status == 200:
            return outcome
        failure = failure_of(outcome, endpoint, headers.get("X-Request-ID"), earlier)
        seconds = pause_seconds(attempt, failure.retry_after, random.random())
        if attempt == max_retries or not may_help(outcome) or seconds >= deadline - time.monotonic():
            raise failure
        earlier = failure
        yield Pause(seconds)
    raise AssertionError("unreachable")


def preferred_wait(left: float) -> str:
    """A Prefer header (RFC 7240) that asks for a little less than the time left, so that the server answers before time
    is up.

    The RFC has whole seconds; the endpoint accepts fractions.
    """
    return f"wait={int(left)}" if left >= 2 else f"wait={0.8 * left:.3f}"


def may_help(outcome: Outcome) -> bool:
    """Return True if another attempt may help: the server is busy or broken, or the connection was."""
    if isinstance(outcome, Answer):
        return outcome.status in RETRIED_STATUS
    return isinstance(outcome, httpx.NetworkError | httpx.RemoteProtocolError)


def pause_seconds(attempt: int, retry_after: float | None, jitter: float) -> float:
    """Return the seconds until the next attempt: the time that the server asks for, plus exponential back-off with full
    jitter.

    The two are added so that clients that were sent away together do not come back together.

    Args:
        attempt: 0 after the first. jitter: in [0, 1).
    """
    backoff = min(BACKOFF_MAX_SECONDS, BACKOFF_SECONDS * 2**attempt)
    return min(retry_after or 0.0, RETRY_AFTER_MAX_SECONDS) + jitter * backoff


def retry_after_seconds(value: str | None, now: datetime) -> float | None:
    """Read a Retry-After header, given in seconds or as an HTTP date; None when it is neither."""
    if value is None:
        return None
    try:
        if value.strip().isdecimal():
            return float(value)
        return max(0.0, (email.utils.parsedate_to_datetime(value) - now).total_seconds())
    except (TypeError, ValueError):
        return None


def failure_of(
    outcome: Outcome, endpoint: str, request_id: str | None, earlier: StitchError | None = None
) -> StitchError:
    """Turn an outcome into an error for the caller, who also hears what the attempt before it came to if this one has
    no answer in time."""
    if isinstance(outcome, Answer):
        problem = _problem(outcome.body)
        detail = problem.get("detail") or http.client.responses.get(outcome.status, "an answer without a reason")
        return BY_STATUS.get(outcome.status, StitchError)(
            str(detail),
            outcome.status,
            tuple(problem.get("errors") or ()),
            problem.get("request_id") or request_id,
            retry_after_seconds(outcome.headers.get("Retry-After"), datetime.now(UTC)),
        )
    if isinstance(outcome, httpx.TimeoutException):
        before = "" if earlier is None else f"; the attempt before: {earlier.reason}"
        failure = DeadlineExceeded(f"no answer from {endpoint} in time{before}", request_id=request_id)
    else:
        why = str(outcome) or type(outcome).__name__
        failure = StitchError(f"no answer from {endpoint}: {why}", request_id=request_id)
    failure.__cause__ = outcome
    return failure


def _problem(body: bytes) -> dict[str, Any]:
    """The members of an application/problem+json body; empty for a proxy's own page."""
    try:
        problem = json.loads(body)
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}
