"""OGBench's files: rewards from a task that the user names, episodes that end in the goal."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raystitch.data.load import load_dataset, parse_ref
from raystitch.data.ref import DatasetRef
from raystitch.envs.spec import EnvSpec
from raystitch.errors import UserError
from tests.data.ogbench_files import MAZE_ID, along, register, write

REAL_ID = "ogbench:pointmaze-medium-singletask-task1-v0"


@pytest.fixture(autouse=True)
def _registered() -> None:
    register()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """One episode goes through the goal, one stays short of it, one ends in it."""
    return write(
        tmp_path / "pointmaze-medium-stitch-v0.npz",
        along(5, 6, 7, 8, 9, 10, 11),
        along(0, 1, 2, 3),
        along(4, 6, 8),
        qpos=np.zeros((14, 3)),
    )


def test_an_episode_ends_in_the_goal_and_another_begins_behind_it(path: Path) -> None:
    dataset = load_dataset(f"ogbench:{path}", env_id=MAZE_ID)
    found = [(list(e.observations[:, 0]), list(e.rewards), e.terminated, e.truncated) for e in dataset]
    assert found == [
        ([5, 6, 7], [-1, 0], True, False),
        ([10, 11], [-1], False, True),
        ([0, 1, 2, 3], [-1, -1, -1], False, True),
        ([4, 6, 8], [-1, 0], True, False),  # 6 is two away, 7 would have been near enough
    ]
    np.testing.assert_array_equal(dataset.actions[:, 0], [1, 1, 1, 1, 1, 1, 2, 2])
    assert dataset.final_observed.all()
    assert dataset.env is not None and dataset.env.env_id == MAZE_ID and dataset.env.max_episode_steps == 50
    assert (dataset.action_low == -1).all() and (dataset.action_high == 1).all()


def test_a_state_just_within_the_tolerance_counts(tmp_path: Path) -> None:
    """The edge itself is reached (<=), as in the environment."""
    edge = write(tmp_path / "edge.npz", along(5, 6.9, 6.99), along(6, 7, 8))
    dataset = load_dataset(str(edge), env_id=MAZE_ID)
    assert [list(episode.rewards) for episode in dataset] == [[-1, -1], [0]]


def test_rows_that_start_in_the_goal_are_left_out(tmp_path: Path) -> None:
    start = write(tmp_path / "start.npz", along(8, 8, 8), along(7, 8, 9, 10, 11, 8), along(8, 10))
    dataset = load_dataset(str(start), env_id=MAZE_ID)
    assert [list(episode.observations[:, 0]) for episode in dataset] == [[10, 11, 8]]


def test_the_fingerprint_names_the_task(path: Path) -> None:
    other = load_dataset(str(path), env_id="raystitch-tests/FarGoal-v0")
    here = load_dataset(f"ogbench:{path}", env_id=MAZE_ID)
    assert other.fingerprint != here.fingerprint
    assert load_dataset(path, env_id=MAZE_ID).fingerprint == here.fingerprint


def test_references(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_ref(path.name) == ("ogbench", path.name)
    monkeypatch.chdir(path.parent)
    ref = DatasetRef(path.name, env=MAZE_ID)
    assert ref.absolute() == DatasetRef(f"ogbench:{path}", env=MAZE_ID)
    assert ref.load().fingerprint == ref.absolute().load_recorded().fingerprint
    from_bundle = DatasetRef(path.name).load(EnvSpec(env_id=MAZE_ID, max_episode_steps=50))
    assert from_bundle.fingerprint == ref.load().fingerprint


def test_without_an_environment_the_message_names_one(path: Path) -> None:
    with pytest.raises(UserError, match=rf"has no rewards: in OGBench the task gives them; .*--env {REAL_ID}, env:"):
        load_dataset(str(path))
    validation = path.rename(path.with_name("antmaze-giant-navigate-v0-val.npz"))
    with pytest.raises(UserError, match="--env ogbench:antmaze-giant-singletask-task1-v0, env:"):
        load_dataset(str(validation))
    odd = validation.rename(path.with_name("mine.npz"))
    with pytest.raises(UserError, match=f"--env {REAL_ID}, env:"):
        load_dataset(str(odd))


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("raystitch-tests/NoMaze-v0", "has no goal position for its agent, .*--env ogbench:pointmaze-medium-"),
        ("raystitch-tests/RandomGoal-v0", "draws another goal for every episode; .*RandomGoal-singletask-task1-v0"),
        ("Pendulum-v1", "observations have 2 and actions 2 dimensions, but Pendulum-v1 has 3 and 1"),
    ],
)
def test_an_environment_that_gives_no_rewards(path: Path, env_id: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_dataset(str(path), env_id=env_id)


def test_a_goal_that_no_state_comes_near(tmp_path: Path) -> None:
    far = write(tmp_path / "far.npz", along(0, 1, 2), along(3, 4, 4.5))
    with pytest.raises(
        UserError, match=r"the goal of .*Corridor-v0, \(8, 0\): the nearest, in row 5, is 3.5 away, and 1 counts"
    ):
        load_dataset(str(far), env_id=MAZE_ID)


def test_a_goal_that_no_step_leads_into(tmp_path: Path) -> None:
    begins = write(tmp_path / "begins.npz", along(4, 5, 6), along(8, 9, 10, 11), along(8, 8))
    with pytest.raises(
        UserError, match=r"no step leads into the goal of .*: the 4 states there, the first in row 3, on"
    ):
        load_dataset(str(begins), env_id=MAZE_ID)


def test_states_of_another_maze(tmp_path: Path) -> None:
    other = write(tmp_path / "other.npz", along(4, 5, 6, 7), along(13, 14.5, 20, 300))
    with pytest.raises(UserError, match=r"38% of the states lie in walls .*, the first in row 5; name the environment"):
        load_dataset(str(other), env_id=MAZE_ID)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"terminals": None}, r"has no array 'terminals'; it has actions, observations; OGBench's files have"),
        ({"rewards": np.zeros(6)}, "has rewards, which OGBench's files have not"),
        ({"terminals": np.zeros(6)}, "terminals are 0 in every row, so nothing marks where an episode ends"),
        ({"terminals": np.full(6, 2)}, "terminals must be 0 or 1, got 2 in row 0"),
        ({"terminals": np.ones(5)}, "different lengths: observations 6, actions 6, terminals 5"),
        ({"observations": np.zeros((6, 8, 8, 3), np.uint8)}, "observations are images, shape .6, 8, 8, 3.; .*visual-"),
        ({"actions": np.zeros(6, np.int32)}, "actions must be two-dimensional, .*discrete actions"),
        ({"actions": np.full((6, 2), "up")}, "actions must be an array of numbers, got <U2"),
        (
            {"actions": np.full((6, 2), None)},
            "actions must be an array of numbers, but it holds Python objects: a pickle",
        ),
        ({"observations": np.where(np.arange(12).reshape(6, 2) == 7, np.nan, 5)}, "observations has NaN in row 3"),
        ({"observations": np.where(np.arange(12).reshape(6, 2) == 7, 1e20, 5)}, "observations has a value of size 1e"),
        ({"observations": np.zeros((0, 2)), "actions": np.zeros((0, 2)), "terminals": np.zeros(0)}, "arrays are empty"),
        ({"terminals": np.ones(6)}, "there is no transition"),
    ],
)
def test_wrong_arrays(tmp_path: Path, others: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "wrong.npz", along(5, 6, 7), along(4, 5, 6), **others)
    with pytest.raises(UserError, match=message):
        load_dataset(str(path), env_id=MAZE_ID)


def test_the_last_action_of_an_episode_may_be_anything(tmp_path: Path) -> None:
    actions = np.ones((6, 2), np.float32)
    actions[[2, 5]] = np.nan
    path = write(tmp_path / "nan.npz", along(5, 6, 7), along(4, 5, 6), actions=actions)
    assert np.isfinite(load_dataset(str(path), env_id=MAZE_ID).actions).all()


def test_a_row_alone_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "lone.npz", along(5, 6, 7), along(3), along(4, 5, 6))
    with pytest.warns(UserWarning, match="1 recorded episodes have a single row, the first row 3"):
        assert load_dataset(str(path), env_id=MAZE_ID).num_episodes == 2


def test_inspect_reads_what_is_not_finite(tmp_path: Path) -> None:
    observations = np.concatenate([along(5, 6, 7), along(4, np.nan, 6)])
    path = write(tmp_path / "nan.npz", along(5, 6, 7), along(4, 5, 6), observations=observations)
    assert load_dataset(str(path), env_id=MAZE_ID, allow_nan=True).num_transitions == 4


def test_double_precision_and_compression_change_nothing(tmp_path: Path, path: Path) -> None:
    with np.load(path) as file:
        wide = {name: file[name].astype(np.float64) for name in file}
    wide["terminals"] = wide["terminals"].astype(bool)[:, None]
    np.savez_compressed(tmp_path / "wide.npz", **wide)
    found = [load_dataset(file, env_id=MAZE_ID).fingerprint for file in (tmp_path / "wide.npz", path)]
    assert found[0] == found[1]
