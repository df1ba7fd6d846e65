"""The D4RL layout in its variants."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from raystitch.data.d4rl import read_d4rl, write_d4rl
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.load import load_dataset
from raystitch.errors import RunError, UserError

Arrays = dict[str, np.ndarray]
Change = Callable[[Arrays], None]


def flat_arrays(dataset: EpisodeDataset) -> Arrays:
    timeouts = np.zeros(dataset.num_transitions, np.bool_)
    timeouts[dataset.offsets[1:] - 1] = dataset.truncated
    return {
        "observations": dataset.observations[dataset.obs_index],
        "actions": dataset.actions,
        "rewards": dataset.rewards,
        "next_observations": dataset.observations[dataset.obs_index + 1],
        "terminals": dataset.transition_terminal,
        "timeouts": timeouts,
    }


def write(path: Path, arrays: Arrays, attributes: dict[str, Any] | None = None, **options: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values, **options)
        file.attrs.update(attributes or {})
    return path


def test_written_file_reads_back_the_same(drift: EpisodeDataset, tmp_path: Path) -> None:
    write_d4rl(drift, tmp_path / "drift.hdf5")
    again = load_dataset(str(tmp_path / "drift.hdf5"))
    assert again.fingerprint == drift.fingerprint
    assert again.env == drift.env
    np.testing.assert_array_equal(again.action_high, drift.action_high)
    assert again.final_observed.all()


def test_an_end_at_the_time_limit_is_marked_once(drift: EpisodeDataset, tmp_path: Path) -> None:
    """``d4rl.qlearning_dataset`` drops rows that are time-outs, and with them their terminals; d3rlpy refuses both."""
    write_d4rl(replace(drift, truncated=np.ones(drift.num_episodes, np.bool_)), tmp_path / "drift.hdf5")
    with h5py.File(tmp_path / "drift.hdf5") as file:
        terminals, timeouts = np.asarray(file["terminals"]), np.asarray(file["timeouts"])
    assert terminals.sum() == drift.terminated.sum() > 0
    np.testing.assert_array_equal(np.flatnonzero(terminals | timeouts), drift.offsets[1:] - 1)
    assert not (terminals & timeouts).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_float_types_and_compression(
    drift: EpisodeDataset, tmp_path: Path, dtype: type, compression: str | None
) -> None:
    arrays = {name: values.astype(dtype) for name, values in flat_arrays(drift).items()}
    dataset = read_d4rl(write(tmp_path / "a.hdf5", arrays, compression=compression))
    assert dataset.fingerprint == drift.fingerprint
    assert dataset.env is None
    np.testing.assert_array_equal(dataset.action_low, [-1, -1])


def test_without_timeouts_the_jumps_end_episodes(drift: EpisodeDataset, tmp_path: Path) -> None:
    arrays = flat_arrays(drift)
    del arrays["timeouts"]
    assert read_d4rl(write(tmp_path / "a.hdf5", arrays)).fingerprint == drift.fingerprint


def test_without_next_observations_the_last_one_is_unknown(drift: EpisodeDataset, tmp_path: Path) -> None:
    arrays = flat_arrays(drift)
    del arrays["next_observations"]
    dataset = read_d4rl(write(tmp_path / "a.hdf5", arrays))
    np.testing.assert_array_equal(dataset.offsets, drift.offsets)
    np.testing.assert_array_equal(dataset.terminated, drift.terminated)
    assert not dataset.final_observed.any()
    assert dataset.next_observed.sum() == drift.num_transitions - drift.num_episodes
    known = dataset.next_observed
    np.testing.assert_array_equal(
        dataset.observations[dataset.obs_index[known] + 1], drift.observations[drift.obs_index[known] + 1]
    )


def test_without_either_the_time_limit_ends_episodes(tmp_path: Path) -> None:
    rows = 450
    terminals = np.zeros(rows, np.uint8)
    terminals[29] = 1
    arrays = {
        "observations": np.random.default_rng(0).normal(size=(rows, 3)),
        "actions": np.zeros((rows, 1)),
        "rewards": np.zeros((rows, 1)),
        "terminals": terminals,
    }
    dataset = read_d4rl(write(tmp_path / "a.hdf5", arrays), env_id="Pendulum-v1")
    np.testing.assert_array_equal(dataset.lengths, [30, 200, 200, 20])
    np.testing.assert_array_equal(dataset.terminated, [True, False, False, False])
    np.testing.assert_array_equal(dataset.truncated, [False, True, True, True])
    np.testing.assert_array_equal(dataset.action_high, [2.0])
    assert dataset.rewards.shape == (rows,)


def test_without_either_and_without_environment_it_says_so(drift: EpisodeDataset, tmp_path: Path) -> None:
    arrays = flat_arrays(drift)
    del arrays["timeouts"], arrays["next_observations"]
    with pytest.warns(UserWarning, match="episodes are taken to end at terminals only"):
        dataset = read_d4rl(write(tmp_path / "a.hdf5", arrays))
    assert dataset.terminated.sum() == drift.terminated.sum()
    arrays["terminals"] = np.zeros(drift.num_transitions)
    with pytest.raises(UserError, match=r"nothing marks where an episode ends.*--env"):
        read_d4rl(write(tmp_path / "b.hdf5", arrays))


def test_an_unmarked_jump_ends_an_episode(drift: EpisodeDataset, tmp_path: Path) -> None:
    arrays = flat_arrays(drift)
    arrays["next_observations"] = arrays["next_observations"].copy()
    arrays["next_observations"][4] += 1.0
    dataset = read_d4rl(write(tmp_path / "a.hdf5", arrays))
    assert dataset.num_episodes == drift.num_episodes + 1
    np.testing.assert_array_equal(dataset.episode(0).observations[5], arrays["next_observations"][4])


def test_env_id_in_the_file_is_used_and_need_not_be_installed(drift: EpisodeDataset, tmp_path: Path) -> None:
    path = write(tmp_path / "a.hdf5", flat_arrays(drift), {"env_id": "Elsewhere-v0"})
    dataset = read_d4rl(path)
    assert dataset.env is not None
    assert dataset.env.env_id == "Elsewhere-v0"
    asked = read_d4rl(path, env_id="Elsewhere-v0").env  # as a buffer does, to read its dataset again
    assert asked == dataset.env
    with pytest.raises(UserError, match="Nowhere-v0"):
        read_d4rl(path, env_id="Nowhere-v0")
    path = write(tmp_path / "b.hdf5", flat_arrays(drift), {"env_id": "raystitch/PointMaze-v0"})
    env = read_d4rl(path).env
    assert env is not None
    assert env.max_episode_steps == 150


def _drop_actions(arrays: Arrays) -> None:
    del arrays["actions"]


def _shorten_rewards(arrays: Arrays) -> None:
    arrays["rewards"] = arrays["rewards"][:-1]


def _text_actions(arrays: Arrays) -> None:
    arrays["actions"] = np.full((len(arrays["rewards"]), 2), b"left")


def _nan_observation(arrays: Arrays) -> None:
    arrays["observations"] = arrays["observations"].copy()
    arrays["observations"][[17, 40], 1] = np.nan


def _infinite_reward(arrays: Arrays) -> None:
    arrays["rewards"] = arrays["rewards"].copy()
    arrays["rewards"][3] = np.inf


def _flat_observations(arrays: Arrays) -> None:
    arrays["observations"] = arrays["observations"][:, 0]


def _other_next(arrays: Arrays) -> None:
    arrays["next_observations"] = arrays["next_observations"][:, :2]


def _two_rewards(arrays: Arrays) -> None:
    arrays["rewards"] = np.zeros((len(arrays["rewards"]), 2))


def _empty(arrays: Arrays) -> None:
    for name in arrays:
        arrays[name] = arrays[name][:0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop_actions, "has no array 'actions'; it has "),
        (_shorten_rewards, r"different lengths: observations \d+, actions \d+, rewards \d+"),
        (_text_actions, "actions must be an array of numbers"),
        (_nan_observation, r"observations has NaN in row 17 \(2 such rows in all\)"),
        (_infinite_reward, "rewards has an infinity in row 3"),
        (_flat_observations, "observations must be two-dimensional"),
        (_other_next, "next_observations and observations have different shapes"),
        (_two_rewards, "rewards must have one number per row"),
        (_empty, "the arrays are empty"),
    ],
)
def test_bad_arrays(drift: EpisodeDataset, tmp_path: Path, change: Change, message: str) -> None:
    arrays = flat_arrays(drift)
    change(arrays)
    path = write(tmp_path / "bad.hdf5", arrays)
    with pytest.raises(UserError, match=message) as error:
        read_d4rl(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_files(drift: EpisodeDataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.hdf5 does not exist"):
        read_d4rl(tmp_path / "missing.hdf5")
    with pytest.raises(UserError, match="is a folder"):
        read_d4rl(tmp_path)
    text = tmp_path / "text.hdf5"
    text.write_text("not HDF5")
    with pytest.raises(UserError, match="cannot be read as an HDF5 file"):
        read_d4rl(text)
    whole = write(tmp_path / "whole.hdf5", flat_arrays(drift)).read_bytes()
    cut = tmp_path / "cut.hdf5"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read as an HDF5 file"):
        read_d4rl(cut)


def test_environment_of_another_size_is_refused(drift: EpisodeDataset, tmp_path: Path) -> None:
    path = write(tmp_path / "a.hdf5", flat_arrays(drift))
    with pytest.raises(UserError, match="observations have 4 and actions 2 dimensions, but Hopper-v5 has 11 and 3"):
        read_d4rl(path, env_id="Hopper-v5")
    with pytest.raises(UserError, match="unknown environment 'Hoper-v5'"):
        read_d4rl(path, env_id="Hoper-v5")


def test_unwritable_folder(drift: EpisodeDataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        write_d4rl(drift, tmp_path / "file" / "out.hdf5")
