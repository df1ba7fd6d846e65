"""Minari datasets in and out."""

import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import minari
import numpy as np
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer

from raystitch.data.episodes import EpisodeDataset
from raystitch.data.load import load_dataset
from raystitch.data.minari_io import read_minari, write_minari
from raystitch.envs.make import make_env, spec_from_id
from raystitch.envs.spec import EnvSpec
from raystitch.errors import RunError, UserError


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def store(dataset_id: str, observations: list[Any], actions: list[Any], **options: Any) -> None:
    """Writes a dataset with Minari itself."""
    buffers = [
        EpisodeBuffer(
            observations=observation,
            actions=action,
            rewards=[0.5] * len(action),
            terminations=[False] * len(action),
            truncations=[False] * (len(action) - 1) + [True],
        )
        for observation, action in zip(observations, actions, strict=True)
    ]
    with warnings.catch_warnings(action="ignore"):
        minari.create_dataset_from_buffers(dataset_id, buffers, **options)


def box(*shape: int) -> spaces.Box:
    return spaces.Box(-2.0, 2.0, shape, np.float32)


@pytest.mark.parametrize("dataset_id", ["local/drift-v0", "local/deeper/drift-v12", "drift-v0"])
def test_written_dataset_reads_back_the_same(drift: EpisodeDataset, dataset_id: str) -> None:
    write_minari(drift, dataset_id)
    again = load_dataset(f"minari:{dataset_id}")
    assert again.fingerprint == drift.fingerprint
    assert again.env == drift.env
    assert again.name == f"minari:{dataset_id}"
    assert load_dataset(dataset_id).fingerprint == drift.fingerprint


def test_minari_itself_loads_what_is_written(drift: EpisodeDataset, capsys: pytest.CaptureFixture[str]) -> None:
    write_minari(drift, "local/drift-v0", description="points")
    assert capsys.readouterr().out == ""
    stored = minari.load_dataset("local/drift-v0")
    assert list(minari.list_local_datasets()) == ["local/drift-v0"]
    assert stored.total_episodes == drift.num_episodes
    assert stored.total_steps == drift.num_transitions
    for episode, ours in zip(stored.iterate_episodes(), drift, strict=True):
        np.testing.assert_array_equal(episode.observations, ours.observations)
        np.testing.assert_array_equal(episode.actions, ours.actions)
        np.testing.assert_array_equal(episode.rewards, ours.rewards)
        assert (episode.terminations[-1], episode.truncations[-1]) == (ours.terminated, ours.truncated)
        assert not episode.terminations[:-1].any()


def test_environment_is_recovered_with_its_arguments(drift: EpisodeDataset) -> None:
    spec = EnvSpec(env_id="Hopper-v5", kwargs={"frame_skip": 2}, max_episode_steps=70)
    write_minari(replace(drift, env=spec), "local/drift-v0")
    assert read_minari("local/drift-v0").env == spec
    env = minari.load_dataset("local/drift-v0").recover_environment()
    assert env.spec is not None
    assert env.spec.max_episode_steps == 70
    assert getattr(env.unwrapped, "frame_skip", None) == 2


def test_environment_that_is_not_installed_is_still_recorded(drift: EpisodeDataset) -> None:
    spec = EnvSpec(env_id="Elsewhere-v0", kwargs={"size": 3})
    write_minari(replace(drift, env=spec), "local/drift-v0")
    assert read_minari("local/drift-v0").env == spec
    assert len(minari.load_dataset("local/drift-v0")) == drift.num_episodes


def test_unknown_final_observations_stay_unknown(drift: EpisodeDataset) -> None:
    observed = np.arange(drift.num_episodes) % 3 > 0
    write_minari(replace(drift, final_observed=observed), "local/drift-v0")
    np.testing.assert_array_equal(read_minari("local/drift-v0").final_observed, observed)


def test_real_goal_environment_is_rebuilt() -> None:
    env_id = "PointMaze_UMaze-v3"
    spec = spec_from_id(env_id)
    raw: Any = make_env(spec).unwrapped
    observation, _ = raw.reset(seed=0)
    store(
        "local/maze-v0",
        [{key: np.stack([value] * 3) for key, value in observation.items()}],
        [np.zeros((2, 2), np.float32)],
        env=env_id,
    )
    dataset = read_minari("local/maze-v0")
    assert dataset.env is not None
    assert dataset.env.max_episode_steps == spec.max_episode_steps
    assert make_env(dataset.env).observation_space.shape == (dataset.obs_dim,) == (4,)
    np.testing.assert_array_equal(dataset.observations[0], observation["observation"].astype(np.float32))


