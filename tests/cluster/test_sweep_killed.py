"""The driver of a sweep is killed several times; the next one repeats nothing that is finished."""

import json
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raystitch.bench.chaos.processes import Driver, until
from raystitch.buffer.opening import open_buffer
from raystitch.cluster.sweep import run_sweep
from raystitch.config import load_run_config
from raystitch.data.load import load_dataset
from raystitch.errors import UserError
from raystitch.io.files import locked
from raystitch.models.bundle import Bundle
from raystitch.pipeline.trials.plan import plan
from raystitch.pipeline.trials.run import LOCK_FILE, run_planned
from raystitch.pipeline.trials.trial import InputHashes
from raystitch.pipeline.trials.trial_folder import finished
from tests.cluster.conftest import Prepared

NUM_TRIALS = 8
SETTINGS = (
    "grid=[{algo: td3bc, data: original}, {algo: td3bc, data: stitched, ratio: ['1:1', '2:1'], delta: ['off']}, "
    "{algo: bc, data: original}]",
    "headline=null",
    "seeds=[0, 1]",
    "resources={stacked_seeds: 2, max_concurrent_trials: 1}",
)


def results(run: Path) -> dict[str, tuple[int, int]]:
    """Trial -> (inode, time) of its result: a second writing changes both. None while it waits for its evaluation."""
    stats = {path: path.stat() for path in run.glob("trials/*/returns.json")}
    found = {path.parent.name: stat for path, stat in stats.items() if finished(path.parent) is not None}
    return {trial: (stat.st_ino, stat.st_mtime_ns) for trial, stat in found.items()}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_driver_killed_again_and_again_repeats_no_finished_trial(prepared: Prepared, tmp_path: Path) -> None:
    run = prepared.copy(tmp_path / "run")
    command = ["sweep", "smoke", "--out", str(run), *(f"--set={text}" for text in (*prepared.settings, *SETTINGS))]
    before: dict[str, tuple[int, int]] = {}
    with ExitStack() as drivers:  # the next one starts while the workers of the one before may not be dead yet
        for enough in (2, 4):
            driver = drivers.enter_context(Driver(command))
            until(lambda enough=enough: len(results(run)) >= enough, f"{enough} trials are done", 60)
            driver.kill()
            now = results(run)
            assert {trial: now[trial] for trial in before} == before
            assert len(before) < len(now) < NUM_TRIALS
            before = now
        driver = drivers.enter_context(Driver(command))
        assert driver.wait(60) == 0, driver.lines()
        assert any(f"{len(before)} of {NUM_TRIALS} trials are finished already" in line for line in driver.lines())
    after = results(run)
    assert {trial: after[trial] for trial in before} == before
    assert len(after) == NUM_TRIALS
    assert [row["status"] for row in pq.read_table(run / "results.parquet").to_pylist()] == ["ok"] * NUM_TRIALS
    for trial in after:
        lines = (run / "trials" / trial / "metrics.jsonl").read_text().splitlines()
        steps = [row["step"] for row in map(json.loads, lines) if row["kind"] == "train"]
        assert steps == sorted(set(steps))


def test_a_folder_that_another_process_trains_in_is_waited_for(prepared: Prepared, tmp_path: Path) -> None:
    run = prepared.copy(tmp_path / "run")
    config = load_run_config("smoke", [*prepared.settings, *SETTINGS])
    inputs = InputHashes(
        dataset=load_dataset(config.dataset).fingerprint,
        bundle=Bundle.load(run / "stitcher", "cpu").hash,
        buffer=open_buffer(run / "buffer").hash,
    )
    trial = next(trial for trial in plan(config, inputs, run) if trial.algo == "bc")
    folder = Path(trial.folder)
    work = threading.Thread(target=run_planned, args=([trial],))
    with locked(folder / LOCK_FILE):
        work.start()
        time.sleep(1.0)
        assert [path.name for path in folder.iterdir()] == [LOCK_FILE]
    work.join(60)
    assert finished(folder) is not None


def test_a_worker_that_was_lost_with_its_machine_is_waited_for_no_longer_than_a_lease(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raystitch.io.lease.LEASE_SECONDS", 1.0)
    run = prepared.copy(tmp_path / "run")
    config = load_run_config("smoke", [*prepared.settings, *SETTINGS])
    inputs = InputHashes(
        dataset=load_dataset(config.dataset).fingerprint,
        bundle=Bundle.load(run / "stitcher", "cpu").hash,
        buffer=open_buffer(run / "buffer").hash,
    )
    trial = next(trial for trial in plan(config, inputs, run) if trial.algo == "bc")
    folder = Path(trial.folder)
    folder.mkdir(parents=True)
    elsewhere = {"holder": "lost, process 7", "seconds": 1.0, "place": {"kernel": "0badcafe", "device": 1}}
    (folder / ".00000004.lock").write_text(json.dumps({**elsewhere, "state": "held"}))
    began = time.monotonic()
    with locked(folder / LOCK_FILE):  # the lock that the file server keeps for the lost machine
        run_planned([trial])
    assert time.monotonic() - began > 1
    assert finished(folder) is not None
    assert (folder / ".00000005.lock").exists()


def test_two_drivers_do_not_work_in_one_folder(prepared: Prepared, tmp_path: Path) -> None:
    run = prepared.copy(tmp_path / "run")
    config = load_run_config("smoke", [*prepared.settings, *SETTINGS])
    with locked(run / LOCK_FILE), pytest.raises(UserError, match="another `raystitch sweep` is at work in"):
        run_sweep(config, run)
    assert not (run / "config.yaml").exists()
