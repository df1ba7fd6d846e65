"""Action bounds that cannot be worked with."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from gymnasium import spaces

from raystitch.data.bounds import usable_bounds
from raystitch.data.d4rl import read_d4rl
from raystitch.data.inspect import inspect
from raystitch.data.load import DatasetWarning, load_dataset
from raystitch.errors import UserError
from tests.data.minari_files import episode, store, walks

ACTIONS = np.array([[-0.5, 2.0], [0.5, 3.0], [0.1, np.nan]], np.float32)
MAX = float(np.finfo(np.float32).max)


@pytest.mark.parametrize("wide", [np.inf, MAX, 1e6])
def test_bounds_that_say_nothing(wide: float) -> None:
    low, high, found = usable_bounds([-1.0, -wide], [1.0, wide], ACTIONS, "it")
    np.testing.assert_array_equal([low, high], [[-1, 2], [1, 3]])
    (problem,) = found
    assert problem["kind"] == "wide_action_bounds"
    assert problem["count"] == 1
    assert "1 of 2 actions" in problem["message"]
    assert "in the data 2 to 3" in problem["message"]


def test_bounds_that_are_kept() -> None:
    low, high, found = usable_bounds(-4.0, [5.0, 1000.0], ACTIONS, "it")
    np.testing.assert_array_equal([low, high], [[-4, -4], [5, 1000]])
    assert found == []
    still = np.zeros((4, 1), np.float32)
    assert usable_bounds(-1, 1, still, "it")[2] == []
    low, high, found = usable_bounds(-np.inf, np.inf, still, "it")
    np.testing.assert_array_equal([low, high], [[-1], [1]])
    assert found


def test_bounds_that_are_wrong() -> None:
    with pytest.raises(UserError, match="it: action_low must have one number for each of 2 actions"):
        usable_bounds(np.zeros(3), 1, ACTIONS, "it")
    with pytest.raises(UserError, match="it: action_high must have one number"):
        usable_bounds(-1, [1, np.nan], ACTIONS, "it")
    with pytest.raises(UserError, match="it: action 1 has the bounds 2 and -2; the first must be the smaller one"):
        usable_bounds([-1, 2], [1, -2], ACTIONS, "it")


def test_a_minari_dataset_without_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    buffers = walks(3, 20)
    space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    store("local/free-v0", buffers, observation_space=spaces.Box(-9, 9, (3,), np.float32), action_space=space)
    with pytest.warns(DatasetWarning, match="the bounds of 2 of 2 actions are infinite"):
        dataset = load_dataset("local/free-v0")
    np.testing.assert_array_equal(dataset.action_low, dataset.actions.min(0))
    np.testing.assert_array_equal(dataset.action_high, dataset.actions.max(0))
    assert "wide_action_bounds" in [problem["kind"] for problem in inspect(dataset)["problems"]]
    assert dataset.subset(np.arange(2)).found == dataset.found


def test_d4rl_attributes(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"] = np.zeros((8, 2)), np.linspace(-3, 3, 8)[:, None]
        file["rewards"], file["timeouts"] = np.zeros(8), np.arange(8) % 4 == 3
        file.attrs["action_low"], file.attrs["action_high"] = [-MAX], [MAX]
    dataset = read_d4rl(path)
    np.testing.assert_array_equal([dataset.action_low, dataset.action_high], [[-3], [3]])
    assert [problem["kind"] for problem in dataset.found] == ["wide_action_bounds"]


def test_one_action_is_not_its_own_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    buffers = [episode(b.observations, np.asarray(b.actions)[:, 0]) for b in walks(3, 20)]
    scalar = spaces.Box(-1, 1, (), np.float32)
    store("local/one-v0", buffers, observation_space=spaces.Box(-9, 9, (3,), np.float32), action_space=scalar)
    dataset = load_dataset("local/one-v0")
    assert dataset.actions.shape == (60, 1)
    np.testing.assert_array_equal([dataset.action_low, dataset.action_high], [[-1], [1]])
