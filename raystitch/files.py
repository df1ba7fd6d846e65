"""Whole-or-nothing file writing: a reader never sees half a file; and what settings in two files differ in."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raystitch.errors import RunError, UserError


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; renames it into place on success, removes it on any failure.

    Raises:
        RunError: when the disk is full or the folder cannot be written.
    """
    final = Path(path)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{final.name}.", suffix=".tmp", dir=final.parent)
    except OSError as error:
        raise RunError(f"cannot write {final}: {error.strerror or error}") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(final)
    except OSError as error:
        raise RunError(f"cannot write {final}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def require_space(path: str | os.PathLike[str], num_bytes: int) -> None:
    """Refuses before writing what cannot fit; HDF5 crashes the process when the disk fills while it writes.

    Args:
        path: file or folder to be written; it and folders above it need not exist.

    Raises:
        RunError: when the disk has less than ``num_bytes`` left.
    """
    folder = Path(path).absolute()
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise RunError(
            f"cannot write {path}: it may take {num_bytes / 2**20:,.1f} MiB, but {free / 2**20:,.1f} MiB are free in "
            f"{folder}; make room or choose another place"
        )


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes ``value`` as indented JSON, whole or not at all."""
    text = json.dumps(value, indent=2, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: when it is missing or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error


def differences(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """What differs between two nested settings, in words: ``a.b (there 1, asked 2)``."""
    there, now = _flat(stored), _flat(asked)
    return [
        f"{key} (there {there.get(key)!r}, asked {now.get(key)!r})"
        for key in sorted(there.keys() | now.keys())
        if there.get(key) != now.get(key)
    ]


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
