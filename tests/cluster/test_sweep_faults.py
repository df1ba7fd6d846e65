"""Trials that fail: alone, because their loss is not finite; together, because their process dies again and again."""

import contextlib
import os
import threading
from pathlib import Path

import pyarrow.parquet as pq

from raystitch.bench.chaos.processes import descendants, until
from raystitch.cluster.sweep import run_sweep
from raystitch.config import load_run_config
from raystitch.io.files import read_json
from tests.cluster.conftest import Prepared

SETTINGS = (
    "grid=[{algo: bc, data: original}, {algo: td3bc, data: duplicated}, {algo: iql, data: original}]",
    "headline=null",
    "seeds=[0, 1]",
    "resources={stacked_seeds: 2, num_retries: 1, max_concurrent_trials: 1}",
    "algorithms.iql={train_steps: 100, batch_size: 16, hidden: 8, learning_rate: 1e+30}",
    "algorithms.td3bc.train_steps=100000",
)


def open_files(pid: int) -> set[str]:
    found: set[str] = set()
    with contextlib.suppress(FileNotFoundError):  # the process, or the file, is gone meanwhile
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.add(os.readlink(entry))
    return found


def kill_trainers(run: Path, algo: str, times: int) -> list[int]:
    """Kills the process that trains trials of ``algo``, whenever there is one; returns their numbers."""
    killed: list[int] = []

    def find() -> int | None:
        locks = {
            str(path.parent / ".lock")
            for path in run.glob("trials/*/config.json")
            if read_json(path)["algo"] == algo and not (path.parent / "returns.json").exists()
        }
        for process in descendants(os.getpid()):
            mine = "ImplicitFunc" in process.title and process.pid not in killed
            if mine and locks & open_files(process.pid):
                process.kill()
                return process.pid
        return None

    killed.extend(until(find, f"{algo} is trained", 100) for _ in range(times))
    return killed


def test_a_failed_trial_is_failed_with_its_reason_and_hides_nothing(
    prepared: Prepared, ray_session: None, tmp_path: Path
) -> None:
    run = prepared.copy(tmp_path / "run")
    killed: list[int] = []
    killer = threading.Thread(target=lambda: killed.extend(kill_trainers(run, "td3bc", times=2)))
    killer.start()
    run_sweep(load_run_config("smoke", [*prepared.settings, *SETTINGS]), run, allow_failed=True)
    killer.join(1)
    assert len(killed) == 2
    rows = pq.read_table(run / "results.parquet").to_pylist()
    got = {(row["algo"], row["seed"]): (row["status"], row["error"]) for row in rows}
    assert len(got) == len(rows) == 6
    for seed in (0, 1):
        assert got["bc", seed] == ("ok", None)
        status, error = got["td3bc", seed]
        assert status == "failed"
        assert error.startswith("after 2 attempts: its process died: ")
        status, error = got["iql", seed]
        assert status == "failed"
        assert error.startswith("RunError: the loss of iql became")  # not tried again: it would end the same way
        assert "at step" in error
    page = (run / "report.html").read_text()
    assert page.count("after 2 attempts") >= 2
