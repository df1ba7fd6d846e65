"""Processes, small disks and clocks that the faults need: processes are found and killed by process id. Linux only."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkstemp
from typing import Any, Self, TypeVar

from raystitch.errors import RunError

POLL_SECONDS = 0.01
T = TypeVar("T")


@dataclass(frozen=True)
class Process:
    """One process; ``born`` tells it from a later one with the same number, ``title`` is its command line."""

    pid: int
    parent: int
    born: int
    title: str

    def kill(self) -> None:
        """Send SIGKILL, if it is still the same process."""
        with contextlib.suppress(ProcessLookupError):
            if (now := _read(self.pid)) is not None and now.born == self.born:
                os.kill(self.pid, signal.SIGKILL)


def _read(pid: int) -> Process | None:
    try:
        state, parent, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    return None if state in "ZX" else Process(pid, int(parent), int(rest[17]), title)


def descendants(root: int) -> list[Process]:
    """All living processes below ``root``."""
    children: dict[int, list[Process]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (process := _read(int(entry.name))) is not None:
            children.setdefault(process.parent, []).append(process)
    found, queue = list[Process](), [root]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += [process.pid for process in below]
    return found


def actors(root: int, name: str) -> dict[int, Process]:
    """Find Ray Data's actors of one class below ``root``, pid -> process, by the titles that Ray gives them."""
    return {p.pid: p for p in descendants(root) if p.title.startswith("ray::") and f"MapBatches({name})" in p.title}


def until(condition: Callable[[], T | None], what: str, seconds: float) -> T:
    """Poll a condition until it returns something, and return that.

    Raises:
        RunError: when it has not within ``seconds``; says what was waited for.
    """
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise RunError(f"waited {seconds:.0f} s in vain until {what}")
        time.sleep(POLL_SECONDS)
    return found


class Driver:
    """``raystitch ARGUMENTS`` in a process of its own; as a context manager it leaves nothing of itself behind.

    Attributes:
        status: its exit status, once it has ended.
    """

    def __init__(self, arguments: list[str]) -> None:
        output, name = mkstemp(prefix="raystitch-driver-", suffix=".log")
        self._output = Path(name)
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "raystitch.cli", *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment | {"PYTHONUNBUFFERED": "1"},
        )
        os.close(output)
        self.pid = self._process.pid
        self._below: dict[int, Process] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.kill()
        # A local Ray notices that its driver is gone; what is left of it after a while is stopped.
        deadline = time.monotonic() + 15
        while (alive := self._alive()) and time.monotonic() < deadline:
            time.sleep(0.1)
        for process in alive:
            process.kill()
        self._output.unlink(missing_ok=True)

    @property
    def status(self) -> int | None:
        return self._process.poll()

    def kill(self) -> None:
        """Send SIGKILL to the driver alone."""
        self._below = {process.pid: process for process in descendants(self.pid)} or self._below
        if self.status is None:
            self._process.kill()
        self._process.wait()

    def wait(self, seconds: float) -> int:
        """Wait for the end of the driver and return its exit status.

        Raises:
            RunError: when it does not end in time.
        """
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise RunError(f"the driver has not ended after {seconds:.0f} s; it said: {self.last_line()}") from error

    def lines(self) -> list[str]:
        """The lines that it has printed, both streams together."""
        text = self._output.read_text(encoding="utf-8", errors="replace")
        return [line.rstrip() for line in text.splitlines() if line.strip()]

    def last_line(self) -> str:
        return (self.lines() or ["nothing"])[-1]

    def _alive(self) -> list[Process]:
        return [p for p in self._below.values() if (now := _read(p.pid)) is not None and now.born == p.born]


@contextlib.contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Callable[[int], None]]:
    """Mount a disk of ``kib`` KiB at ``folder``; yields a function that gives it another size. Needs root.

    Raises:
        PermissionError: where mounting is not allowed.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def mount(size: int, *options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", ",".join((*options, f"size={size}k")), "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            said = str(getattr(error, "stderr", "") or error).strip()
            raise PermissionError(f"mounting a small disk is not permitted ({said})") from error

    mount(kib)
    try:
        yield lambda size: mount(size, "remount")
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True)


SWITCH = "RAYSTITCH_CLOCK_BACK"
MODULE = f"""
import os
import time

_time, _time_ns = time.time, time.time_ns


def _back():
    return 3600 if os.path.exists(os.environ.get("{SWITCH}", "")) else 0


time.time = lambda: _time() - _back()
time.time_ns = lambda: _time_ns() - _back() * 10**9
"""


@contextlib.contextmanager
def settable_clock(folder: Path) -> Iterator[Callable[[], None]]:
    """Python processes that are started in the block have a clock that can be set back by an hour.

    Yields a function that sets it back for good, in all of them.
    """
    place, switch = folder / "clock", folder / "clock.back"
    place.mkdir()
    (place / "sitecustomize.py").write_text(MODULE, encoding="utf-8")
    before = {name: os.environ.get(name) for name in ("PYTHONPATH", SWITCH)}
    path = [str(place), *(before["PYTHONPATH"] or "").split(os.pathsep)]
    os.environ |= {"PYTHONPATH": os.pathsep.join(filter(None, path)), SWITCH: str(switch)}
    try:
        yield switch.touch
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def host_address() -> str:
    """Return the address that processes which join a cluster of this machine take for their own.

    A ``Cluster`` must be told it: in a process with a Ray of its own it would take that one's, the loopback address,
    and drivers that join it would wait for ever.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("8.8.8.8", 53))  # sends nothing
        except OSError:
            return "127.0.0.1"
        return probe.getsockname()[0]
