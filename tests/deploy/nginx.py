"""The real nginx with the ingress's configuration, on ports of its own, in a folder of its own."""

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.endpoint.conftest import JSON, STITCH

CONFIG = Path(__file__).parents[2] / "deploy" / "ingress" / "nginx.conf"
HOST = "raystitch.example.com"
Change = tuple[str, str]
QUICK = (r"(client_header|client_body|send)_timeout 10s", r"\1_timeout 1s")
MIB = 2**20
HEAD = f"POST {STITCH} HTTP/1.1\nHost: {HOST}\nContent-Type: {JSON}\n"


@dataclass(frozen=True)
class Ingress:
    """A running nginx: where it listens for clients, for probes, and with TLS if that is filled in."""

    port: int
    probe: int
    tls: int
    folder: Path

    def client(self, address: str = "127.0.0.1", host: str = HOST) -> httpx.Client:
        """A client at an address of its own, so that one test's requests are not counted in another's limits."""
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"Host": host},
            transport=httpx.HTTPTransport(local_address=address),
            timeout=30,
        )

    def open(self, head: str, address: str = "127.0.0.1") -> socket.socket:
        """A connection on which a request has begun; lines of ``head`` end in a plain line feed."""
        made = socket.create_connection(("127.0.0.1", self.port), timeout=15, source_address=(address, 0))
        made.sendall(head.replace("\n", "\r\n").encode())
        return made


def free_ports(count: int) -> list[int]:
    holders = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [holder.getsockname()[1] for holder in holders]
    finally:
        for holder in holders:
            holder.close()


@dataclass
class Recorder:
    """Hands on to an application, and remembers what reached it."""

    app: ASGIApp
    heads: list[dict[str, str]] = field(default_factory=list)
    num_bytes: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        self.heads.append({name.decode(): value.decode() for name, value in scope["headers"]})

        async def counted() -> Message:
            message = await receive()
            self.num_bytes += len(message.get("body", b""))
            return message

        await self.app(scope, counted, send)


@dataclass
class Live:
    """The endpoint's own port, and nginx before it."""

    direct: httpx.Client
    ingress: Ingress
    recorder: Recorder


async def swallow(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads whatever comes and answers nobody, as Serve's proxy does while there is no replica."""
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    while (await receive())["type"] != "http.disconnect":
        pass


@contextmanager
def ingress(folder: Path, upstream: int, changes: Sequence[Change] = ()) -> Iterator[Ingress]:
    """nginx in front of a port of this machine.

    Args:
        changes: (pattern, text) that is put in its place, everywhere; a pattern that is not there is an error.
    """
    if shutil.which("nginx") is None:
        pytest.skip("needs nginx (apt-get install nginx-light)")
    port, probe, tls = free_ports(3)
    text = CONFIG.read_text()
    for pattern, put in (
        (r"listen 8080", f"listen 127.0.0.1:{port}"),
        (r"listen 8081", f"listen 127.0.0.1:{probe}"),
        (r"listen 8443", f"listen 127.0.0.1:{tls}"),
        (r"server raystitch-endpoint-serve-svc:8000", f"server 127.0.0.1:{upstream}"),
        *changes,
    ):
        text, count = re.subn(pattern, put, text)
        assert count, pattern
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "nginx.conf"
    file.write_text(text)
    # Root's workers would run as a user who may not enter the test's folder.
    user = ["-g", "user root;"] if os.geteuid() == 0 else []
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["nginx", "-e", "stderr", "-p", str(folder), "-c", str(file), *user], stdout=out, stderr=out
        )
    try:
        _wait(process, probe, log)
        yield Ingress(port, probe, tls, folder)
    finally:
        process.terminate()
        process.wait(10)


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + 10
    while True:
        assert process.poll() is None and time.monotonic() < until, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.01)


def received(connection: socket.socket) -> bytes:
    """Everything until the other side closes."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)
