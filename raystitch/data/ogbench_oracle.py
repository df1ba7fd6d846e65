"""Makes OGBench's PointMaze ``stitch`` data with the package's own oracle; no expert is needed.

Every episode starts in a free cell and heads for another one exactly four cells away: an action is the unit vector to
the oracle's next cell plus noise. No episode leads through a whole maze.

Park et al. 2025, OGBench: Benchmarking Offline Goal-Conditioned RL, arXiv 2410.20092.
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raystitch.envs.make import make_env, spec_from_id
from raystitch.envs.ogbench import PACKAGE, own_random_numbers, seeded
from raystitch.errors import check_choice
from raystitch.io.files import atomic_path, require_space
from raystitch.seeding import derive_seed, numpy_rng

MAZES = ("medium", "large", "giant", "teleport")
DEFAULT_NUM_EPISODES = 5000
ROWS = 201
"""Rows of an episode: 200 transitions, and a last state."""
CELLS_AWAY = 4
ACTION_NOISE = 0.5

Cell = tuple[int, int]
Progress = Callable[[int, int], None]
"""Called with the episodes that are done and all episodes."""


def make_stitch(
    maze: str, num_episodes: int = DEFAULT_NUM_EPISODES, seed: int = 0, progress: Progress | None = None
) -> dict[str, NDArray[np.float32]]:
    """Collect episodes of ``pointmaze-MAZE-v0``; equal seeds give equal arrays.

    Args:
        maze: one of ``MAZES``.

    Returns:
        float32 ``observations`` [N, 2] (x, y), ``actions`` [N, 2] and ``terminals`` [N], N = 201 times the episodes.

    Raises:
        UserError: for another maze, or without the package.
    """
    check_choice("maze", maze, MAZES)
    spec = spec_from_id(f"{PACKAGE}:pointmaze-{maze}-v0", {"terminate_at_goal": False})
    env = make_env(spec)
    oracle, rng = _Oracle(env.unwrapped), numpy_rng(seed, "ogbench", maze)
    observations, actions = (np.zeros((num_episodes, ROWS, 2), np.float32) for _ in range(2))
    terminals = np.zeros((num_episodes, ROWS), np.float32)
    terminals[:, -1] = 1.0
    with own_random_numbers(seeded(derive_seed(seed, "ogbench", "starts") % 2**32)):
        for episode in range(num_episodes):
            _record(oracle, rng, observations[episode], actions[episode])
            if progress is not None:
                progress(episode + 1, num_episodes)
    env.close()
    return {
        "observations": observations.reshape(-1, 2),
        "actions": actions.reshape(-1, 2),
        "terminals": terminals.reshape(-1),
    }


class _Oracle:
    """The package's oracle with its answers kept: one for each cell of the agent and of the goal."""

    def __init__(self, maze: Any) -> None:
        self.maze = maze
        cells = [(int(row), int(column)) for row, column in np.argwhere(maze.maze_map == 0)]
        self.goals: dict[Cell, list[Cell]] = {}
        for cell in cells:
            centre = maze.ij_to_xy(cell)
            distances = maze.get_oracle_subgoal(centre, centre)[1]
            goals = [other for other in cells if distances[other] == CELLS_AWAY]
            if goals:  # teleport has a cell that no way leads to
                self.goals[cell] = goals
        self.starts = list(self.goals)
        self.next: dict[tuple[Cell, Cell], NDArray[np.float64]] = {}

    def subgoal(self, position: NDArray[np.float64], goal: Cell) -> NDArray[np.float64]:
        """The centre of the next cell on the way, float64 [2]."""
        key = (self.maze.xy_to_ij(position), goal)
        if key not in self.next:
            self.next[key] = self.maze.get_oracle_subgoal(position, self.maze.ij_to_xy(goal))[0].astype(np.float64)
        return self.next[key]


def _record(
    oracle: _Oracle, rng: np.random.Generator, observations: NDArray[np.float32], actions: NDArray[np.float32]
) -> None:
    """Fill in one episode [201, 2]."""
    maze = oracle.maze
    start = oracle.starts[rng.integers(len(oracle.starts))]
    goal = oracle.goals[start][rng.integers(len(oracle.goals[start]))]
    observation, _ = maze.reset(
        seed=int(rng.integers(2**31)), options={"task_info": {"init_ij": start, "goal_ij": goal}}
    )
    noise = rng.normal(0.0, ACTION_NOISE, (ROWS, 2))
    for row in range(ROWS):
        position = maze.get_xy()
        towards = oracle.subgoal(position, goal) - position
        action = np.clip(towards / (np.linalg.norm(towards) + 1e-6) + noise[row], -1, 1)
        observations[row], actions[row] = observation, action
        observation = maze.step(actions[row])[0]


def write_npz(arrays: dict[str, NDArray[np.float32]], path: str | os.PathLike[str]) -> None:
    """Write the arrays as OGBench does, compressed, whole or not at all.

    Raises:
        RunError: when the file cannot be written or the disk is too full.
    """
    require_space(path, sum(values.nbytes for values in arrays.values()))
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        save: Any = np.savez_compressed  # its options and its arrays are keywords alike
        save(file, **arrays)
