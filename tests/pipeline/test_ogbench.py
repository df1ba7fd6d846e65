"""The stages on one of OGBench's files, without Ray; the task that a user names reaches the workers, a file's none."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from raystitch.buffer.config import AugmentConfig
from raystitch.data.ogbench_oracle import make_stitch, write_npz
from raystitch.data.ref import DatasetRef
from raystitch.models.config import FitConfig
from raystitch.models.fit import fit_bundle
from raystitch.pipeline.generate.augment import augment_local
from raystitch.stitching.config import PairConfig, QualifyConfig, StitchConfig
from tests.conftest import Run

pytest.importorskip("ogbench")

TASK = "ogbench:pointmaze-medium-singletask-task4-v0"


@pytest.fixture(scope="module")
def ref(tmp_path_factory: pytest.TempPathFactory) -> DatasetRef:
    path = tmp_path_factory.mktemp("ogbench") / "x.npz"
    write_npz(make_stitch("medium", num_episodes=30, seed=3), path)
    return DatasetRef(str(path), env=TASK).absolute()


@pytest.fixture(scope="module")
def buffer(ref: DatasetRef, tiny_fit: FitConfig) -> Path:
    folder = Path(ref.ref.removeprefix("ogbench:")).parent
    dataset = ref.load()
    bundle = fit_bundle(dataset, replace(tiny_fit, calibration_windows=30), folder / "stitcher", "cpu")
    loose = QualifyConfig(delta="off", value_check=False, termination_max=None)
    stitch = StitchConfig(pairs=PairConfig(), qualify=loose)
    augment_local(dataset, bundle, stitch, AugmentConfig(num_bridges=10, pairs_per_shard=16), out=folder / "buffer")
    return folder / "buffer"


def test_workers_get_what_the_user_named(ref: DatasetRef) -> None:
    """As Ray sends it: a pickle of our own making."""
    dataset = ref.load()
    sent_ref, sent_env = pickle.loads(pickle.dumps((ref, dataset.env)))  # noqa: S301
    assert sent_ref == ref and sent_env.named and sent_env == dataset.env
    assert sent_ref.load().fingerprint == dataset.fingerprint


def test_what_files_name_is_imported_only_when_it_is_named_again(buffer: Path, run: Run, tmp_path: Path) -> None:
    export = ["export", buffer, "--format", "d4rl", "--out", tmp_path / "x.hdf5", "--delta", "off"]
    status, _, err = run(*export)
    assert status == 2
    assert f"raystitch imports no module that a file names; if you trust it, name it yourself: --env {TASK}" in err
    assert run(*export, "--env", TASK)[0] == 0
    assert json.loads(run("buffer", "info", buffer, "--json")[1])["complete"]


def test_train_and_evaluate_say_success(ref: DatasetRef, buffer: Path, run: Run, tmp_path: Path) -> None:
    options = ["--env", TASK, "--algo", "bc", "--buffer", buffer, "--ratio", "1:1", "--delta", "off"]
    settings = ["--set", "train_steps=5", "--num-episodes", 2, "--max-episode-steps", 20, "--out", tmp_path / "trial"]
    status, out, err = run("train", ref.ref, *options, *settings, "--json")
    assert status == 0, err
    (found,) = json.loads(out)["evaluations"]
    assert found["successes"] == [False, False] and found["success_rate"] == 0.0
    assert found["returns"] == [-20, -20] and found["lengths"] == [20, 20]
    status, out, err = run("evaluate", tmp_path / "trial" / "policy", "--env", TASK, "--num-episodes", 1, "--json")
    assert status == 0, err
    assert json.loads(out)["lengths"] == [1000]  # the task's own limit
