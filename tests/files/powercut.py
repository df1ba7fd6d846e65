"""What a loss of power at any moment may leave of a folder, found by watching a process work in it.

``PowerCut`` wraps the calls that give, take and settle names and data (``os.fsync``, ``os.replace``, ``os.unlink``, ..)
and keeps, beside what the folder holds, what would be on the disk: a file's data as it was when the file was last
synced, a folder's names as they were when the folder was last synced. Before and after every call it notes what a cut
would leave there, in each of these ways, none of which a file system has to spare us:

    nothing    nothing that was not synced is there: neither data, nor new names, nor removals
    names      every name is there, and data only as far as it was synced: files may be empty
    torn       the same with the first half of what was not synced
    removals   what was removed is gone, but what came after it is not there

Written data is looked at in the folder itself, so it does not matter whether Python, HDF5 or Arrow wrote it.
"""

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CALLS = ("fsync", "fdatasync", "replace", "rename", "link", "symlink", "unlink", "remove", "rmdir", "mkdir", "truncate")
Tree = dict[str, bytes | None]
"""Relative path -> content; None for a folder."""


@dataclass(kw_only=True)
class Remains:
    """What a cut may leave.

    Attributes:
        way: how the cut spoils what was not synced. when: the first call at which it can come.
        promised: the last ``promise`` that was made before.
    """

    tree: Tree
    way: str
    when: str
    promised: Any

    def put(self, folder: Path) -> Path:
        """Makes ``folder`` what the cut left."""
        folder.mkdir(parents=True)
        for name, content in self.tree.items():
            if content is None:
                (folder / name).mkdir()
            else:
                (folder / name).write_bytes(content)
        return folder


@dataclass
class _Disk:
    """Data and names as far as they are settled, by inode."""

    data: dict[int, bytes] = field(default_factory=dict)
    names: dict[int, dict[str, int]] = field(default_factory=dict)


class PowerCut:
    """Watches a folder; ``remains`` lists what cuts would have left, each once, in the order of their first chance."""

    def __init__(self, root: Path) -> None:
        self.root, self.promised, self._disk = root, None, _Disk()
        self._found: dict[tuple[tuple[str, bytes | None], ...], Remains] = {}
        self._real: dict[str, Callable[..., Any]] = {}
        self._pins: dict[int, int] = {}
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> "PowerCut":
        for inode, (data, names) in self._live().items():  # what is there before is on the disk
            self._disk.data[inode] = data
            self._disk.names[inode] = names
        for name in CALLS:
            self._real[name] = getattr(os, name)
            self._patch.setattr(os, name, self._wrapped(name))
        self._note("start")
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()
        self._note("end")
        for handle in self._pins.values():
            os.close(handle)

    @property
    def remains(self) -> list[Remains]:
        return list(self._found.values())

    def promise(self, what: Any) -> None:
        """From here on every cut has to leave what ``what`` stands for."""
        self.promised = what
        self._note("promise")

    def _wrapped(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._note(f"before {name} {args[:2]}")
            result = self._real[name](*args, **kwargs)
            if name in ("fsync", "fdatasync"):
                self._settle(args[0])
            self._note(f"after {name} {args[:2]}")
            return result

        return call

    def _settle(self, handle: Any) -> None:
        number = handle if isinstance(handle, int) else handle.fileno()
        inode, live = os.fstat(number).st_ino, self._live()
        if inode in live:
            data, names = live[inode]
            self._disk.data[inode] = data
            self._disk.names[inode] = names

    def _live(self) -> dict[int, tuple[bytes, dict[str, int]]]:
        """Inode -> its data, or the inodes by name that it holds; every inode is pinned, so that its number stays its
        own."""
        found: dict[int, tuple[bytes, dict[str, int]]] = {}
        waiting = [self.root]
        while waiting:
            path = waiting.pop()
            inode = path.stat().st_ino
            if inode not in self._pins:
                self._pins[inode] = os.open(path, os.O_PATH)
            if path.is_dir():
                with os.scandir(path) as entries:
                    names = {entry.name: entry.inode() for entry in entries}
                found[inode] = b"", names
                waiting += [path / name for name in names]
            else:
                found[inode] = path.read_bytes(), {}
        return found

    def _note(self, when: str) -> None:
        live, root = self._live(), self.root.stat().st_ino
        alive = set(live)

        def settled(inode: int) -> dict[str, int]:
            return self._disk.names.get(inode, {})

        def now(inode: int) -> dict[str, int]:
            return live[inode][1] if inode in live else settled(inode)

        def without_removed(inode: int) -> dict[str, int]:
            names = now(inode)
            return {name: held for name, held in settled(inode).items() if name in names or held in alive}

        def half(inode: int) -> bytes:
            on_disk, data = self._disk.data.get(inode, b""), live[inode][0] if inode in live else b""
            return on_disk if data == on_disk else data[: max(len(on_disk), len(data) // 2)]

        def whole(inode: int) -> bytes:
            return self._disk.data.get(inode, b"")

        for way, names, data in (
            ("nothing", settled, whole),
            ("names", now, whole),
            ("torn", now, half),
            ("removals", without_removed, whole),
        ):
            tree: Tree = dict(sorted(self._tree(root, "", names, data)))
            key = tuple(tree.items())
            new = Remains(tree=tree, way=way, when=when, promised=None)
            kept = self._found.setdefault(key, new)
            kept.promised = self.promised

    def _tree(
        self, inode: int, path: str, names: Callable[[int], dict[str, int]], data: Callable[[int], bytes]
    ) -> Iterator[tuple[str, bytes | None]]:
        for name, held in names(inode).items():
            where = f"{path}/{name}" if path else name
            if self._is_folder(held):
                yield where, None
                yield from self._tree(held, where, names, data)
            else:
                yield where, data(held)

    def _is_folder(self, inode: int) -> bool:
        return stat.S_ISDIR(os.fstat(self._pins[inode]).st_mode)
