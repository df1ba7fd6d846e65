"""OGBench's stitch data, made by the package's own oracle."""

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raystitch.cli import main
from raystitch.data.load import load_dataset
from raystitch.data.ogbench_oracle import ROWS, make_stitch
from raystitch.envs.make import make_env, spec_from_id
from raystitch.errors import UserError

pytest.importorskip("ogbench")

Cell = tuple[int, int]


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return make_stitch("medium", num_episodes=30, seed=3)


def cell_of(position: Any) -> Cell:
    column, row = np.floor((position + 4 + 2) / 4).astype(int)  # cells are 4 wide; the first one's centre is (-4, -4)
    return int(row), int(column)


def distances(free: Any, start: Cell) -> dict[Cell, int]:
    """Cells from ``start`` to every other one, by a search of the test's own."""
    found, queue = {start: 0}, deque([start])
    while queue:
        row, column = queue.popleft()
        for other in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
            if free[other] and other not in found:
                found[other] = found[row, column] + 1
                queue.append(other)
    return found


def test_layout(made: dict[str, Any]) -> None:
    assert {name: (values.shape, values.dtype) for name, values in made.items()} == {
        "observations": ((30 * ROWS, 2), np.float32),
        "actions": ((30 * ROWS, 2), np.float32),
        "terminals": ((30 * ROWS,), np.float32),
    }
    np.testing.assert_array_equal(np.flatnonzero(made["terminals"]), np.arange(30) * ROWS + 200)
    assert np.abs(made["actions"]).max() == 1.0


def test_every_episode_goes_four_cells_and_stays(made: dict[str, Any]) -> None:
    env = make_env(spec_from_id("ogbench:pointmaze-medium-v0"))
    free = env.get_wrapper_attr("maze_map") == 0
    starts = set()
    for rows in made["observations"].reshape(30, ROWS, 2):
        start, end = cell_of(rows[0]), cell_of(np.median(rows[-20:], axis=0))
        assert distances(free, start)[end] == 4
        starts.add(start)
    assert len(starts) > 8
    env.close()


def test_actions_are_the_oracles_direction_and_noise(made: dict[str, Any]) -> None:
    """Half way to the next cell the noise is what remains of an action that is not clipped."""
    env = make_env(spec_from_id("ogbench:pointmaze-medium-v0"))
    maze: Any = env.unwrapped
    noise = []
    for rows, actions in zip(
        made["observations"].reshape(30, ROWS, 2), made["actions"].reshape(30, ROWS, 2), strict=True
    ):
        goal = maze.ij_to_xy(cell_of(np.median(rows[-20:], axis=0)))
        for position, action in zip(rows[:100:5].astype(np.float64), actions[:100:5], strict=True):
            towards = maze.get_oracle_subgoal(position, goal)[0] - position
            noise.append(action - towards / np.linalg.norm(towards))
    spread = np.array(noise)
    assert 0.3 < spread.std() < 0.5  # 0.5, but for what is clipped
    env.close()


def test_equal_seeds_give_equal_data_and_touch_no_global_numbers(made: dict[str, Any]) -> None:
    np.random.seed(1)  # noqa: NPY002
    again = make_stitch("medium", num_episodes=3, seed=3)
    drawn = np.random.random()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    assert drawn == np.random.random()  # noqa: NPY002
    for name, values in again.items():
        np.testing.assert_array_equal(values, made[name][: 3 * ROWS])
    other = make_stitch("medium", num_episodes=3, seed=4)
    assert not np.array_equal(other["observations"], again["observations"])


@pytest.mark.parametrize("maze", ["large", "giant", "teleport"])
def test_the_other_mazes(maze: str) -> None:
    progress = []
    made = make_stitch(maze, num_episodes=2, progress=lambda done, total: progress.append((done, total)))
    assert len(made["terminals"]) == 2 * ROWS and progress == [(1, 2), (2, 2)]


def test_unknown_maze() -> None:
    with pytest.raises(UserError, match="maze='huge' is not one of medium, large, giant, teleport"):
        make_stitch("huge")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "small.npz"
    argv = [
        "data",
        "make",
        "ogbench-pointmaze-medium-stitch",
        "--out",
        str(path),
        "--num-episodes",
        "30",
        "--seed",
        "3",
    ]
    assert main(argv) == 0
    shown = capsys.readouterr()
    assert shown.out == f"ogbench:{path}\n" and "6,030 rows" in shown.err and "episodes 30/30" in shown.err
    task = "ogbench:pointmaze-medium-singletask-task4-v0"
    dataset = load_dataset(shown.out.strip(), env_id=task)
    assert dataset.terminated.sum() >= 1 and dataset.num_transitions <= 6000
    assert main(["data", "inspect", str(path), "--env", task]) == 0
    assert f"environment: {task}" in capsys.readouterr().out
    other = [str(path.with_suffix(".hdf5")) if part == str(path) else part for part in argv]
    assert main(other) == 2 and "OGBench's files end in .npz" in capsys.readouterr().err
    before = path.read_bytes()
    assert main(argv) == 2 and "exists; --overwrite replaces it" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert main([*argv[:-3], "2", "--overwrite"]) == 0
    assert path.stat().st_size < len(before)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["ogbench-pointmaze-medium-stitch"],
            "becomes a file: say which, such as --out pointmaze-medium-stitch-v0.npz",
        ),
        (
            ["ogbench-pointmaze-medium-stitch", "--id", "a/b-v0"],
            "--id is not an option of ogbench-pointmaze-medium-stitch",
        ),
        (["pointmaze", "--out", "x.npz"], "--out is not an option of pointmaze"),
        (["pointmaze", "--num-episodes", "3"], "--num-episodes is not an option of pointmaze"),
        (["antmaze"], "no dataset to make is called 'antmaze'; there are: pointmaze, "),
    ],
)
def test_options_that_do_not_fit(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "make", *argv]) == 2
    assert message in capsys.readouterr().err
