"""Behaviour cloning: regression on the actions of (the best episodes of) the data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from raystitch.device import uses_bf16
from raystitch.trainers.batches import TrainData, TransitionBatch
from raystitch.trainers.config import BCConfig
from raystitch.trainers.mlp import Actor
from raystitch.trainers.policy import MarkovPolicy
from raystitch.trainers.ratio import Ratio
from raystitch.trainers.state import Algorithm, Metrics, TrainState, apply_gradients, decay_rate


@dataclass(kw_only=True)
class BCState(TrainState):
    actor: Actor
    optimizer: torch.optim.Adam


def networks(data: TrainData, ratio: Ratio, config: BCConfig) -> dict[str, nn.Module]:
    """Return the network of one seed."""
    bf16 = uses_bf16(config.precision, data.device)
    sizes = {"obs_dim": data.obs_dim, "act_dim": data.act_dim, "hidden": config.hidden, "num_layers": config.num_layers}
    return {"actor": Actor(**sizes, bf16=bf16)}


def create(nets: Mapping[str, nn.Module], config: BCConfig) -> BCState:
    actor = nets["actor"]
    assert isinstance(actor, Actor)
    return BCState(actor=actor, optimizer=torch.optim.Adam(actor.parameters(), lr=config.learning_rate, fused=True))


def update(state: BCState, batch: TransitionBatch, config: BCConfig, generators: Sequence[torch.Generator]) -> Metrics:
    """Do one step on the mean squared error of the action."""
    if config.decay == "cosine":
        decay_rate(state.optimizer, config.learning_rate, state.step, config.train_steps)
    loss = (state.actor(batch.obs) - batch.action).square().mean((-2, -1))
    apply_gradients(state.optimizer, state.actor, loss)
    state.step += 1
    return {"loss": loss.detach()}


BC = Algorithm(
    kind="transitions",
    networks=networks,
    create=create,
    update=update,
    actor=lambda state: state.actor,
    network=Actor,
    policy=MarkovPolicy,
)
