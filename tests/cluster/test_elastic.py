"""Nodes come and go during a sweep, as spot machines do: all trials finish, none twice, and new nodes get work."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from raystitch.bench.chaos.processes import Driver, descendants, host_address, until
from raystitch.bench.chaos.sweep_target import steps_that_last
from raystitch.bench.sweep_runs import inputs_of
from raystitch.config import load_run_config
from raystitch.data.load import load_dataset
from raystitch.io.files import read_json
from raystitch.pipeline.trials.plan import plan
from raystitch.pipeline.trials.run import run_planned
from tests.cluster.conftest import Prepared

pytestmark = [pytest.mark.timeout(3000), pytest.mark.slow]

TRIAL_SECONDS = 60.0
"""Two checkpoints at least."""
LOSS_SECONDS = 50.0
"""From one loss to the next: each node lives for two of them."""


class Nodes:
    """A Ray cluster on this machine: a head without CPUs, and nodes with a raylet of their own each."""

    def __init__(self, cluster: Any, address: str) -> None:
        self.address, self._cluster, self._host = cluster.address, cluster, address
        self.nodes: list[Any] = []
        self.places: dict[int, int] = {}
        """Worker process -> number of its node, of all that were seen."""

    def add(self, **resources: int) -> None:
        size = {"node_ip_address": self._host, "object_store_memory": 100 * 2**20}
        self.nodes.append(self._cluster.add_node(**size, **resources))

    def raylet(self, number: int) -> int:
        return self.nodes[number].all_processes["raylet"][0].process.pid

    def look(self) -> None:
        for number in range(len(self.nodes)):
            self.places |= {process.pid: number for process in descendants(self.raylet(number))}

    def kill(self, number: int) -> None:
        os.kill(self.raylet(number), signal.SIGKILL)


@contextmanager
def nodes_of(*resources: Mapping[str, int]) -> Iterator[Nodes]:
    from ray.cluster_utils import Cluster

    head = {"node_ip_address": host_address(), "num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head | {"object_store_memory": 100 * 2**20})
    try:
        made = Nodes(cluster, host_address())
        for node in resources:
            made.add(**node)
        cluster.wait_for_nodes()
        yield made
    finally:
        cluster.shutdown()


def holders(run: Path) -> dict[str, tuple[int, int]]:
    """Trial -> (how often it was taken up, the process that had it last), by its lease."""
    found: dict[str, tuple[int, int]] = {}
    for path in run.glob("trials/*/.0*.lock"):
        note = json.loads(path.read_text().rstrip("\0 ") or "{}")
        number = int(path.name.split(".")[1])
        if number >= found.get(path.parent.name, (0, 0))[0] and "holder" in note:
            found[path.parent.name] = number, int(note["holder"].rpartition(" ")[2])
    return found


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
                stat = path.stat()
            except FileNotFoundError:
                continue
            if not inodes or inodes[-1] != stat.st_ino:
                inodes.append(stat.st_ino)
                if len(inodes) > 1 and stat.st_size:
                    self.went_on.add(trial)
        for path in self.run.glob("trials/*/returns.json"):
            if json.loads(path.read_text())["evaluations"]:
                stamp = path.stat().st_mtime_ns
                assert self.results.setdefault(path.parent.name, stamp) == stamp, "a finished trial was trained again"


def test_nodes_that_come_and_go_are_used_and_survived(prepared: Prepared, tmp_path: Path) -> None:
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
    config = load_run_config("smoke", settings).for_dataset(dataset)
    inputs = inputs_of(config, run)
    command = ["sweep", "smoke", "--out", str(run), *(f"--set={text}" for text in settings)]
    journals, lost = Journals(run), 0
    with nodes_of({"num_cpus": 1}, {"num_cpus": 1}) as cluster:
        with Driver([*command, "--address", cluster.address]) as driver:
            until(lambda: driver.status is not None or [*run.glob("trials/*/metrics.jsonl")], "a trial is trained", 900)
            next_loss = time.monotonic() + LOSS_SECONDS
            while driver.status is None:
                journals.look()
                cluster.look()
                if time.monotonic() > next_loss:
                    cluster.kill(lost)
                    lost += 1
                    cluster.add(num_cpus=1)
                    next_loss = time.monotonic() + LOSS_SECONDS
                time.sleep(0.5)
            assert driver.status == 0, driver.lines()[-20:]
        journals.look()
    taken = holders(run)
    used = {cluster.places.get(pid) for _, pid in taken.values()}
    print(f"lost {lost} of {len(cluster.nodes)} nodes; taken up {taken}; last on {used}; went on {journals.went_on}")
    rows = pq.read_table(run / "results.parquet").to_pylist()
    assert {row["trial_id"] for row in rows} == {trial.trial_id for trial in plan(config, inputs, run)}
    assert [row["status"] for row in rows] == ["ok"] * 4
    assert lost >= 2
    assert sum(number for number, _ in taken.values()) > 4, "no trial was at work on a node that was lost"
    assert journals.went_on, "no trial went on from a checkpoint"
    assert used - {0, 1, None}, "no node that came later got work"
    undisturbed = prepared.copy(tmp_path / "undisturbed")
    there = {trial.trial_id: trial for trial in plan(config, inputs, undisturbed)}
    interrupted = min(journals.went_on)
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
from raystitch.pipeline.trials.place import RunPlace
from raystitch.pipeline.trials.plan import plan

address, *rest = sys.argv[1:]
with ensure_ray(address):
    for given in " ".join(rest).split(" next "):
        run, *settings = given.split("|")
        config = load_run_config("smoke", settings)
        trials = plan(config, inputs_of(config, Path(run)), run)
        groups = [(replace(trial, device="cpu"),) for trial in trials]  # the place is tested: torch sees no GPU here
        errors = run_groups(groups, RunPlace(folder=Path(run)), config.resources)
        print(num_slots(config.resources), "slots, errors", errors, flush=True)
"""


def test_groups_go_where_their_resources_are(prepared: Prepared, tmp_path: Path) -> None:
    """A node says that it has a GPU; groups that ask for one run there alone, others do not wait for it."""
    runs = {gpus: prepared.copy(tmp_path / f"run-{gpus}") for gpus in (0.0, 0.5, 1.0)}
    asked = [
        "|".join(
            (
                str(run),
                *prepared.settings,
                "grid=[{algo: bc, data: original}]",
                "headline=null",
                "seeds=[0, 1, 2]",
                f"resources={{trial_gpus: {gpus}, trial_memory_gib: 0.1}}",
            )
        )
        for gpus, run in runs.items()
    ]
    with nodes_of({"num_cpus": 2}, {"num_cpus": 1, "num_gpus": 1}) as cluster, open(tmp_path / "log", "wb") as log:
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        driver = subprocess.Popen(
            [sys.executable, "-c", MIXED, cluster.address, *" next ".join(asked).split(" ")],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            while driver.poll() is None:
                cluster.look()
                time.sleep(0.5)
        finally:
            driver.kill()
    said = (tmp_path / "log").read_text()
    assert driver.returncode == 0, said[-3000:]
    assert [line for line in said.splitlines() if "slots" in line] == [
        f"{slots} slots, errors {{}}" for slots in (3, 1, 1)
    ]
    for gpus, run in runs.items():
        taken = holders(run)
        used = {cluster.places.get(pid) for _, pid in taken.values()}
        print(f"trial_gpus {gpus}: trained on {used}")
        assert [number for number, _ in taken.values()] == [1, 1, 1]
        assert used == {1} if gpus else 0 in used
