"""Errors and their answers: ``application/problem+json`` (RFC 9457), without a trace of our insides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

import orjson
from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True)
class FieldError:
    """An error in one field, such as ``source.observations[3][1]``, and its reason."""

    field: str
    message: str


@dataclass(eq=False)
class Problem(Exception):
    """A request that is answered with an error.

    Attributes:
        detail: one sentence: what was wrong, where, what to do.
    """

    status: int
    detail: str
    errors: Sequence[FieldError] = ()
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        super().__init__(self.detail)

    def response(self, request_id: str) -> Response:
        title = HTTPStatus(self.status).phrase
        content: dict[str, object] = {
            "type": "about:blank",
            "title": title,
            "status": self.status,
            "detail": self.detail,
            "request_id": request_id,
        }
        if self.errors:
            content["errors"] = [{"field": error.field, "message": error.message} for error in self.errors]
        return Response(orjson.dumps(content), self.status, dict(self.headers), MEDIA_TYPE)


def invalid(field: str, message: str) -> Problem:
    """422 for one field."""
    return Problem(422, f"{field}: {message}", [FieldError(field, message)])


def busy(detail: str, retry_after: float) -> Problem:
    """429: come back later."""
    return Problem(429, detail, headers={"Retry-After": str(max(1, round(retry_after)))})


def unavailable(detail: str, retry_after: int = 2) -> Problem:
    """503: starting or stopping."""
    return Problem(503, detail, headers={"Retry-After": str(retry_after)})
