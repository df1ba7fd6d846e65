"""A world whose sensor ends before its velocities do."""

import numpy as np

from raystitch.data.episodes import Episode, EpisodeDataset, from_episodes


def clipped_walk(push: float = 0.5, beside: float | None = None, num_steps: int = 3000) -> EpisodeDataset:
    """A point that is pushed by its action, at ``push`` in the mean; its velocity is recorded up to 1 and goes on
    beyond. The second dimension is ``beside``, or noise."""
    rng = np.random.default_rng(0)
    episodes: list[Episode] = []
    for _ in range(num_steps // 30):
        velocity, rows = 0.0, list[list[float]]()
        actions = np.clip(rng.normal(push, 0.5, (30, 1)), -1, 1).astype(np.float32)
        for action in [*actions[:, 0], 0.0]:
            rows.append([float(np.clip(velocity, -1, 1)), rng.normal() if beside is None else beside])
            velocity = 0.7 * velocity + action
        states = np.array(rows, np.float32)
        episodes.append(Episode(states, actions, np.zeros(30, np.float32), terminated=False, truncated=True))
    return from_episodes(episodes, name="clipped", action_low=[-1], action_high=[1])
