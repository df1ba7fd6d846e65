"""Which Ray a command works on, what it says about it, and what it refuses at once."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from raystitch.buffer.config import ActorConfig, AugmentConfig
from raystitch.cluster.actor_pools import Node
from raystitch.cluster.resources import actor_needs, fit_need, run_needs, trial_need
from raystitch.cluster.runtime import cluster_address, ensure_ray
from raystitch.config import ResourceConfig, load_run_config
from tests.cluster.conftest import Prepared
from tests.cluster.two_nodes import Cluster, free_port, two_nodes

CPU_NODE: Node = {"CPU": 8.0, "memory": 1e9}
GPU_NODE: Node = {"CPU": 4.0, "GPU": 2.0}
SWEEP = (sys.executable, "-m", "raystitch.sweep", "smoke")


def test_the_address_is_named_or_the_environment_s_or_the_job_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cluster_address(None) is None
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert cluster_address(None) == "auto"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert cluster_address(None) == "10.0.0.1:6379"
    assert cluster_address("10.0.0.2:6379") == "10.0.0.2:6379"
    assert cluster_address("local") is None


def test_what_stages_ask_for() -> None:
    assert fit_need("auto").fits(CPU_NODE) and not fit_need("auto").fits({"memory": 1e9})
    assert not fit_need("cuda").fits(CPU_NODE) and fit_need("cuda:0").fits(GPU_NODE)
    proposer, qualifier = actor_needs(AugmentConfig(), "cuda")
    assert not proposer.fits(CPU_NODE) and proposer.fits(GPU_NODE) and qualifier.fits(CPU_NODE)
    shared, _ = actor_needs(AugmentConfig(proposer=ActorConfig(num_cpus=2, num_gpus=0.5, resources={"T4": 1})), "auto")
    assert shared.resources == {"CPU": 2, "GPU": 0.5, "T4": 1}
    assert "augment.proposer" in shared.who and "augment.proposer" in shared.advice
    trial = trial_need(ResourceConfig(trial_cpus=6, trial_gpus=0.5))
    assert not trial.fits(CPU_NODE) and not trial.fits(GPU_NODE) and trial.fits({"CPU": 6.0, "GPU": 0.5})
    assert str(trial) == "CPU 6, GPU 0.5"
    config = load_run_config("smoke")
    assert all(need.fits({"CPU": 1.0}) for need in run_needs(config))
    wants = replace(config, resources=replace(config.resources, device="cuda"))
    assert [need.who for need in run_needs(wants) if not need.fits(CPU_NODE)] == ["fit", "augment.proposer"]


class _Page(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def web_server() -> Iterator[int]:
    server = HTTPServer(("127.0.0.1", 0), _Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:{closed}", "no Ray cluster at --address 127.0.0.1:{closed}: Connection refused"),
        ("127.0.0.1:{web}", "something else answers there (UNAVAILABLE); give the port of the cluster itself"),
        ("http://127.0.0.1:{web}", "is not the address of a cluster itself, which is HOST:PORT"),
        ("ray://127.0.0.1:{web}", "to work from outside it use `ray job submit`"),
        ("nonsense", "--address nonsense is not an address; give HOST:PORT, or auto"),
    ],
)
def test_no_cluster_there_is_one_line_at_once(address: str, said: str, web_server: int, tmp_path: Path) -> None:
    # A process of its own: this one may hold a Ray already, which would be used.
    names = {"closed": free_port(), "web": web_server}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", ATTACH, address.format(**names)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=150,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert said.format(**names) in line
    assert time.monotonic() - began < 30  # Ray itself takes a minute, or does not return


ATTACH = """
import sys
from raystitch.cluster.runtime import ensure_ray
from raystitch.errors import UserError
try:
    with ensure_ray(sys.argv[1], announce=print):
        pass
except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""


def test_a_ray_of_its_own_says_what_it_has() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ATTACH, "local"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    attached = next(line for line in done.stdout.splitlines() if line.startswith("Ray:"))
    assert re.fullmatch(
        r"Ray: started here, \d+ CPUs?, \d+ GPUs?, [\d.]+ GiB memory, [\d.]+ GiB object store", attached
    )


