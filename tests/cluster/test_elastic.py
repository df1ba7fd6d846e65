"""Nodes come and go during a sweep, as spot machines do: all trials finish, none twice, and new nodes get work."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq
import pytest

from raystitch.bench.chaos.processes import descendants, until
from raystitch.bench.chaos.sweep_target import steps_that_last
from raystitch.bench.sweep_runs import inputs_of
from raystitch.config import load_run_config
from raystitch.data.load import load_dataset
from raystitch.io.files import read_json
from raystitch.pipeline.trials.plan import plan
from raystitch.pipeline.trials.run import run_planned
from tests.cluster.conftest import Prepared
from tests.cluster.two_nodes import Cluster

pytestmark = [pytest.mark.timeout(3000), pytest.mark.slow]

TRIAL_SECONDS = 60.0
"""Two checkpoints; the time between two losses, of which each node survives one."""
LOSS_SECONDS = 50.0


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder for Ray, whose sockets' names may not be long."""
    with TemporaryDirectory(prefix="rs-") as folder:
        yield Path(folder)


def kill_raylet(node: "subprocess.Popen[bytes]") -> None:
    (raylet,) = [process for process in descendants(node.pid) if "/raylet/raylet " in process.title]
    os.kill(raylet.pid, signal.SIGKILL)


def holders(run: Path) -> dict[str, tuple[int, int]]:
    """Trial -> (how often it was taken up, the process that had it last), by its lease."""
    found: dict[str, tuple[int, int]] = {}
    for path in run.glob("trials/*/.0*.lock"):
        note = json.loads(path.read_text().rstrip("\0 ") or "{}")
        number = int(path.name.split(".")[1])
        if number >= found.get(path.parent.name, (0, 0))[0] and "holder" in note:
            found[path.parent.name] = number, int(note["holder"].rpartition(" ")[2])
    return found


def node_of(cluster: Cluster, pid: int) -> str:
    """The node whose logs a worker process has written."""
    (log,) = list(cluster.folder.glob(f"*/session_latest/logs/worker-*-{pid}.out"))
    return log.relative_to(cluster.folder).parts[0]


class Journals:
    """What is seen of the journals from outside: each training of a trial begins a new file, at a checkpoint."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.inodes: dict[str, list[int]] = {}
        self.went_on: set[str] = set()
        self.results: dict[str, int] = {}

    def look(self) -> None:
        for path in self.run.glob("trials/*/metrics.jsonl"):
            trial, inodes = path.parent.name, self.inodes.setdefault(path.parent.name, [])
            try:
                inode, size = path.stat().st_ino, path.stat().st_size
            except FileNotFoundError:
                continue
            if not inodes or inodes[-1] != inode:
                inodes.append(inode)
                if len(inodes) > 1 and size:
                    self.went_on.add(trial)
        for path in self.run.glob("trials/*/returns.json"):
            if json.loads(path.read_text())["evaluations"]:
                stamp = path.stat().st_mtime_ns
                assert self.results.setdefault(path.parent.name, stamp) == stamp, "a finished trial was trained again"


def test_nodes_that_come_and_go_are_used_and_survived(prepared: Prepared, short: Path, tmp_path: Path) -> None:
    run = prepared.copy(tmp_path / "run")
    dataset = load_dataset(load_run_config("smoke", prepared.settings).dataset)
    steps = steps_that_last(dataset, TRIAL_SECONDS)
    settings = (
        *prepared.settings,
        "grid=[{algo: td3bc, data: original}, {algo: td3bc, data: stitched, delta: ['off']}]",
        "headline=null",
        "seeds=[0, 1]",
        f"algorithms.td3bc={{train_steps: {steps}, batch_size: 256, hidden: 512}}",
        "resources={stacked_seeds: 1}",
    )
    config = load_run_config("smoke", settings)
    trials = plan(config.for_dataset(dataset), inputs_of(config, run), run)
    command = [sys.executable, "-m", "raystitch.cli", "sweep", "smoke", "--out", str(run)]
    command += [f"--set={text}" for text in settings]
    journals, lost = Journals(run), 0
    cluster = Cluster(short)
    with ExitStack() as stack:
        stack.enter_context(cluster.head())
        cluster.wait_for_head(400)
        nodes = [stack.enter_context(cluster.worker(f"worker{number}", 1)) for number in range(2)]
        cluster.wait_for_nodes(3, 400)
        with open(tmp_path / "driver.log", "wb") as output:
            driver = subprocess.Popen(
                [*command, "--address", cluster.address], env=cluster.env, stdout=output, stderr=subprocess.STDOUT
            )
        stack.callback(driver.kill)
        until(lambda: driver.poll() is not None or list(run.glob("trials/*/metrics.jsonl")), "a trial is trained", 900)
        next_loss = time.monotonic() + LOSS_SECONDS
        while driver.poll() is None:
            journals.look()
            if time.monotonic() > next_loss:
                kill_raylet(nodes[lost])
                lost += 1
                nodes.append(stack.enter_context(cluster.worker(f"worker{len(nodes)}", 1)))
                next_loss = time.monotonic() + LOSS_SECONDS
            time.sleep(0.2)
        journals.look()
        said = (tmp_path / "driver.log").read_text()
        assert driver.returncode == 0, said[-3000:]
        taken = holders(run)
        used = {node_of(cluster, pid) for _, pid in taken.values()}
    print(f"lost {lost} of {len(nodes)} nodes; taken up {taken}; last on {used}; from checkpoints {journals.went_on}")
    rows = pq.read_table(run / "results.parquet").to_pylist()
    assert {row["trial_id"] for row in rows} == {trial.trial_id for trial in trials}
    assert [row["status"] for row in rows] == ["ok"] * len(trials)
    assert lost >= 2
    assert sum(number for number, _ in taken.values()) > len(trials), "no trial was at work on a node that was lost"
    assert journals.went_on, "no trial went on from a checkpoint"
    assert used - {"worker0", "worker1"}, "no node that came later got work"
    undisturbed = prepared.copy(tmp_path / "undisturbed")
    there = {trial.trial_id: trial for trial in plan(config.for_dataset(dataset), inputs_of(config, run), undisturbed)}
    interrupted = sorted(journals.went_on)[0]
    run_planned([there[interrupted]])
    evaluations = [
        read_json(folder / "trials" / interrupted / "returns.json")["evaluations"] for folder in (run, undisturbed)
    ]
    assert evaluations[0] == evaluations[1]


MIXED = """
import sys
from dataclasses import replace
from pathlib import Path

