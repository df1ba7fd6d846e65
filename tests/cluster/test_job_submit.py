"""``ray job submit`` to a real head without CPUs and a second node, in the two ways that docs/jobs.md describes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raystitch.bench.chaos.processes import descendants, until
from tests.cluster.conftest import Prepared
from tests.cluster.test_sweep_killed import NUM_TRIALS, SETTINGS, results
from tests.cluster.two_nodes import RAY, Cluster, two_nodes

REPOSITORY = Path(__file__).parents[2]
TWO_TRIALS = (
    "grid=[{algo: bc, data: original}, {algo: bc, data: stitched, delta: ['off']}]",
    "headline=null",
    "seeds=[0]",
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = Path("/tmp") / f"rs{os.getpid()}"  # sockets lie in it, whose paths must be short
    folder.mkdir()
    try:
        with two_nodes(folder) as made:
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(python: str, run: Path, *settings: str, config: str = "smoke") -> list[str]:
    return [python, "-m", "raystitch.sweep", config, "--out", str(run), *(f"--set={text}" for text in settings)]


def nodes_of_trials(cluster: Cluster, job: str) -> set[bool]:
    """For every node that trained for a job: whether it is the head."""
    heads = {node["node_id"]: node["is_head_node"] for node in cluster.listed("nodes")}
    ids = {row["job_id"] for row in cluster.listed("jobs") if row["submission_id"] == job}
    trained = [row for row in cluster.listed("actors") if row["job_id"] in ids and "ImplicitFunc" in row["class_name"]]
    return {heads[row["node_id"]] for row in trained}


def job_name(said: str) -> str:
    return re.findall(r"Job '(raysubmit_\w+)' submitted", said)[0]


@pytest.mark.timeout(400)
def test_a_job_trains_on_the_second_node(cluster: Cluster, prepared: Prepared, tmp_path: Path) -> None:
    run = prepared.copy(tmp_path / "run")
    said = cluster.submit(*sweep(sys.executable, run, *prepared.settings, *TWO_TRIALS))
    job = job_name(said)
    assert f"Job '{job}' succeeded" in said, said
    attached = next(line for line in said.splitlines() if line.startswith("Ray: "))
    assert re.match(rf"Ray: job {job} on the cluster at [\d.]+:{cluster.port}, 2 nodes, 2 CPUs, 0 GPUs, ", attached)
    rows = pq.read_table(run / "results.parquet").to_pylist()
    assert [(row["algo"], row["data"], row["status"]) for row in rows] == [
        ("bc", "original", "ok"),
        ("bc", "stitched", "ok"),
    ]
    assert nodes_of_trials(cluster, job) == {False}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_working_dir_carries_the_code_and_no_data(cluster: Cluster, prepared: Prepared, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for name in ("raystitch", "tune_configs"):
        shutil.copytree(REPOSITORY / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".gitignore", ".rayignore", "pyproject.toml", "README.md"):
        shutil.copy(REPOSITORY / name, checkout)
    shutil.copy(REPOSITORY / "tune_configs" / "smoke.yaml", checkout / "tune_configs" / "mine.yaml")
    for heavy in (
        ".git/pack",
        ".venv/lib/big.so",
        "data/big.bin",
        "runs/old/buffer/big.bin",
        "big.hdf5",
        "own/big.bin",
    ):
        (checkout / heavy).parent.mkdir(parents=True, exist_ok=True)
        (checkout / heavy).write_bytes(os.urandom(3_000_000))
    run = prepared.copy(tmp_path / "run")
    # The configuration is only there, and so is this copy of the package.
    command = "python -c 'import raystitch; print(raystitch.__file__)' && exec "
    command += " ".join(f"'{part}'" for part in sweep("python", run, *prepared.settings, *TWO_TRIALS, config="mine"))
    said = cluster.submit(
        "sh",
        "-c",
        command,
        options=("--working-dir", ".", "--runtime-env-json", json.dumps({"excludes": ["/own/"]})),
        cwd=checkout,
    )
    assert f"Job '{job_name(said)}' succeeded" in said, said
    (unpacked,) = (cluster.folder / "head").glob("session_2*/runtime_resources/working_dir_files/_ray_pkg_*/")
    assert f"{unpacked.name}/raystitch/__init__.py" in said
    files = {str(path.relative_to(unpacked)): path.stat().st_size for path in unpacked.rglob("*") if path.is_file()}
    assert not [name for name in files if name.endswith(("pack", "big.so", "big.bin", "big.hdf5"))]
    assert sum(files.values()) < 4_000_000
    assert {"raystitch/sweep.py", "raystitch/data/load.py", "tune_configs/mine.yaml"} < set(files)
    assert [row["status"] for row in pq.read_table(run / "results.parquet").to_pylist()] == ["ok", "ok"]
    assert nodes_of_trials(cluster, job_name(said)) == {False}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_that_ends_early_is_submitted_again(cluster: Cluster, prepared: Prepared, tmp_path: Path) -> None:
    run = prepared.copy(tmp_path / "run")
    command = sweep(sys.executable, run, *prepared.settings, *SETTINGS)
    before: dict[str, tuple[int, int]] = {}
    for enough, how in ((2, "stop"), (4, "kill")):
        job = job_name(cluster.submit(*command, options=("--no-wait",)))
        until(lambda enough=enough: len(results(run)) >= enough, f"{enough} trials are done", 120)
        if how == "stop":
            cluster.call(str(RAY), "job", "stop", job)
            said = cluster.call(str(RAY), "job", "logs", job).stdout
            assert "interrupted; run the same command again to continue" in said and "SIGTERM" not in said, said
        else:
            for process in descendants(os.getpid()):
                if "raystitch.sweep" in process.title and str(run) in process.title and "ray::" not in process.title:
                    os.kill(process.pid, signal.SIGKILL)
        ended = ("STOPPED",) if how == "stop" else ("FAILED",)
        assert wait_for(cluster, job) in ended
        now = results(run)
        assert {trial: now[trial] for trial in before} == before
        assert len(before) < len(now) < NUM_TRIALS
        before = now
    said = cluster.submit(*command)
    assert "succeeded" in said, said
    assert f"{len(before)} of {NUM_TRIALS} trials are finished already" in said
    after = results(run)
    assert {trial: after[trial] for trial in before} == before
    assert len(after) == NUM_TRIALS
    assert [row["status"] for row in pq.read_table(run / "results.parquet").to_pylist()] == ["ok"] * NUM_TRIALS
    # Once more: nothing is left to do. And a folder that only one node would see is refused.
    again = cluster.submit(*command)
    assert f"{NUM_TRIALS} of {NUM_TRIALS} trials are finished already" in again, again
    assert results(run) == after
    relative = cluster.submit(sys.executable, "-m", "raystitch.sweep", "smoke", "--out", "runs/smoke")
    assert "give an absolute path, on storage that all nodes mount" in relative, relative


def wait_for(cluster: Cluster, job: str) -> str:
    """A job's state, once it has ended."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        state = next(row["status"] for row in cluster.listed("jobs") if row["submission_id"] == job)
        if state in ("STOPPED", "FAILED", "SUCCEEDED"):
            return state
        time.sleep(0.5)
    raise subprocess.TimeoutExpired(job, 90)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_nodes_with_network_stacks_of_their_own(prepared: Prepared, tmp_path: Path) -> None:
    """Two network namespaces: what binds to, or talks to, this machine's own address is not found from the other."""
    run = prepared.copy(tmp_path / "run")
    folder = Path("/tmp") / f"rs{os.getpid()}n"
    script = Path(__file__).with_name("netns_two_nodes.sh")
    command = sweep(sys.executable, run, *prepared.settings, *TWO_TRIALS)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"RAY": str(RAY)}
    try:
        done = subprocess.run(
            ["sh", str(script), str(folder), str(RAY), "job", "submit", "--", *command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if done.returncode == 77:
        pytest.skip(done.stdout.strip().splitlines()[-1])
    assert done.returncode == 0, done.stdout
    assert "cluster at 10.77.0.1:6379, 2 nodes, 2 CPUs, 0 GPUs" in done.stdout
    assert [row["status"] for row in pq.read_table(run / "results.parquet").to_pylist()] == ["ok", "ok"]
