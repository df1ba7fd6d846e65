"""IQL's losses against torchrl's, its schedule, and the scale of its rewards."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.modules import IndependentNormal, ProbabilisticActor, ValueOperator
from torchrl.objectives import IQLLoss

from raystitch.data.episodes import EpisodeDataset
from raystitch.trainers.batches import TrainData, TransitionBatch
from raystitch.trainers.config import DataSpec, IQLConfig
from raystitch.trainers.data import build_data
from raystitch.trainers.iql import (
    GaussianActor,
    IQLState,
    actor_loss,
    create,
    critic_loss,
    networks,
    reward_scale,
    target_q,
    update,
    value_loss,
)
from raystitch.trainers.mlp import TwinCritic
from raystitch.trainers.ratio import parse_ratio
from tests.trainers.conftest import plain

CONFIG = IQLConfig(hidden=16, gamma=0.97, expectile=0.8, temperature=30.0, reward_range=0, train_steps=10)


@pytest.fixture
def data(drift: EpisodeDataset) -> TrainData:
    return build_data(drift, DataSpec(kind="transitions", device="cpu"))


@pytest.fixture
def state(data: TrainData) -> IQLState:
    torch.manual_seed(0)
    state = create(networks(data, parse_ratio("1:0"), CONFIG), CONFIG)
    with torch.no_grad():
        state.actor.log_std.copy_(torch.tensor([-0.4, 0.3]))
        for parameter in state.target_critics.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        # In the middle of what the targets say, so that advantages have both signs.
        state.value.net.layers()[-1][1].add_(-0.6)
    return state


@pytest.fixture
def batch(data: TrainData) -> TransitionBatch:
    episode, step = data.original.draw(64, [torch.Generator().manual_seed(0)])
    return data.transitions(episode, step)


class _Gaussian(nn.Module):
    """Mean and spread as torchrl wants them, without seeds."""

    def __init__(self, actor: GaussianActor) -> None:
        super().__init__()
        self.net, self.log_std = plain(actor.net, 0), nn.Parameter(actor.log_std[0].detach().clone())

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = torch.tanh(self.net(obs))
        return mean, self.log_std.exp().expand_as(mean)


class _Of(nn.Module):
    """A value or Q network of what it is given."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.net(torch.cat(inputs, -1))


def _copy_critics(ours: TwinCritic, theirs: Any) -> None:
    """Our pair into torchrl's functional parameters, which stack the critics'."""
    pair = [plain(ours.net, 0, index) for index in (0, 1)]
    for key, value in theirs.flatten_keys(".").items():
        value.data.copy_(torch.stack([net.get_parameter(key.split("net.")[1]).detach() for net in pair]))


def test_losses_equal_torchrls(state: IQLState, batch: TransitionBatch) -> None:
    module = TensorDictModule(_Gaussian(state.actor), ["observation"], ["loc", "scale"])
    actor = ProbabilisticActor(
        module, in_keys=["loc", "scale"], distribution_class=IndependentNormal, distribution_kwargs={"tanh_loc": False}
    )
    keys = ["observation", "action"]
    critics: list[TensorDictModule] = [
        ValueOperator(_Of(plain(state.critics.net, 0, index)), in_keys=keys) for index in (0, 1)
    ]
    theirs = IQLLoss(
        actor,
        critics,
        ValueOperator(_Of(plain(state.value.net, 0))),
        loss_function="l2",
        temperature=CONFIG.temperature,
        expectile=CONFIG.expectile,
    )
    theirs.make_value_estimator(gamma=CONFIG.gamma)
    _copy_critics(state.critics, theirs.qvalue_network_params)
    _copy_critics(state.target_critics, theirs.target_qvalue_network_params)
    done = batch.done[0].bool()[:, None]
    assert done.any()
    table = TensorDict(
        {
            "observation": batch.obs[0],
            "action": batch.action[0],
            "next": {
                "observation": batch.next_obs[0],
                "reward": batch.reward[0, :, None],
                "done": done,
                "terminated": done,
            },
        },
        [64],
    )
    q, v, next_v = target_q(state, batch), state.value(batch.obs).detach(), state.value(batch.next_obs).detach()
    weights = (CONFIG.temperature * (q - v)).exp()
    assert ((weights < 1).any(), (weights > 100).any()) == (True, True)

    def same(ours: torch.Tensor, expected: torch.Tensor) -> None:
        torch.testing.assert_close(ours, expected.sum()[None])

    same(critic_loss(state, batch, CONFIG, next_v)[0], theirs.qvalue_loss(table.clone())[0])
    same(value_loss(state, batch, CONFIG, q), theirs.value_loss(table.clone())[0])
    same(actor_loss(state, batch, CONFIG, q - v), theirs.actor_loss(table.clone())[0])


def test_an_update_moves_every_network_and_the_actor_ever_less(state: IQLState, batch: TransitionBatch) -> None:
    before = copy.deepcopy(state)
    assert all(torch.isfinite(value).all() for value in update(state, batch, CONFIG, []).values())
    for name in ("actor", "value", "critics", "target_critics"):
        pairs = zip(vars(before)[name].parameters(), vars(state)[name].parameters(), strict=True)
        assert not any(torch.equal(old, new) for old, new in pairs), name
    old, new, online = (next(net.parameters()) for net in (before.target_critics, state.target_critics, state.critics))
    torch.testing.assert_close(new, old + CONFIG.tau * (online - old))
    assert state.actor_optimizer.param_groups[0]["lr"] == CONFIG.learning_rate
    state.step = CONFIG.train_steps // 2
    update(state, batch, CONFIG, [])
    assert state.actor_optimizer.param_groups[0]["lr"] == pytest.approx(CONFIG.learning_rate / 2)
    assert state.critic_optimizer.param_groups[0]["lr"] == CONFIG.learning_rate


def test_the_spread_is_bounded(state: IQLState, batch: TransitionBatch) -> None:
    densities = []
    for log_std in (-5.0, -50.0, 2.0, 20.0):
        state.actor.log_std.data.fill_(log_std)
        densities.append(state.actor.log_prob(batch.obs, batch.action).detach())
    torch.testing.assert_close(densities[0], densities[1])
    torch.testing.assert_close(densities[2], densities[3])


def test_returns_of_the_original_data_span_the_range_asked_for(drift: EpisodeDataset, data: TrainData) -> None:
    span = float(np.ptp(drift.returns))
    assert reward_scale(data, IQLConfig()) == pytest.approx(1000 / span, rel=1e-4)
    assert reward_scale(
        build_data(drift, DataSpec(kind="transitions", data="duplicated", device="cpu")), IQLConfig(reward_range=50)
    ) == (pytest.approx(50 / span, rel=1e-4))
    assert reward_scale(data, CONFIG) == 1
    one = build_data(drift.subset(np.array([0])), DataSpec(kind="transitions", device="cpu"))
    assert reward_scale(one, IQLConfig()) == 1
