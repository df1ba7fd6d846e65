"""A sweep on one of OGBench's files: the task that the user names counts in every process, from any working folder."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from raystitch.cli import main
from raystitch.config import load_run_config
from raystitch.io.files import read_json

pytest.importorskip("ogbench")
pytestmark = pytest.mark.slow  # tests/pipeline/test_ogbench.py has the same without Ray

TASK = "ogbench:pointmaze-medium-singletask-task4-v0"
TINY = (
    *(f"fit.{part}.train_steps=5" for part in ("diffusion", "dynamics", "inverse", "reward", "termination", "value")),
    "fit.embedding.train_steps=5",
    "augment={num_bridges: 10, pairs_per_shard: 16}",
    "algorithms={bc: {train_steps: 4, batch_size: 16, hidden: 8}}",
    "grid=[{algo: bc, data: original}, {algo: bc, data: stitched, delta: ['off']}]",
    "evaluation={num_episodes: 2, num_envs: 2, max_episode_steps: 20}",
    "validation.enabled=false",
)


def test_a_sweep(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["data", "make", "ogbench-pointmaze-medium-stitch", "--out", "x.npz", "--num-episodes", "30", "--seed", "3"]
    assert main(argv) == 0
    settings = [part for setting in ("dataset=x.npz", f"env={TASK}", *TINY) for part in ("--set", setting)]
    assert main(["sweep", "smoke", "--out", "run", *settings]) == 0
    config = load_run_config(tmp_path / "run" / "config.yaml")
    assert (config.dataset, config.env) == (f"ogbench:{tmp_path / 'x.npz'}", TASK)
    assert read_json(tmp_path / "run" / "buffer" / "buffer.json")["dataset_name"] == config.dataset
    assert read_json(tmp_path / "run" / "stitcher" / "stitcher.json")["dataset"]["env"]["env_id"] == TASK
    rows: list[dict[str, Any]] = pq.read_table(tmp_path / "run" / "results.parquet").to_pylist()
    assert [row["status"] for row in rows] == ["ok", "ok"]
    assert all(row["success_rate"] in (0.0, 0.5, 1.0) and row["return_mean"] >= -20 for row in rows)
    assert "success rate" in capsys.readouterr().out
    trial = next((tmp_path / "run" / "trials").iterdir()).name
    assert main(["sweep", "--rerun", trial, "--out", "run"]) == 2
    assert f"raystitch imports no module that a file names; if you trust it, name it yourself: --set env={TASK}" in (
        capsys.readouterr().err
    )
    assert main(["sweep", "--rerun", trial, "--out", "run", "--set", f"env={TASK}"]) == 0
    assert "equal: every episode returned the same" in capsys.readouterr().out
