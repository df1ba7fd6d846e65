"""Endpoints of two teams on one cluster, each a command of its own; one is stopped, one is killed."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.conftest import Walks
from tests.cluster.test_serve import call, request_body
from tests.cluster.two_nodes import Cluster, free_port

SERVE = (sys.executable, "-m", "raystitch.cli", "serve")
THEIRS = """
import sys, ray
from ray import serve
ray.init(sys.argv[1])
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})

@serve.deployment(ray_actor_options={"num_cpus": 0})
class Theirs:
    def __call__(self):
        return "theirs"

serve.run(Theirs.bind(), name="theirs", route_prefix="/theirs")
"""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    folder = Path("/tmp") / f"rt{os.getpid()}"  # sockets lie in it, whose paths must be short
    folder.mkdir()
    made = Cluster(folder)
    try:
        with made.head(2):
            deadline = time.monotonic() + 60
            while socket.socket().connect_ex(("127.0.0.1", made.port)):
                assert time.monotonic() < deadline, (folder / "head.log").read_text()
                time.sleep(0.2)
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def endpoint(cluster: Cluster, walks: Walks, name: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [*SERVE, "--stitcher", str(walks.stitcher), "--address", cluster.address, "--num-cpus", "0.5"]
    command += ["--name", name, "--route-prefix", f"/{name}"]
    with log.open("w") as out:
        process = subprocess.Popen(command, env=cluster.env, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + 120
        while "Ctrl-C stops" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_teams_share_a_cluster(cluster: Cluster, walks: Walks, tmp_path: Path) -> None:
    port = free_port()
    made = cluster.call(sys.executable, "-c", THEIRS, cluster.address, str(port))
    assert made.returncode == 0, made.stdout
    base = f"http://127.0.0.1:{port}"

    def answers(name: str) -> bool:
        return call(f"{base}/{name}/v1/stitch", request_body(walks))[0] == 200

    with (
        endpoint(cluster, walks, "one", tmp_path / "one") as one,
        endpoint(cluster, walks, "two", tmp_path / "two") as two,
    ):
        assert f"studio {base}/one/" in (tmp_path / "one").read_text()
        assert answers("one") and answers("two") and call(f"{base}/theirs")[1] == "theirs"
        one.send_signal(signal.SIGTERM)
        assert one.wait(60) == 0
        assert call(f"{base}/one/readyz")[0] == 404
        assert answers("two") and call(f"{base}/theirs")[1] == "theirs"
        two.kill()
        two.wait()
    # Killed, it leaves its application; the next start names the command that ends it.
    assert answers("two")
    again = cluster.call(*SERVE, "--stitcher", str(walks.stitcher), "--address", cluster.address, "--name", "two")
    assert again.returncode == 2
    named = again.stdout.split("`")[3]
    assert named == f"raystitch serve --stop --name two --address {cluster.address}", again.stdout
    stopped = cluster.call(*SERVE, *named.split()[2:])
    assert (stopped.returncode, stopped.stdout) == (0, "stopped the endpoint 'two'\n")
    assert call(f"{base}/two/readyz")[0] == 404 and call(f"{base}/theirs")[1] == "theirs"
    missing = cluster.call(*SERVE, *named.split()[2:])
    assert missing.returncode == 2 and "no endpoint named 'two' runs on this cluster; there is none" in missing.stdout
    theirs = cluster.call(*SERVE, "--stop", "--name", "theirs", "--address", cluster.address)
    assert theirs.returncode == 2 and "is not an endpoint of raystitch; it is left alone" in theirs.stdout
    assert call(f"{base}/theirs")[1] == "theirs"
