"""A request's body: read within limits, in time, decompressed."""

import asyncio
import re

import pyarrow as pa
from starlette.requests import ClientDisconnect, Request

from raystitch.endpoint.config import LimitsConfig
from raystitch.endpoint.intake import Held
from raystitch.endpoint.problems import Problem

ENCODINGS = ("gzip", "zstd")
_CHUNK = 1 << 20
_GRACE_SECONDS = 2.0


async def read_body(request: Request, limits: LimitsConfig, held: Held) -> bytes:
    """Return the whole body as it was sent; no more than the limit is ever held.

    Raises:
        Problem: 413 too large, 429 too much is held already, 408 not there in time or too slow, 400 cut off.
    """
    declared = request.headers.get("content-length", "")
    # int() accepts digits of other alphabets, and refuses thousands of digits.
    if re.fullmatch(r"[0-9]{1,18}", declared):
        if int(declared) > limits.max_body_bytes:
            raise _too_large(limits)
        held.check(int(declared))
    body, begun = bytearray(), asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout_at(begun + _allowed(0, limits)) as timer:
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.max_body_bytes:
                    raise _too_large(limits)
                held.grow(len(chunk))
                timer.reschedule(begun + _allowed(len(body), limits))
    except TimeoutError:
        raise _too_slow(limits, len(body)) from None
    except ClientDisconnect:
        raise Problem(400, "the body was cut off") from None
    return bytes(body)


def _allowed(received: int, limits: LimitsConfig) -> float:
    """Return the seconds after which a body is given up, given the bytes that have come."""
    if not limits.min_body_rate:
        return limits.body_seconds
    return min(limits.body_seconds, _GRACE_SECONDS + received / limits.min_body_rate)


def check_encoding(encoding: str) -> str:
    """Return the body's ``Content-Encoding``, '' for none.

    Raises:
        Problem: 415 for one that is not read here.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return ""
    if encoding not in ENCODINGS:
        accepted = ", ".join(ENCODINGS)
        raise Problem(
            415, f"Content-Encoding {encoding[:40]!r} is not one of {accepted}", headers={"Accept-Encoding": accepted}
        )
    return encoding


def decompress(body: bytes, encoding: str, limits: LimitsConfig) -> bytes:
    """Decompress the body; stop at the limit, however much would follow.

    Raises:
        Problem: 413 too large, 400 damaged or cut short.
    """
    if not encoding:
        return body
    parts: list[bytes] = []
    size = 0
    try:
        with pa.CompressedInputStream(pa.BufferReader(body), encoding) as stream:
            while part := stream.read(_CHUNK):
                parts.append(part)
                size += len(part)
                if size > limits.max_body_bytes:
                    raise _too_large(limits)
    except OSError as error:
        raise Problem(400, f"the body is not valid {encoding}: {str(error)[:200]}") from None
    return b"".join(parts)


def _too_large(limits: LimitsConfig) -> Problem:
    return Problem(
        413,
        f"the body is larger than {limits.max_body_bytes:,} bytes, before or after decompression; send shorter "
        "trajectories",
        headers={"Connection": "close"},
    )


def _too_slow(limits: LimitsConfig, received: int) -> Problem:
    why = f"did not arrive within {limits.body_seconds:g} s"
    if _allowed(received, limits) < limits.body_seconds:
        why = f"came slower than {limits.min_body_rate:,} bytes per second"
    return Problem(408, f"the body {why}", headers={"Connection": "close"})
