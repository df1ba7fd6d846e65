"""The toy of the paper on the Q-learning Decision Transformer (Yamagata et al. 2023, arXiv 2209.03993): a grid.

6 x 6 cells, 8 moves, reward 10 for the move into the goal's cell and -1 for any other, end at the goal. The paper's
actions are discrete. ``raystitch/Grid-v0`` takes a direction in the plane instead and moves to the neighbour that lies
there, because raystitch trains on actions that are vectors; ``raystitch/GridDiscrete-v0`` is the same grid with the
paper's moves. Where the goal lies, where episodes start and how long they may take is chosen here: the north-east
corner, the six cells of the western edge, 20 steps.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from raystitch.envs.spec import EnvSpec

ENV_ID, DISCRETE_ID = "raystitch/Grid-v0", "raystitch/GridDiscrete-v0"
SIZE, GOAL, MAX_EPISODE_STEPS = 6, (5, 5), 20
GOAL_REWARD, STEP_REWARD = 10.0, -1.0
MOVES = np.array([(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)])
"""Changes of (x, y), counter-clockwise from east; move k lies at the angle k * 45 degrees."""


def move_of(direction: NDArray[Any]) -> int:
    """Return the move nearest in angle to a direction [2], whose length does not matter; east for no direction."""
    return round(float(np.arctan2(direction[1], direction[0])) / (np.pi / 4)) % len(MOVES)


class GridEnv(gym.Env[NDArray[np.float32], Any]):
    """The grid; it observes the cell (x, y), each 0 to 5. A move off the grid stays where it is.

    ``reset(options={"cell": (x, y)})`` starts there, any other reset in a random cell of the western edge.
    """

    def __init__(self, discrete: bool = False) -> None:
        self.discrete = discrete
        self.observation_space = spaces.Box(0, SIZE - 1, (2,), np.float32)
        self.action_space = spaces.Discrete(len(MOVES)) if discrete else spaces.Box(-1, 1, (2,), np.float32)
        self.cell = (0, 0)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        starts = start_cells()
        self.cell = starts[int(self.np_random.integers(len(starts)))]
        if options and "cell" in options:
            x, y = options["cell"]
            self.cell = (int(x), int(y))
        return np.array(self.cell, np.float32), {"success": self.cell == GOAL}

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self.cell, reward, reached = step_grid(self.cell, int(action) if self.discrete else move_of(action))
        return np.array(self.cell, np.float32), reward, reached, False, {"success": reached}


def step_grid(cell: tuple[int, int], move: int) -> tuple[tuple[int, int], float, bool]:
    """Return the cell that a move leads to, the reward, and whether it is the goal."""
    x, y = (at + int(by) for at, by in zip(cell, MOVES[move], strict=True))
    if not (0 <= x < SIZE and 0 <= y < SIZE):
        x, y = cell
    reached = (x, y) == GOAL
    return (x, y), GOAL_REWARD if reached else STEP_REWARD, reached


def start_cells() -> list[tuple[int, int]]:
    """Return the cells in which episodes start, those of the western edge."""
    return [(0, y) for y in range(SIZE)]


def register() -> None:
    """Register both grids with Gymnasium; may be called any number of times."""
    for env_id, discrete in ((ENV_ID, False), (DISCRETE_ID, True)):
        if env_id not in gym.registry:
            gym.register(
                id=env_id,
                entry_point="raystitch.envs.grid:GridEnv",
                max_episode_steps=MAX_EPISODE_STEPS,
                kwargs={"discrete": True} if discrete else {},
                disable_env_checker=True,
                order_enforce=False,
            )


def grid_spec() -> EnvSpec:
    """Return ``raystitch/Grid-v0`` as plain data."""
    return EnvSpec(env_id=ENV_ID, max_episode_steps=MAX_EPISODE_STEPS)
