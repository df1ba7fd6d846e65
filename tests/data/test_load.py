"""Dataset references."""

from pathlib import Path

import numpy as np
import pytest

from raystitch.data.d4rl import write_d4rl
from raystitch.data.demo import make_pointmaze
from raystitch.data.episodes import Episode, EpisodeDataset, from_episodes
from raystitch.data.load import load_dataset, parse_ref
from raystitch.data.minari_io import write_minari
from raystitch.data.ref import DatasetRef
from raystitch.envs.spec import EnvSpec
from raystitch.errors import UserError


@pytest.mark.parametrize(
    ("ref", "parsed"),
    [
        ("minari:local/x-v0", ("minari", "local/x-v0")),
        ("local/x-v0", ("minari", "local/x-v0")),
        ("d4rl:data/x.hdf5", ("d4rl", "data/x.hdf5")),
        ("d4rl:data/x", ("d4rl", "data/x")),
        ("../data/x.hdf5", ("d4rl", "../data/x.hdf5")),
        ("ogbench:data/x", ("ogbench", "data/x")),
        ("../data/x.npz", ("ogbench", "../data/x.npz")),
        ("demo:pointmaze", ("demo", "pointmaze")),
    ],
)
def test_references(ref: str, parsed: tuple[str, str]) -> None:
    assert parse_ref(ref) == parsed


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("", "use minari:mujoco/hopper/medium-v0"),
        ("minari:", "names nothing after minari:"),
        ("s3:bucket", "use minari:mujoco/hopper/medium-v0, d4rl:FILE.hdf5, ogbench:FILE.npz or demo:pointmaze"),
        ("ogbench:", "names nothing after ogbench:"),
        ("demo:hopper", "there is: demo:pointmaze"),
        ("nowhere.hdf5", "nowhere.hdf5 does not exist"),
    ],
)
def test_bad_references(ref: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_dataset(ref)


def test_folders_and_files_of_other_kinds(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder; for a Minari root set MINARI_DATASETS_PATH"):
        load_dataset(str(tmp_path))
    (tmp_path / "data.csv").write_text("a,b\n")
    with pytest.raises(UserError, match="cannot be read as an HDF5 file"):
        load_dataset(str(tmp_path / "data.csv"))


@pytest.fixture
def pendulum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EpisodeDataset:
    """Made-up data of Pendulum's sizes that record no environment; as ``local/x-v0`` and as ``x.hdf5``."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    episodes = [
        Episode(np.zeros((6, 3), np.float32), np.zeros((5, 1), np.float32), np.zeros(5, np.float32), False, True)
    ] * 3
    bound = np.full(1, 2, np.float32)
    dataset = from_episodes(episodes, name="made", action_low=-bound, action_high=bound)
    write_minari(dataset, "local/x-v0")
    write_d4rl(dataset, tmp_path / "x.hdf5")
    return dataset


@pytest.mark.parametrize("ref", ["minari:local/x-v0", "d4rl:{folder}/x.hdf5"])
def test_an_environment_is_named_for_every_kind_of_dataset(ref: str, pendulum: EpisodeDataset, tmp_path: Path) -> None:
    ref = ref.format(folder=tmp_path)
    assert load_dataset(ref).env is None
    dataset = load_dataset(ref, env_id="Pendulum-v1")
    assert dataset.env == EnvSpec(env_id="Pendulum-v1", max_episode_steps=200)
    assert dataset.fingerprint == pendulum.fingerprint
    with pytest.raises(UserError, match="observations have 3 and actions 1 dimensions, but Hopper-v5 has 11 and 3"):
        load_dataset(ref, env_id="Hopper-v5")
    with pytest.raises(UserError, match="unknown environment 'Hoper-v5'"):
        load_dataset(ref, env_id="Hoper-v5")
    recorded = EnvSpec(env_id="Pendulum-v1", kwargs={"g": 9.0}, max_episode_steps=7)
    assert load_dataset(ref, default_env=recorded).env == recorded


def test_the_demo_s_environment_is_replaced_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raystitch.data.demo.load_or_make_pointmaze", lambda: make_pointmaze(1000))
    dataset = load_dataset("demo:pointmaze", env_id="raystitch/PointMaze-v0")
    assert dataset.env is not None
    assert dataset.env.named
    assert dataset.env.max_episode_steps == 150


def test_a_dataset_that_a_file_names_is_not_downloaded(pendulum: EpisodeDataset) -> None:
    assert DatasetRef("minari:local/x-v0").load_recorded().fingerprint == pendulum.fingerprint
    with pytest.raises(UserError, match="what a file names is not downloaded"):
        DatasetRef("minari:local/elsewhere-v0").load_recorded()