def test_dict_observations_are_concatenated_in_sorted_order() -> None:
    space = spaces.Dict({"b": box(2), "a": box(3)})
    observations = {"b": np.full((4, 2), 2.0, np.float32), "a": np.full((4, 3), 1.0, np.float32)}
    actions = np.zeros((3, 1), np.float32)
    store("box/dict-v0", [observations], [actions], observation_space=space, action_space=box(1))
    dataset = read_minari("box/dict-v0")
    np.testing.assert_array_equal(dataset.observations[0], [1, 1, 1, 2, 2])
    assert dataset.env is None
    np.testing.assert_array_equal(dataset.action_low, [-2.0])
    np.testing.assert_array_equal(dataset.truncated, [True])


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_stored_formats(data_format: str) -> None:
    rng = np.random.default_rng(0)
    observations = [rng.normal(size=(length + 1, 3)).astype(np.float32) for length in (5, 9)]
    actions = [rng.uniform(-1, 1, (length, 2)).astype(np.float32) for length in (5, 9)]
    store("box/y-v0", observations, actions, observation_space=box(3), action_space=box(2), data_format=data_format)
    dataset = read_minari("box/y-v0")
    np.testing.assert_array_equal(dataset.lengths, [5, 9])
    np.testing.assert_array_equal(dataset.episode(1).observations, observations[1])
    np.testing.assert_array_equal(dataset.episode(1).actions, actions[1])


def test_discrete_spaces_are_refused() -> None:
    actions = np.zeros(3, np.int64)
    discrete = spaces.Discrete(2)
    store("box/a-v0", [np.zeros((4, 2))], [actions], observation_space=box(2), action_space=discrete)
    with pytest.raises(UserError, match=r"minari:box/a-v0: the action space must be a Box, got Discrete\(2\)"):
        read_minari("box/a-v0")
    store("box/o-v0", [np.zeros(4)], [np.zeros((3, 1))], observation_space=discrete, action_space=box(1))
    with pytest.raises(UserError, match="the observation space must be a Box or a Dict"):
        read_minari("box/o-v0")


def test_an_id_without_a_version(drift: EpisodeDataset) -> None:
    """Minari cannot list a root with an unversioned dataset in it, so none is written; reading finds the latest."""
    assert write_minari(drift, "local/drift") == "local/drift-v0"
    assert list(minari.list_local_datasets()) == ["local/drift-v0"]
    assert read_minari("local/drift").name == "minari:local/drift-v0"
    write_minari(drift, "local/drift-v9")
    write_minari(drift, "local/drift-v10")
    assert read_minari("local/drift").name == "minari:local/drift-v10"


def test_missing_dataset_names_the_nearest(drift: EpisodeDataset) -> None:
    with pytest.raises(UserError, match="there is no local dataset"):
        read_minari("local/drift")
    write_minari(drift, "local/drift-medium-v0")
    with pytest.raises(UserError, match=r"not found in .*did you mean local/drift-medium-v0\?"):
        read_minari("local/drift-mediun")
    for dataset_id in ("../drift", "a b", "", "x/drift-v0"):
        with pytest.raises(UserError, match="is not a Minari dataset id"):
            read_minari(dataset_id)


def test_existing_dataset_is_only_replaced_on_request(drift: EpisodeDataset) -> None:
    write_minari(drift, "local/drift-v0")
    half = drift.subset(np.arange(5))
    with pytest.raises(UserError, match=r"exists already.*--overwrite"):
        write_minari(half, "local/drift-v0")
    assert read_minari("local/drift-v0").fingerprint == drift.fingerprint
    write_minari(half, "local/drift-v0", overwrite=True)
    assert read_minari("local/drift-v0").fingerprint == half.fingerprint


def test_failed_writing_leaves_nothing_behind(
    drift: EpisodeDataset, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_minari(drift, "local/drift-v0")
    damaged = replace(drift, env=EnvSpec(env_id="Hopper-v5", kwargs={"xml_file": object()}))
    with pytest.warns(UserWarning, match="not serializable"), pytest.raises(TypeError):
        write_minari(damaged, "local/drift-v0", overwrite=True)
    assert [path.name for path in root.iterdir()] == ["local"]
    assert read_minari("local/drift-v0").fingerprint == drift.fingerprint
    (root / "file").write_text("")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root / "file"))
    with pytest.raises(RunError, match="cannot be written"):
        write_minari(drift, "local/drift-v0")


def test_damage_is_found(drift: EpisodeDataset, root: Path) -> None:
    write_minari(drift, "local/drift-v0")
    data = root / "local" / "drift-v0" / "data"
    whole = (data / "main_data.hdf5").read_bytes()
    (data / "main_data.hdf5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="is damaged"):
        read_minari("local/drift-v0")
    os.remove(data / "metadata.json")
    with pytest.raises(UserError, match=r"metadata\.json is missing in .*minari download local/drift-v0"):
        read_minari("local/drift-v0")


def test_nan_is_refused_unless_allowed(drift: EpisodeDataset) -> None:
    rewards = drift.rewards.copy()
    rewards[7] = np.nan
    write_minari(replace(drift, rewards=rewards), "local/nan-v0")
    with pytest.raises(UserError, match="minari:local/nan-v0: rewards has NaN in row 7"):
        read_minari("local/nan-v0")
    assert np.isnan(read_minari("local/nan-v0", allow_nan=True).rewards).sum() == 1