from raystitch.bench.sweep_runs import inputs_of
from raystitch.cluster.runtime import ensure_ray
from raystitch.cluster.trials import num_slots, run_groups
from raystitch.config import load_run_config
from raystitch.pipeline.trials.plan import plan

address, run, *settings = sys.argv[1:]
config = load_run_config("smoke", settings)
with ensure_ray(address):
    trials = plan(config, inputs_of(config, Path(run)), run)
    groups = [(replace(trial, device="cpu"),) for trial in trials]  # only the place is tested: torch sees no GPU here
    print("slots", num_slots(config.resources))
    print("errors", run_groups(groups, Path(run), config.resources))
"""


def test_groups_go_where_their_resources_are(prepared: Prepared, short: Path, tmp_path: Path) -> None:
    """A node says that it has a GPU; groups that ask for one run there alone, others do not wait for it."""
    cluster = Cluster(short)
    with ExitStack() as stack:
        stack.enter_context(cluster.head())
        cluster.wait_for_head(400)
        stack.enter_context(cluster.worker("cpus", 2))
        stack.enter_context(cluster.worker("gpu", 1, "--num-gpus=1"))
        cluster.wait_for_nodes(3, 400)
        for gpus, slots, places in ((0.0, 3, {"cpus", "gpu"}), (0.5, 1, {"gpu"}), (1.0, 1, {"gpu"})):
            run = prepared.copy(tmp_path / f"run-{gpus}")
            settings = (
                *prepared.settings,
                "grid=[{algo: bc, data: original}]",
                "headline=null",
                "seeds=[0, 1, 2]",
                f"resources={{trial_gpus: {gpus}, trial_memory_gib: 0.1}}",
            )
            said = cluster.call(
                sys.executable, "-c", MIXED, f"{cluster.address}", str(run), *settings, seconds=900, cwd=Path.cwd()
            ).stdout
            assert f"slots {slots}" in said and "errors {}" in said, said[-3000:]
            taken = holders(run)
            assert len(taken) == 3 and {number for number, _ in taken.values()} == {1}
            used = {node_of(cluster, pid) for _, pid in taken.values()}
            print(f"trial_gpus {gpus}: {slots} slots, trained on {used}")
            assert used <= places
            if not gpus:
                assert "cpus" in used
