"""Spaces that are read, in which parts, and what is said of the others."""

import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import pytest
from gymnasium import spaces

from raystitch.data.goals import mend_first_goals
from raystitch.data.inspect import inspect
from raystitch.data.load import DatasetWarning, load_dataset
from raystitch.data.minari_io import read_minari, write_minari
from raystitch.data.spaces import check_action_space, observation_keys, split_keys
from raystitch.errors import UserError
from tests.data.minari_files import box, episode, store, walks

INF = spaces.Box(-np.inf, np.inf, (3,), np.float32)
ARM = spaces.Box(-1, 1, (2,), np.float32)
IMAGE = spaces.Box(0, 255, (64, 64, 3), np.uint8)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Discrete(3), r"got Discrete\(3\); record it as a Box, one-hot$"),
        (spaces.MultiDiscrete([3, 3]), r"got MultiDiscrete\(\[3 3\]\); record it as a Box, every part one-hot$"),
        (spaces.MultiBinary(4), r"got MultiBinary\(4\); record it as a Box of zeros and ones$"),
        (spaces.Tuple((INF, INF)), r"got Tuple.*; record its parts as a Dict of Boxes, or side by side as one Box$"),
        (spaces.Text(8), r"got Text.*; record it as a Box of numbers$"),
        (
            IMAGE,
            r"the observations are images, Box\(0, 255, \(64, 64, 3\), uint8\), not a vector.*; record the state, or",
        ),
        (spaces.Box(0, 255, (64, 64), np.uint8), "the observations are images"),
        (spaces.Box(0, 255, (2, 64, 64), np.uint8), "the observations are images"),
        (spaces.Box(0, 1, (3, 64, 64), np.float32), "the observations are images"),
        (
            spaces.Dict({"phase": spaces.Discrete(3), "state": INF}),
            r"it, entry 'phase': .*, one-hot; or read the other entries alone: minari:a/b-v0#state$",
        ),
        (
            spaces.Dict({"camera": IMAGE, "state": INF, "tip": INF}),
            r"entry 'camera': .*images.*; or read the other entries alone: minari:a/b-v0#state,tip$",
        ),
        (spaces.Dict({"1": spaces.Discrete(2), "2": spaces.MultiBinary(5)}), r"entry '1': .*one-hot$"),
        (
            spaces.Dict({"robot": spaces.Dict({"pos": INF}), "t": INF}),
            r"entry 'robot': .*; record its entries as Boxes of one Dict that is not nested, .*minari:a/b-v0#t$",
        ),
    ],
)
def test_observations_that_are_refused(space: spaces.Space[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        observation_keys(space, None, "a/b-v0", "it")


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Discrete(8), "actions have to be continuous: record discrete ones as a Box, for example one-hot$"),
        (spaces.MultiDiscrete([3, 3]), "actions have to be continuous"),
        (spaces.Dict({"arm": ARM, "grip": ARM}), "; record its parts side by side in one vector, as one Box$"),
        (spaces.Tuple((ARM, ARM)), "; record its parts side by side in one vector, as one Box$"),
        (spaces.Dict({"arm": ARM, "tool": spaces.Discrete(2)}), "as one Box; record discrete ones as a Box"),
    ],
)
def test_actions_that_are_refused(space: spaces.Space[Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"it: the action space must be a Box, got .*{message}"):
        check_action_space(space, "it")


def test_what_is_a_vector() -> None:
    for space in (INF, spaces.Box(-1, 1, ()), spaces.Box(0, 255, (128,), np.uint8), spaces.Box(-1, 1, (4, 6))):
        assert observation_keys(space, None, "a", "it") is None
    with pytest.raises(UserError, match="are one Box without entries; leave out 'state'"):
        observation_keys(INF, ("state",), "a", "it")


def test_keys_of_a_reference() -> None:
    assert split_keys("a/b-v0") == ("a/b-v0", None)
    assert split_keys("a/b-v0#observation,desired_goal") == ("a/b-v0", ("observation", "desired_goal"))
    for wrong in ("a/b-v0#", "a/b-v0#x,", "a/b-v0#x,x"):
        with pytest.raises(UserError, match="after # come entries of the observation, each once"):
            split_keys(wrong)


@pytest.mark.parametrize("data_format", ["hdf5", "arrow", "parquet"])
@pytest.mark.parametrize("jpeg", [True, False])
def test_a_camera_beside_the_state(data_format: str, jpeg: bool) -> None:
    rng = np.random.default_rng(0)
    space = spaces.Dict({"camera": IMAGE, "state": INF})
    frames = rng.integers(0, 255, (6, 64, 64, 3)).astype(np.uint8)
    states = rng.normal(size=(6, 3)).astype(np.float32)
    buffers = [episode({"camera": frames, "state": states}, np.zeros((5, 2), np.float32))]
    options: dict[str, Any] = {"data_format": data_format, "jpeg_encoding": jpeg}
    store("local/camera-v0", buffers, observation_space=space, action_space=box(2), **options)
    with pytest.raises(UserError, match="entry 'camera': the observations are images"):
        read_minari("local/camera-v0")
    dataset = read_minari("local/camera-v0#state")
    np.testing.assert_array_equal(dataset.observations, states)
    assert dataset.name == "minari:local/camera-v0#state"
    with pytest.raises(UserError, match="have no entry 'depth'; they have camera, state"):
        read_minari("local/camera-v0#depth")


def _goal_episodes(num_goals: int, data_format: str = "hdf5") -> None:
    """PointMaze-like data: where the goal is, only ``desired_goal`` says."""
    rng = np.random.default_rng(0)
    part = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    space = spaces.Dict({"observation": spaces.Box(-np.inf, np.inf, (4,), np.float64), "achieved_goal": part})
    space = spaces.Dict({**space.spaces, "desired_goal": part})
    buffers = []
    for index in range(6):
        states = np.cumsum(rng.normal(0, 0.1, (11, 4)), 0)
        goal = np.repeat([[index % num_goals, 1.0]], 11, axis=0)
        observations = {"observation": states, "achieved_goal": states[:, :2].copy(), "desired_goal": goal}
        buffers.append(episode(observations, rng.uniform(-1, 1, (10, 2)).astype(np.float32)))
    with warnings.catch_warnings(action="ignore"):
        env = gym.make("PointMaze_UMaze-v3")
    store("local/goals-v0", buffers, env=env, action_space=box(2), observation_space=space, data_format=data_format)


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_goals_that_are_left_out_are_said(data_format: str) -> None:
    from raystitch.envs.make import register_environments

    register_environments()
    _goal_episodes(3, data_format)
    with pytest.warns(DatasetWarning, match="without its desired_goal, which starts with 3 different values"):
        dataset = load_dataset("minari:local/goals-v0")
    assert dataset.obs_dim == 4
    (found,) = [problem for problem in inspect(dataset)["problems"] if problem["kind"] == "goal_left_out"]
    assert found["count"] == 3
    assert found["message"].endswith("keep it with minari:local/goals-v0#observation,desired_goal")


def test_one_goal_of_all_episodes_needs_no_word() -> None:
    from raystitch.envs.make import register_environments

    register_environments()
    _goal_episodes(1)
    assert load_dataset("minari:local/goals-v0").found == ()


def test_goals_that_are_kept() -> None:
    from raystitch.data.context import still_dimensions
    from raystitch.envs.make import make_env, register_environments

    register_environments()
    _goal_episodes(3)
    reference = "minari:local/goals-v0#observation,desired_goal"
    dataset = load_dataset(reference)
    assert dataset.name == reference
    assert dataset.obs_dim == 6
    assert not [problem for problem in dataset.found if problem["kind"] == "goal_left_out"]
    assert still_dimensions(dataset)[1].tolist() == [False] * 4 + [True, False]
    assert dataset.env is not None
    assert dataset.env.observation_keys == ("observation", "desired_goal")
    env = make_env(dataset.env)
    observation, _ = env.reset(seed=0)
    assert observation.shape == (6,)
    raw: Any = env.unwrapped
    np.testing.assert_allclose(observation[4:], raw.goal, rtol=1e-6)
    write_minari(dataset, "local/flat-v0")
    again = read_minari("local/flat-v0")
    assert again.fingerprint == dataset.fingerprint
    assert again.env == dataset.env


@pytest.mark.parametrize(("changes_at", "mended"), [((0,), True), ((), False), ((0, 4), False), ((4,), False)])
def test_only_goals_of_the_episode_before_are_mended(changes_at: tuple[int, ...], mended: bool) -> None:
    """3 episodes of 5 steps, of which the second's goal changes after these steps."""
    part = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    space = spaces.Dict({"observation": INF, "achieved_goal": part, "desired_goal": part})
    recorded = np.repeat([[[0.0, 1.0]], [[2.0, 3.0]], [[4.0, 5.0]]], 6, axis=1).astype(np.float32)
    for step in changes_at:
        recorded[1, : step + 1] -= 2
    observations = np.concatenate([np.zeros((18, 3), np.float32), recorded.reshape(18, 2)], axis=1)
    before = observations.copy()
    found = mend_first_goals(observations, np.array([0, 6, 12, 18]), space, ("observation", "desired_goal"))
    before[6, 3:] = [2.0, 3.0] if mended else before[6, 3:]
    np.testing.assert_array_equal(observations, before)
    assert [problem["count"] for problem in found] == ([1] if mended else [])
    assert mend_first_goals(observations, np.array([0, 6, 12, 18]), space, ("observation",)) == []


def _views() -> Any:
    return store("local/walks-v0", walks(6, 15), observation_space=INF, action_space=ARM)


def test_a_minari_dataset() -> None:
    whole = _views()
    dataset = load_dataset(whole)
    assert dataset.name == "minari:local/walks-v0"
    assert dataset.fingerprint == load_dataset("local/walks-v0").fingerprint


def test_views_give_exactly_their_episodes() -> None:
    whole = _views()
    everything = load_dataset(whole)
    view = whole.filter_episodes(lambda stored: stored.rewards.sum() > 0)
    kept = np.flatnonzero([stored.rewards.sum() > 0 for stored in whole])
    assert 0 < len(kept) < 6
    dataset = load_dataset(view)
    assert dataset.name == f"minari:local/walks-v0 ({len(kept)} of its 6 episodes)"
    assert dataset.fingerprint == everything.subset(kept).fingerprint
    for part in minari.split_dataset(whole, sizes=[4, 2], seed=3):
        expected = everything.subset(np.asarray(part.episode_indices))
        assert load_dataset(part).fingerprint == expected.fingerprint
    with pytest.raises(UserError, match="holds no episodes"):
        load_dataset(whole.filter_episodes(lambda stored: False))


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_combined_datasets(data_format: str) -> None:
    options: dict[str, Any] = {"observation_space": INF, "action_space": ARM, "data_format": data_format}
    parts = [store(f"part{index}-v0", walks(3, 10, index), **options) for index in range(2)]
    both = minari.combine_datasets(parts, "both-v0")
    dataset = load_dataset(both)
    assert dataset.num_episodes == 6
    np.testing.assert_array_equal(dataset.episode(4).observations, load_dataset("part1-v0").episode(1).observations)
    assert load_dataset("both-v0").fingerprint == dataset.fingerprint


@pytest.mark.parametrize("given", [None, 3, ["a"], np.zeros(3)], ids=str)
def test_what_is_no_dataset(given: Any) -> None:
    with pytest.raises(UserError, match=f"or a minari.MinariDataset, got {type(given).__name__}"):
        load_dataset(given)


def test_a_path_object(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.hdf5 does not exist"):
        load_dataset(tmp_path / "nowhere.hdf5")


def test_columns_with_an_axis_too_many() -> None:
    """Minari's own examples store rewards, terminations and truncations as [T, 1]."""
    buffers = [
        episode(
            b.observations,
            b.actions,
            rewards=np.asarray(b.rewards).reshape(-1, 1),
            terminations=np.zeros((20, 1), bool),
            truncations=(np.arange(20) == 19).reshape(-1, 1),
        )
        for b in walks(3, 20)
    ]
    store("local/column-v0", buffers, observation_space=INF, action_space=ARM)
    store("local/plain-v0", walks(3, 20), observation_space=INF, action_space=ARM)
    dataset = read_minari("local/column-v0")
    assert dataset.rewards.shape == (60,)
    assert dataset.fingerprint == read_minari("local/plain-v0").fingerprint
    two = [episode(b.observations, b.actions, rewards=np.zeros((20, 2))) for b in walks(3, 20)]
    store("local/two-v0", two, observation_space=INF, action_space=ARM)
    with pytest.raises(UserError, match=r"episode 0 has 20 actions but rewards of shape \(20, 2\)"):
        read_minari("local/two-v0")
