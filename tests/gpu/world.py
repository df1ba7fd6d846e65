"""A made-up world of Hopper's sizes (O = 11, A = 3) whose truth is known: data without a simulator, and true errors.

Three joints with angles q and speeds v, pushed by the actions; five further numbers follow from both. Low-return
episodes dawdle, high-return ones run; every fourth dawdler falls over.
"""

import numpy as np
from numpy.typing import NDArray

from raystitch.data.episodes import Episode, EpisodeDataset, Floats, from_episodes
from raystitch.data.normalise import Normalizer
from raystitch.stitching.candidates import Candidates

OBS_DIM, ACT_DIM = 11, 3
TRUE_BELOW = 0.5
"""Largest simulator error (squared L2, standardised) of every step of a bridge that counts as true."""


def observe(q: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
    """Observations [.., 11] of angles and speeds [.., 3]."""
    swing = np.stack([np.sin(q[..., 0]), np.cos(q[..., 1]), np.sin(q[..., 2]) * v[..., 0]], -1)
    energy = np.stack([(v**2).sum(-1), q[..., 1] * v[..., 1]], -1)
    return np.concatenate([q, v, swing, energy], -1)


def step(obs: NDArray[np.floating], act: NDArray[np.floating]) -> NDArray[np.float64]:
    """The true next observations [.., 11]."""
    q, v = obs[..., :3].astype(np.float64), obs[..., 3:6].astype(np.float64)
    v = 0.9 * v + 0.15 * np.clip(act, -1, 1) - 0.05 * np.sin(q)
    return observe(q + 0.2 * v, v)


def make_world(num_episodes: int, length: int, seed: int = 0) -> EpisodeDataset:
    """Episodes of ``length`` steps; the reward is the first joint's speed."""
    rng = np.random.default_rng(seed)
    episodes: list[Episode] = []
    for number in range(num_episodes):
        skill = (number % 3) / 2
        state = observe(rng.normal(0, 0.3, 3), rng.normal(0, 0.1, 3))
        observations, actions = [state], []
        wanted = np.array([0.2 + 0.8 * skill, 0.0, 0.0])
        falls = number % 12 == 0
        for _ in range(length // 2 if falls else length):
            error = wanted - np.array([state[3], state[1], state[2]])
            action = np.clip(error + rng.normal(0, 0.4, ACT_DIM), -1, 1)
            state = step(state, action)
            observations.append(state)
            actions.append(action)
        states = np.array(observations, np.float32)
        episodes.append(Episode(states, np.array(actions, np.float32), states[1:, 3].copy(), falls, not falls))
    bound = np.ones(ACT_DIM, np.float32)
    return from_episodes(episodes, name="made-up", action_low=-bound, action_high=bound)


def true_bridges(candidates: Candidates, normalizer: Normalizer) -> NDArray[np.bool_]:
    """Which candidates obey the world at every step, bool [N]."""
    after = step(candidates.observations[:, :-1], candidates.actions)
    difference = (candidates.observations[:, 1:] - after) / normalizer.std * normalizer.active
    error: Floats = (difference**2).sum(-1).astype(np.float32)
    exists = np.arange(error.shape[1]) <= candidates.gap[:, None]
    return np.where(exists, error, 0.0).max(1, initial=0.0) < TRUE_BELOW
