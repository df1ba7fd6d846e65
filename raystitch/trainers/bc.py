"""Behaviour cloning: regression on the actions of (the best episodes of) the data."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from raystitch.trainers.batches import TrainData, TransitionBatch
from raystitch.trainers.config import BCConfig
from raystitch.trainers.networks import Actor
from raystitch.trainers.policy import MarkovPolicy
from raystitch.trainers.ratio import Ratio
from raystitch.trainers.state import Algorithm, Metrics, TrainState


@dataclass(kw_only=True)
class BCState(TrainState):
    actor: Actor
    optimizer: torch.optim.Adam


def create(data: TrainData, ratio: Ratio, config: BCConfig) -> BCState:
    actor = Actor(obs_dim=data.obs_dim, act_dim=data.act_dim, hidden=config.hidden, num_layers=config.num_layers).to(
        data.device
    )
    return BCState(actor=actor, optimizer=torch.optim.Adam(actor.parameters(), lr=config.learning_rate, fused=True))


def update(state: BCState, batch: TransitionBatch, config: BCConfig, generator: torch.Generator) -> Metrics:
    """One step on the mean squared error of the action."""
    loss = F.mse_loss(state.actor(batch.obs), batch.action)
    state.optimizer.zero_grad()
    loss.backward()
    state.optimizer.step()
    state.step += 1
    return {"loss": loss.detach()}


def policy_network(state: BCState) -> tuple[nn.Module, dict[str, Any]]:
    return state.actor, state.actor.arguments


BC = Algorithm(
    kind="transitions",
    create=create,
    update=update,
    policy_network=policy_network,
    network=Actor,
    policy=MarkovPolicy,
)
