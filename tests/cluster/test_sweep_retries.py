"""What dies is tried again, so often and no more: fitting, what the memory monitor kills, a run whose head is lost."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raystitch.bench.chaos.processes import Process, descendants, until
from raystitch.cluster.fit import fit
from raystitch.cluster.sweep import run_sweep
from raystitch.cluster.trials import reserve_memory
from raystitch.config import load_run_config
from raystitch.data.d4rl import write_d4rl
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.load import load_dataset
from raystitch.data.ref import DatasetRef
from raystitch.errors import RunError, UserError
from raystitch.models.bundle import Bundle
from raystitch.models.config import FitConfig
from raystitch.models.fit import fit_bundle
from raystitch.pipeline.trials.groups import group_bytes
from raystitch.pipeline.trials.run import LOCK_FILE
from tests.cluster.conftest import Prepared


def kill_the_fit(out: Path) -> None:
    """Kills the process that fits, once there is a checkpoint. Ray calls it idle, as any that streams; so those that
    are idle die, too."""

    def find() -> list[Process]:
        workers = [p for p in descendants(os.getpid()) if p.title.startswith(("ray::IDLE", "ray::_fit"))]
        return workers if list(out.glob(".fit/*.pt")) else []

    for victim in until(find, "a fit is at work", 150):
        victim.kill()


def fit_while_killed(ref: str, config: FitConfig, out: Path, retries: int) -> None:
    killer = threading.Thread(target=kill_the_fit, args=(out,))
    killer.start()
    try:
        fit(DatasetRef(ref), config, out, device="cpu", num_retries=retries)
    finally:
        killer.join(150)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_fit_whose_process_dies_goes_on_and_ends_as_if_nothing_had_been(
    drift: EpisodeDataset, tiny_fit: FitConfig, ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "drift.hdf5"
    write_d4rl(drift, file)
    config = replace(tiny_fit, diffusion=replace(tiny_fit.diffusion, train_steps=2000))  # some checkpoints
    fit_while_killed(f"d4rl:{file}", config, tmp_path / "stitcher", retries=1)
    said = capsys.readouterr().err
    assert "fit: its process died: " in said and "tried again from its last checkpoint (1 of 1)" in said
    dataset = load_dataset(f"d4rl:{file}")
    assert Bundle.load(tmp_path / "stitcher", "cpu").hash == fit_bundle(dataset, config, device="cpu").hash
    with pytest.raises(RunError, match=r"fitting failed: its process died: .*; run it again to continue"):
        fit_while_killed(f"d4rl:{file}", config, tmp_path / "other", retries=0)
    with pytest.raises(UserError, match="holds a fit with other settings"):  # not a word of trying again
        fit(DatasetRef(f"d4rl:{file}"), tiny_fit, tmp_path / "stitcher", device="cpu", num_retries=3)
    assert "tried again" not in capsys.readouterr().err


def test_memory_is_reserved_by_what_a_group_takes(prepared: Prepared, ray_session: None) -> None:
    config = load_run_config("smoke", prepared.settings)
    dataset = load_dataset(config.dataset)
    estimate = group_bytes(config, dataset, 1)
    assert 0.5 < estimate / 2**30 < 1.0
    assert reserve_memory(config, dataset).trial_memory_gib == pytest.approx(estimate / 2**30)
    more = load_run_config("smoke", [*prepared.settings, "seeds=[0, 1, 2, 3]", "algorithms.dt.width=512"])
    assert group_bytes(more, dataset, 4) > group_bytes(more, dataset, 1) > estimate
    fixed = load_run_config("smoke", [*prepared.settings, "resources.trial_memory_gib=0"])
    assert reserve_memory(fixed, dataset).trial_memory_gib == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_the_memory_monitor_kills_has_a_bounded_number_of_tries(prepared: Prepared, tmp_path: Path) -> None:
    run = prepared.copy(tmp_path / "run")
    settings = (*prepared.settings, "grid=[{algo: bc, data: original}]", "headline=null", "seeds=[0]")
    settings += ("algorithms.bc.train_steps=1000000",)
    done = subprocess.run(
        [sys.executable, "-m", "raystitch.sweep", "smoke", "--out", str(run), *(f"--set={s}" for s in settings)],
        # As if the machine were full: whatever is using memory is too much.
        env=os.environ | {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "100"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 1, done.stderr
    assert "killed for lack of memory: tried again with" in done.stderr
    (row,) = pq.read_table(run / "results.parquet").to_pylist()
    assert row["error"].startswith("after 4 attempts: its process died: ")


@pytest.mark.slow
def test_a_run_waits_for_the_lease_of_a_lost_head(
    prepared: Prepared, ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = prepared.copy(tmp_path / "run")
    (run / LOCK_FILE).touch()
    note = {"holder": "head-1, process 7", "token": "0", "seconds": 30.0, "state": "held", "beat": 3}
    place = {"kernel": "another0", "device": 1}
    (run / f"{LOCK_FILE.removesuffix('.lock')}.00000001.lock").write_text(json.dumps(note | {"place": place}))
    settings = (*prepared.settings, "grid=[{algo: bc, data: original}]", "headline=null", "seeds=[0]")
    began = time.monotonic()
    run_sweep(load_run_config("smoke", settings), run)
    assert time.monotonic() - began > 25
    assert f"{run} is held by head-1, process 7: waiting until it is certain" in capsys.readouterr().err
    assert pq.read_table(run / "results.parquet").to_pylist()[0]["status"] == "ok"
