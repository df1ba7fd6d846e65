"""A cluster whose CPUs others hold: the command says every ten seconds what it waits for, and its wait has an end."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.cluster_utils import Cluster

from raystitch.io.config_file import plain

Walks = Any
"""See conftest.py, which cannot be imported from here."""

HOLD = """
import ray, sys, time
ray.init(address=sys.argv[1], log_to_driver=False)
@ray.remote(num_cpus=1)
def hold(): time.sleep(600)
task = hold.remote()
while ray.available_resources().get("CPU", 0): time.sleep(0.1)
print("held", flush=True)
ray.get(task)
"""


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch, host_address: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """The address of a cluster with one CPU, which another job holds, and a function that ends that job."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    head = {"node_ip_address": host_address, "num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=head | {"include_dashboard": False})
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(cluster.address)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == "held"
        yield str(cluster.address), lambda: holder.send_signal(signal.SIGTERM)
    finally:
        holder.kill()
        holder.wait()
        cluster.shutdown()


def command(walks: Walks, folder: Path, address: str, seconds: int) -> list[str]:
    stitch = folder / "stitch.yaml"
    stitch.write_text(yaml.safe_dump(plain(asdict(walks.stitch))))
    return [
        *(sys.executable, "-m", "raystitch.cli", "augment", f"d4rl:{walks.file}", "--stitcher", str(walks.stitcher)),
        *("--out", str(folder / "buffer"), "--config", str(stitch), "--num-bridges", "60", "--seed", "3"),
        *("--set", "augment.pairs_per_shard=16", "--set", f"augment.no_progress_timeout={seconds}"),
        *("--address", address, "--json"),
    ]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_cluster_that_others_hold_is_said_and_waited_for_in_bounds(
    walks: Walks, undisturbed: Path, tmp_path: Path, busy: tuple[str, Callable[[], None]]
) -> None:
    address, end_the_other = busy
    done = subprocess.run(command(walks, tmp_path, address, 25), capture_output=True, text=True, timeout=200)
    assert done.returncode == 1, done.stderr
    waiting = [line for line in _messages(done.stderr) if line.startswith("waiting for CPU")]
    assert len(waiting) >= 2, done.stderr
    assert re.match(
        r"waiting for CPU [\d.]+ for augment\.proposer.*; free: [\d.]+ has CPU 0 of 1; other jobs on the cluster: "
        r"\d+ \(process \d+ on [\d.]+\); 1\d s so far \(augment\.no_progress_timeout is 25 s; Ctrl-C ends it\)",
        waiting[0],
    ), waiting
    last = done.stderr.splitlines()[-1]
    assert re.match(r".*: no progress for 25 s: waiting for CPU .*; what was written is kept\. Run again when", last)
    assert "Traceback" not in done.stderr
    # Once there is room, the same command goes on by itself.
    running = subprocess.Popen(
        command(walks, tmp_path, address, 200), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    time.sleep(15)
    end_the_other()
    _, said = running.communicate(timeout=200)
    assert running.returncode == 0, said
    walks.assert_same(tmp_path / "buffer", undisturbed)


def _messages(text: str) -> list[str]:
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [line["message"] for line in lines if line["event"] == "note"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_an_endpoint_says_what_its_replicas_wait_for(
    walks: Walks, tmp_path: Path, busy: tuple[str, Callable[[], None]]
) -> None:
    address, end_the_other = busy
    log = tmp_path / "serve.log"
    command = [sys.executable, "-m", "raystitch.cli", "serve", "--stitcher", str(walks.stitcher), "--address", address]
    with log.open("w") as out:
        serving = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        _until("waiting for CPU 1 for a replica; free: ", log, serving)
        assert re.search(
            r"has CPU 0 of 1; other jobs on the cluster: \d+ .*; 1\d s so far \(Ctrl-C ends it\)", log.read_text()
        )
        end_the_other()
        _until("Ctrl-C stops", log, serving)
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(60) == 0, log.read_text()
        assert "Traceback" not in log.read_text()
    finally:
        serving.kill()
        serving.wait()


def _until(text: str, log: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while text not in log.read_text():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
