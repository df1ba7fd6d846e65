"""Files and folders that are written whole or not at all, locks, JSON files, and how nested settings differ."""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raystitch.errors import RunError, StorageError, UserError
from raystitch.io.holders import hold, is_held, is_temporary, storage_time, temporary_name, writer_alive

LEFTOVER_SECONDS = 3600.0
TOUCH_SECONDS = 60.0


def is_remote(where: str | os.PathLike[str]) -> bool:
    """Return True for a URI of an object store; a ``file://`` URI is a path."""
    return "://" in str(where) and not str(where).startswith("file://")


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; renames it into place on success, removes it on any failure.

    The temporary name tells the process, and the file is locked while it is written, so that what a killed process left
    can be told from work at hand. HDF5 has to be opened with ``locking=False``.

    Args:
        durable: wait until file and name are on the disk, so that they outlive the machine's loss of power. False only
            for what can be made again at no great cost.

    Raises:
        StorageError: when the disk is full or the folder cannot be written.
    """
    with _atomic(Path(path), durable, is_folder=False) as temporary:
        yield temporary


@contextmanager
def atomic_folder(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[Path]:
    """Does the same for a folder: yields a temporary one beside ``path``, which must not exist at the end.

    Raises:
        StorageError: when the disk is full or the folder cannot be written.
    """
    with _atomic(Path(path), durable, is_folder=True) as temporary:
        yield temporary


@contextmanager
def _atomic(final: Path, durable: bool, *, is_folder: bool) -> Iterator[Path]:
    temporary = final.with_name(temporary_name(final.name))
    try:
        make_folder(final.parent)
        if is_folder:
            temporary.mkdir()
        handle = os.open(temporary, os.O_RDONLY if is_folder else os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with _kept(temporary, handle):
                yield temporary
                if durable:
                    (sync_tree if is_folder else sync)(temporary)
                temporary.replace(final)
                if durable:
                    sync(final.parent)
        finally:
            os.close(handle)
            remove(temporary)
    except OSError as error:
        raise cannot_write(final, error) from error


@contextmanager
def scratch_folder(parent: Path, name: str) -> Iterator[Path]:
    """Yields an empty folder ``name`` of this process's own somewhere below ``parent``; it is removed at the end.

    What processes that died left there is removed as well.

    Raises:
        StorageError: when it cannot be made.
    """
    temporary = parent / temporary_name(name)
    try:
        make_folder(parent)
        for path in list(parent.iterdir()):
            if is_leftover(path):
                remove(path)
        (temporary / name).mkdir(parents=True)
        handle = os.open(temporary, os.O_RDONLY)
    except OSError as error:
        raise cannot_write(temporary / name, error) from error
    try:
        with _kept(temporary, handle):
            yield temporary / name
    finally:
        os.close(handle)
        remove(temporary)


def remove(path: Path) -> None:
    """Removes a file, or a folder with all that is in it; one that is gone already is fine."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def make_folder(path: str | os.PathLike[str]) -> None:
    """Makes a folder and those above it; each is on the disk, by its name, when this returns.

    Raises:
        OSError: when it cannot be made.
    """
    folder = Path(path)
    missing: list[Path] = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        new.mkdir(exist_ok=True)
        sync(new.parent)
    Path(path).mkdir(exist_ok=True)  # raises a clear error if a file is in the way


def sync(path: str | os.PathLike[str]) -> None:
    """Waits until a file's content, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: str | os.PathLike[str]) -> None:
    """Waits until a folder and everything below it are on the disk; not its own name."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(parent, name))
        sync(parent)


def set_aside(path: Path) -> str:
    """Renames a file or folder that is in the way and gives its new name: nothing is deleted that was not read.

    Raises:
        StorageError: when it cannot be renamed.
    """
    aside = path.with_name(f"{path.name}.unusable-{secrets.token_hex(4)}")
    try:
        path.rename(aside)
    except OSError as error:
        raise cannot_write(path, error) from error
    return aside.name


class _Keeper:
    """Touches temporary files now and then while they are written: their age then shows other machines, and containers
    that cannot see this process, that somebody is at work, however long nothing is written."""

    def __init__(self) -> None:
        self._paths: set[Path] = set()
        self._thread: threading.Thread | None = None

    def add(self, path: Path) -> None:
        self._paths.add(path)
        if self._thread is None or not self._thread.is_alive():  # or this is a fork, which has no threads
            self._thread = threading.Thread(target=self._keep, name="temporary files", daemon=True)
            self._thread.start()

    def remove(self, path: Path) -> None:
        self._paths.discard(path)

    def _keep(self) -> None:
        while True:
            time.sleep(TOUCH_SECONDS)
            for path in list(self._paths):
                with contextlib.suppress(OSError):
                    os.utime(path)


_KEEPER = _Keeper()


@contextmanager
def _kept(temporary: Path, handle: int) -> Iterator[None]:
    with contextlib.suppress(OSError):  # a file system without locks
        hold(handle)
    _KEEPER.add(temporary)
    try:
        yield
    finally:
        _KEEPER.remove(temporary)


def cannot_write(where: str | os.PathLike[str], error: OSError) -> StorageError:
    """The error of a file that cannot be written, with what to do where that is known."""
    why = os.strerror(error.errno) if error.errno else str(error)
    hint = {
        errno.ENOSPC: "; make room, or choose another place, and run again",
        errno.EDQUOT: "; make room, or choose another place, and run again",
        errno.EFBIG: "; files may not be that large here: raise the limit (ulimit -f), or choose another place",
    }.get(error.errno or 0, "")
    return StorageError(f"cannot write {os.fspath(where)}: {why}{hint}")


def is_leftover(path: Path) -> bool:
    """Return True if a temporary file or folder of ``atomic_path`` was left by a process that died.

    It was not while somebody holds its lock. Otherwise the process decides where it can be seen from here; where it
    cannot (another machine, another container) an hour must have passed since the last write or touch, by the clock of
    the storage.
    """
    if not is_temporary(path.name) or is_held(path):
        return False
    alive = writer_alive(path.name)
    if alive is not None:
        return not alive
    try:
        return storage_time(path.parent) - path.stat().st_mtime > LEFTOVER_SECONDS
    except OSError:
        return False


@contextmanager
def locked(path: str | os.PathLike[str], *, busy: str | None = None) -> Iterator[None]:
    """Holds the lock that the file ``path`` stands for; waits for another process that has it.

    The kernel releases it when the process dies, however it dies. It keeps out other containers that share the folder,
    and other machines as far as the file system passes locks on; ``lease.leased`` is for where it does not, or where
    the lock of a lost machine may stay behind. Not re-entrant.

    Args:
        busy: instead of waiting, fail with this message.

    Raises:
        StorageError: when the file cannot be made.
        UserError: ``busy``, when another process has the lock.
    """
    handle = _open_lock(path)
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if busy is None else fcntl.LOCK_NB))
            except BlockingIOError:
                raise UserError(busy) from None
            if _is_at(handle, path):
                break
            os.close(handle)  # the file was removed while we waited, so a lock on it excludes nobody
            handle = _open_lock(path)
        yield
    finally:
        os.close(handle)


def _open_lock(path: str | os.PathLike[str]) -> int:
    try:
        make_folder(Path(path).parent)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise cannot_write(path, error) from error


def _is_at(handle: int, path: str | os.PathLike[str]) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


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
    """Say how two nested settings differ: ``a.b (there 1, asked 2)``."""
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
