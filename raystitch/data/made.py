"""Datasets that raystitch makes in simulators, by the names that ``raystitch data make`` takes."""

from collections.abc import Callable
from functools import partial

import numpy as np

from raystitch.data.demo import DEFAULT_NUM_STEPS, make_pointmaze
from raystitch.data.episodes import Episode, EpisodeDataset, from_episodes
from raystitch.data.gap import WIDTHS, gap_name, make_gap
from raystitch.data.maze2d import make_maze2d
from raystitch.errors import UserError
from raystitch.seeding import numpy_rng

Maker = Callable[[int | None, int], EpisodeDataset]
"""(about how many transitions, None for the usual number; seed) -> dataset."""
GRID, GRID_EPISODES = "qdt-toy", 100
"""Data of the grid, few of whose walks reach the goal, and none of them soon; as many as in the paper."""


def make_grid(num_steps: int | None = None, seed: int = 0) -> EpisodeDataset:
    """Walk in random directions from random cells of the western edge until the goal or the time limit.

    Args:
        num_steps: collect whole episodes until there are so many transitions; None for 100 episodes.
    """
    from raystitch.envs import grid

    env, rng = grid.GridEnv(), numpy_rng(seed, GRID)
    starts = grid.start_cells()
    episodes: list[Episode] = []
    collected = 0
    while len(episodes) < GRID_EPISODES if num_steps is None else collected < num_steps:
        state, _ = env.reset(options={"cell": starts[int(rng.integers(len(starts)))]})
        observations, actions, rewards = [state], [], []
        terminated = False
        while not terminated and len(actions) < grid.MAX_EPISODE_STEPS:
            angle = rng.uniform(0, 2 * np.pi)
            action = np.array([np.cos(angle), np.sin(angle)], np.float32)
            state, reward, terminated, _, _ = env.step(action)
            observations.append(state)
            actions.append(action)
            rewards.append(reward)
        episodes.append(Episode.recorded(observations, actions, rewards, terminated=terminated))
        collected += len(actions)
    return from_episodes(episodes, name=GRID, action_low=-np.ones(2), action_high=np.ones(2), env=grid.grid_spec())


def _pointmaze(num_steps: int | None, seed: int) -> EpisodeDataset:
    return make_pointmaze(num_steps or DEFAULT_NUM_STEPS, seed)


MAKERS: dict[str, Maker] = {
    "pointmaze": _pointmaze,
    GRID: make_grid,
    "maze2d-umaze": partial(make_maze2d, "umaze"),
    "maze2d-medium": partial(make_maze2d, "medium"),
    "maze2d-large": partial(make_maze2d, "large"),
    **{gap_name(width): partial(make_gap, width) for width in WIDTHS},
}


def make_dataset(name: str, num_steps: int | None = None, seed: int = 0) -> EpisodeDataset:
    """Make a dataset; bit-identical for a seed.

    Args:
        num_steps: transitions, about; None for the usual number.

    Raises:
        UserError: for an unknown name, or too few steps.
    """
    if name not in MAKERS:
        raise UserError(f"no dataset to make is called {name!r}; there are: {', '.join(MAKERS)}")
    return MAKERS[name](num_steps, seed)
