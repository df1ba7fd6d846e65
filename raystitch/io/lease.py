"""A lock for folders that several machines share: it outlives nobody, not even a machine that is lost with its locks.

The lock file itself works as ever between processes of one machine: the kernel releases it when a process dies. A file
server may keep the lock of a machine that is gone, or know no locks across machines at all. So a holder also writes a
numbered lease file and changes it every few seconds. A process that waits watches that file: when it stays the same for
the lease's seconds, counted on the watcher's own steady clock, the holder is lost, and the first to make the file of
the next number has the lease. No clock is compared with another, so none has to be right.
"""

import contextlib
import fcntl
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raystitch.errors import RunError, UserError
from raystitch.io.files import cannot_write, make_folder
from raystitch.io.holders import Place, ProcessMark, hold, is_held, kernel
from raystitch.io.storage import Storage

LEASE_SECONDS = 30.0
BEATS = 6
"""Heartbeats, and looks at another's, per duration of a lease."""


class Lease:
    """A lease at hand; ``number`` grows with every holder there ever was of this lock."""

    def __init__(self, path: Path, number: int, seconds: float, place: Place | None) -> None:
        """``place``: where the lock file is locked as well; None where that could not be done."""
        self.path, self.number, self.seconds = path, number, seconds
        self._note: dict[str, Any] = {
            "holder": f"{socket.gethostname()}, process {os.getpid()}",
            "token": secrets.token_hex(8),
            "process": asdict(ProcessMark.own()),
            "seconds": seconds,
            "place": None if place is None else asdict(place),
        }
        self._beat, self._alive_at, self._lost = 0, time.monotonic(), False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease of {path}", daemon=True)

    def check(self) -> None:
        """Raises: RunError when the lease was lost: this process, its machine or the storage stood still for so long
        that another may have taken over."""
        if self._lost or time.monotonic() - self._alive_at > self.seconds:
            self._lost = True
            raise RunError(
                f"the lock {self.path} was lost: this process could not renew it for {self.seconds:g} s, and another "
                "may be at work; run again"
            )

    def _write(self, state: str) -> None:
        text = json.dumps({**self._note, "beat": self._beat, "state": state})
        handle = os.open(_file(self.path, self.number), os.O_WRONLY)
        try:
            os.pwrite(handle, text.encode().ljust(512), 0)  # closing it sends it to a file server
        finally:
            os.close(handle)

    def _start(self) -> None:
        self._write("held")
        self._alive_at = time.monotonic()
        self._thread.start()

    def _keep(self) -> None:
        while not self._done.wait(self.seconds / BEATS):
            began = time.monotonic()
            try:
                if max(_numbers(self.path), default=0) > self.number:
                    self._lost = True
                    return
                self._beat += 1
                self._write("held")
            except FileNotFoundError:
                self._lost = True
                return
            except OSError:
                continue  # the storage does not answer: try again next time, or lose the lease
            self._alive_at = began

    def _end(self) -> None:
        self._done.set()
        self._thread.join(self.seconds)
        if not self._lost:
            with contextlib.suppress(OSError):  # otherwise the next process waits until the lease expires
                self._write("released")


@contextmanager
def leased(
    path: str | os.PathLike[str],
    *,
    seconds: float | None = None,
    busy: str | None = None,
    patience: float = 0.0,
    on_wait: Callable[[str], None] | None = None,
) -> Iterator[Lease]:
    """Holds the lock that the file ``path`` stands for, on storage that several machines may share. Not re-entrant.

    Waits for another that has it. Of a holder on this machine that died the lock is free at once; of one elsewhere when
    its lease file has not changed for its ``seconds``. A process that has only ``locked(path)`` is respected as well.

    Args:
        path: of the lock file; lease files ``STEM.NUMBER.lock`` lie beside it.
        seconds: how long the lease outlives its holder, 30 by default.
        busy: do not wait for a holder that is seen to be alive (a heartbeat came), but fail with this message; a lost
            one is waited for all the same.
        patience: with ``busy``, seconds that a living holder is waited for before.
        on_wait: called once, with who has the lock, before waiting begins.

    Raises:
        UserError: ``busy``, when another process has the lock.
        StorageError: when the files cannot be made.
    """
    path, seconds = Path(path), LEASE_SECONDS if seconds is None else seconds
    watch = _Watch(path, seconds, busy, patience, on_wait)
    try:
        make_folder(path.parent)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        try:
            lease = _acquire(path, handle, seconds, watch)
        except OSError as error:
            raise cannot_write(path, error) from error
        try:
            yield lease
        finally:
            lease._end()
    finally:
        os.close(handle)


def held_here(path: str | os.PathLike[str]) -> bool:
    """Return True if a living process on this machine holds the lock; creates no file.

    For a holder elsewhere, only waiting can tell."""
    path = Path(path)
    if not is_held(path):
        return False
    _, note = _read(path, max(_numbers(path), default=0))
    place = note.get("place")
    return note.get("state") != "held" or place is None or place.get("kernel") == kernel()


