"""Shards that fail, actors that die on them, resources that come late."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray import cloudpickle
from ray.cluster_utils import Cluster

from raystitch.buffer.opening import open_buffer
from raystitch.cluster import augment as augment_module
from raystitch.cluster.actor_pools import IN_FLIGHT
from raystitch.cluster.actors import Proposer, Qualifier
from raystitch.errors import RunError
from raystitch.stitching.candidates import Candidates

Walks = Any
"""See conftest.py, which cannot be imported from here."""

ENOUGH = {"num_bridges": 60, "num_actors": 2}


class Poisoned(Proposer):
    """Fails on shard 1, in the way that the file ``fault`` in the folder above the buffer says."""

    def propose(self, shard: int) -> Candidates:
        fault = Path(self.job.out).parent / "fault"
        if shard == 1 and fault.exists():
            if fault.read_text() == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("this shard is poisoned\nin many words")
        return super().propose(shard)


@pytest.fixture
def by_value() -> Iterator[None]:
    """Ray's workers cannot import this file, so its classes travel whole."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch, by_value: None) -> None:
    monkeypatch.setattr(augment_module, "Proposer", Poisoned)


@pytest.mark.slow
def test_a_poisoned_shard_is_tried_again_and_named_while_the_others_go_on(
    walks: Walks, undisturbed: Path, tmp_path: Path, ray_session: None, poisoned: None
) -> None:
    (tmp_path / "fault").write_text("raise")
    out, seen = tmp_path / "buffer", list[Any]()
    with pytest.raises(RunError, match=r"shard 1 failed 2 times \(ValueError: this shard is poisoned at .*py:\d+\)"):
        walks.augment(out, **ENOUGH, max_retries=1, progress=seen.append)
    notes = [at.message for at in seen if at.message.startswith("shard")]
    assert [("tried again" in note, "last try" in note) for note in notes] == [(True, False), (False, True)]
    there = len(list(out.glob("shards/part-*")))
    assert there >= len(open_buffer(undisturbed).stats) - 1
    (tmp_path / "fault").unlink()
    assert walks.augment(out, **ENOUGH).new_shards == 1
    walks.assert_same(out, undisturbed)


@pytest.mark.slow
def test_the_user_may_do_without_a_poisoned_shard_and_try_it_again_later(
    walks: Walks, undisturbed: Path, tmp_path: Path, ray_session: None, poisoned: None
) -> None:
    (tmp_path / "fault").write_text("raise")
    out = tmp_path / "buffer"
    summary = walks.augment(out, **ENOUGH, max_retries=0, skip_failed=True)
    assert summary.failed_shards == (1,)
    assert "without the failed shards 1" in str(summary)
    assert open_buffer(out).num_accepted() >= 60
    assert open_buffer(out).stats[1].error.startswith("ValueError: this shard is poisoned")
    assert walks.augment(out, **ENOUGH, skip_failed=True).new_shards == 0
    (tmp_path / "fault").unlink()
    assert walks.augment(out, **ENOUGH).failed_shards == ()
    walks.assert_same(out, undisturbed)


@pytest.mark.slow  # an actor is started four times
def test_a_shard_that_kills_its_actor_is_given_up(
    walks: Walks, tmp_path: Path, ray_session: None, poisoned: None
) -> None:
    (tmp_path / "fault").write_text("die")
    with pytest.raises(RunError, match=r"shard 1 failed 1 times \(its worker process died 4 times"):
        walks.augment(tmp_path / "buffer", **ENOUGH, max_retries=0)


class Slow(Qualifier):
    """Takes its time, so that proposed shards pile up."""

    def __call__(self, batch: Any) -> Any:
        time.sleep(0.25)
        return super().__call__(batch)


class Noting(Proposer):
    """Leaves a note of every shard that it proposed beside the buffer."""

    def propose(self, shard: int) -> Candidates:
        Path(self.job.out).parent.joinpath(f"proposed-{shard}").touch()
        return super().propose(shard)


