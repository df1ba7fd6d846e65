"""IQL: Offline Reinforcement Learning with Implicit Q-Learning (Kostrikov et al. 2021, arXiv 2110.06169).

The order of the updates, the schedule and the bounds of the policy's spread are the authors' code's. Actions are in
[-1, 1] here: the bounds of the action space are applied when the policy acts. Legend: S seeds, B batch, O observation,
A action; losses are [S], one per seed.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from raystitch.device import uses_bf16
from raystitch.trainers.batches import TrainData, TransitionBatch
from raystitch.trainers.config import IQLConfig
from raystitch.trainers.mlp import Actor, StackedMLP, TwinCritic
from raystitch.trainers.policy import MarkovPolicy
from raystitch.trainers.ratio import Ratio
from raystitch.trainers.state import Algorithm, Metrics, TrainState, apply_gradients, decay_rate

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0
MAX_WEIGHT = 100.0


class GaussianActor(Actor):
    """Normal policy with a tanh mean and a spread that does not depend on the state; it acts with the mean."""

    def __init__(self, *, obs_dim: int, act_dim: int, hidden: int, num_layers: int, bf16: bool = False) -> None:
        super().__init__(obs_dim=obs_dim, act_dim=act_dim, hidden=hidden, num_layers=num_layers, bf16=bf16)
        self.log_std = nn.Parameter(torch.zeros(1, 1, act_dim))

    def log_prob(self, obs: Tensor, action: Tensor) -> Tensor:
        """Return the log density of ``action`` [S, B, A], [S, B]."""
        log_std = self.log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)
        z = (action - self(obs)) * torch.exp(-log_std)
        return -(z.square() / 2 + log_std + math.log(2 * math.pi) / 2).sum(-1)


class Value(nn.Module):
    """V(s), [S, B, O] to [S, B], in units of reward * ``reward_scale`` (one number, the same for all seeds)."""

    def __init__(self, reward_scale: float, *, obs_dim: int, hidden: int, num_layers: int, bf16: bool = False) -> None:
        super().__init__()
        self.net = StackedMLP(obs_dim, 1, hidden, num_layers, bf16=bf16)
        self.register_buffer("reward_scale", torch.tensor(reward_scale))
        self.reward_scale: Tensor

    def forward(self, obs: Tensor) -> Tensor:
        return self.net(obs).squeeze(-1)


@dataclass(kw_only=True)
class IQLState(TrainState):
    actor: GaussianActor
    value: Value
    critics: TwinCritic
    target_critics: TwinCritic
    actor_optimizer: torch.optim.Adam
    value_optimizer: torch.optim.Adam
    critic_optimizer: torch.optim.Adam


def reward_scale(data: TrainData, config: IQLConfig) -> float:
    """Return the factor that makes the returns of the original data span ``reward_range``; 1 where all are equal."""
    span = data.return_span
    return config.reward_range / span if config.reward_range and span > 0 else 1.0


def networks(data: TrainData, ratio: Ratio, config: IQLConfig) -> dict[str, nn.Module]:
    """Return the networks of one seed."""
    sizes = {"hidden": config.hidden, "num_layers": config.num_layers, "bf16": uses_bf16(config.precision, data.device)}
    obs_dim, act_dim = data.obs_dim, data.act_dim
    return {
        "actor": GaussianActor(obs_dim=obs_dim, act_dim=act_dim, **sizes),
        "critics": TwinCritic(obs_dim=obs_dim, act_dim=act_dim, **sizes),
        "value": Value(reward_scale(data, config), obs_dim=obs_dim, **sizes),
    }


def create(nets: Mapping[str, nn.Module], config: IQLConfig) -> IQLState:
    actor, critics, value = nets["actor"], nets["critics"], nets["value"]
    assert isinstance(actor, GaussianActor)
    assert isinstance(critics, TwinCritic)
    assert isinstance(value, Value)
    return IQLState(
        actor=actor,
        value=value,
        critics=critics,
        target_critics=copy.deepcopy(critics).requires_grad_(False),
        actor_optimizer=torch.optim.Adam(actor.parameters(), lr=config.learning_rate, fused=True),
        value_optimizer=torch.optim.Adam(value.parameters(), lr=config.learning_rate, fused=True),
        critic_optimizer=torch.optim.Adam(critics.parameters(), lr=config.learning_rate, fused=True),
    )


@torch.no_grad()
def target_q(state: IQLState, batch: TransitionBatch) -> Tensor:
    """Return the smaller of the target critics for the data's actions, [S, B]."""
    return state.target_critics(batch.obs, batch.action).amin(1)


