"""Ray Serve's own proxy without a replica, alone and behind the shipped nginx."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raystitch.bench.chaos.processes import descendants
from tests.deploy.nginx import HOST, free_ports, ingress, received

MIB = 2**20
SENT = 300


@pytest.fixture
def proxy() -> Iterator[tuple[int, int]]:
    """Port and process of a proxy whose only application never gets a replica."""
    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions

    @serve.deployment(ray_actor_options={"num_cpus": 64})
    class Never:
        pass

    def deploy() -> None:
        with contextlib.suppress(Exception):  # it waits until Serve is gone
            serve.run(Never.bind(), name="never", route_prefix="/")

    (port,) = free_ports(1)
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
        threading.Thread(target=deploy, daemon=True).start()
        until = time.monotonic() + 60
        while "never" not in serve.status().applications:
            assert time.monotonic() < until
            time.sleep(0.2)
        time.sleep(2)  # until the proxy has the route
        (process,) = [one.pid for one in descendants(os.getpid()) if "ProxyActor" in one.title]
        yield port, process
    finally:
        serve.shutdown()
        ray.shutdown()


def held(process: int) -> int:
    """MiB of memory."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) // 1024


def pour(port: int, host: str) -> bytes:
    """Sends a long body in chunks; returns what came back, if anything did."""
    head = f"POST /v1/stitch HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(head.encode())
            for _ in range(SENT):
                connection.sendall(b"%x\r\n" % MIB + bytes(MIB) + b"\r\n")
        connection.settimeout(2)
        with contextlib.suppress(TimeoutError):
            return received(connection)
    return b""


@pytest.mark.slow
def test_a_stranger_fills_serves_proxy_but_not_through_nginx(proxy: tuple[int, int], tmp_path: Path) -> None:
    port, process = proxy
    before = held(process)
    with ingress(tmp_path, port) as front:
        assert pour(front.port, HOST).startswith(b"HTTP/1.1 413 ")
    assert held(process) - before < 20
    assert pour(port, "localhost") == b""
    assert held(process) - before > 200
