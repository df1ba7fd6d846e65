"""Whole-or-nothing file writing: a reader never sees half a file; and what settings in two files differ in."""

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raystitch.errors import RunError, StorageError, UserError

LEFTOVER_SECONDS = 3600.0


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, durable: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; renames it into place on success, removes it on any failure.

    The temporary name tells host and process, so that what a killed process left can be told from work at hand.

    Args:
        durable: wait until file and name are on the disk, so that they outlive the machine's loss of power.

    Raises:
        StorageError: when the disk is full or the folder cannot be written.
    """
    final = Path(path)
    writer = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    temporary = final.with_name(f".{final.name}.{writer}.tmp")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
        try:
            yield temporary
            if durable:
                sync(temporary)
            temporary.replace(final)
            if durable:
                sync(final.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(final, error) from error


def cannot_write(where: str | os.PathLike[str], error: OSError) -> StorageError:
    """The error of a file that cannot be written, with what to do where that is known."""
    why = os.strerror(error.errno) if error.errno else str(error)
    hint = {
        errno.ENOSPC: "; make room, or choose another place, and run again",
        errno.EDQUOT: "; make room, or choose another place, and run again",
        errno.EFBIG: "; files may not be that large here: raise the limit (ulimit -f), or choose another place",
    }.get(error.errno or 0, "")
    return StorageError(f"cannot write {os.fspath(where)}: {why}{hint}")


def is_leftover(path: Path, now: float | None = None) -> bool:
    """Whether a temporary file of ``atomic_path`` was left by a process that died: one of this host that is gone, or
    of any host and older than an hour."""
    match = re.search(rf"\.{re.escape(socket.gethostname())}-(\d+)-[0-9a-f]+\.tmp$", path.name)
    if match and not _alive(int(match[1])):
        return True
    try:
        return (time.time() if now is None else now) - path.stat().st_mtime > LEFTOVER_SECONDS
    except FileNotFoundError:
        return False


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def sync(path: Path) -> None:
    """Waits until a file's content, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(path: str | os.PathLike[str], *, busy: str | None = None) -> Iterator[None]:
    """Holds the lock that the file ``path`` stands for; waits for another process that has it.

    The kernel releases it when the process dies, however it dies. Not re-entrant.

    Args:
        busy: instead of waiting, fail with this message.

    Raises:
        StorageError: when the file cannot be made.
        UserError: ``busy``, when another process has the lock.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if busy is None else fcntl.LOCK_NB))
        except BlockingIOError:
            raise UserError(busy) from None
        yield
    finally:
        os.close(handle)


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
