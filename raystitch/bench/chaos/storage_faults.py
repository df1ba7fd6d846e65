"""Faults of the storage of ``augment``: a driver that writes settings that are out of date, and unreadable folders."""

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from raystitch.bench.chaos.augment_target import (
    AugmentFault,
    AugmentTarget,
    arguments,
    compare,
    finish_run,
    found_by,
    interrupted,
    written_since,
)
from raystitch.bench.chaos.processes import Driver, until
from raystitch.errors import RunError

BUCKET = "raystitch-chaos"


def stale_read(name: str, folder: Path, target: AugmentTarget) -> AugmentFault:
    """Fill one buffer on S3 with two drivers, and delay the last write of one until the other has reported success.

    The delayed driver wants half as many bridges, so its ``buffer.json`` is out of date when it arrives.
    """
    if importlib.util.find_spec("moto") is None:
        why = "an S3 server is needed: pip install 'moto[server]'"
        return AugmentFault(fault=name, what_happened=f"not possible here: {why}", impossible=why)
    grace = {"RAYSTITCH_GRACE_SECONDS": "0", "RAYSTITCH_CACHE": str(folder / "cache")}
    with _environment(grace), _s3_server(target.patience) as port, _Delay(port, target.patience) as delay:
        fewer = target.num_bridges // 2
        with Driver(arguments(target, _uri(delay.port), num_bridges=fewer)) as slow:
            until(lambda: delay.holds or slow.status is not None, "the first driver finishes", target.patience)
            if not delay.holds:
                raise RunError(f"{name}: the driver ended too early, with {slow.status}: {slow.last_line()}")
            with Driver(arguments(target, _uri(port))) as driver:
                finish_run(driver, target)
            delay.release()
            ended = slow.wait(target.patience)
            said = "" if ended == 0 else f" ({slow.last_line()})"
        happened = (
            f"{fewer} bridges' buffer.json held up until {target.num_bridges} were there: exit 0 and {ended}{said}"
        )
        return compare(name, happened, _uri(port), target, None, time.time_ns())


def unreadable_folder(name: str, folder: Path, target: AugmentTarget) -> AugmentFault:
    """Make the folder of shards and then one shard unreadable; the command has to say so and to remove nothing."""
    out, aside = folder / "buffer", folder / "aside"
    there, said = interrupted(out, target), list[str]()
    shards = out / "shards"
    before = {file.name: file.read_bytes() for file in shards.glob("*.arrow")}
    for hidden in (shards, min(shards.glob("*.arrow"))):
        hidden.rename(aside)
        # Root ignores permissions, so put a file in place of the folder, and a folder in place of the shard.
        hidden.touch() if hidden == shards else hidden.mkdir()
        with Driver(arguments(target, out)) as driver:
            status = driver.wait(target.patience)
            said.append(driver.last_line())
            if status != 1 or any(line.startswith("Traceback") for line in driver.lines()):
                raise RunError(f"{name}: expected one clear line and exit 1, got exit {status} and: {said[-1]}")
        hidden.unlink() if hidden == shards else hidden.rmdir()
        aside.rename(hidden)
    lost = [file for file, content in before.items() if (shards / file).read_bytes() != content]
    if lost:
        raise RunError(f"{name}: {', '.join(lost)} changed though they could not be read")
    restored, restored_at = time.monotonic(), time.time_ns()
    with Driver(arguments(target, out)) as again:
        found_by(lambda: written_since(out, restored_at), again, target)
        seconds = time.monotonic() - restored
        finish_run(again, target)
    happened = f"exit 1 twice with {there} shards there, all kept: {said[0]}; run again when it could be read"
    return compare(name, happened, out, target, seconds, restored_at)


def _uri(port: int) -> str:
    return f"s3://test:test@{BUCKET}/buffer?region=us-east-1&scheme=http&endpoint_override=127.0.0.1:{port}"


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables for this process and those that it starts, inside the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _s3_server(seconds: float) -> Iterator[int]:
    """Start an S3 server on this machine with an empty bucket; yields its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def bucket_made() -> bool:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT")
        try:
            urllib.request.urlopen(request, timeout=5).close()
        except (urllib.error.URLError, OSError):
            return False
        return True

    try:
        until(bucket_made, "the S3 server answers", seconds)
        yield port
    finally:
        server.terminate()
        server.wait()


class _Delay:
    """A proxy of the S3 server that delays the first replacement of ``buffer.json``."""

    def __init__(self, server_port: int, seconds: float) -> None:
        self._server_port, self._seconds = server_port, seconds
        self._held, self._released = threading.Event(), threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "_Delay":
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()
        self._listener.close()

    @property
    def holds(self) -> bool:
        return self._held.is_set()

    def release(self) -> None:
        self._released.set()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._server_port))
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 20):
                if _replaces_settings(data) and not self._held.is_set():
                    self._held.set()
                    self._released.wait(self._seconds)
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _replaces_settings(data: bytes) -> bool:
    """Return True if a request starts here that overwrites an existing ``buffer.json``, as opposed to creating it."""
    line, _, headers = data.partition(b"\r\n")
    return line.startswith(b"PUT") and b"/buffer.json " in line and b"if-none-match" not in headers.lower()