@pytest.mark.slow
def test_proposers_pause_when_too_much_waits_for_a_qualifier(
    walks: Walks, tmp_path: Path, ray_session: None, by_value: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augment_module, "Proposer", Noting)
    monkeypatch.setattr(augment_module, "Qualifier", Slow)
    waiting = list[int]()

    def look(at: Any) -> None:
        waiting.append(len(list(tmp_path.glob("proposed-*"))) - at.shards)

    walks.augment(tmp_path / "buffer", num_bridges=400, pairs_per_shard=8, progress=look)
    assert len(waiting) > 30
    most = IN_FLIGHT + augment_module.SPARE_SHARDS
    assert max(waiting) <= 2 * most, waiting  # of about 50


@pytest.mark.slow
def test_more_than_this_machine_has_is_refused_at_once(walks: Walks, tmp_path: Path) -> None:
    # A process of its own: this one may hold a Ray that was not started by augment.
    began = time.monotonic()
    done = subprocess.run(
        command(walks, tmp_path, "--set", "augment.proposer.resources.accelerator=0.5"), capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "no machine here has what augment.proposer asks for: CPU" in done.stderr.splitlines()[-1]
    assert "accelerator 0.5; the largest has CPU" in done.stderr.splitlines()[-1]
    assert "lower augment.proposer" in done.stderr.splitlines()[-1]
    assert time.monotonic() - began < 60


def command(walks: Walks, folder: Path, *more: str) -> list[str]:
    """``raystitch augment`` as a process."""
    stitch = folder / "stitch.yaml"
    stitch.write_text(yaml.safe_dump(asdict(walks.stitch)))
    return [
        *(sys.executable, "-m", "raystitch.cli", "augment", f"d4rl:{walks.file}", "--stitcher", str(walks.stitcher)),
        *("--out", str(folder / "buffer"), "--config", str(stitch), "--num-bridges", "60", "--seed", "3"),
        *("--set", "augment.pairs_per_shard=16", "--json", *more),
    ]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, host_address: str) -> Iterator[Cluster]:
    """A head node with two CPUs and nothing else; metrics are reported ten times a second, as the run is short."""
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "100")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    head = {"node_ip_address": host_address, "num_cpus": 2, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    cluster.shutdown()


@pytest.mark.slow
def test_a_gpu_that_is_missing_is_refused_and_shared_once_it_is_there(
    walks: Walks, undisturbed: Path, tmp_path: Path, cluster: Cluster, host_address: str
) -> None:
    """A custom resource stands for the GPU: two proposers share one."""
    more = (
        "--set",
        "augment.proposer.resources.accelerator=0.5",
        "--num-actors",
        "1:2",
        "--address",
        str(cluster.address),
    )
    refused = subprocess.run(command(walks, tmp_path, *more), capture_output=True, text=True, timeout=150, check=False)
    assert refused.returncode == 2
    assert "no machine here has what augment.proposer asks for: CPU" in refused.stderr.splitlines()[-1]
    assert "or add a node that has it" in refused.stderr.splitlines()[-1]
    assert not list(tmp_path.glob("buffer/shards/part-*"))
    cluster.add_node(node_ip_address=host_address, num_cpus=1, resources={"accelerator": 1})
    process = subprocess.Popen(command(walks, tmp_path, *more), stdout=-1, stderr=-1, text=True)
    assert process.stderr is not None
    lines = list[dict[str, Any]]()
    # Ray's C++ side may print lines of its own when it joins a cluster.
    for line in process.stderr:
        if line.startswith("{"):
            lines.append(json.loads(line))
            if "http" in lines[-1].get("message", ""):
                break
    url = next(word for line in lines for word in line.get("message", "").split() if word.startswith("http"))
    seen = set[str]()
    while process.poll() is None:
        seen.update(urllib.request.urlopen(url, timeout=10).read().decode().splitlines())
        time.sleep(0.05)
    metrics = "\n".join(seen)  # the series do not appear all at once
    out, rest = process.communicate()
    assert process.returncode == 0, rest
    lines += [json.loads(line) for line in rest.splitlines() if line.startswith("{")]
    assert json.loads(out)["num_accepted"] >= 60
    assert (lines[-1]["event"], lines[-1]["accepted"], lines[-1]["wanted"]) == ("progress", 60, 60)
    assert lines[-1]["reasons"]["ok"] > 0
    for series in ("shards_total{", "candidates_total{", "bridges_wanted{", "propose_seconds_bucket{"):
        assert f"raystitch_augment_{series}" in metrics
    walks.assert_same(tmp_path / "buffer", undisturbed)
