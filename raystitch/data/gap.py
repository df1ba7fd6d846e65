"""Data of a maze of three regions without the transitions between them: how wide a gap can be closed?

The maze is D4RL's large one. A controller that knows the way goes from one random free cell to another; two lines cut
what it does into fragments of the western region, where the task starts, of the middle, and of the eastern region with
the goal. Transitions that cross a line or come within half a gap's width of it are taken away. At width 0 fragments
meet at the lines, so that joining them is enough; wider gaps only a bridge can close. The corridors there are straight,
because models of states do not see walls.

After Ghugare et al. 2024 (arXiv 2401.11237), who collect in regions; the deletion and its widths are ours.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raystitch.data.episodes import Bools, Episode, EpisodeDataset, from_episodes
from raystitch.data.maze2d import Cell, shortest_path
from raystitch.data.pieces import without_steps
from raystitch.seeding import numpy_rng

NUM_STEPS = 60_000
WIDTHS = (0.0, 0.25, 0.5, 1.0, 1.5)
"""Widths that have a name, in cells of a metre; wider ones would leave nothing of the middle."""
LINES = (-0.5, 1.5)
"""Where the regions meet, x in metres: the middles of the only corridors between them."""
SPEED, GAIN, ACTION_NOISE = (1.5, 2.5), 0.6, 0.25
GOAL_SHARE = 0.15
"""Share of the ways that lead to the task's goal; the others lead anywhere."""
REACHED = 0.3
LONGEST = 300
"""Steps after which the controller gives its goal up."""


def gap_name(width: float) -> str:
    """Return the name of a dataset: ``pointmaze-gap-0.5``."""
    return f"pointmaze-gap-{width:g}"


def make_gap(width: float, num_steps: int | None = None, seed: int = 0) -> EpisodeDataset:
    """Collect at least ``num_steps`` (60,000) transitions and take away those of the gaps; bit-identical for a seed.

    The same seed gives the same transitions at every width, but for those that are taken away.
    """
    whole = _collect(num_steps or NUM_STEPS, seed)
    return from_episodes(
        [episode for episode in _episodes(without_steps(whole, in_gap(whole, width))) if len(episode.actions) >= 4],
        name=gap_name(width),
        action_low=whole.action_low,
        action_high=whole.action_high,
        env=whole.env,
    )


def in_gap(dataset: EpisodeDataset, width: float) -> Bools:
    """Mark the transitions that cross a line or begin or end within half a ``width`` of one, bool [N]."""
    rows = dataset.obs_index
    before, after = dataset.observations[rows, 0], dataset.observations[rows + 1, 0]
    marked = np.zeros(len(rows), np.bool_)
    for line in LINES:
        marked |= (before < line) != (after < line)
        marked |= np.minimum(np.abs(before - line), np.abs(after - line)) < width / 2
    return marked


def _episodes(dataset: EpisodeDataset) -> list[Episode]:
    return [dataset.episode(number) for number in range(dataset.num_episodes)]


def _collect(num_steps: int, seed: int) -> EpisodeDataset:
    """Return the ways of the controller through the whole maze; one ends where it comes to the task's goal."""
    import gymnasium as gym

    from raystitch.envs.make import register_environments

    register_environments()
    from raystitch.envs import pointmaze
    from raystitch.envs.maze2d import LAYOUTS

    maze, rng = LAYOUTS["large"], numpy_rng(seed, "gap")
    free = frozenset(maze.free_cells())
    env = gym.make(pointmaze.GAP_ID)
    episodes: list[Episode] = []
    collected = 0
    while collected < num_steps:
        start, end = (sorted(free)[int(number)] for number in rng.choice(len(free), 2, replace=False))
        if rng.random() < GOAL_SHARE and start != pointmaze.GAP_GOAL:
            end = pointmaze.GAP_GOAL
        path: list[Cell] = shortest_path(free, start, end)
        episode = _way(env, maze.centre(start), [maze.centre(cell) for cell in path], rng)
        if len(episode.actions) >= 4:
            episodes.append(episode)
            collected += len(episode.actions)
    env.close()
    bound = np.ones(2, np.float32)
    return from_episodes(episodes, name="whole", action_low=-bound, action_high=bound, env=pointmaze.gap_spec())


def _way(
    env: Any, start: NDArray[np.float64], waypoints: list[NDArray[np.float64]], rng: np.random.Generator
) -> Episode:
    """Roll one way out in the simulator."""
    env.reset(seed=int(rng.integers(2**31)))
    position, velocity = start + rng.uniform(-0.2, 0.2, 2), rng.normal(0, 0.3, 2)
    env.unwrapped.point_env.set_state(position, velocity)
    state, speed = np.concatenate([position, velocity]), rng.uniform(*SPEED)
    observations, actions, rewards = [state], [], []
    terminated = False
    while waypoints and not terminated and len(actions) < LONGEST:
        towards = waypoints[0] - state[:2]
        wanted = speed * towards / max(float(np.linalg.norm(towards)), 0.3)
        force = GAIN * (wanted - state[2:]) + ACTION_NOISE * rng.standard_normal(2)
        action = np.clip(force, -1, 1).astype(np.float32)
        observation, reward, terminated, _, _ = env.step(action)
        state = observation["observation"]
        observations.append(state)
        actions.append(action)
        rewards.append(reward)
        if np.linalg.norm(waypoints[0] - state[:2]) < REACHED:
            waypoints = waypoints[1:]
    return Episode.recorded(observations, actions, rewards, terminated=terminated)
