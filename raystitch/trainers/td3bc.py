"""TD3+BC: A Minimalist Approach to Offline Reinforcement Learning (Fujimoto and Gu 2021, arXiv 2106.06860).

Actions are in [-1, 1] here: the bounds of the action space are applied when the policy acts.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from raystitch.trainers.batches import TrainData, TransitionBatch
from raystitch.trainers.config import TD3BCConfig
from raystitch.trainers.networks import Actor, Critic
from raystitch.trainers.policy import MarkovPolicy
from raystitch.trainers.ratio import Ratio
from raystitch.trainers.state import Algorithm, Metrics, TrainState


@dataclass(kw_only=True)
class TD3BCState(TrainState):
    actor: Actor
    critics: nn.ModuleList
    target_actor: Actor
    target_critics: nn.ModuleList
    actor_optimizer: torch.optim.Adam
    critic_optimizer: torch.optim.Adam


def create(data: TrainData, ratio: Ratio, config: TD3BCConfig) -> TD3BCState:
    sizes = {
        "obs_dim": data.obs_dim,
        "act_dim": data.act_dim,
        "hidden": config.hidden,
        "num_layers": config.num_layers,
    }
    actor = Actor(**sizes).to(data.device)
    critics = nn.ModuleList(Critic(**sizes) for _ in range(2)).to(data.device)
    return TD3BCState(
        actor=actor,
        critics=critics,
        target_actor=copy.deepcopy(actor).requires_grad_(False),
        target_critics=copy.deepcopy(critics).requires_grad_(False),
        actor_optimizer=torch.optim.Adam(actor.parameters(), lr=config.learning_rate, fused=True),
        critic_optimizer=torch.optim.Adam(critics.parameters(), lr=config.learning_rate, fused=True),
    )


def critic_loss(state: TD3BCState, batch: TransitionBatch, config: TD3BCConfig, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Clipped double-Q regression; ``noise`` is standard normal [B, A]. Returns the loss and the mean Q."""
    with torch.no_grad():
        smoothing = (noise * config.policy_noise).clamp_(-config.noise_clip, config.noise_clip)
        next_action = (state.target_actor(batch.next_obs) + smoothing).clamp_(-1, 1)
        next_q = torch.minimum(*(critic(batch.next_obs, next_action) for critic in state.target_critics))
        target = batch.reward + config.gamma * (1 - batch.done) * next_q
    q_1, q_2 = (critic(batch.obs, batch.action) for critic in state.critics)
    return F.mse_loss(q_1, target) + F.mse_loss(q_2, target), q_1.detach().mean()


def actor_loss(state: TD3BCState, batch: TransitionBatch, config: TD3BCConfig) -> tuple[Tensor, Tensor]:
    """-lambda Q(s, pi(s)) + (pi(s) - a)^2 with lambda = alpha / mean |Q| (Eq. 5). Returns it and the cloning part."""
    action = state.actor(batch.obs)
    q = state.critics[0](batch.obs, action)
    cloning = F.mse_loss(action, batch.action)
    return -config.alpha / q.detach().abs().mean() * q.mean() + cloning, cloning.detach()


def _step(optimizer: torch.optim.Optimizer, network: nn.Module, loss: Tensor) -> None:
    # Gradients for this network alone: the actor's loss must not pay for the critic's weight gradients.
    parameters = list(network.parameters())
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    optimizer.step()


def update(state: TD3BCState, batch: TransitionBatch, config: TD3BCConfig, generator: torch.Generator) -> Metrics:
    """One critic step, and every ``policy_delay``-th time one actor step and one target step."""
    noise = torch.randn(batch.action.shape, device=batch.action.device, generator=generator)
    loss, q_mean = critic_loss(state, batch, config, noise)
    _step(state.critic_optimizer, state.critics, loss)
    metrics = {"loss": loss.detach(), "q_mean": q_mean}
    state.step += 1
    if state.step % config.policy_delay == 0:
        policy_loss, cloning = actor_loss(state, batch, config)
        _step(state.actor_optimizer, state.actor, policy_loss)
        metrics |= {"actor_loss": policy_loss.detach(), "bc_loss": cloning}
        blend = get_ema_multi_avg_fn(1 - config.tau)
        for target, online in ((state.target_actor, state.actor), (state.target_critics, state.critics)):
            blend([*target.parameters()], [*online.parameters()], 0)
    return metrics


def policy_network(state: TD3BCState) -> tuple[nn.Module, dict[str, Any]]:
    return state.actor, state.actor.arguments


TD3BC = Algorithm(
    kind="transitions",
    create=create,
    update=update,
    policy_network=policy_network,
    network=Actor,
    policy=MarkovPolicy,
)
