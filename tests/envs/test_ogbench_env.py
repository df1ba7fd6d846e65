"""OGBench's own environments: goals, random numbers, and nothing left behind; without a display."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from raystitch.data.load import load_dataset
from raystitch.data.ogbench_oracle import make_stitch
from raystitch.envs.make import make_env, spec_from_id
from raystitch.envs.ogbench import maze_goal
from raystitch.envs.simulator import open_simulator
from raystitch.envs.spec import EnvSpec
from raystitch.errors import UserError
from tests.data.ogbench_files import write

pytest.importorskip("ogbench")

TASK_ID = "ogbench:pointmaze-medium-singletask-task1-v0"


def test_the_goal_of_a_task() -> None:
    spec = spec_from_id(TASK_ID)
    assert spec.max_episode_steps == 1000
    env = make_env(spec)
    goal = maze_goal(env, TASK_ID)
    np.testing.assert_array_equal(goal.position, [20, 20])  # cell (6, 6), 4 wide, from -4
    assert goal.tolerance == 1.0
    cells = np.array([[0, 0], [20, 20], [1.99, -1.99], [2.01, 4], [-2.1, 0], [100, 0], [np.nan, 0]], np.float32)
    assert goal.in_maze(cells).tolist() == [True, True, True, True, False, False, True]  # NaN reads as 0
    env.close()


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("ogbench:pointmaze-large-v0", "draws another goal .*--env ogbench:pointmaze-large-singletask-task1-v0"),
        ("ogbench:antsoccer-arena-singletask-task1-v0", "has no goal position for its agent"),
    ],
)
def test_environments_without_one_goal(env_id: str, message: str) -> None:
    env = make_env(spec_from_id(env_id))
    with pytest.raises(UserError, match=message):
        maze_goal(env, env_id)
    env.close()


def test_rewards_from_a_real_task(tmp_path: Path) -> None:
    """The last step to the goal is worth 0; every other one -1."""
    way = np.stack([np.full(6, 20), np.linspace(16, 20, 6)], axis=1).astype(np.float32)
    path = write(tmp_path / "pointmaze-medium-stitch-v0.npz", way)
    dataset = load_dataset(f"ogbench:{path}", env_id=TASK_ID)
    assert dataset.rewards.tolist() == [-1, -1, -1, 0] and dataset.terminated.tolist() == [True]
    with pytest.raises(UserError, match=r"the nearest, in row 0, is .* away; name another|is \d.* away, and 1 counts"):
        load_dataset(f"ogbench:{path}", env_id=TASK_ID.replace("task1", "task2"))


@pytest.mark.parametrize("maze", ["medium", "teleport"])
def test_recorded_steps_come_out_of_the_simulator_again(maze: str) -> None:
    made = make_stitch(maze, num_episodes=6, seed=1)
    rows = np.flatnonzero(made["terminals"] == 0)[::7]
    simulator = open_simulator(spec_from_id(f"ogbench:pointmaze-{maze}-singletask-task1-v0"))
    found = simulator.step_from(made["observations"][rows], made["actions"][rows])
    simulator.close()
    after = made["observations"][rows + 1][found.usable]
    np.testing.assert_allclose(found.next_observations[found.usable], after, atol=1e-4)
    assert found.usable.mean() > 0.9 and np.isnan(found.rewards).all()


def test_before_a_jump_the_state_is_unknown() -> None:
    """The observation at the entrance of a teleport, (20, 12), shows the place before it."""
    simulator = open_simulator(spec_from_id("ogbench:pointmaze-teleport-singletask-task1-v0"))
    rows = np.array([[20, 12], [20, 10.6], [20, 10.4], [0, 0]], np.float32)
    found = simulator.step_from(rows, np.zeros((4, 2), np.float32))
    simulator.close()
    assert found.usable.tolist() == [False, False, True, True]


def test_an_id_from_a_file_imports_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "x.npz", np.full((3, 2), 20, np.float32))
    with pytest.raises(UserError, match="is recorded in a file, and raystitch imports no module that a file names"):
        load_dataset(str(path), default_env=EnvSpec(env_id=TASK_ID))


@pytest.mark.parametrize("maze", ["medium", "teleport"])
def test_equal_seeds_give_equal_episodes_whatever_else_draws(maze: str) -> None:
    env = make_env(spec_from_id(f"ogbench:pointmaze-{maze}-singletask-task5-v0"))
    episodes = []
    for disturbance in (1, 2):
        np.random.seed(disturbance)  # noqa: NPY002
        rows = [env.reset(seed=7)[0]]
        for step in range(40):
            np.random.random(disturbance)  # noqa: NPY002
            rows.append(env.step(np.array([np.cos(step), -1.0], np.float32))[0])
        drawn = np.random.random()  # noqa: NPY002
        np.random.seed(disturbance)  # noqa: NPY002
        np.random.random(disturbance * 40)  # noqa: NPY002
        assert drawn == np.random.random()  # noqa: NPY002  the global numbers are not touched
        episodes.append(np.stack(rows))
    np.testing.assert_array_equal(*episodes)
    assert not np.array_equal(episodes[0][0], env.reset(seed=8)[0])
    assert not np.array_equal(env.reset()[0], env.reset()[0])
    env.close()


def test_making_one_leaves_no_file_and_no_open_handle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_from_id(TASK_ID)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    handles = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        env = make_env(spec)
        env.reset(seed=0)
        env.close()
    assert not list(tmp_path.iterdir())
    assert len(os.listdir("/proc/self/fd")) == handles


def test_no_display_is_needed() -> None:
    hidden = {
        name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL")
    }
    code = f"from raystitch.envs.make import spec_from_id; print(spec_from_id({TASK_ID!r}))"
    found = subprocess.run([sys.executable, "-c", code], env=hidden, capture_output=True, text=True, check=False)
    assert found.stdout.strip() == TASK_ID and found.returncode == 0, found.stderr
