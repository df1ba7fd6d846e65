"""A search chooses ratio and delta on seeds of its own; then the grid is trained, with the chosen cell in it."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from raystitch.cluster.sweep import run_sweep
from raystitch.config import RunConfig, load_run_config
from raystitch.io.files import read_json
from tests.cluster.conftest import Prepared

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

GRID = "grid=[{algo: td3bc, data: original}]"


def search_config(prepared: Prepared, *settings: str) -> RunConfig:
    return load_run_config("smoke", [*prepared.settings, "headline=null", GRID, "seeds=[0]", *settings])


def results(run: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in run.glob("trials/*/returns.json")}


def rows(run: Path) -> list[dict[str, Any]]:
    return pq.read_table(run / "results.parquet").to_pylist()


def test_optuna_chooses_a_cell_that_is_then_trained_on_other_seeds(
    prepared: Prepared, ray_session: None, tmp_path: Path
) -> None:
    run = prepared.copy(tmp_path / "run")
    search = "search={algorithm: optuna, num_samples: 3, seeds: [7, 8], delta: ['off', q99]}"
    config = search_config(prepared, search)
    run_sweep(config, run)
    found = read_json(run / "search.json")
    assert found["seeds"] == [7, 8]
    assert [(trial["status"], trial["num_seeds"], trial["step"]) for trial in found["trials"]] == [("ok", 2, 1000)] * 3
    chosen = found["chosen"]
    assert chosen in [{"ratio": trial["ratio"], "delta": trial["delta"]} for trial in found["trials"]]
    got = [(row["data"], row["ratio"], row["delta"], row["seed"], row["status"]) for row in rows(run)]
    assert sorted(got[2:]) == sorted(
        ("stitched", trial["ratio"], trial["delta"], seed, "ok") for trial in found["trials"] for seed in (7, 8)
    )
    assert got[:2] == [("original", "1:0", None, 0, "ok"), ("stitched", chosen["ratio"], chosen["delta"], 0, "ok")]
    headline = load_run_config(run / "config.yaml").headline_cell
    assert headline is not None and headline[0] == chosen["ratio"]
    before = results(run)
    assert len(before) == 3 * 2 + 2
    # As if the driver had been killed while the last cell was trained and its second seed was not done.
    last = found["trials"][-1] | {"status": "running", "value": None, "num_seeds": 0, "step": 0}
    (run / "search.json").write_text(json.dumps(found | {"trials": [*found["trials"][:-1], last], "chosen": None}))
    gone = next(trial for trial in before if read_json(run / "trials" / trial / "config.json")["seed"] == 8)
    run_sweep(load_run_config(run / "config.yaml"), run)
    assert results(run) == before
    again = read_json(run / "search.json")
    assert {name: again[name] for name in ("trials", "chosen")} == {name: found[name] for name in ("trials", "chosen")}
    assert gone in results(run)


def test_asha_stops_cells_that_are_behind(prepared: Prepared, ray_session: None, tmp_path: Path) -> None:
    run = prepared.copy(tmp_path / "run")
    ratios = "ratio: ['1:1', '1:4', '4:1', '1:9', '9:1'], delta: ['off']"
    search = f"search={{algorithm: random, scheduler: asha, num_samples: 5, seeds: [7], {ratios}}}"
    every = "evaluation={num_episodes: 2, num_envs: 2, every: 100, every_episodes: 2}"
    run_sweep(search_config(prepared, search, every, "resources.max_concurrent_trials=1"), run)
    found = read_json(run / "search.json")
    assert len(found["trials"]) == 5
    assert {trial["status"] for trial in found["trials"]} == {"ok", "stopped"}
    for trial in found["trials"]:
        assert (trial["step"] == 1000) == (trial["status"] == "ok")
        assert trial["step"] % 100 == 0
    chosen = next(t for t in found["trials"] if {"ratio": t["ratio"], "delta": t["delta"]} == found["chosen"])
    assert chosen["status"] == "ok"
    assert [row["status"] for row in rows(run)[:2]] == ["ok", "ok"]
    reached = {(row["ratio"], row["status"], row["train_steps"]) for row in rows(run)[2:]}
    assert reached >= {(t["ratio"], t["status"], t["step"]) for t in found["trials"] if t["status"] == "ok"}
    stopped = [row for row in rows(run)[2:] if row["status"] == "stopped"]
    assert stopped and all(row["return_mean"] < 0 and row["num_eval_episodes"] == 2 for row in stopped)
    assert "Stopped trials" in (run / "report.html").read_text()
