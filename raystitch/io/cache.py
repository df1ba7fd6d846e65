"""Files that may be made again, within a limit: copies of an object store's files, and folders of scratch files.

Copies are there so that files of an object store can be memory-mapped. They lie in ``$RAYSTITCH_CACHE``, else in
``raystitch`` in the user's cache folder (XDG); scratch folders lie in folders of their own below it. Each of these
places holds at most ``$RAYSTITCH_CACHE_GIB`` GiB (20): the least recently used entries go first, by their time of
modification, which every use renews. Removing what another process has mapped is fine: its mapping keeps it.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from raystitch.errors import StorageError, UserError
from raystitch.io.files import atomic_folder, atomic_path, cannot_write, is_leftover, locked, remove
from raystitch.io.holders import is_temporary

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK = 8 << 20
DEFAULT_GIB = 20.0


def cache_folder() -> Path:
    """Return the folder of the cache; it need not exist."""
    if asked := os.environ.get("RAYSTITCH_CACHE"):
        return Path(asked).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "raystitch"


def cache_bytes() -> int:
    """Return the number of bytes that one kind of entries may take.

    Raises:
        UserError: when ``$RAYSTITCH_CACHE_GIB`` is no positive number.
    """
    text = os.environ.get("RAYSTITCH_CACHE_GIB", "")
    try:
        gib = float(text) if text else DEFAULT_GIB
    except ValueError:
        gib = 0.0
    if not 0 < gib < float("inf"):
        raise UserError(f"RAYSTITCH_CACHE_GIB must be a positive number of GiB, got {text!r}")
    return int(gib * 2**30)


def cached_path(key: str) -> Path:
    """Return the place of the copy of the file that ``key`` names."""
    return cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.arrow"


def fetch(key: str, size: int, open_source: "Callable[[], pa.NativeFile]") -> Path:
    """Return the local copy of a file; it is made where there is none.

    Args:
        key: tells versions of the file apart.
        size: bytes the file has; a shorter download is an error.

    Raises:
        UserError: when ``$RAYSTITCH_CACHE_GIB`` is no positive number.
        StorageError: when the cache cannot be written.
        OSError: when the file cannot be read.
    """
    copy, limit = cached_path(key), cache_bytes()
    try:
        os.utime(copy)  # the time of the last use, by which copies are removed
        if copy.stat().st_size == size:
            return copy
    except FileNotFoundError:
        pass
    with open_source() as source, atomic_path(copy, durable=False) as temporary:
        with temporary.open("wb") as file:
            while chunk := source.read(CHUNK):
                file.write(chunk)
        found = temporary.stat().st_size
        if found != size:
            raise OSError(f"{found} of {size} bytes came")
    _make_room(copy.parent, copy, limit, lambda path: path.suffix == ".arrow")
    return copy


def forget(key: str) -> None:
    """Removes the copy, where there is one."""
    cached_path(key).unlink(missing_ok=True)


class Scratch:
    """Folders below one parent, each whole or not there. The least recently used go when they are more than a limit.

    A folder that is removed while another process has its files mapped stays readable to that process.
    """

    def __init__(self, kind: str, parent: Path | None = None, max_bytes: int | None = None) -> None:
        """``kind``: subfolder of the user's cache; ``parent``: instead of the cache; ``max_bytes``: of all folders
        together, None for the limit of the cache (``$RAYSTITCH_CACHE_GIB``)."""
        self.parent = cache_folder() / kind if parent is None else parent
        self.max_bytes = cache_bytes() if max_bytes is None else max_bytes

    def folder(self, name: str, write: Callable[[Path], None]) -> Path:
        """The folder ``name``; ``write`` fills it where it is not there, in one process while others wait.

        Raises:
            RunError: when it cannot be written.
        """
        final = self.parent / name
        with locked(_lock_of(final)):
            try:
                if final.is_dir():
                    os.utime(final)  # the time of the last use
                    return final
                self._make_room(final)
                with atomic_folder(final) as temporary:  # durable, since its contents are never checked again
                    write(temporary)
                self._make_room(final)
            except (OSError, StorageError) as error:
                told = error if isinstance(error, StorageError) else cannot_write(final, error)
                raise StorageError(f"{told}; set RAYSTITCH_CACHE to a folder with room") from error
        return final

    def _make_room(self, kept: Path) -> None:
        _make_room(self.parent, kept, self.max_bytes, Path.is_dir)


def _make_room(place: Path, kept: Path, max_bytes: int, is_entry: Callable[[Path], bool]) -> None:
    """Removes what processes that died left, and the least recently used entries until the rest fits; never ``kept``.

    Args:
        is_entry: whether a path in ``place`` is one of what the limit is for.
    """
    found: list[tuple[float, int, Path]] = []
    for path in list(place.iterdir()):
        with contextlib.suppress(FileNotFoundError):  # another process removed it
            if is_temporary(path.name):
                if is_leftover(path):
                    remove(path)
            elif is_entry(path):
                found.append((path.stat().st_mtime, _size(path), path))
    over = sum(size for _, size, _ in found) - max_bytes
    for _, size, path in sorted(found):
        if over <= 0:
            break
        if path != kept:
            remove(path)
            _lock_of(path).unlink(missing_ok=True)
            over -= size


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else path.stat().st_size


def _lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")
