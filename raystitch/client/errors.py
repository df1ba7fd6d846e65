"""Errors at the server or on the way to it. A wrong argument raises a plain ValueError."""

from collections.abc import Mapping


class StitchError(Exception):
    """The server could not be reached, or answered with an error.

    Attributes:
        detail: one sentence: what, where, what to do.
        status: of the answer; None where there was none.
        errors: of status 422, by field: ``{"field": "source.observations[3][1]", "message": ".."}``.
        request_id: by which the server's log knows the request.
        retry_after: seconds after which the server wants to be asked again, where it said so.
    """

    def __init__(
        self,
        detail: str,
        status: int | None = None,
        errors: tuple[Mapping[str, str], ...] = (),
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        # All arguments, so that the error survives pickling on its way out of another process.
        super().__init__(detail, status, errors, request_id, retry_after)
        self.detail, self.status, self.errors = detail, status, errors
        self.request_id, self.retry_after = request_id, retry_after

    @property
    def reason(self) -> str:
        """The status, if there is one, and the detail."""
        return self.detail if self.status is None else f"{self.status}: {self.detail}"

    def __str__(self) -> str:
        return self.reason + (f" (request {self.request_id})" if self.request_id else "")


class Unauthorized(StitchError):
    """The token is missing or wrong."""


class InvalidRequest(StitchError, ValueError):
    """The server refuses the request; ``errors`` names the fields."""


class Overloaded(StitchError):
    """The server is busy, starting or stopping, even after the retries that there was time for."""


class DeadlineExceeded(StitchError):
    """The timeout has passed, here or at the server."""


BY_STATUS: Mapping[int, type[StitchError]] = {
    **dict.fromkeys((400, 404, 413, 415, 422), InvalidRequest),
    **dict.fromkeys((401, 403), Unauthorized),
    **dict.fromkeys((429, 503), Overloaded),
    **dict.fromkeys((408, 504), DeadlineExceeded),
}
