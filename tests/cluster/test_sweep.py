import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

from raystitch.buffer.opening import open_buffer
from raystitch.cli import main
from raystitch.cluster.sweep import run_sweep
from raystitch.config import ResourceConfig, RunConfig, load_run_config
from raystitch.data.d4rl import write_d4rl
from raystitch.data.episodes import EpisodeDataset
from raystitch.errors import UserError
from raystitch.io.files import read_json
from raystitch.models.config import PARTS
from tests.pipeline.log_files import lines

TINY = (
    "fit.diffusion.train_steps=10",
    "fit.dynamics.train_steps=10",
    "fit.inverse.train_steps=10",
    "fit.reward.train_steps=10",
    "fit.termination.train_steps=10",
    "fit.value.train_steps=10",
    "augment={num_bridges: 20, pairs_per_shard: 32, num_actors: 1}",
    "stitch.pairs={mode: distance, seam_max: auto}",
    "algorithms.dt.train_steps=6",
    "algorithms.td3bc.train_steps=6",
    "algorithms.bc={train_steps: 6, batch_size: 16, hidden: 8}",
    "seeds=[3, 4]",
    "resources={stacked_seeds: 2, max_concurrent_trials: 1}",
    "evaluation={num_episodes: 2, num_envs: 2, every: 3, every_episodes: 1, target_returns: [1, 0.5]}",
    "validation.max_bridges=5",
)
# No bridge has a residual of zero, so the last line's trials fail.
GRID = (
    "grid=[{algo: dt, data: original}, {algo: dt, data: joined}, {algo: dt, data: stitched, delta: ['off']}, "
    "{algo: td3bc, data: weighted}, {algo: bc, data: duplicated}, {algo: td3bc, data: stitched, delta: [0]}]"
)