@dataclass(frozen=True, kw_only=True)
class LeaseHolder:
    """The process that has a lease, or had it when it died.

    Attributes:
        name: host and process. seconds: since the lease was renewed, by this machine's clock and the storage's.
        alive: it runs on this machine, or its lease is not over.
    """

    name: str
    seconds: float
    alive: bool


def lease_holder(storage: Storage, lock: str) -> LeaseHolder | None:
    """Return who has the lease of a lock file, None where it was given back or never taken. Takes no lock itself.

    Args:
        lock: name of the lock file in ``storage``.

    Raises:
        StorageError: when the folder cannot be listed.
    """
    folder, _, name = lock.rpartition("/")
    stem, above = name.removesuffix(".lock"), f"{folder}/" if folder else ""
    taken = [int(match[1]) for other in storage.names(folder) if (match := _numbered(stem).fullmatch(other))]
    if not taken:
        return None
    latest = f"{above}{stem}.{max(taken):08d}.lock"
    try:
        note = json.loads(storage.read_whole(latest).to_pybytes())
        seconds = max(0.0, storage.age(latest) or 0.0)
        if note["state"] != "held":
            return None
        process = note.get("process")
        alive = None if process is None else ProcessMark(**process).alive
        within = seconds <= float(note["seconds"])
        return LeaseHolder(name=str(note["holder"]), seconds=seconds, alive=within if alive is None else alive)
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None  # it is just being taken, or given back


def _acquire(path: Path, handle: int, seconds: float, watch: "_Watch") -> Lease:
    while True:
        number = watch.next_number(handle)
        if number is None:
            time.sleep(watch.pause)
            continue
        try:
            os.close(os.open(_file(path, number), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        except FileExistsError:
            continue  # another process was faster
        lease = Lease(path, number, seconds, Place.of(handle) if watch.locked else None)
        lease._start()
        # A number that was free may be outdated by now: the highest one has the lease.
        others = [other for other in _numbers(path) if other != number]
        if any(other > number for other in others):
            lease._lost = True
            lease._end()
            _file(path, number).unlink(missing_ok=True)
            continue
        for other in others:
            _file(path, other).unlink(missing_ok=True)
        return lease


class _Watch:
    """One who waits for a lock, and what it has seen of the holder."""

    def __init__(
        self, path: Path, seconds: float, busy: str | None, patience: float, on_wait: Callable[[str], None] | None
    ) -> None:
        self.path, self.seconds, self.busy, self.patience, self.on_wait = path, seconds, busy, patience, on_wait
        self.pause = min(0.5, seconds / (2 * BEATS))
        self.locked: bool | None = None
        self._seen: tuple[int, bytes] | None = None
        self._same_for, self._waited, self._looked = 0.0, 0.0, time.monotonic()

    def next_number(self, handle: int) -> int | None:
        """The number to take the lease with, None while another has it."""
        now = time.monotonic()
        # If this process or the storage stalled, count the late look as if it were on time.
        passed = min(now - self._looked, 2 * self.pause)
        self._looked, self._waited = now, self._waited + passed
        self.locked = _try_lock(handle)
        number = max(_numbers(self.path), default=0)
        content, note = _read(self.path, number)
        if note.get("state") == "released" or number == 0:
            if self.locked is not False:
                return number + 1
            alive, note = True, {}  # a holder without a lease, or one that is just taking it
        else:
            here = note.get("place") == asdict(Place.of(handle))
            if here and self.locked:
                return number + 1  # it died: its lock is free
            changed = self._seen is not None and self._seen != (number, content)
            self._same_for = 0.0 if changed or self._seen is None else self._same_for + passed
            self._seen = number, content
            if not here and self._same_for >= max(self.seconds, float(note.get("seconds", 0))):
                return number + 1  # it is lost with its machine, or stood still for longer than its lease
            alive = here or changed
        if self.locked:
            fcntl.flock(handle, fcntl.LOCK_UN)  # a waiting process must not look like a holder
            self.locked = False
        if alive and self.busy is not None and self._waited >= self.patience:
            raise UserError(self.busy)
        if self.on_wait is not None:
            self.on_wait(str(note.get("holder", "another process")))
            self.on_wait = None
        return None


def _try_lock(handle: int) -> bool | None:
    """Return True if the lock was free and is now held; None on a file system without locks."""
    try:
        return hold(handle)
    except OSError:
        return None


def _stem(path: Path) -> str:
    return path.name.removesuffix(".lock")


def _file(path: Path, number: int) -> Path:
    return path.with_name(f"{_stem(path)}.{number:08d}.lock")


def _numbers(path: Path) -> list[int]:
    pattern = _numbered(_stem(path))
    return [int(match[1]) for name in os.listdir(path.parent) if (match := pattern.fullmatch(name))]


def _numbered(stem: str) -> re.Pattern[str]:
    return re.compile(rf"{re.escape(stem)}\.(\d{{8,}})\.lock")


def _read(path: Path, number: int) -> tuple[bytes, dict[str, Any]]:
    """A lease file as it is, and what it says; nothing where it is not there or half written."""
    try:
        content = _file(path, number).read_bytes()
    except FileNotFoundError:
        return b"", {}
    try:
        note = json.loads(content)
    except ValueError:
        return content, {}
    return content, note if isinstance(note, dict) else {}
