"""TD3+BC's losses against torchrl's, and what one update touches."""

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import Bounded
from torchrl.modules import ValueOperator
from torchrl.objectives.td3_bc import TD3BCLoss

from raystitch.data.episodes import EpisodeDataset
from raystitch.trainers.batches import TrainData, TransitionBatch
from raystitch.trainers.config import DataSpec, TD3BCConfig
from raystitch.trainers.data import build_data
from raystitch.trainers.ratio import parse_ratio
from raystitch.trainers.td3bc import TD3BCState, actor_loss, create, critic_loss, networks, update
from tests.trainers.conftest import plain

CONFIG = TD3BCConfig(hidden=16, gamma=0.97, policy_noise=0.3, noise_clip=0.4, alpha=1.7)


@pytest.fixture
def data(drift: EpisodeDataset) -> TrainData:
    return build_data(drift, DataSpec(kind="transitions", device="cpu"))


@pytest.fixture
def state(data: TrainData) -> TD3BCState:
    torch.manual_seed(0)
    state = create(networks(data, parse_ratio("1:0"), CONFIG), CONFIG)
    for target in (state.target_actor, state.target_critics):
        for parameter in target.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return state


@pytest.fixture
def batch(data: TrainData) -> TransitionBatch:
    episode, step = data.original.draw(64, [torch.Generator().manual_seed(0)])
    return data.transitions(episode, step)


class _Policy(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.net(obs))


class _Q(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return self.net(torch.cat([obs, action], -1))


def _copy(ours: list[nn.Sequential], theirs: Any) -> None:
    """Weights into torchrl's functional parameters, which stack the critics'."""
    for key, value in theirs.flatten_keys(".").items():
        weights = [net.get_parameter(key.split("net.")[1]).detach() for net in ours]
        value.data.copy_(torch.stack(weights) if len(ours) > 1 else weights[0])


def test_losses_equal_torchrls(state: TD3BCState, batch: TransitionBatch) -> None:
    keys = ["observation", "action"]
    actor = TensorDictModule(_Policy(plain(state.actor.net, 0)), in_keys=["observation"], out_keys=["action"])
    pair = [plain(state.critics.net, 0, index) for index in (0, 1)]
    critics: list[TensorDictModule] = [ValueOperator(_Q(net), in_keys=keys) for net in pair]
    theirs = TD3BCLoss(
        actor,
        critics,
        action_spec=Bounded(-1.0, 1.0, torch.Size([2])),
        alpha=CONFIG.alpha,
        policy_noise=CONFIG.policy_noise,
        noise_clip=CONFIG.noise_clip,
        loss_function="l2",
    )
    theirs.make_value_estimator(gamma=CONFIG.gamma)
    _copy(pair, theirs.qvalue_network_params)
    _copy([plain(state.target_critics.net, 0, index) for index in (0, 1)], theirs.target_qvalue_network_params)
    _copy([plain(state.target_actor.net, 0)], theirs.target_actor_network_params)
    obs, action, next_obs, reward = batch.obs[0], batch.action[0], batch.next_obs[0], batch.reward[0]
    done = batch.done[0].bool()[:, None]
    table = TensorDict(
        {
            "observation": obs,
            "action": action,
            "next": {"observation": next_obs, "reward": reward[:, None], "done": done, "terminated": done},
        },
        [64],
    )
    assert done.any()
    torch.manual_seed(5)
    expected_critic, _ = theirs.qvalue_loss(table.clone())
    torch.manual_seed(5)
    loss, _ = critic_loss(state, batch, CONFIG, torch.randn_like(batch.action))
    torch.testing.assert_close(loss, expected_critic.sum()[None])
    expected_actor, _ = theirs.actor_loss(table.clone())
    ours, _ = actor_loss(state, batch, CONFIG)
    torch.testing.assert_close(ours, expected_actor[None])


def test_actor_and_targets_move_every_second_step(state: TD3BCState, batch: TransitionBatch) -> None:
    slow = (state.actor, state.target_actor, state.target_critics)
    before, critics = copy.deepcopy(slow), copy.deepcopy(state.critics)
    generator = [torch.Generator().manual_seed(0)]

    def same(left: nn.Module, right: nn.Module) -> bool:
        return all(torch.equal(a, b) for a, b in zip(left.parameters(), right.parameters(), strict=True))

    assert "actor_loss" not in update(state, batch, CONFIG, generator)
    assert all(same(*pair) for pair in zip(before, slow, strict=True))
    assert not same(critics, state.critics)
    assert "actor_loss" in update(state, batch, CONFIG, generator)
    assert not any(same(*pair) for pair in zip(before, slow, strict=True))
    old, new, online = (next(module.parameters()) for module in (before[1], state.target_actor, state.actor))
    torch.testing.assert_close(new, old + CONFIG.tau * (online - old))


def test_the_actors_learning_rate_can_decay(data: TrainData, batch: TransitionBatch) -> None:
    config = dataclasses.replace(CONFIG, decay="cosine", train_steps=8)
    state = create(networks(data, parse_ratio("1:0"), config), config)
    rates = []
    for _ in range(8):
        update(state, batch, config, [torch.Generator()])
        rates.append(state.actor_optimizer.param_groups[0]["lr"] / config.learning_rate)
    assert rates[5] == pytest.approx((1 + math.cos(math.pi * 5 / 8)) / 2)
    assert rates[7] < 0.04
    assert state.critic_optimizer.param_groups[0]["lr"] == config.learning_rate