@pytest.fixture(scope="module")
def config(maze: EpisodeDataset, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    path = tmp_path_factory.mktemp("data") / "maze.hdf5"
    write_d4rl(maze, path)
    return load_run_config("smoke", [f"dataset={path}", *TINY, GRID, "logging=[csv, tensorboard]"])


def times(run: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in run.glob("trials/*/returns.json")}


def logs(run: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in run.glob("logs/csv/*.csv")}


def rows(run: Path) -> list[dict[str, Any]]:
    return pq.read_table(run / "results.parquet").to_pylist()


@pytest.fixture(scope="module")
def finished_run(config: RunConfig, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_sweep(config, tmp_path_factory.mktemp("runs") / "run", allow_failed=True)


def test_a_run_leaves_everything_that_is_promised(finished_run: Path) -> None:
    for name in (
        "config.yaml",
        "environment.json",
        "validate.json",
        "generalise.json",
        "results.parquet",
        "report.html",
    ):
        assert (finished_run / name).stat().st_size > 0
    for name in ("acceptance", "candidates", "lines", "walls", "marks"):
        assert (finished_run / "figures" / f"{name}.parquet").is_file()
    assert open_buffer(finished_run / "buffer").num_accepted() >= 20
    assert load_run_config(finished_run / "config.yaml").name == "smoke"
    got = [(row["algo"], row["data"], row["delta"], row["target_return"], row["status"]) for row in rows(finished_run)]
    once = [
        ("dt", "original", None, 1.0, "ok"),
        ("dt", "original", None, 0.5, "ok"),
        ("dt", "joined", None, 1.0, "ok"),
        ("dt", "joined", None, 0.5, "ok"),
        ("dt", "stitched", "off", 1.0, "ok"),
        ("dt", "stitched", "off", 0.5, "ok"),
        ("td3bc", "weighted", None, None, "ok"),
        ("bc", "duplicated", None, None, "ok"),
        ("td3bc", "stitched", "0", None, "failed"),
    ]
    assert got == once * 2
    assert [row["seed"] for row in rows(finished_run)] == [3] * 9 + [4] * 9
    assert not (finished_run / ".tune").exists()


def test_fit_augment_and_every_trial_are_logged(finished_run: Path) -> None:
    names = set(logs(finished_run))
    assert names == {path.name for path in (finished_run / "logs/tensorboard").iterdir()}
    trained = {row["trial_id"][:6] for row in rows(finished_run) if row["status"] == "ok"}
    assert {name[-6:] for name in names - {"fit", "augment"}} == trained
    fit = lines(finished_run, "fit")[1:]
    assert [(int(row[0]), row[1]) for row in fit] == [
        *zip((10, 20, 30, 40, 50, 60, 80), PARTS, strict=True),  # so few steps are one report, 40 are two
        (100, PARTS[-1]),
    ]
    made = {row[2]: float(row[3]) for row in lines(finished_run, "augment")[1:]}
    assert made["bridges"] >= 20 and made["share_accepted"] > 0


def test_a_run_is_studied_and_goes_on_from_what_was_measured(
    finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_json(finished_run / "generalise.json")
    assert "not measured yet" in before["policies"]["recovery"]["skipped"]
    assert all(row["action_error"]["held_out"] > 0 for row in before["policies"]["rows"])
    command = ["study", "generalise", str(finished_run), "--num-starts", "2", "--max-episode-steps", "3", "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == read_json(finished_run / "generalise.json")
    assert all(0 <= row["held_out"] <= 1 for row in found["policies"]["rows"])
    assert {row["trial_id"] for row in found["policies"]["rows"]} == {
        path.parent.name for path in finished_run.glob("trials/*/returns.json")
    }
    assert found["copying"] == before["copying"]
    assert "Generalise, explore or overfit?" in (finished_run / "report.html").read_text()
    kept = {path: path.stat().st_mtime_ns for path in finished_run.glob("study/recovery/*.json")}
    assert len(kept) == len(found["policies"]["rows"])
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert main([*command, "--train-steps", "3"]) == 2
    assert "goes with --scaling" in capsys.readouterr().err


def test_a_failed_trial_says_why(finished_run: Path) -> None:
    failed = rows(finished_run)[-1]
    assert "UserError" in failed["error"]
    assert "\n" not in failed["error"]
    assert failed["error"] in (finished_run / "report.html").read_text().replace("&#x27;", "'").replace("&gt;", ">")
    assert "Traceback" in (finished_run / "trials" / failed["trial_id"] / "error.txt").read_text()


def test_a_second_run_does_only_what_is_missing(
    config: RunConfig, ray_session: None, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, old_rows, old_logs = times(finished_run), rows(finished_run), logs(finished_run)
    gone = old_rows[0]["trial_id"]
    (finished_run / "trials" / gone / "returns.json").write_text('{"evaluations": [')
    run_sweep(replace(config, resources=ResourceConfig(num_retries=0)), finished_run, allow_failed=True)
    said = capsys.readouterr().err
    assert "9 of 12 trials are finished already" in said
    assert "as the buffer was begun" in said
    assert "How pairs were chosen" in (finished_run / "report.html").read_text()
    after = times(finished_run)
    assert after.keys() == before.keys()
    assert {trial for trial in after if after[trial] != before[trial]} == {gone}
    changed = {name for name, content in logs(finished_run).items() if content != old_logs[name]}
    assert all(name.endswith(gone[:6]) for name in changed)
    timing = ("train_seconds",)
    strip = [{name: value for name, value in row.items() if name not in timing} for row in old_rows]
    assert [{name: value for name, value in row.items() if name not in timing} for row in rows(finished_run)] == strip


def test_a_trial_alone_gives_what_the_table_says(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = next(row for row in rows(finished_run) if row["data"] == "weighted")
    before = times(finished_run)
    assert main(["sweep", "--rerun", row["trial_id"][:10], "--out", str(finished_run)]) == 0
    shown = capsys.readouterr().out
    assert row["trial_id"] in shown
    assert "equal: " in shown
    assert times(finished_run) == before
    again = finished_run / "reruns" / row["trial_id"]
    evaluations = [
        read_json(folder / "returns.json")["evaluations"] for folder in (again, finished_run / "trials" / again.name)
    ]
    np.testing.assert_allclose(evaluations[0][0]["returns"], evaluations[1][0]["returns"], rtol=1e-3)
    failed = next(row["trial_id"] for row in rows(finished_run) if row["status"] == "failed")
    assert main(["sweep", "--rerun", failed, "--out", str(finished_run)]) == 2
    assert "there is none (no accepted bridge" in capsys.readouterr().err


def test_a_trial_that_is_not_there(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = rows(finished_run)[0]["trial_id"]
    cases = {
        (known[:-2] + "zz", str(finished_run)): ("no such trial", known),
        ("", str(finished_run)): ("12 trials", "begin so", known),
        (known, str(tmp_path)): ("not a run of `raystitch sweep`",),
    }
    for (trial_id, run), says in cases.items():
        assert main(["sweep", "--rerun", trial_id, "--out", run]) == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1
        assert all(text in error for text in says), error
    assert main(["sweep", "--rerun", known]) == 2
    assert "name the run with --out" in capsys.readouterr().err
    assert main(["sweep", "smoke", "--rerun", known, "--out", str(finished_run)]) == 2
    assert "leave out CONFIG" in capsys.readouterr().err


def test_the_plan_costs_nothing(config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_sweep(config, tmp_path / "run", dry_run=True)
    shown = capsys.readouterr().out
    assert "12 trials" in shown
    assert "rough estimate" in shown
    assert not (tmp_path / "run").exists()


def test_mistakes_are_found_before_anything_is_fitted(config: RunConfig, maze: EpisodeDataset, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        run_sweep(config, file / "run")
    with pytest.raises(UserError, match=r"file:///tmp/run: name a folder by its path, or an object store"):
        run_sweep(config, "file:///tmp/run")
    with pytest.raises(UserError, match="does not exist"):
        run_sweep(replace(config, dataset="d4rl:missing.hdf5"), tmp_path / "run")
    nowhere = tmp_path / "nowhere.hdf5"
    write_d4rl(replace(maze, env=None), nowhere)
    with pytest.raises(UserError, match="does not say which environment it comes from; name one"):
        run_sweep(replace(config, dataset=f"d4rl:{nowhere}"), tmp_path / "run")
    with pytest.raises(UserError, match="Hopper-v5 has 11"):
        run_sweep(replace(config, dataset=f"d4rl:{nowhere}", env="Hopper-v5"), tmp_path / "run")
    one = tmp_path / "one.hdf5"
    write_d4rl(maze.subset(np.array([0])), one)
    with pytest.raises(UserError, match="has 1 episode; stitching leads from one episode into another"):
        run_sweep(replace(config, dataset=f"d4rl:{one}"), tmp_path / "run")
    worthless = tmp_path / "worthless.hdf5"
    write_d4rl(replace(maze, rewards=np.zeros_like(maze.rewards)), worthless)
    with pytest.raises(UserError, match="every reward is 0"):
        run_sweep(replace(config, dataset=f"d4rl:{worthless}"), tmp_path / "run")
    with h5py.File(one, "r+") as file:
        actions = file["actions"]
        assert isinstance(actions, h5py.Dataset)
        first = actions[:, 0]
        del file["actions"]
        file["actions"] = (first > 0).astype(np.int64)
    with pytest.raises(UserError, match="discrete actions have to be written one-hot"):
        run_sweep(replace(config, dataset=f"d4rl:{one}"), tmp_path / "run")
    assert not np.any([(tmp_path / "run" / name).exists() for name in ("stitcher", "config.yaml")])