def test_what_this_machine_lacks_is_said_before_a_ray_starts(tmp_path: Path) -> None:
    done = subprocess.run(
        [*SWEEP, "--out", str(tmp_path / "run"), "--address", "local", "--set", "resources.trial_cpus=4000"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    # The first run of the demo says that it makes the data.
    refused = done.stderr.splitlines()[-1]
    assert "no machine here has what a trial asks for: CPU 4000; the largest has CPU" in refused
    assert "lower resources.trial_cpus=4000" in refused
    assert "Ray:" not in done.stderr


def test_a_running_connection_is_used_as_it_is(ray_session: None) -> None:
    said = list[str]()
    with ensure_ray("127.0.0.1:1", announce=said.append):
        pass
    assert said == []


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = Path("/tmp") / f"ra{os.getpid()}"  # sockets lie in it, whose paths must be short
    folder.mkdir()
    try:
        with two_nodes(folder) as made:
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_cluster_that_lacks_something_is_told_at_once(cluster: Cluster, tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "run"))
    for settings, said in (
        (
            ["resources.device=cuda"],
            "what fit asks for: CPU 1, GPU 1; the largest has CPU 2, GPU 0; set resources.",
        ),
        (
            ["resources.trial_cpus=3"],
            "a trial asks for: CPU 3; the largest has CPU 2, GPU 0; lower resources.trial",
        ),
        (
            ["augment={num_actors: 2, proposer: {num_cpus: 1}, qualifier: {num_cpus: 1}}"],
            "2 proposers and 1 qualifiers that ask for CPU 3 together, but all nodes have CPU 2",
        ),
    ):
        began = time.monotonic()
        done = cluster.call(*SWEEP, *out, "--address", cluster.address, *(f"--set={text}" for text in settings))
        assert done.returncode == 2, done.stdout
        attached, refused = done.stdout.splitlines()
        assert re.match(rf"Ray: cluster at [\d.]+:{cluster.port}, 2 nodes, 2 CPUs, 0 GPUs, ", attached)
        assert said in refused and refused.endswith("or add a node that has it")
        assert time.monotonic() - began < 30  # 7 s on an idle machine, most of it Python's imports
    assert not (tmp_path / "run" / "stitcher").exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_another_token_or_version_is_one_line(cluster: Cluster) -> None:
    attach = (sys.executable, "-c", ATTACH, cluster.address)
    known = cluster.call(*attach)
    assert known.returncode == 0 and known.stdout.startswith("Ray: cluster at ")
    by_env = subprocess.run(
        [sys.executable, "-c", ATTACH, ""],
        env=cluster.env | {"RAY_ADDRESS": cluster.address},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert by_env.stdout == known.stdout, by_env.stderr
    other = subprocess.run(
        attach, env=cluster.env | {"RAY_AUTH_TOKEN": "other"}, capture_output=True, text=True, timeout=150, check=False
    )
    assert "asks for its token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN" in other.stderr
    assert len(other.stderr.splitlines()) == 1
    # What the cluster has recorded about itself is what drivers compare themselves with.
    assert cluster.call(sys.executable, "-c", OTHER_PYTHON, cluster.address).returncode == 0
    version = cluster.call(*attach)
    assert re.fullmatch(
        r"the Ray cluster at --address \S+ runs Ray (\S+) on Python 3\.1\.4, this command Ray \1 on Python \S+: use "
        r"the same versions, or let the cluster run it with `ray job submit`\n",
        version.stdout,
    ), version.stdout


OTHER_PYTHON = """
import json, sys, ray
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put
ray.init(sys.argv[1], log_to_driver=False)
from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
key = b"CLUSTER_METADATA"
metadata = json.loads(_internal_kv_get(key, namespace=KV_NAMESPACE_CLUSTER))
_internal_kv_put(key, json.dumps(metadata | {"python_version": "3.1.4"}), True, namespace=KV_NAMESPACE_CLUSTER)
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_an_autoscaler_is_asked_for_the_first_node(prepared: Prepared, tmp_path: Path) -> None:
    with socket.socket() as taken:  # Ray's provider of nodes on one machine knows no other port
        if not taken.connect_ex(("127.0.0.1", 6379)):
            pytest.skip("port 6379 is taken")
    folder = Path("/tmp") / f"rg{os.getpid()}"
    folder.mkdir()
    cluster = Cluster(folder)
    cluster.port, cluster.address = 6379, "127.0.0.1:6379"
    (folder / "autoscaling.json").write_text(json.dumps(AUTOSCALING))
    head = cluster.head(
        0,
        f"--autoscaling-config={folder / 'autoscaling.json'}",
        AUTOSCALER_UPDATE_INTERVAL_S="1",
        RAY_FAKE_CLUSTER="1",
    )
    try:
        with head:
            cluster.wait_for_nodes(1)
            run = prepared.copy(tmp_path / "run")
            settings = (*prepared.settings, "grid=[{algo: bc, data: original}]", "headline=null", "seeds=[0]")
            command = [*SWEEP, "--out", str(run), "--address", cluster.address]
            done = cluster.call(*command, *(f"--set={text}" for text in settings), seconds=200)
            assert done.returncode == 0, done.stdout
            assert "1 node, 0 CPUs, 0 GPUs" in done.stdout
            # Stitcher and buffer are there: the first thing that needs a node is a trial.
            assert (
                "waiting for a node with CPU 1 for a trial, which the cluster adds on demand: 0 s so far" in done.stdout
            )
            assert len(cluster.listed("nodes")) == 2
    finally:
        shutil.rmtree(folder, ignore_errors=True)


AUTOSCALING = {
    "cluster_name": "here",
    "max_workers": 1,
    "provider": {"type": "fake_multinode", "disable_node_updaters": True, "disable_launch_config_check": True},
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {
            "resources": {"CPU": 2, "object_store_memory": 100_000_000},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 1,
        },
    },
    "head_node_type": "ray.head.default",
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 3.0,
    "auth": {},
    **{name: {} for name in ("head_node", "worker_nodes", "file_mounts")},
    "file_mounts_sync_continuously": False,
    **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands")},
    **{f"{kind}setup_commands": [] for kind in ("", "head_", "worker_")},
    **{f"{kind}_start_ray_commands": [] for kind in ("head", "worker")},
}
