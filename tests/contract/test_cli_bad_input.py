"""Every kind of bad input is one line that says what and where, the right exit status, and nothing left behind."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from raystitch.cli import main
from raystitch.data.d4rl import write_d4rl
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.minari_io import write_minari
from raystitch.errors import RunError
from raystitch.io.files import require_space
from raystitch.models.config import FitConfig
from raystitch.models.fit import fit_bundle

Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that must fail with ``status`` and one line on stderr that holds every one of ``says``."""

    def call(*argv: object, status: int = 2, says: tuple[str, ...] = ()) -> str:
        capsys.readouterr()
        try:
            found = main([str(arg) for arg in argv])
        except SystemExit as stopped:  # argparse
            found = stopped.code
        out, err = capsys.readouterr()
        assert found == status, err
        assert out == ""
        assert len(err.splitlines()) == 1, err
        assert "unexpected" not in err
        for text in says:
            assert text in err
        return err

    return call


@pytest.fixture(scope="module")
def ref(drift: EpisodeDataset) -> str:
    write_minari(drift, "bad/drift-v0")
    return "minari:bad/drift-v0"


@pytest.fixture(scope="module")
def bundle(drift: EpisodeDataset, tiny_fit: FitConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bad") / "stitcher"
    fit_bundle(drift, tiny_fit, out, "cpu")
    return out


def hdf5(path: Path, **arrays: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return path


def arrays(rows: int = 60) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "observations": rng.normal(size=(rows, 4)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (rows, 2)).astype(np.float32),
        "rewards": np.zeros(rows, np.float32),
        "terminals": np.zeros(rows, np.bool_),
        "timeouts": np.arange(rows) % 20 == 19,
    }


@pytest.mark.parametrize(
    "command", [["data", "inspect"], ["data", "import", "--id", "bad/x-v0"], ["fit", "--out", "o"]]
)
def test_a_missing_file(command: list[str], refused: Refused, tmp_path: Path) -> None:
    refused(*command, tmp_path / "nothing.hdf5", says=("nothing.hdf5", "does not exist"))


def test_an_unknown_dataset_id_names_the_nearest(refused: Refused, ref: str) -> None:
    refused("data", "inspect", "bad/drfit", says=("bad/drfit", "did you mean", "bad/drift-v0"))
    refused("data", "inspect", "demo:labyrinth", says=("labyrinth", "demo:pointmaze"))
    refused("data", "make", "labyrinth", says=("labyrinth", "pointmaze"))


def test_a_file_that_is_not_hdf5(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "text.hdf5").write_text("observations\n")
    refused("data", "import", tmp_path / "text.hdf5", "--id", "bad/x-v0", says=("text.hdf5", "HDF5"))


def test_arrays_of_different_lengths(refused: Refused, tmp_path: Path) -> None:
    path = hdf5(tmp_path / "uneven.hdf5", **arrays() | {"rewards": np.zeros(59, np.float32)})
    refused("data", "import", path, "--id", "bad/x-v0", says=("uneven.hdf5", "rewards 59", "actions 60"))


def test_nan_names_array_and_row_and_inspect_still_works(
    refused: Refused, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = arrays()
    data["observations"][17, 2] = np.nan
    path = hdf5(tmp_path / "nan.hdf5", **data)
    refused("data", "import", path, "--id", "bad/nan-v0", says=("nan.hdf5", "observations", "17"))
    refused("fit", path, "--out", tmp_path / "o", says=("observations", "17"))
    refused("data", "inspect", "bad/nan-v0", says=("not found",))  # nothing was left behind
    assert main(["data", "inspect", str(path), "--json"]) == 0
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert any("NaN" in problem["message"] for problem in problems)


def test_an_unknown_environment(refused: Refused, tmp_path: Path, ref: str) -> None:
    path = hdf5(tmp_path / "x.hdf5", **arrays())
    refused("data", "import", path, "--id", "bad/x-v0", "--env", "Hoper-v5", says=("Hoper",))
    refused("train", ref, "--algo", "bc", "--out", tmp_path / "t", "--env", "Hoper-v5", says=("Hoper",))


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("difusion.horizon=8", "did you mean diffusion"),
        ("diffusion.horizn=8", "did you mean horizon"),
        ("diffusion.horizon=30", "horizon=30"),
        ("diffusion.horizon=big", "big"),
        ("gamma=2", "gamma=2"),
        ("gamma", "key=value"),
    ],
)
def test_a_mistyped_setting(setting: str, says: str, refused: Refused, ref: str, tmp_path: Path) -> None:
    refused("fit", ref, "--out", tmp_path / "o", "--set", setting, says=(says,))
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("command", ["fit", "sweep"])
def test_a_mistyped_configuration_file(command: str, refused: Refused, ref: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"dataset: {ref}\ngrid:\n- {{algo: bc, data: original}}\nfit:\n  gamm: 0.9\n")
    argv = ["fit", ref, "--config", path] if command == "fit" else ["sweep", path]
    refused(*argv, "--out", tmp_path / "o", says=("mine.yaml:5", "gamm", "did you mean gamma"))
    path.write_text("dataset: [unclosed\n")
    refused(*argv, "--out", tmp_path / "o", says=("mine.yaml", "YAML"))
    assert not (tmp_path / "o").exists()
    refused("sweep", "no-such-config", says=("no-such-config", "demo"))


