"""Data in the manner of D4RL's Maze2D: one long run from one random goal to the next, paid for a fixed goal.

A controller that knows the way heads for a random free cell along the shortest path of cells and, once there, for
another (Fu et al. 2020, arXiv 2004.07219: proportional gain 10, damping -1, noise 0.5). Every way is an episode, cut as
a time-out; the next begins where it ended. Rewards are those of the one goal that policies are evaluated on, through
which the controller comes by chance.
"""

from collections import deque

import numpy as np
from numpy.typing import NDArray

from raystitch.data.episodes import Episode, EpisodeDataset, from_episodes
from raystitch.errors import UserError
from raystitch.seeding import numpy_rng

NUM_STEPS = 200_000
GAIN, DAMPING, ACTION_NOISE = 10.0, -1.0, 0.5
REACHED, WAYPOINT_REACHED = 0.4, 0.3
Cell = tuple[int, int]


def shortest_path(free: frozenset[Cell], start: Cell, end: Cell) -> list[Cell]:
    """Return the cells after ``start`` on a shortest way to ``end``; empty where they are the same.

    Raises:
        UserError: when no way leads there.
    """
    before: dict[Cell, Cell] = {end: end}  # of every cell the next one on its way to the end
    waiting = deque([end])
    while waiting and start not in before:
        i, j = waiting.popleft()
        for cell in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
            if cell in free and cell not in before:
                before[cell] = (i, j)
                waiting.append(cell)
    if start not in before:
        raise UserError(f"no way leads from cell {start} to {end}")
    path = []
    while start != end:
        start = before[start]
        path.append(start)
    return path


def make_maze2d(layout: str, num_steps: int | None = None, seed: int = 0) -> EpisodeDataset:
    """Collect at least ``num_steps`` (200,000) transitions in the maze ``layout``; bit-identical for a seed."""
    import gymnasium as gym

    from raystitch.envs.make import register_environments

    register_environments()
    from raystitch.envs.maze2d import LAYOUTS, maze_spec

    maze = LAYOUTS[layout]
    free = frozenset(maze.free_cells())
    env, rng = gym.make(maze.env_id).unwrapped, numpy_rng(seed, "maze2d", layout)
    state: NDArray[np.float64] = env.reset(seed=int(rng.integers(2**31)))[0]["observation"]
    episodes: list[Episode] = []
    collected = 0
    while collected < (num_steps or NUM_STEPS):
        start = maze.cell_at(state[:2])
        others = sorted(free - {start})
        path = shortest_path(free, start, others[int(rng.integers(len(others)))])
        waypoints = [maze.centre(cell) for cell in path]
        observations, actions, rewards = [state], [], []
        while waypoints and len(actions) < maze.max_episode_steps:
            away = waypoints[0] - state[:2]
            force = GAIN * away + DAMPING * state[2:] + ACTION_NOISE * rng.standard_normal(2)
            action = np.clip(force, -1, 1).astype(np.float32)
            observation, reward, _, _, _ = env.step(action)
            state = observation["observation"]
            observations.append(state)
            actions.append(action)
            rewards.append(reward)
            if np.linalg.norm(waypoints[0] - state[:2]) < (REACHED if len(waypoints) == 1 else WAYPOINT_REACHED):
                waypoints = waypoints[1:]
        episodes.append(Episode.recorded(observations, actions, rewards, terminated=False))
        collected += len(actions)
    env.close()
    return from_episodes(
        episodes, name=f"maze2d-{layout}", action_low=-np.ones(2), action_high=np.ones(2), env=maze_spec(layout)
    )
