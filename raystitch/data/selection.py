"""How a selection of episodes is written: ``best=0.5,clean`` on the command line, names and mappings in YAML.

Syntax only; ``raystitch.data.select`` knows the names and checks the values.
"""

import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raystitch.errors import UserError

Spec = str | Mapping[str, Any] | Sequence[Any]
"""A name, a mapping of a name to its value, or several of either, applied in order."""
Value = None | int | float | tuple[str | float, ...]
"""A value in the one form that its selector gives it."""

MAX_LIST_BYTES = 64 * 2**20


def steps_of_spec(spec: Spec) -> list[tuple[str, Any]]:
    """Return the names and values of a selection, in order; values as written.

    Raises:
        UserError: for anything but text, mappings and lists of them.
    """
    if isinstance(spec, str):
        return [_named(part, spec) for part in _parts(spec)]
    if isinstance(spec, Mapping):
        return [(str(name), value) for name, value in spec.items()]
    if isinstance(spec, Sequence):
        return [step for part in spec for step in steps_of_spec(part)]
    raise UserError(f"select: {spec!r} is neither a name, a mapping such as {{best: 0.5}}, nor a list of them")


def step_text(name: str, value: Value) -> str:
    """Return one step in the form that ``steps_of_spec`` reads."""
    if value is None:
        return name
    if isinstance(value, tuple):
        return f"{name}=[{','.join(part if isinstance(part, str) else plain_number(part) for part in value)}]"
    return f"{name}={plain_number(value)}"


def plain_number(value: float) -> str:
    """Return a number without a needless ``.0``; it reads back as the same number."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _parts(text: str) -> list[str]:
    """Split at the commas outside of brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "[") - (character == "]")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _named(part: str, text: str) -> tuple[str, Any]:
    import yaml  # models are fitted where it is not installed

    name, separator, value = part.partition("=")
    if not name.strip() or (separator and not value.strip()):
        raise UserError(f"select={text!r}: write names with their values, such as best=0.5,clean")
    if not separator:
        return name.strip(), None
    try:
        return name.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"select={text!r}: {value!r} is not a number, a list such as [0,5,7] or a file") from None


def no_value(name: str, value: Any) -> None:
    """Raises: UserError when a selector that takes no value has one."""
    if value is not None:
        raise UserError(f"select={name}: takes no value, got {value!r}")


def read_share(name: str, value: Any) -> float:
    """Return a share in (0, 1].

    Raises:
        UserError: for anything else.
    """
    share = _number(value)
    if share is None or not 0 < share <= 1:
        raise UserError(f"select={name}: needs a share above 0 and up to 1, such as {name}=0.5, got {value!r}")
    return share


def read_count(name: str, value: Any) -> int:
    """Return a number of episodes, at least 1.

    Raises:
        UserError: for anything else.
    """
    count = _number(value)
    if count is None or count < 1 or not count.is_integer():
        raise UserError(f"select={name}: needs a whole number of episodes, such as {name}=200, got {value!r}")
    return int(count)


def read_range(name: str, value: Any) -> tuple[float, float]:
    """Return the ends of a range; ``inf`` and ``-inf`` leave it open.

    Raises:
        UserError: for anything but two ascending numbers.
    """
    ends = [_number(end) for end in value] if isinstance(value, list | tuple) else []
    if len(ends) != 2 or ends[0] is None or ends[1] is None or not ends[0] <= ends[1]:
        raise UserError(f"select={name}: needs the lowest and the highest, such as {name}=[100,2000], got {value!r}")
    return ends[0], ends[1]


def read_episodes(name: str, value: Any) -> tuple[str, ...]:
    """Return episode numbers as runs, ``("0-4", "7")``, from such a list or a file with a number per line.

    Raises:
        UserError: for anything else, no number at all, or a file that is not one.
    """
    if isinstance(value, str) and not _is_run(value):
        value = _lines(name, Path(value).expanduser())
    listed = value if isinstance(value, list | tuple) else [value]
    numbers: set[int] = set()
    for part in listed:
        if isinstance(part, bool) or not _is_run(str(part)):
            raise UserError(f"select={name}: {part!r} is not an episode number; write {name}=[0,5,7] or a file")
        first, _, last = str(part).partition("-")
        if last and int(last) < int(first):
            raise UserError(f"select={name}: {part} runs backwards")
        numbers.update(range(int(first), int(last or first) + 1))
    if not numbers:
        raise UserError(f"select={name}: names no episode")
    return _runs(sorted(numbers))


def episode_list(runs: Sequence[Any]) -> list[int]:
    """Return the numbers in runs of ``read_episodes``, ascending."""
    ends = [str(run).partition("-") for run in runs]
    return [number for first, _, last in ends for number in range(int(first), int(last or first) + 1)]


def _runs(numbers: list[int]) -> tuple[str, ...]:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return tuple(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _is_run(text: str) -> bool:
    first, dash, last = text.partition("-")
    return all(part.isdecimal() and part.isascii() and len(part) < 10 for part in ((first, last) if dash else (first,)))


def _lines(name: str, path: Path) -> list[str]:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_LIST_BYTES:
            raise UserError(f"select={name}: {path} is not a file with a number per line")
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise UserError(f"select={name}: {path} cannot be read: {reason}") from None
    for number, line in enumerate(lines, 1):
        if line and not _is_run(line):
            raise UserError(f"select={name}: {path}:{number} is not an episode number")
    return [line for line in lines if line]


def _number(value: Any) -> float | None:
    """Return a number, also one that YAML leaves as text (``1e3``, ``inf``); None for anything else and for NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return None if number != number else number
