"""A tiny world for the models: a point mass in the plane whose episodes end when it leaves the arena."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from raystitch.data.episodes import Episode, EpisodeDataset, from_episodes
from raystitch.models.bundle import Bundle
from raystitch.models.config import DiffusionConfig, EmbeddingConfig, FitConfig, HeadConfig
from raystitch.models.fit import fit_bundle

ARENA = 3.0


def step(state: np.ndarray, action: np.ndarray) -> np.ndarray:
    """Position and velocity [..., 4] after one step of force ``action`` [..., 2]."""
    velocity = 0.9 * state[..., 2:] + 0.2 * np.clip(action, -1, 1)
    return np.concatenate([state[..., :2] + 0.3 * velocity, velocity], -1)


def make_point_mass(num_episodes: int = 60, max_steps: int = 50, seed: int = 0) -> EpisodeDataset:
    rng = np.random.default_rng(seed)
    episodes: list[Episode] = []
    for _ in range(num_episodes):
        state = rng.normal(0, 1, 4) * [1, 1, 0.3, 0.3]
        states, actions, rewards = [state], [], []
        push = rng.normal(0, 0.8, 2)
        terminated = False
        for _ in range(int(rng.integers(12, max_steps + 1))):
            push = 0.8 * push + 0.6 * rng.normal(0, 1, 2)
            action = np.clip(push, -1, 1)
            state = step(state, action)
            states.append(state)
            actions.append(action)
            rewards.append(1.0 - np.abs(state[:2]).sum() / 6)
            terminated = bool(np.abs(state[:2]).max() > ARENA)
            if terminated:
                break
        episodes.append(
            Episode(
                np.array(states, np.float32),
                np.array(actions, np.float32),
                np.array(rewards, np.float32),
                terminated,
                not terminated,
            )
        )
    bound = np.ones(2, np.float32)
    return from_episodes(episodes, name="demo:point-mass", action_low=-bound, action_high=bound)


def make_config(train_steps: int, **changes: object) -> FitConfig:
    def head(members: int) -> HeadConfig:
        return HeadConfig(num_members=members, hidden=32, train_steps=train_steps, batch_size=64, learning_rate=3e-3)

    config = FitConfig(
        diffusion=DiffusionConfig(
            horizon=16, width=8, multipliers=(1, 2), gap_min=2, gap_max=8, train_steps=train_steps, batch_size=32
        ),
        dynamics=head(4),
        inverse=head(2),
        reward=head(2),
        termination=head(1),
        value=head(1),
        embedding=EmbeddingConfig(size=8, hidden=64, train_steps=train_steps, batch_size=128, learning_rate=3e-3),
        calibration_windows=200,
    )
    return replace(config, **changes)  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="session")
def dataset() -> EpisodeDataset:
    return make_point_mass()


@pytest.fixture(scope="session")
def point_mass_step() -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    return step


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., FitConfig]:
    return make_config


@pytest.fixture(scope="session")
def bundle(dataset: EpisodeDataset) -> Bundle:
    """Fitted for a few seconds: good enough to tell real transitions from wrong ones."""
    return fit_bundle(dataset, make_config(500), None, device="cpu")
