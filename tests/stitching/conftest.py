"""A small world with a known truth: a point in the plane, x' = x + v, v' = 0.9 v + 0.1 a, one constant dimension.

Low-return episodes run east along the south side and are cut before the turn, high-return ones run along the north
side; crossing episodes show the turn, so that the dynamics between them are known while no episode leads from the
south to the reward.
"""

from dataclasses import replace

import numpy as np
import pytest

from raystitch.data.episodes import Episode, EpisodeDataset, from_episodes
from raystitch.models.bundle import Bundle
from raystitch.models.config import DiffusionConfig, EmbeddingConfig, FitConfig, HeadConfig
from raystitch.models.fit import fit_bundle

OBS_DIM, ACT_DIM = 5, 2
SOUTH, NORTH = -1.0, 1.0


def roll(
    rng: np.random.Generator, start: tuple[float, float], speed: float, goals: list[tuple[float, float]], length: int
) -> np.ndarray:
    """Positions, velocities and a constant of a noisy controller's flight, with its actions: [T + 1, 5 + 2]."""
    state, rows, goals = np.array([*start, speed, 0.0]), [], list(goals)
    for _ in range(length + 1):
        if len(goals) > 1 and np.linalg.norm(goals[0] - state[:2]) < 0.3:
            goals.pop(0)
        wanted = np.clip((np.array(goals[0]) - state[:2]) * 0.5, -0.2, 0.2)
        action = np.clip((wanted - 0.9 * state[2:]) / 0.1 + 0.3 * rng.standard_normal(2), -1, 1)
        rows.append([*state, 7.0, *action])
        state = np.concatenate([state[:2] + state[2:], 0.9 * state[2:] + 0.1 * action])
    return np.array(rows, np.float32)


def episode(rng: np.random.Generator, kind: str, length: int) -> Episode:
    east, north = rng.uniform(-0.2, 0.2, 2)
    start, speed, goals = {
        "south": ((-2.0 + east, SOUTH + north), 0.0, [(0.5, SOUTH)]),
        "north": ((0.2 + east, NORTH + north), 0.0, [(3.0, NORTH)]),
        "cross": ((-0.7 + east, SOUTH + north), 0.2, [(0.2, SOUTH), (0.2, NORTH + 0.5)]),
    }[kind]
    rows = roll(rng, start, speed, goals, length)
    if kind == "south":
        rows = rows[: max(4, int((rows[:, 0] < -0.3).sum()))]
    length = len(rows) - 1
    reward = (rows[1:, 0] > 1.0) & (rows[1:, 1] > 0) if kind == "north" else np.zeros(length)
    terminated = kind == "south" and bool(rng.random() < 0.3)
    return Episode(
        observations=rows[:, :OBS_DIM],
        actions=rows[:-1, OBS_DIM:],
        rewards=np.asarray(reward, np.float32),
        terminated=terminated,
        truncated=not terminated,
    )


def make_world(seed: int = 0, num_episodes: int = 60) -> EpisodeDataset:
    rng = np.random.default_rng(seed)
    kinds = [("south", "cross", "north")[index % 3] for index in range(num_episodes)]
    episodes = [episode(rng, kind, int(rng.integers(3, 50))) for kind in kinds]
    return from_episodes(
        episodes, name="plane", action_low=-np.ones(ACT_DIM, np.float32), action_high=np.ones(ACT_DIM, np.float32)
    )


@pytest.fixture(scope="session")
def world() -> EpisodeDataset:
    return make_world()


@pytest.fixture(scope="session")
def bundle(world: EpisodeDataset) -> Bundle:
    head = HeadConfig(num_members=2, hidden=32, num_layers=1, train_steps=100, batch_size=64)
    config = FitConfig(
        gamma=0.95,
        diffusion=DiffusionConfig(
            horizon=24,
            width=16,
            multipliers=(1, 2),
            gap_min=2,
            gap_max=16,
            prefix_max=3,
            train_steps=150,
            batch_size=32,
            learning_rate=2e-3,
            ema_decay=0.97,
        ),
        dynamics=replace(head, num_members=3),
        num_judges=2,
        inverse=head,
        reward=head,
        termination=replace(head, num_members=1),
        value=replace(head, num_members=1),
        embedding=EmbeddingConfig(size=8, hidden=64, train_steps=400, batch_size=128, learning_rate=3e-3),
        calibration_windows=200,
    )
    return fit_bundle(world, config, None, device="cpu")
