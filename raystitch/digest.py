"""Digests that find damage: XXH3 (128 bits), at the speed of memory. They are no protection against forgery."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from raystitch.errors import DamagedError, UserError

KEY = "digest"


def digest(*parts: bytes | memoryview) -> str:
    """``xxh3:...`` of the parts, one after the other."""
    state = xxhash.xxh3_128()
    for part in parts:
        state.update(part)
    return "xxh3:" + state.hexdigest()


def json_digest(value: Any) -> str:
    """The digest of a JSON value, however it is laid out in a file."""
    return digest(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with the digest of everything else in it under ``digest``."""
    content = json.loads(json.dumps({key: item for key, item in value.items() if key != KEY}, allow_nan=False))
    return {**content, KEY: json_digest(content)}


def read_sealed(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a JSON object that ``sealed`` made, or that an older raystitch wrote without a digest.

    Raises:
        DamagedError: when it is not what was written.
        UserError: when it is missing or cannot be read.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if not content.strip(b"\0 \n"):
        raise DamagedError(f"{path} is damaged: it is empty")
    try:
        value = json.loads(content)
    except ValueError as error:
        raise DamagedError(f"{path} is damaged: it cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise DamagedError(f"{path} is damaged: it holds no JSON object")
    try:
        sound = KEY not in value or sealed(value)[KEY] == value[KEY]
    except ValueError:  # a number that JSON has no text for
        sound = False
    if not sound:
        raise DamagedError(f"{path} is damaged: its digest is not that of its content")
    return value
