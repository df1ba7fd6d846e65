"""The package's own environments beside the demo's, the grid and Maze2D's mazes, and the data made in them."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from raystitch.data.made import make_dataset, make_grid
from raystitch.data.maze2d import make_maze2d, shortest_path
from raystitch.envs import grid
from raystitch.envs.make import make_env, register_environments
from raystitch.envs.maze2d import LAYOUTS, maze_spec
from raystitch.errors import UserError


@pytest.mark.parametrize("env_id", [grid.ENV_ID, grid.DISCRETE_ID])
def test_the_grid_is_a_gymnasium_environment(env_id: str) -> None:
    register_environments()
    check_env(gym.make(env_id).unwrapped, skip_render_check=True)


def test_both_grids_are_the_same_grid() -> None:
    moves, directions = grid.GridEnv(discrete=True), grid.GridEnv()
    rng = np.random.default_rng(0)
    for _ in range(200):
        cell = tuple(int(at) for at in rng.integers(0, grid.SIZE, 2))
        move = int(rng.integers(8))
        angle = np.pi / 4 * (move + rng.uniform(-0.45, 0.45))
        length = rng.uniform(0.1, 1)
        moves.reset(options={"cell": cell})
        directions.reset(options={"cell": cell})
        one = moves.step(move)
        other = directions.step(length * np.array([np.cos(angle), np.sin(angle)], np.float32))
        np.testing.assert_array_equal(one[0], other[0])
        assert one[1:] == other[1:]


def test_the_grid_pays_for_the_goal_and_charges_for_steps() -> None:
    env = grid.GridEnv(discrete=True)
    env.reset(options={"cell": (3, 3)})
    assert env.step(1)[1:4] == (-1.0, False, False)
    observation, *rest, info = env.step(1)
    assert (observation.tolist(), rest, info) == ([5.0, 5.0], [10.0, True, False], {"success": True})
    env.reset(options={"cell": (0, 2)})
    assert env.step(4)[0].tolist() == [0.0, 2.0]  # the edge stays in the way
    starts = {tuple(env.reset(seed=seed)[0].tolist()) for seed in range(60)}
    assert starts == {(0.0, float(y)) for y in range(6)}


def test_few_walks_reach_the_goal_and_none_soon() -> None:
    dataset = make_grid()
    assert dataset.num_episodes == 100
    assert 2 <= dataset.terminated.sum() <= 15
    assert dataset.returns.max() < 5  # the best way from any start is worth 6
    assert make_grid(seed=1).fingerprint != dataset.fingerprint == make_grid().fingerprint
    cells = dataset.observations[:-1].astype(int)
    assert len({tuple(cell) for cell in cells}) == 36
    assert dataset.env == grid.grid_spec()
    assert make_grid(50).num_transitions < 100


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_a_maze_has_one_goal_and_starts_elsewhere(layout: str) -> None:
    maze, env = LAYOUTS[layout], make_env(maze_spec(layout))
    assert env.spec is not None and env.spec.max_episode_steps == maze.max_episode_steps
    assert maze.cell_at(maze.centre(maze.goal)) == maze.goal
    starts = [env.reset(seed=seed)[0] for seed in range(5)]
    goals = {tuple(env.unwrapped.goal) for _ in range(3) if env.reset()}  # pyright: ignore
    assert goals == {tuple(maze.centre(maze.goal))}
    assert all(np.linalg.norm(start[:2] - maze.centre(maze.goal)) > 0.45 for start in starts)
    for cell in maze.free_cells():
        assert shortest_path(frozenset(maze.free_cells()), cell, maze.goal)[-1:] == (
            [] if cell == maze.goal else [maze.goal]
        )
    env.close()


def test_one_run_of_maze2d_is_paid_for_the_one_goal() -> None:
    dataset = make_maze2d("umaze", 1500, seed=3)
    goal = LAYOUTS["umaze"].centre(LAYOUTS["umaze"].goal)
    assert dataset.num_transitions >= 1500
    assert dataset.truncated.all()
    ends = dataset.observations[dataset.obs_offsets[1:-1] - 1]
    np.testing.assert_array_equal(ends, dataset.observations[dataset.obs_offsets[1:-1]])  # the run goes on
    near = np.linalg.norm(dataset.observations[dataset.obs_index + 1, :2] - goal, axis=1) <= 0.45
    np.testing.assert_array_equal(dataset.rewards > 0, near)
    assert near.any()
    assert make_maze2d("umaze", 1500, seed=3).fingerprint == dataset.fingerprint


def test_what_can_be_made_is_named() -> None:
    assert make_dataset("qdt-toy", 30).num_transitions >= 30
    with pytest.raises(UserError, match="'maze3d'; there are: pointmaze, qdt-toy, maze2d-umaze"):
        make_dataset("maze3d")
    with pytest.raises(UserError, match="no way leads"):
        shortest_path(frozenset({(0, 0), (5, 5)}), (0, 0), (5, 5))
