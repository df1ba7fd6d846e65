"""Random bridges between the drift episodes, and a task whose best policy is known."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import nn

from raystitch.buffer.bridges import BridgeSet
from raystitch.data.episodes import Episode, EpisodeDataset, from_episodes
from raystitch.envs.spec import EnvSpec
from raystitch.trainers.mlp import StackedMLP


def plain(mlp: StackedMLP, *index: int) -> nn.Sequential:
    """One network of a stack as torch writes it: an independent implementation with the same weights."""
    flat = torch.arange(mlp.weights[..., 0].numel()).view(mlp.weights.shape[:-1])[index]
    layers: list[nn.Module] = []
    for at, (weight, bias) in enumerate(mlp.layers()):
        last = at == len(mlp.sizes) - 2
        matrix = weight[flat] if last else weight[flat].T
        linear = nn.Linear(matrix.shape[1], matrix.shape[0])
        linear.weight.data.copy_(matrix)
        linear.bias.data.copy_(bias[flat].flatten())
        layers += [linear] if last else [linear, nn.ReLU()]
    return nn.Sequential(*layers)


LINE_ID, LINE_STEPS = "RaystitchTest/Line-v0", 20


def make_bridges(drift: EpisodeDataset) -> BridgeSet:
    """50 bridges of random content between random episodes of ``drift``."""
    rng = np.random.default_rng(1)
    count = 50
    source, target = rng.integers(0, 20, count), rng.integers(20, drift.num_episodes, count)
    gap = rng.integers(2, 7, count)
    offsets = np.concatenate([[0], np.cumsum(gap + 1)]).astype(np.int64)
    total = int(offsets[-1])
    zeros = np.zeros(count, np.float32)
    source_step, target_step = rng.integers(0, drift.lengths[source]), rng.integers(0, drift.lengths[target])
    observations = rng.normal(size=(total + count, drift.obs_dim)).astype(np.float32)
    # A bridge begins and ends with real states.
    observations[offsets[:-1] + np.arange(count)] = drift.observations[drift.obs_offsets[source] + source_step]
    observations[offsets[1:] + np.arange(count)] = drift.observations[drift.obs_offsets[target] + target_step]
    return BridgeSet(
        ids=np.array([f"000000-{row:04d}-0" for row in range(count)]),
        rows=np.arange(count),
        source_episode=source,
        source_step=source_step,
        target_episode=target,
        target_step=target_step,
        gap=gap,
        residual_max=zeros,
        termination_max=zeros,
        return_source=zeros,
        return_stitched=zeros,
        accepted=np.ones(count, np.bool_),
        offsets=offsets,
        observations=observations,
        actions=rng.uniform(-1, 1, (total, drift.act_dim)).astype(np.float32),
        rewards=rng.normal(size=total).astype(np.float32),
    )


@pytest.fixture(scope="session")
def bridges(drift: EpisodeDataset) -> BridgeSet:
    """50 bridges of random content between random episodes of ``drift``."""
    return make_bridges(drift)


class LineEnv(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """x moves by 0.1 a within [-1, 1]; the reward is x after the move, so the best policy is a = 1."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Box(-2, 2, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.x = float(self.np_random.uniform(-0.1, 0.1))
        return np.array([self.x], np.float32), {}

    def step(self, action: NDArray[np.float32]) -> Any:
        self.x = float(np.clip(self.x + 0.05 * float(action[0]), -1, 1))
        return np.array([self.x], np.float32), self.x, False, False, {}


def _line_data(num_episodes: int, seed: int, noise: float) -> EpisodeDataset:
    rng = np.random.default_rng(seed)
    env, episodes = LineEnv(), []
    for index in range(num_episodes):
        obs, _ = env.reset(seed=index)
        direction = rng.uniform(-1.6, 1.6)
        observations, actions, rewards = [obs], [], []
        for _ in range(LINE_STEPS):
            action = np.clip(direction + noise * rng.normal(size=1), -2, 2).astype(np.float32)
            obs, reward, *_ = env.step(action)
            observations.append(obs)
            actions.append(action)
            rewards.append(reward)
        episodes.append(Episode(np.array(observations), np.array(actions), np.array(rewards), False, True))
    bound = np.full(1, 2, np.float32)
    spec = EnvSpec(env_id=LINE_ID, max_episode_steps=LINE_STEPS)
    return from_episodes(episodes, name="line", action_low=-bound, action_high=bound, env=spec)


@pytest.fixture(scope="session")
def line() -> EpisodeDataset:
    """Episodes that go one way or the other: 200 of 20 steps, actions in [-2, 2], in ``RaystitchTest/Line-v0``."""
    if LINE_ID not in gym.registry:
        gym.register(LINE_ID, lambda **kwargs: LineEnv(), max_episode_steps=LINE_STEPS)
    return _line_data(200, seed=0, noise=0.5)
