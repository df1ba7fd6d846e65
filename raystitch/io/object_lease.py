"""A lock for folders on an object store, in one object that is replaced under a condition.

The holder changes the object every few seconds. A process that waits takes it over when the holder has released it,
when it can see that the holder's process is gone, or when the object has not changed for the lease's seconds, counted
on the watcher's own steady clock.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from raystitch.errors import RunError, UserError
from raystitch.io import lease
from raystitch.io.holders import temporary_name, writer_alive
from raystitch.io.storage import Storage


class ObjectLease:
    """A lease at hand."""

    def __init__(self, storage: Storage, name: str, seconds: float) -> None:
        self.storage, self.name, self.seconds = storage, name, seconds
        self._note: dict[str, Any] = {
            "holder": f"{socket.gethostname()}, process {os.getpid()}",
            "process": temporary_name("lease"),
            "token": secrets.token_hex(8),
            "seconds": seconds,
        }
        self._beat, self._alive_at, self._lost = 0, time.monotonic(), False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease of {name}", daemon=True)

    def check(self) -> None:
        """Raises: RunError when the lease was lost, or may be: this process or the store stood still for so long that
        another may have taken over. If none has, it is renewed once the store answers again."""
        if self._lost or time.monotonic() - self._alive_at > self.seconds:
            raise RunError(
                f"the lock {self.storage.where(self.name)} was lost: this process could not renew it for "
                f"{self.seconds:g} s, and another may be at work; run again"
            )

    def is_mine(self, note: Mapping[str, Any]) -> bool:
        """Say whether the object speaks of this lease."""
        return note.get("token") == self._note["token"]

    def content(self, state: str = "held") -> bytes:
        """Return what the object says while this holds it."""
        return json.dumps({**self._note, "beat": self._beat, "state": state}).encode()

    def start(self) -> None:
        """Begin to renew it, now that the object says so."""
        self._alive_at = time.monotonic()
        self._thread.start()

    def end(self) -> None:
        """Release it, unless it was lost."""
        self._done.set()
        self._thread.join(self.seconds)
        if not self._lost:
            with contextlib.suppress(RunError, UserError, OSError):  # otherwise the next waits until it expires
                self._write("released")

    def _write(self, state: str) -> bool:
        """Replace the object if it is still this lease's; False if it is not."""
        mine = False

        def change(content: bytes | None) -> bytes | None:
            nonlocal mine
            mine = self.is_mine(_note(content))
            return self.content(state) if mine else None

        self.storage.update(self.name, change)
        return mine

    def _keep(self) -> None:
        while not self._done.wait(self.seconds / lease.BEATS):
            began = time.monotonic()
            self._beat += 1
            try:
                if not self._write("held"):
                    self._lost = True
                    return
            except (RunError, UserError, OSError):
                continue  # the store does not answer: try again next time, or lose the lease
            self._alive_at = began


@contextmanager
def object_leased(
    storage: Storage,
    name: str,
    *,
    seconds: float | None = None,
    busy: str | None = None,
    patience: float = 0.0,
    on_wait: Callable[[str], None] | None = None,
) -> Iterator[ObjectLease]:
    """Holds the lock that an object stands for. Not re-entrant. Arguments and errors are those of ``lease.leased``.

    Where the store does not compare (``Storage.unguarded``), two that begin at the same moment may both hold it.

    Raises:
        UserError: ``busy``, when another process has the lock; when the store refuses for good.
        StorageError: when the store does not answer.
    """
    held = ObjectLease(storage, name, lease.LEASE_SECONDS if seconds is None else seconds)
    watch = _Watcher(held, busy, patience, on_wait)
    while not watch.take():
        time.sleep(min(1.0, held.seconds / (2 * lease.BEATS)))
    held.start()
    try:
        yield held
    finally:
        held.end()


def held_by_process_here(storage: Storage, name: str) -> bool:
    """Return True if a living process of this machine holds the lock; writes nothing."""
    try:
        note = _note(storage.read_whole(name).to_pybytes())
    except FileNotFoundError:
        return False
    return note.get("state") == "held" and writer_alive(str(note.get("process"))) is True


def lock_holder(storage: Storage, lock: str) -> lease.LeaseHolder | None:
    """Return who has a lock, in a folder or on an object store; arguments and errors are those of
    ``lease.lease_holder``."""
    if storage.local is not None:
        return lease.lease_holder(storage, lock)
    try:
        note = _note(storage.read_whole(lock).to_pybytes())
        if note.get("state") != "held":
            return None
        seconds = max(0.0, storage.age(lock) or 0.0)
        alive = writer_alive(str(note.get("process")))
        within = seconds <= float(note["seconds"])
        return lease.LeaseHolder(name=str(note["holder"]), seconds=seconds, alive=within if alive is None else alive)
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


class _Watcher:
    """One who waits for a lock, and what it has seen of the holder."""

    def __init__(
        self, wanted: ObjectLease, busy: str | None, patience: float, on_wait: Callable[[str], None] | None
    ) -> None:
        self.wanted, self.busy, self.patience, self.on_wait = wanted, busy, patience, on_wait
        self._seen: bytes | None = None
        self._same_for, self._waited, self._looked = 0.0, 0.0, time.monotonic()

    def take(self) -> bool:
        """Take the lock if it can be had; raise ``busy`` if it is not to be waited for."""
        free = False

        def change(content: bytes | None) -> bytes | None:
            nonlocal free
            free = self._is_free(content)
            return self.wanted.content() if free else None

        self.wanted.storage.update(self.wanted.name, change)
        return free

    def _is_free(self, content: bytes | None) -> bool:
        note, now = _note(content), time.monotonic()
        if self.wanted.is_mine(note):
            return True  # it was taken, and only the answer was lost
        # If this process or the store stalled, count the late look as if it were on time.
        passed = min(now - self._looked, 2.0)
        self._looked, self._waited = now, self._waited + passed
        alive = writer_alive(str(note.get("process", "")))
        if note.get("state") != "held" or alive is False:
            return True
        changed = self._seen is not None and self._seen != content
        self._same_for = 0.0 if changed or self._seen is None else self._same_for + passed
        self._seen = content
        if self._same_for >= max(self.wanted.seconds, float(note.get("seconds", 0))):
            return True
        if (alive or changed) and self.busy is not None and self._waited >= self.patience:
            raise UserError(self.busy)
        if self.on_wait is not None:
            self.on_wait(str(note.get("holder", "another process")))
            self.on_wait = None
        return False


def _note(content: bytes | None) -> dict[str, Any]:
    """Return what the object says; nothing where it is not there or is none of ours."""
    try:
        note = json.loads(content or b"{}")
    except ValueError:
        return {}
    return note if isinstance(note, dict) else {}