def value_loss(state: IQLState, batch: TransitionBatch, config: IQLConfig, q: Tensor) -> Tensor:
    """Return the loss of expectile regression of V on ``q`` [S, B] (Eq. 5)."""
    error = q - state.value(batch.obs)
    weight = torch.where(error > 0, config.expectile, 1 - config.expectile)
    return (weight * error.square()).mean(-1)


def critic_loss(state: IQLState, batch: TransitionBatch, config: IQLConfig, next_v: Tensor) -> tuple[Tensor, Tensor]:
    """Return the losses of regressing both Q on r + gamma V(s') (Eq. 6), ``next_v`` [S, B], and the mean Q."""
    target = state.value.reward_scale * batch.reward + config.gamma * (1 - batch.done) * next_v
    q = state.critics(batch.obs, batch.action)
    return (q - target[:, None]).square().mean(-1).sum(-1), q[:, 0].detach().mean(-1)


def actor_loss(state: IQLState, batch: TransitionBatch, config: IQLConfig, advantage: Tensor) -> Tensor:
    """Return the loss of cloning weighted by exp(beta * ``advantage``), [S, B] (Eq. 7)."""
    weight = torch.exp(config.temperature * advantage).clamp(max=MAX_WEIGHT)
    return -(weight * state.actor.log_prob(batch.obs, batch.action)).mean(-1)


def _actor_advantage(state: IQLState, batch: TransitionBatch, advantage: Tensor) -> Tensor:
    """Return the advantages of the transitions that the policy learns from; ``advantage`` are the batch's own."""
    if batch.actor is None:
        return advantage
    with torch.no_grad():
        return target_q(state, batch.actor) - state.value(batch.actor.obs)


def update(
    state: IQLState, batch: TransitionBatch, config: IQLConfig, generators: Sequence[torch.Generator]
) -> Metrics:
    """Do one step of V, then of the policy and of both Q with the new V, then of the targets."""
    q = target_q(state, batch)
    of_value = value_loss(state, batch, config, q)
    apply_gradients(state.value_optimizer, state.value, of_value)
    with torch.no_grad():
        v, next_v = state.value(torch.cat([batch.obs, batch.next_obs], 1)).chunk(2, 1)
    decay_rate(state.actor_optimizer, config.learning_rate, state.step, config.train_steps)
    of_actor = actor_loss(state, batch.for_actor, config, _actor_advantage(state, batch, q - v))
    apply_gradients(state.actor_optimizer, state.actor, of_actor)
    of_critics, q_mean = critic_loss(state, batch, config, next_v)
    apply_gradients(state.critic_optimizer, state.critics, of_critics)
    get_ema_multi_avg_fn(1 - config.tau)([*state.target_critics.parameters()], [*state.critics.parameters()], 0)
    state.step += 1
    return {
        "loss": (of_critics + of_value + of_actor).detach(),
        "critic_loss": of_critics.detach(),
        "q_mean": q_mean,
        "value_loss": of_value.detach(),
        "actor_loss": of_actor.detach(),
    }


IQL = Algorithm(
    kind="transitions",
    networks=networks,
    create=create,
    update=update,
    actor=lambda state: state.actor,
    network=GaussianActor,
    policy=MarkovPolicy,
)
