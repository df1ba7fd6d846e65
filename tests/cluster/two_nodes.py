"""A Ray cluster of real nodes on this machine, each with processes, ports, a token and a folder of its own."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

RAY = Path(sys.executable).parent / "ray"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Cluster:
    """Started by ``two_nodes``.

    Attributes:
        address: of the cluster, for ``--address``. dashboard: where ``ray job submit`` sends jobs.
        env: of a process that may use the cluster.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.dashboard_port = free_port()
        self.dashboard = f"http://127.0.0.1:{self.dashboard_port}"
        hidden = ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH")
        self.env = {name: value for name, value in os.environ.items() if name not in hidden} | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "RAY_API_SERVER_ADDRESS": self.dashboard,
            "RAY_worker_niceness": "0",  # workers would give way to whatever else this machine does
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}",
        }

    @contextmanager
    def node(self, name: str, *options: str, **env: str) -> Iterator[subprocess.Popen[bytes]]:
        """One ``ray start``; all its processes end with the block."""
        command = [str(RAY), "start", "--block", "--disable-usage-stats", f"--temp-dir={self.folder / name}"]
        command += [f"--dashboard-agent-listen-port={free_port()}", "--object-store-memory=150000000", *options]
        log = self.folder / f"{name}.log"
        with open(log, "wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=self.env | env)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()
            process.wait()
            self._kill_left(self.folder / name)

    def _kill_left(self, folder: Path) -> None:
        """Nodes that an autoscaler has started are not this process's children; their folder tells whose they are."""
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and f"{folder}/".encode() in (entry / "cmdline").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)

    def head(self, num_cpus: int = 0, *options: str, **env: str) -> Any:
        """Its head; KubeRay's has no CPUs either."""
        return self.node(
            "head",
            "--head",
            f"--port={self.port}",
            f"--num-cpus={num_cpus}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.dashboard_port}",
            f"--ray-client-server-port={free_port()}",
            *options,
            **env,
        )

    def worker(self, name: str = "worker", num_cpus: int = 2, *options: str) -> Any:
        return self.node(name, f"--address={self.address}", f"--num-cpus={num_cpus}", *options)

    def call(self, *command: str, seconds: float = 120, **options: Any) -> subprocess.CompletedProcess[str]:
        """A process that may use the cluster, to its end; both streams as one text."""
        return subprocess.run(
            command,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
            **options,
        )

    def listed(self, what: str) -> list[dict[str, Any]]:
        """What ``ray list`` says about the cluster's nodes, actors, jobs; none where it does not answer yet."""
        said = self.call(str(RAY), "list", what, "--format=json", "--detail", "--limit=1000")
        return json.loads(said.stdout[said.stdout.index("[") :]) if said.returncode == 0 and "[" in said.stdout else []

    def wait_for_nodes(self, count: int, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while len([node for node in self.listed("nodes") if node["state"] == "ALIVE"]) < count:
            assert time.monotonic() < deadline, [log.read_text()[-2000:] for log in self.folder.glob("*.log")]
            time.sleep(0.5)

    def submit(self, *command: str, options: tuple[str, ...] = (), seconds: float = 150, **more: Any) -> str:
        """``ray job submit`` with what it says, to the end of the job."""
        return self.call(str(RAY), "job", "submit", *options, "--", *command, seconds=seconds, **more).stdout


@contextmanager
def two_nodes(folder: Path) -> Iterator[Cluster]:
    """A head without CPUs and a worker with two."""
    cluster = Cluster(folder)
    with ExitStack() as nodes:
        nodes.enter_context(cluster.head())
        deadline = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", cluster.port)):
            assert time.monotonic() < deadline, (folder / "head.log").read_text()
            time.sleep(0.2)
        nodes.enter_context(cluster.worker())
        cluster.wait_for_nodes(2)
        yield cluster
