"""Weights of single transitions by advantage, and batches that are drawn by them."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from raystitch.data.episodes import EpisodeDataset
from raystitch.shaping.advantages import EpisodeSteps, advantage_priorities
from raystitch.shaping.config import ShapingConfig, WeightConfig
from raystitch.trainers.config import DataSpec
from raystitch.trainers.data import build_data


def walk(num_episodes: int = 40, length: int = 25) -> EpisodeSteps:
    """A random walk whose reward is the action: the advantage of an action grows with it, wherever it is taken."""
    rng = np.random.default_rng(0)
    action = rng.uniform(-1, 1, (num_episodes, length, 1)).astype(np.float32)
    noise = rng.normal(0, 0.1, (num_episodes, length + 1, 2)).astype(np.float32)
    obs = np.cumsum(noise, 1)
    row = np.arange(num_episodes * length)
    return EpisodeSteps(
        observations=obs.reshape(-1, 2),
        obs_row=row + row // length,
        actions=action.reshape(-1, 1),
        rewards=action.reshape(-1),
        dones=np.zeros(len(row), np.float32),
        row=row,
    )


def test_better_actions_weigh_more() -> None:
    steps = walk()
    weights = advantage_priorities(steps)
    assert weights.shape == (1000,) and weights.min() >= 0.1
    assert np.corrcoef(weights, steps.actions[:, 0])[0, 1] > 0.5
    good, bad = steps.actions[:, 0] > 0.5, steps.actions[:, 0] < -0.5
    assert weights[good].mean() > 3 * weights[bad].mean()
    np.testing.assert_array_equal(weights, advantage_priorities(walk()))


def test_batches_follow_the_weights_of_single_steps(drift: EpisodeDataset) -> None:
    shaping = ShapingConfig(weights=WeightConfig(name="oper_a"))
    spec: dict[str, Any] = {"kind": "transitions", "data": "weighted", "shaping": shaping, "device": "cpu"}
    data = build_data(drift, DataSpec(**spec))
    part = data.augmented
    assert part.ends is not None
    total = int(part.length.sum())
    assert len(part.cumulative) == total
    episode, step = part.draw(200_000, [torch.Generator().manual_seed(0)])
    assert bool((step < part.length[episode - part.first_episode]).all()) and bool((step >= 0).all())
    flat = (part.ends - part.length)[episode[0] - part.first_episode] + step[0]
    found = torch.bincount(flat, minlength=total) / 200_000
    mass = torch.diff(part.cumulative, prepend=torch.zeros(1)) / part.cumulative[-1]
    assert float((found - mass).abs().sum()) < 0.1
    decoupled = build_data(drift, DataSpec(**spec, decoupled=True))
    assert decoupled.actor is not None and decoupled.actor.ends is not None
    assert decoupled.augmented.ends is None


def test_actions_that_make_no_difference_weigh_the_same() -> None:
    steps = walk()
    idle = replace(steps, rewards=np.zeros_like(steps.rewards))
    assert set(advantage_priorities(idle).tolist()) == {1.0}
