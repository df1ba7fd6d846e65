"""Arguments that come out of a file: numbers, words and lists of them, nothing that names code or a file."""

import re
from collections.abc import Mapping
from typing import Any

from raystitch.errors import UserError

# Plain words, or the bare name of a model file, which MuJoCo's environments look up in their own folder.
_PLAIN_TEXT = re.compile(r"[\w +,-]*|[\w-]+\.xml|[+-]?\d+\.\d*")
_DEEPEST = 8


def check_plain(value: Any, where: str) -> None:
    """Refuses arguments that could name code or a file.

    A text with a path, a colon or a dotted name is refused: environments open files (``xml_file``) and import what
    such texts say. The registered environments' own arguments are words.

    Raises:
        UserError: with the argument, and what to do.
    """
    bad = _first_odd(value, "", 0)
    if bad is not None:
        raise UserError(
            f"{where} has the argument {bad}, which may name a file or code; recorded arguments may not. Name an "
            "environment that is registered with it (--env package:ID)"
        )


def _first_odd(value: Any, path: str, depth: int) -> str | None:
    if value is None or isinstance(value, bool | int | float):
        return None
    if isinstance(value, str) and _PLAIN_TEXT.fullmatch(value):
        return None
    if depth < _DEEPEST and isinstance(value, list | tuple):
        found = (_first_odd(item, path, depth + 1) for item in value)
        return next((bad for bad in found if bad is not None), None)
    if depth < _DEEPEST and isinstance(value, Mapping):
        keys = (_first_odd(key, path or str(key), depth + 1) for key in value)
        items = (_first_odd(item, f"{path}.{key}" if path else str(key), depth + 1) for key, item in value.items())
        return next((bad for found in (keys, items) for bad in found if bad is not None), None)
    return f"{path[:60]}={str(value)[:60]!r}"
