"""Files that can be made again at any time, named by what they are made from: written once, used by many processes."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from raystitch.buffer.cache import cache_bytes, cache_folder
from raystitch.errors import StorageError
from raystitch.files import atomic_folder, cannot_write, is_leftover, locked


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
        with locked(self.parent / f".{name}.lock"):
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
        """Removes what processes that died left, and the least recently used folders until the rest fits."""
        found: list[tuple[float, int, Path]] = []
        for path in list(self.parent.iterdir()):
            try:
                if path.suffix == ".tmp":
                    if is_leftover(path):
                        shutil.rmtree(path, ignore_errors=True)
                elif path.is_dir():
                    found.append((path.stat().st_mtime, sum(file.stat().st_size for file in path.iterdir()), path))
            except FileNotFoundError:
                continue  # another process removed it
        over = sum(size for _, size, _ in found) - self.max_bytes
        for _, size, path in sorted(found):
            if over <= 0:
                break
            if path != kept:
                shutil.rmtree(path, ignore_errors=True)
                (path.parent / f".{path.name}.lock").unlink(missing_ok=True)
                over -= size
