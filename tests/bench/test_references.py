from dataclasses import replace

import numpy as np
import torch

from raystitch.bench.reference_dt import ReferenceDT
from raystitch.bench.reference_td3bc import ReferenceTD3BC
from raystitch.data.episodes import EpisodeDataset
from raystitch.trainers.config import DTConfig, TD3BCConfig


def test_the_plain_td3bc_learns_and_delays_its_actor(drift: EpisodeDataset) -> None:
    reference = ReferenceTD3BC(drift, replace(TD3BCConfig(), batch_size=64, hidden=32))
    before = [parameter.clone() for parameter in reference.actor.parameters()]
    first = reference.step()
    assert "actor_loss" not in first
    assert all(torch.equal(old, new) for old, new in zip(before, reference.actor.parameters(), strict=True))
    losses = [reference.step() for _ in range(60)]
    assert "actor_loss" in losses[0]
    cloning = [row["actor_loss"] for row in losses if "actor_loss" in row]
    assert np.mean(cloning[-5:]) < np.mean(cloning[:5])


def test_the_plain_transformer_learns_and_warms_up(drift: EpisodeDataset) -> None:
    config = DTConfig(train_steps=400, batch_size=16, context=5, width=32, num_layers=2, learning_rate=3e-3)
    reference = ReferenceDT(drift, config)
    rows = [reference.step() for _ in range(60)]
    assert np.mean([row["loss"] for row in rows[-5:]]) < 0.8 * np.mean([row["loss"] for row in rows[:5]])
    assert rows[0]["learning_rate"] < rows[-1]["learning_rate"] == config.learning_rate


def test_its_windows_are_padded_behind_the_end_of_the_episode(drift: EpisodeDataset) -> None:
    context = int(drift.lengths.max()) + 1
    obs, action, to_go, _, mask = next(ReferenceDT(drift, DTConfig(batch_size=4, context=context)).batches)
    assert (obs.shape[:2], action.shape[:2], to_go.shape) == ((4, context), (4, context), (4, context))
    assert not mask[:, -1].any()
    assert mask[:, 0].all()
    assert not obs[mask == 0].any()
