"""Trials of a run in a bucket, without Ray: published whole, taken up where a lost machine left them."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raystitch.bench.chaos.processes import until
from raystitch.errors import RunError
from raystitch.io.cache import cache_folder
from raystitch.io.stage import STAGES
from raystitch.io.storage import Storage
from raystitch.pipeline.trials.place import at_hand
from raystitch.pipeline.trials.run import LOCK_FILE, run_planned
from tests.cluster.bucket_files import only_trial, upload
from tests.cluster.conftest import Prepared

GRID = ("grid=[{algo: td3bc, data: stitched, delta: ['off']}]", "headline=null", "seeds=[0]")
LONG = "algorithms.td3bc={train_steps: 1200, batch_size: 16, hidden: 8}"
PROGRAM = """
import sys
import raystitch.io.stage, raystitch.pipeline.trials.trial_folder
raystitch.io.stage.LOOK_SECONDS = 0.05
raystitch.pipeline.trials.trial_folder.CHECKPOINT_SECONDS = 0.2
from tests.cluster.bucket_files import only_trial
from raystitch.pipeline.trials.place import at_hand
from raystitch.pipeline.trials.run import run_planned
uri, *settings = sys.argv[1:]
with at_hand(uri, (only_trial(settings),)) as here:
    run_planned(here.group)
"""


@pytest.fixture
def settings(prepared: Prepared) -> list[str]:
    return [*prepared.settings, *GRID, LONG, str(prepared.folder)]


def test_a_trial_goes_on_from_the_checkpoint_that_a_killed_process_published(
    prepared: Prepared, settings: list[str], s3: str
) -> None:
    uri, trial = f"{s3}/trials/killed", only_trial(settings)
    upload(prepared.folder, uri)
    storage, at = Storage(uri), f"trials/{trial.trial_id}"
    with subprocess.Popen([sys.executable, "-c", PROGRAM, uri, *settings], cwd=Path(__file__).parents[2]) as process:
        until(lambda: storage.exists(f"{at}/checkpoint/state.pt"), "a checkpoint is published", 300)
        process.send_signal(signal.SIGKILL)
    names = {name.removeprefix(f"{at}/") for name in storage.tree(at)}
    assert names == {"config.json", "metrics.jsonl", "checkpoint/state.pt", LOCK_FILE}
    steps: list[int] = []
    with at_hand(uri, (trial,)) as here:
        assert not [path for path in (cache_folder() / STAGES).iterdir() if path not in here.run.parents]
        run_planned(here.group, log=lambda _, row: steps.append(row["step"]) if row["kind"] == "train" else None)
    assert steps[0] > 100 and steps[-1] == 1200
    names = {name.removeprefix(f"{at}/") for name in storage.tree(at)}
    written = {"config.json", "metrics.jsonl", "returns.json", "policy/policy.json", "policy/policy.safetensors"}
    assert names == {*written, LOCK_FILE}
    rows = storage.read_whole(f"{at}/metrics.jsonl").to_pybytes().decode().splitlines()
    assert len(rows) == 13  # one for every 100 steps, and the evaluation
    # It is the trial that nobody interrupts.
    calm = f"{s3}/trials/calm"
    upload(prepared.folder, calm)
    with at_hand(calm, (trial,)) as here:
        run_planned(here.group)
    for name in ("config.json", "policy/policy.safetensors"):
        assert storage.read_whole(f"{at}/{name}") == Storage(calm).read_whole(f"{at}/{name}")


def test_a_process_that_lost_its_lease_publishes_no_result(
    prepared: Prepared, settings: list[str], s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, trial = f"{s3}/trials/lost", only_trial(settings)
    upload(prepared.folder, uri)
    monkeypatch.setattr("raystitch.io.lease.LEASE_SECONDS", 1.2)
    storage, at = Storage(uri), f"trials/{trial.trial_id}"

    def work() -> None:
        with at_hand(uri, (trial,)) as here:
            # Another process takes it over while this one stands still.
            storage.write(f"{at}/{LOCK_FILE}", b'{"state": "held", "token": "other", "seconds": 30}')
            run_planned(here.group, log=lambda *_: here.check())

    with pytest.raises(RunError, match=rf"the lock {uri}/{at}/\.lock was lost"):
        work()
    assert set(storage.tree(at)) == {f"{at}/{LOCK_FILE}"}
    assert os.listdir(cache_folder() / STAGES) == []


def test_an_error_is_published_with_the_place_that_everybody_knows(
    prepared: Prepared, settings: list[str], s3: str
) -> None:
    uri, trial = f"{s3}/trials/failed", only_trial(settings)
    upload(prepared.folder, uri)

    def fail(_: int, row: dict[str, Any]) -> None:
        raise RunError(f"cannot write {here.run}/x")

    with pytest.raises(RunError, match=f"cannot write {uri}/x"), at_hand(uri, (trial,)) as here:
        run_planned(here.group, log=fail)
    trace = Storage(uri).read_whole(f"trials/{trial.trial_id}/error.txt").to_pybytes().decode()
    assert trace.endswith(f"RunError: cannot write {uri}/x\n") and "/stages/" not in trace
