"""The commands in the order of the work, with tiny numbers, as a user would type them."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

import raystitch as rs
from raystitch.data.d4rl import write_d4rl
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.gap import WIDTHS, gap_name
from raystitch.data.made import MAKERS
from raystitch.data.minari_root import check_dataset_id, minari_root
from raystitch.trainers.registry import ALGORITHMS
from tests.conftest import Run


def strict_json(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_make_writes_a_dataset_that_inspect_describes(run: Run) -> None:
    status, out, err = run("data", "make", "pointmaze", "--num-steps", 1000, "--id", "cli/made-v0")
    assert (status, out) == (0, "minari:cli/made-v0\n"), err
    status, out, _ = run("data", "inspect", "cli/made-v0", "--json")
    found = strict_json(out)
    assert status == 0
    assert found["num_transitions"] >= 1000
    assert found["env"]["env_id"] == "raystitch/PointMaze-v0"
    status, out, _ = run("data", "inspect", "cli/made-v0")
    assert status == 0
    assert "environment: raystitch/PointMaze-v0" in out


def test_every_maker_has_a_usable_id_of_its_own(run: Run) -> None:
    status, out, err = run("data", "make", "pointmaze-gap-0.5", "--num-steps", 1000)
    assert (status, out) == (0, "minari:raystitch/pointmaze-gap-0-5-v0\n"), err
    for width in WIDTHS:
        check_dataset_id(f"raystitch/{gap_name(width).replace('.', '-')}-v0")


def test_an_unusable_id_is_refused_before_anything_is_made(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(*_: object) -> None:
        raise AssertionError("made before the id was looked at")

    monkeypatch.setitem(MAKERS, "pointmaze", made)
    status, _, err = run("data", "make", "pointmaze", "--id", "local/maze-0.5-v0")
    assert status == 2 and "'local/maze-0.5-v0' is not a Minari dataset id" in err
    minari_root().joinpath("cli/there-v0").mkdir(parents=True)
    status, _, err = run("data", "make", "pointmaze", "--id", "cli/there-v0")
    assert status == 2 and "exists already" in err


def test_import_keeps_every_transition(run: Run, drift: EpisodeDataset, tmp_path: Path) -> None:
    write_d4rl(drift, tmp_path / "drift.hdf5")
    status, out, err = run("data", "import", tmp_path / "drift.hdf5", "--id", "cli/imported-v0")
    assert (status, out) == (0, "minari:cli/imported-v0\n"), err
    imported = rs.load_dataset("cli/imported-v0")
    assert imported.fingerprint == drift.fingerprint
    status, _, err = run("data", "import", tmp_path / "drift.hdf5", "--id", "cli/imported-v0")
    assert status == 2
    assert "--overwrite" in err


def test_fit_again_is_a_load(run: Run, ref: str, stitcher: Path, config_file: Path) -> None:
    status, out, err = run("fit", ref, "--out", stitcher, "--config", config_file)
    assert status == 0
    assert out.startswith(f"{stitcher}: sha256:")
    assert "diffusion" not in err


def test_augment_again_adds_nothing(run: Run, ref: str, stitcher: Path, buffer: Path, config_file: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in buffer.rglob("*.arrow")}
    options = ["--num-bridges", 30, "--config", config_file]
    status, out, _ = run("augment", ref, "--stitcher", stitcher, "--out", buffer, *options)
    assert status == 0
    assert "(0 new" in out
    assert {path: path.stat().st_mtime_ns for path in buffer.rglob("*.arrow")} == before


def test_buffer_commands(run: Run, buffer: Path) -> None:
    status, out, _ = run("buffer", "info", buffer, "--json")
    found = strict_json(out)
    assert status == 0
    assert found["complete"]
    assert found["accepted"] >= 30
    assert sum(found["reasons"].values()) == found["candidates"]
    status, out, _ = run("buffer", "info", buffer, "--delta", "1e-9")
    assert status == 0
    assert "0 accepted of" in out
    status, out, _ = run("buffer", "show", buffer)
    assert status == 0
    assert "A left, B entered" in out
    name = out.split(":")[0]
    status, out, _ = run("buffer", "show", buffer, "--bridge", name, "--json")
    shown = strict_json(out)
    assert shown["bridge_id"] == name
    assert len(shown["observations"]) == shown["gap"] + 2
    assert run("buffer", "show", buffer, "--bridge", "nonsense")[0] == 2
    assert run("buffer", "verify", buffer)[:2] == (0, f"{buffer}: all shards are whole\n")
    assert run("buffer", "compact", buffer)[0] == 0
    assert run("buffer", "verify", buffer)[0] == 0


def test_validate_prints_a_table_or_json(run: Run, buffer: Path) -> None:
    status, out, err = run("validate", buffer, "--json", "--max-bridges", 5)
    assert status == 0, err
    found = strict_json(out)
    assert found["sets"]["accepted"]["num_windows"] == 5
    assert "real_inverse" in found["sets"]  # the bundle beside the buffer was found
    status, out, _ = run("validate", buffer, "--max-bridges", 5)
    assert status == 0
    assert "accepted bridges" in out


@pytest.mark.parametrize("what", ["bridges", "episodes", "mixed"])
def test_export_writes_what_other_tools_read(run: Run, buffer: Path, what: str, tmp_path: Path) -> None:
    options = ["--what", what, *(["--ratio", "10:1"] if what == "mixed" else [])]
    status, out, err = run("export", buffer, "--format", "parquet", "--out", tmp_path / "x.parquet", *options)
    assert status == 0, err
    assert "of them generated" in out
    assert pq.read_table(tmp_path / "x.parquet").num_rows > 0
    assert run("export", buffer, "--format", "minari", "--out", f"cli/stitched-{what}-v0", *options)[0] == 0
    exported = rs.load_dataset(f"cli/stitched-{what}-v0")
    assert np.isfinite(exported.observations).all()


def test_train_shapes_its_data(run: Run, ref: str, tmp_path: Path) -> None:
    options = ["--algo", "bc", "--set", "train_steps=5", "--num-episodes", "1", "--json"]
    rule = "{name: rw, temperature: 5e-1}"
    status, out, err = run("train", ref, *options, "--out", tmp_path / "soft", "--weights", rule)
    assert status == 0, err
    assert strict_json(out)["shaping"] == {"weights": {"name": "rw", "temperature": 0.5}}
    recorded = json.loads((tmp_path / "soft" / "config.json").read_text())
    assert (recorded["data"], recorded["ratio"]) == ("weighted", "0:1")
    for given, message in (
        (["--weights", "rww"], "train: --weights: input should be 'uniform'"),
        (["--weights", "{name: rw, temperature: 0}"], "temperature must be positive, got temperature=0"),
        (["--weights", "[rw"], "--weights: '[rw' is not a YAML value"),
        (["--weights", "rw", "--ratio", "1:0"], "use data: weighted, at 0:1"),
    ):
        status, _, err = run("train", ref, *options, "--out", tmp_path / "wrong", *given)
        assert status == 2
        assert message in err and err.count("\n") == 1
    assert not (tmp_path / "wrong").exists()


def test_train_then_evaluate(run: Run, ref: str, buffer: Path, config_file: Path, tmp_path: Path) -> None:
    settings = ["--config", config_file, "--set", "train_steps=30"]
    options = ["--algo", "td3bc", "--buffer", buffer, "--ratio", "1:1", "--out", tmp_path / "trial", *settings]
    status, out, err = run("train", ref, *options, "--logging", "tensorbord,csv")
    assert (status, (tmp_path / "trial").exists()) == (2, False)
    assert "--logging='tensorbord' is not one of csv, tensorboard, wandb, mlflow" in err
    status, out, err = run("train", ref, *options, "--logging", "tensorboard,csv")
    assert status == 0, err
    assert out.endswith(f"policy: {tmp_path / 'trial' / 'policy'}\n")
    (log,) = (tmp_path / "trial/logs/csv").iterdir()
    logged = log.read_text()
    assert "\n30,train," in logged and "\n30,final,return_mean," in logged
    assert [path.name for path in (tmp_path / "trial/logs/tensorboard").iterdir()] == [log.stem]
    status, out, _ = run("train", ref, *options, "--json", "--logging", "csv")  # finished: read, not repeated
    assert status == 0
    assert strict_json(out)["train_steps"] == 30
    assert log.read_text() == logged
    status, _, err = run("train", ref, *options, "--delta", "off")
    assert status == 2
    assert "record.delta (there 'generation', asked None)" in err
    for folder in (tmp_path / "trial" / "policy", tmp_path / "trial"):
        status, out, err = run("evaluate", folder, "--num-episodes", 2, "--json")
        assert status == 0, err
        assert len(strict_json(out)["returns"]) == 2


def test_settings_may_also_come_from_a_file_of_their_own(run: Run, ref: str, config_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "fit.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(config_file.read_text())["fit"]))
    status, _, err = run("fit", ref, "--out", tmp_path / "stitcher", "--config", path, "--set", "gamma=0.9")
    assert status == 0, err
    assert rs.Bundle.load(tmp_path / "stitcher").config.gamma == 0.9


def test_a_dry_run_prints_the_plan_and_writes_nothing(run: Run, config_file: Path, tmp_path: Path) -> None:
    status, out, err = run("sweep", config_file, "--out", tmp_path / "run", "--dry-run", "--set", "seeds=[0,1]")
    assert status == 0, err
    assert "2 trials" in out
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_bench_prints_one_json_object_per_benchmark(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raystitch.bench.data.NUM_TRANSITIONS", 2000)
    monkeypatch.setattr("raystitch.bench.trainers.STEPS_OF_SEEDS", 10)
    monkeypatch.setattr("raystitch.bench.trainers.ALGORITHMS", {"bc": ALGORITHMS["bc"]})
    monkeypatch.setattr("raystitch.bench.trial.NUM_TRANSITIONS", 2000)
    monkeypatch.setattr("raystitch.bench.trainers._has_compiler", lambda: False)  # compiling takes minutes
    status, out, _ = run("bench", "data", "trainers", "--json")
    assert status == 0
    results = [strict_json(line) for line in out.splitlines()]
    assert [result["name"] for result in results] == ["data", "trainers"]
    for result in results:
        assert set(result) == {"name", "machine", "limit", "rows"}
        assert all(set(row) == {"what", "value", "unit", "ratio_to", "ratio"} for row in result["rows"])
        # Times of other processes come in hundredths of a second: a short one is 0. A note has no value.
        odd = [row for row in result["rows"] if row["value"] <= 0 and row["unit"] not in ("s", "")]
        assert not odd
    assert run("bench", "nonsense")[0] == 2


def test_what_is_odd_about_a_dataset_is_said_before_anything_long_starts(run: Run, tmp_path: Path) -> None:
    """Once: `inspect` lists it among the problems, the other commands warn and note."""
    rows = 200
    with h5py.File(tmp_path / "odd.hdf5", "w") as file:
        file["observations"] = np.random.default_rng(0).normal(size=(rows, 3))
        file["actions"], file["rewards"] = np.linspace(-3, 3, rows)[:, None], np.full(rows, -1.0)
        file["timeouts"] = np.arange(rows) % 20 == 19
        file.attrs["action_low"], file.attrs["action_high"] = [-np.inf], [np.inf]
    path = str(tmp_path / "odd.hdf5")
    status, out, err = run("data", "inspect", path)
    assert (status, err) == (0, "")
    assert "  wide_action_bounds: the bounds of 1 of 1 actions are infinite" in out
    assert "  equal_returns: all 10 episodes have the return -20" in out
    status, _, err = run("train", path, "--algo", "bc", "--out", str(tmp_path / "bc"), "--set", "train_steps=5")
    assert status == 2
    assert "warning: d4rl:" in err
    assert "the bounds of 1 of 1 actions are infinite" in err
    assert "note: d4rl:" in err
    assert "all 10 episodes have the return -20" in err
    status, _, err = run("data", "import", path, "--id", "cli/odd-v0")
    assert status == 0
    assert "note: the bounds of 1 of 1 actions are infinite" in err