@pytest.mark.parametrize("ratio", ["0:0", "-1:1", "1", "nan:1"])
def test_a_ratio_that_is_none(ratio: str, refused: Refused, ref: str, tmp_path: Path) -> None:
    options = ["--algo", "bc", "--out", tmp_path / "t", f"--ratio={ratio}", "--buffer", tmp_path]
    refused("train", ref, *options, says=(ratio.split(":")[0],))


def test_augmented_data_without_a_buffer(refused: Refused, ref: str, tmp_path: Path) -> None:
    refused("train", ref, "--algo", "bc", "--out", tmp_path / "t", "--ratio", "1:1", says=("--buffer",))


@pytest.mark.parametrize("delta", ["-0.5", "q101", "tight"])
def test_a_delta_that_is_none(delta: str, refused: Refused, ref: str, tmp_path: Path) -> None:
    refused("train", ref, "--algo", "bc", "--out", tmp_path / "t", f"--delta={delta}", says=("delta", delta))


def test_a_horizon_longer_than_every_episode(refused: Refused, ref: str, tmp_path: Path) -> None:
    options = ["--set", "diffusion.horizon=64", "--out", tmp_path / "o"]
    refused("fit", ref, *options, says=("horizon=64", "longest"))


def test_a_bundle_of_another_dataset_or_size(
    refused: Refused, bundle: Path, drift: EpisodeDataset, tmp_path: Path
) -> None:
    other = replace(drift, rewards=drift.rewards + 1)
    write_d4rl(other, tmp_path / "other.hdf5")
    wide = replace(drift, observations=np.repeat(drift.observations, 2, axis=1))
    write_d4rl(wide, tmp_path / "wide.hdf5")
    options = ["--stitcher", bundle, "--out", tmp_path / "b", "--num-bridges", 10]
    refused("augment", tmp_path / "other.hdf5", *options, says=("other.hdf5", "drift"))
    refused("augment", tmp_path / "wide.hdf5", *options, says=("8", "4"))
    assert not (tmp_path / "b").exists()


def test_a_folder_of_another_fit(refused: Refused, bundle: Path, ref: str) -> None:
    refused("fit", ref, "--out", bundle, "--set", "gamma=0.5", says=("gamma", "0.5"))


def test_folders_that_are_not_what_is_asked_for(refused: Refused, ref: str, tmp_path: Path) -> None:
    refused(
        "augment", ref, "--stitcher", tmp_path, "--out", tmp_path / "b", "--num-bridges", 1, says=("stitcher.json",)
    )
    for command in (["buffer", "info"], ["buffer", "show"], ["buffer", "verify"], ["validate"]):
        refused(*command, tmp_path, says=(str(tmp_path),))
    refused("evaluate", tmp_path, says=("policy.json",))
    refused("report", tmp_path, says=("config.yaml",))
    refused("evaluate", tmp_path / "nothing", says=("does not exist",))


def test_a_damaged_bundle(refused: Refused, bundle: Path, ref: str, tmp_path: Path) -> None:
    copy = tmp_path / "stitcher"
    shutil.copytree(bundle, copy)
    weights = copy / "dynamics.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    options = ["--stitcher", copy, "--out", tmp_path / "b", "--num-bridges", 1]
    refused("augment", ref, *options, says=("dynamics.safetensors", "damaged"))


