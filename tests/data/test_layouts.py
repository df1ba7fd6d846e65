"""Files in other layouts are named, in a line of bounded length; a pickle is never opened."""

import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from raystitch.cli import main
from raystitch.data.d4rl import read_d4rl
from raystitch.errors import UserError


def _hdf5(path: Path, arrays: dict[str, Any]) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return path


def _refused(path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_d4rl(path)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 700
    assert "\n" not in str(error.value)


def test_numbered_arrays_of_a_replay_buffer(tmp_path: Path) -> None:
    arrays = {f"{name}_{index}": np.zeros((4, 2)) for index in range(400) for name in ("observations", "actions")}
    _refused(_hdf5(tmp_path / "dump.h5", arrays), "numbered arrays, one per episode, as d3rlpy's ReplayBuffer.dump")


def test_groups_of_demonstrations(tmp_path: Path) -> None:
    arrays = {f"data/demo_{index}/actions": np.zeros((4, 2)) for index in range(3)}
    _refused(_hdf5(tmp_path / "low_dim.hdf5", arrays), "it has groups of demonstrations, as robomimic writes")


def test_the_file_of_a_minari_dataset(tmp_path: Path) -> None:
    path = _hdf5(tmp_path / "main_data.hdf5", {"episode_0/actions": np.zeros((4, 2))})
    _refused(path, "it is the main_data.hdf5 of a Minari dataset; name the dataset by its id")


def test_other_names(tmp_path: Path) -> None:
    arrays = {name: np.zeros((4, 2)) for name in ("obs", "actions", "rewards", "dones", "next_obs")}
    message = "rename obs to observations, next_obs to next_observations, dones to terminals"
    _refused(_hdf5(tmp_path / "dones.hdf5", arrays), message)


def test_many_long_names_make_a_short_line(tmp_path: Path) -> None:
    arrays = {f"{'phase' * 100}{index}": np.zeros(1) for index in range(900)}
    _refused(_hdf5(tmp_path / "phases.hdf5", arrays), "and 892 more")


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("fired"),)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_never_opened(protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "hopper-medium-v2.pkl"
    path.write_bytes(pickle.dumps([_Bomb()], protocol))
    _refused(path, "looks like a pickle, which can run any code when it is opened, so raystitch never opens one")
    assert main(["data", "inspect", str(path)]) == 2
    assert not (tmp_path / "fired").exists()


def test_other_kinds_of_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "samples.npz", observations=np.zeros(3))
    _refused(tmp_path / "samples.npz", r"is a NumPy \.npz or zip archive, not HDF5")
    np.save(tmp_path / "samples.npy", np.zeros(3))
    _refused(tmp_path / "samples.npy", r"is a NumPy \.npy array, not HDF5")
    (tmp_path / "page.hdf5").write_text("<!DOCTYPE html>")
    _refused(tmp_path / "page.hdf5", "is a web page, not HDF5")
    (tmp_path / "lfs.hdf5").write_text("version https://git-lfs.github.com/spec/v1\n")
    _refused(tmp_path / "lfs.hdf5", "is a Git LFS pointer, not the file; fetch it with `git lfs pull`")


def test_shapes_whose_meaning_is_certain(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    plain = {
        "observations": rng.normal(size=(20, 3)),
        "actions": rng.uniform(-1, 1, (20, 1)),
        "rewards": rng.normal(size=20),
        "terminals": np.zeros(20, bool),
        "timeouts": np.arange(20) % 5 == 4,
    }
    expected = read_d4rl(_hdf5(tmp_path / "plain.hdf5", plain)).fingerprint
    odd = {
        **plain,
        "actions": plain["actions"][:, 0],
        "rewards": plain["rewards"].reshape(1, 20),
        "terminals": np.zeros((20, 1), np.uint8),
        "timeouts": plain["timeouts"].reshape(20, 1, 1).astype(float),
    }
    assert read_d4rl(_hdf5(tmp_path / "odd.hdf5", odd)).fingerprint == expected
    discrete = {**plain, "actions": np.arange(20) % 3}
    _refused(_hdf5(tmp_path / "discrete.hdf5", discrete), "discrete actions have to be written one-hot")
    images = {**plain, "observations": np.zeros((20, 8, 8, 3), np.uint8)}
    _refused(_hdf5(tmp_path / "images.hdf5", images), r"got shape \(20, 8, 8, 3\); images have to become vectors")
