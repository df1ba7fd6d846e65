"""TD3+BC: A Minimalist Approach to Offline Reinforcement Learning (Fujimoto and Gu 2021, arXiv 2106.06860).

Actions are in [-1, 1] here: the bounds of the action space are applied when the policy acts. Legend: S seeds, B batch,
A action; losses are [S], one per seed.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from raystitch.device import uses_bf16
from raystitch.trainers.batches import TrainData, TransitionBatch
from raystitch.trainers.config import TD3BCConfig
from raystitch.trainers.mlp import Actor, TwinCritic
from raystitch.trainers.policy import MarkovPolicy
from raystitch.trainers.ratio import Ratio
from raystitch.trainers.state import Algorithm, Metrics, TrainState, apply_gradients, decay_rate, normal


@dataclass(kw_only=True)
class TD3BCState(TrainState):
    actor: Actor
    critics: TwinCritic
    target_actor: Actor
    target_critics: TwinCritic
    actor_optimizer: torch.optim.Adam
    critic_optimizer: torch.optim.Adam


def networks(data: TrainData, ratio: Ratio, config: TD3BCConfig) -> dict[str, nn.Module]:
    """Return the networks of one seed."""
    sizes = {"obs_dim": data.obs_dim, "act_dim": data.act_dim, "hidden": config.hidden, "num_layers": config.num_layers}
    bf16 = uses_bf16(config.precision, data.device)
    return {"actor": Actor(**sizes, bf16=bf16), "critics": TwinCritic(**sizes, bf16=bf16)}


def create(nets: Mapping[str, nn.Module], config: TD3BCConfig) -> TD3BCState:
    actor, critics = nets["actor"], nets["critics"]
    assert isinstance(actor, Actor)
    assert isinstance(critics, TwinCritic)
    return TD3BCState(
        actor=actor,
        critics=critics,
        target_actor=copy.deepcopy(actor).requires_grad_(False),
        target_critics=copy.deepcopy(critics).requires_grad_(False),
        actor_optimizer=torch.optim.Adam(actor.parameters(), lr=config.learning_rate, fused=True),
        critic_optimizer=torch.optim.Adam(critics.parameters(), lr=config.learning_rate, fused=True),
    )


def critic_loss(state: TD3BCState, batch: TransitionBatch, config: TD3BCConfig, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return the losses of clipped double-Q regression and the mean Q; ``noise`` is standard normal [S, B, A]."""
    with torch.no_grad():
        smoothing = (noise * config.policy_noise).clamp_(-config.noise_clip, config.noise_clip)
        next_action = (state.target_actor(batch.next_obs) + smoothing).clamp_(-1, 1)
        next_q = state.target_critics(batch.next_obs, next_action).amin(1)
        target = batch.reward + config.gamma * (1 - batch.done) * next_q
    q = state.critics(batch.obs, batch.action)
    return (q - target[:, None]).square().mean(-1).sum(-1), q[:, 0].detach().mean(-1)


def actor_loss(state: TD3BCState, batch: TransitionBatch, config: TD3BCConfig) -> tuple[Tensor, Tensor]:
    """Return -lambda Q(s, pi(s)) + (pi(s) - a)^2 with lambda = alpha / mean |Q| (Eq. 5), and its cloning part."""
    action = state.actor(batch.obs)
    q = state.critics.first(batch.obs, action)
    cloning = (action - batch.action).square().mean((-2, -1))
    return -config.alpha / q.detach().abs().mean(-1) * q.mean(-1) + cloning, cloning.detach()


def update(
    state: TD3BCState, batch: TransitionBatch, config: TD3BCConfig, generators: Sequence[torch.Generator]
) -> Metrics:
    """Do one critic step, and every ``policy_delay``-th time one actor step and one target step."""
    loss, q_mean = critic_loss(state, batch, config, normal(batch.action.shape, generators))
    apply_gradients(state.critic_optimizer, state.critics, loss)
    metrics = {"loss": loss.detach(), "q_mean": q_mean}
    state.step += 1
    if state.step % config.policy_delay == 0:
        if config.decay == "cosine":
            decay_rate(state.actor_optimizer, config.learning_rate, state.step - 1, config.train_steps)
        policy_loss, cloning = actor_loss(state, batch.for_actor, config)
        apply_gradients(state.actor_optimizer, state.actor, policy_loss)
        metrics |= {"actor_loss": policy_loss.detach(), "bc_loss": cloning}
        blend = get_ema_multi_avg_fn(1 - config.tau)
        for target, online in ((state.target_actor, state.actor), (state.target_critics, state.critics)):
            blend([*target.parameters()], [*online.parameters()], 0)
    return metrics


TD3BC = Algorithm(
    kind="transitions",
    networks=networks,
    create=create,
    update=update,
    actor=lambda state: state.actor,
    network=Actor,
    policy=MarkovPolicy,
)