def test_an_out_that_cannot_be_written(refused: Refused, ref: str, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below", "/proc/nowhere"):
        for command in (
            ["fit", ref],
            ["augment", ref, "--stitcher", bundle, "--num-bridges", 1],
            ["train", ref, "--algo", "bc"],
        ):
            refused(*command, "--out", out, says=(str(out),))


def test_nothing_can_be_stitched(
    refused: Refused, ref: str, bundle: Path, tmp_path: Path, ray_session: object, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        f"dataset: {ref}\ngrid:\n- {{algo: bc, data: original}}\naugment: {{pairs_per_shard: 10, num_actors: 1}}\n"
    )
    options = ["--stitcher", str(bundle), "--out", str(tmp_path / "b"), "--num-bridges", "5", "--delta", "1e-12"]
    assert main(["augment", ref, *options, "--config", str(config)]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "nothing can be stitched" in last
    assert "smallest residual" in last
    refused("export", tmp_path / "b", "--format", "parquet", "--out", tmp_path / "x", says=("unfinished",))


def test_a_disk_without_room_is_refused_before_writing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="MiB are free"):
        require_space(tmp_path / "new" / "file.hdf5", 10**18)
    require_space(tmp_path / "new" / "file.hdf5", 1)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--weights", "{name: aw, temperature: 0}"], "temperature must be positive, got temperature=0"),
        (["--weights", "{name: top, share: 0.001}"], "share=0.001 of 40 episodes selects none; use at least 0.013"),
        (["--weights", "{name: top, temperature: 1}"], "top does not read temperature=1"),
        (["--weights", "aw", "--ratio", "1:0"], "use data: weighted, at 0:1"),
        (["--rewards", "penalty"], "changes generated steps, which original data do not have"),
        (["--rewards", "{name: scale, strength: -1}"], "strength of scale must be positive, got strength=-1"),
        (["--rewards", "honest"], "--rewards: input should be 'recorded'"),
        (["--set", "decoupled=true"], "decoupled: unknown key"),
    ],
)
def test_a_shaping_that_cannot_be(options: list[str], says: str, refused: Refused, ref: str, tmp_path: Path) -> None:
    refused("train", ref, "--algo", "bc", "--out", tmp_path / "t", *options, says=(says,))
    assert not (tmp_path / "t" / "returns.json").exists()


@pytest.mark.parametrize(
    ("select", "says"),
    [
        ("bets=0.5", "not one of all, best, worst, returns, episodes, clean, diverse"),
        ("best=0.001", "less than one of 40 episodes"),
        ("best=2", "a share above 0 and up to 1"),
        ("episodes=[0,99]", "names episode 99"),
        ("episodes=[3]", "at least 2 are needed"),
        ("returns=[1e6,1e7]", "keeps none of 40 episodes"),
        ("episodes=nothing.txt", "cannot be read"),
        ("clean=1", "takes no value"),
    ],
)
def test_a_selection_that_is_none(
    select: str, says: str, refused: Refused, ref: str, bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "o"
    for command in (
        ["data", "select", ref, "--out", tmp_path / "o.hdf5"],
        ["data", "inspect", ref],
        ["fit", ref, "--out", out],
        ["augment", ref, "--stitcher", bundle, "--out", out, "--num-bridges", 1],
        ["train", ref, "--algo", "bc", "--out", out],
    ):
        refused(*command, "--select", select, says=(says,))
    config = tmp_path / "run.yaml"
    config.write_text(f"dataset: {ref}\nselect: {select}\ngrid:\n- {{algo: bc, data: original}}\n")
    refused("sweep", config, "--out", out, says=(says,))
    assert list(tmp_path.iterdir()) == [config]


def test_a_selection_that_leaves_nothing_to_stitch(refused: Refused, ref: str, tmp_path: Path) -> None:
    """Every fourth episode ends in a terminal state, before which the margin forbids to leave."""
    config = tmp_path / "run.yaml"
    config.write_text(
        f"dataset: {ref}\nselect: {{episodes: [0, 4, 8]}}\nstitch: {{pairs: {{terminal_margin: 50}}}}\n"
        "fit: {diffusion: {horizon: 16, width: 8, multipliers: [1, 2], gap_min: 2, gap_max: 8}}\n"
        "grid:\n- {algo: bc, data: original}\n"
    )
    refused("sweep", config, "--out", tmp_path / "o", says=("no state to leave",))
    assert not (tmp_path / "o").exists()


def test_cutting_steps_needs_what_it_asks(refused: Refused, ref: str, bundle: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "o.hdf5"]
    refused("data", "select", ref, *out, "--clean-steps", "q99", says=("--stitcher", "jumps needs none"))
    refused("data", "select", ref, *out, "--trim", "jumps", says=("--trim jumps",))
    refused("data", "select", ref, *out, "--clean-steps", "q101", says=("q101",))
    refused("data", "select", ref, *out, "--trim", "off", says=("off",))
    refused("data", "select", ref, "--out", "demo:pointmaze", says=("demo:pointmaze", ".hdf5"))
    for same in (ref, ref.removeprefix("minari:"), ref.removesuffix("-v0")):
        refused("data", "select", ref, "--out", same, "--overwrite", says=("is what is read",))
    (tmp_path / "o.hdf5").write_text("")
    refused("data", "select", ref, *out, says=("o.hdf5", "exists already", "--overwrite"))
    refused("data", "select", ref, *out, "--stitcher", tmp_path, says=("exists already",))
    refused("data", "inspect", ref, "--buffer", tmp_path, says=("--potential",))
    assert (tmp_path / "o.hdf5").read_text() == ""
    strict = ["--stitcher", bundle, "--trim", 0, "--device", "cpu", "--cut-connections"]
    refused("data", "select", ref, "--out", tmp_path / "none.hdf5", *strict, says=("no step is left",))
    assert not (tmp_path / "none.hdf5").exists()
