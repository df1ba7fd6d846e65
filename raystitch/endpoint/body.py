"""A request's body: read within limits, in time, decompressed."""

import asyncio
import re

import pyarrow as pa
from starlette.requests import ClientDisconnect, Request

from raystitch.endpoint.config import LimitsConfig
from raystitch.endpoint.problems import Problem

ENCODINGS = ("gzip", "zstd")
_CHUNK = 1 << 20


async def read_body(request: Request, limits: LimitsConfig) -> bytes:
    """The whole body as it was sent; no more than the limit is ever held.

    Raises:
        Problem: 413 too large, 408 not there in time, 400 cut off.
    """
    declared = request.headers.get("content-length", "")
    # int() takes other alphabets' digits, and refuses thousands of them.
    if re.fullmatch(r"[0-9]{1,18}", declared) and int(declared) > limits.max_body_bytes:
        raise _too_large(limits)
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.max_body_bytes:
                    raise _too_large(limits)
    except TimeoutError:
        raise Problem(
            408, f"the body did not arrive within {limits.body_seconds:g} s", headers={"Connection": "close"}
        ) from None
    except ClientDisconnect:
        raise Problem(400, "the body was cut off") from None
    return bytes(body)


def check_encoding(encoding: str) -> str:
    """The body's ``Content-Encoding``, '' for none.

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
    """The body without its encoding; stops at the limit, however much more there would be.

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
