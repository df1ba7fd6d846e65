"""Tells whether the process behind a file can still be alive: here, in another container, on another machine."""

import fcntl
import os
import re
import secrets
import socket
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_MARK = re.compile(r"\.[^/]*-(\d+)-([0-9a-f]{8})\.(\d+)\.(\d+)-[0-9a-f]+\.tmp$")


@dataclass(frozen=True, kw_only=True)
class ProcessMark:
    """A process so described that its number cannot be taken for another one's.

    Attributes:
        namespace: in which ``pid`` means this process. started: in ticks since boot.
    """

    host: str
    pid: int
    kernel: str
    namespace: int
    started: int

    @classmethod
    def own(cls) -> "ProcessMark":
        """Return the mark of this process."""
        process = os.getpid()
        return cls(
            host=socket.gethostname(),
            pid=process,
            kernel=kernel(),
            namespace=_namespace(),
            started=_started(process) or 0,
        )

    @property
    def alive(self) -> bool | None:
        """True while the process lives; None if that cannot be told from here: another machine, another container."""
        if self.kernel != kernel() or self.namespace != _namespace() or not self.namespace:
            return None
        return _started(self.pid) == self.started


@lru_cache(maxsize=1)
def kernel() -> str:
    """Eight hex digits for the running kernel: containers of one machine share them, a reboot changes them."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip().replace("-", "")[:8]
    except OSError:
        return f"{hash(socket.gethostname()) & 0xFFFFFFFF:08x}"


def _namespace() -> int:
    """Number of the namespace in which process ids mean what they mean here; 0 where there are none."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _started(process: int) -> int | None:
    """Return when a process of this namespace started, in ticks since boot; None if there is no such process."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    except OSError:
        return 0
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def temporary_name(name: str) -> str:
    """Return a hidden name beside ``name`` that tells the process which writes it.

    It is ``.NAME.HOST-PID-KERNEL.NAMESPACE.START-RANDOM.tmp``.
    """
    own = ProcessMark.own()
    mark = f"{own.kernel}.{own.namespace}.{own.started}"
    return f".{name}.{own.host}-{own.pid}-{mark}-{secrets.token_hex(4)}.tmp"


def is_temporary(name: str, of: str = "") -> bool:
    """Return True if this is a ``temporary_name``: of the file ``of`` where that is given."""
    return name.startswith(f".{of}." if of else ".") and name.endswith(".tmp")


def writer_alive(name: str) -> bool | None:
    """Return True if the process that chose a ``temporary_name`` is alive, None if that cannot be told from here.

    It cannot for another machine, or another container, whose process ids mean nothing here."""
    match = _MARK.search(name)
    if match is None:
        return None
    pid, kernel_id, namespace, started = match.groups()
    return ProcessMark(host="", pid=int(pid), kernel=kernel_id, namespace=int(namespace), started=int(started)).alive


def hold(handle: int) -> bool:
    """Takes the lock of an open file if it is free; False when another has it.

    Raises:
        OSError: when the file system knows no locks.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_held(path: Path) -> bool:
    """Return True if a process on this machine (in any container) or on one that shares its locks has ``path``."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not hold(handle)
    except OSError:
        return False
    finally:
        os.close(handle)


def storage_time(folder: Path) -> float:
    """Return the time by the clock that stamps the files in ``folder``, which need not be this machine's."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock-", suffix=".tmp") as probe:
        return os.fstat(probe.fileno()).st_mtime


@dataclass(frozen=True, kw_only=True)
class Place:
    """The machine and the mount on which a lock was taken: only there does a free lock mean that its holder died."""

    kernel: str
    device: int

    @classmethod
    def of(cls, handle: int) -> "Place":
        return cls(kernel=kernel(), device=os.fstat(handle).st_dev)
