"""The Decision Transformer's arithmetic: masks, shortcuts, dropout, schedule, history."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from raystitch.data.episodes import EpisodeDataset
from raystitch.trainers.batches import RatioSampler
from raystitch.trainers.config import DataSpec, DTConfig
from raystitch.trainers.data import build_data
from raystitch.trainers.dt import DTPolicy, action_loss, create, learning_rate, networks, update
from raystitch.trainers.dt_model import DecisionTransformer, TransformerBlock, dropout
from raystitch.trainers.loop import train_policy
from raystitch.trainers.ratio import parse_ratio
from raystitch.trainers.stacked import stack

S, B, K, OBS, ACT = 1, 5, 6, 3, 2
TINY = DTConfig(train_steps=3, batch_size=8, context=K, width=16, num_layers=2, num_heads=2)


@pytest.fixture
def model() -> DecisionTransformer:
    torch.manual_seed(0)
    return DecisionTransformer(
        obs_dim=OBS, act_dim=ACT, width=16, num_layers=2, num_heads=2, context=K, max_time=30, rate=0.1
    )


def _inputs(steps: int = K) -> list[Tensor]:
    torch.manual_seed(1)
    time = torch.randint(0, 20, (S, B, 1)) + torch.arange(steps)
    return [torch.randn(S, B, steps, OBS), torch.randn(S, B, steps, ACT), torch.randn(S, B, steps), time]


def test_padding_at_the_end_changes_nothing(model: DecisionTransformer) -> None:
    obs, action, rtg, time = _inputs(4)
    alone = model(obs, action, rtg, time)
    padded = [torch.cat([x, torch.full_like(x[:, :, :2], 7)], 2) for x in (obs, action, rtg, time)]
    torch.testing.assert_close(model(*padded)[:, :, :4], alone)


def test_an_action_depends_on_the_past_only(model: DecisionTransformer) -> None:
    inputs = [x.requires_grad_() if x.is_floating_point() else x for x in _inputs()]
    model(*inputs)[:, :, 2].sum().backward()
    obs, action, rtg = (x.grad for x in inputs[:3])
    assert obs is not None
    assert action is not None
    assert rtg is not None
    assert obs[:, :, :3].abs().amin() > 0
    assert not obs[:, :, 3:].any()
    assert rtg[:, :, :3].abs().amin() > 0
    assert not rtg[:, :, 3:].any()
    assert action[:, :, :2].abs().amin() > 0
    assert not action[:, :, 2:].any()


def test_last_block_for_state_tokens_alone_equals_the_whole_block(model: DecisionTransformer) -> None:
    x, block = torch.randn(S, B, 3 * K, 16), model.blocks[-1]
    states = block(x, model.future, None, queries=slice(1, None, 3))
    torch.testing.assert_close(states, block(x, model.future, None)[:, :, 1::3])


def test_times_past_the_largest_trained_one_share_its_embedding(model: DecisionTransformer) -> None:
    obs, action, rtg, _ = _inputs()
    late = [model(obs, action, rtg, torch.full((S, B, K), time)) for time in (30, 500)]
    torch.testing.assert_close(*late)


def test_dropout_rate_scale_and_seed() -> None:
    x = torch.ones(1, 1001, 7)
    dropped = dropout(x, 0.1, [torch.Generator().manual_seed(0)])
    assert abs(float((dropped == 0).float().mean()) - 0.1) < 0.02
    torch.testing.assert_close(dropped.max(), torch.tensor(1 / 0.9))
    assert torch.equal(dropped, dropout(x, 0.1, [torch.Generator().manual_seed(0)]))
    assert dropout(x, 0.1, None) is x


def test_attention_equals_torchs(model: DecisionTransformer) -> None:
    torch.manual_seed(2)
    query, key, value = torch.randn(3, S, B, 3 * K, 16)
    block = model.blocks[0]
    assert isinstance(block, TransformerBlock)
    ours = block._attend(query, key, value, model.future, None)
    q, k, v = (x[0].unflatten(-1, (2, 8)).transpose(1, 2) for x in (query, key, value))
    theirs = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(ours[0], theirs.transpose(1, 2).flatten(2))


def test_bf16_products_are_close(model: DecisionTransformer) -> None:
    torch.manual_seed(0)
    rough = DecisionTransformer(**model.arguments, bf16=True)
    exact, rounded = (network(*_inputs()) for network in (model, rough))
    assert rounded.dtype == torch.float32
    assert 0 < (exact - rounded).abs().max() < 0.01


def test_learning_rate_schedule() -> None:
    config = DTConfig(train_steps=100, learning_rate=1.0, warmup_fraction=0.1, decay="cosine", final_fraction=0.2)
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert rates[9] == rates[10] == 1
    assert rates[55] == pytest.approx(0.6)
    assert 0.2 < rates[99] < 0.21
    assert all(late <= early for early, late in pairwise(rates[10:]))
    assert learning_rate(99, DTConfig(train_steps=100, warmup_fraction=0, learning_rate=0.3)) == 0.3
    linear = DTConfig(train_steps=100, warmup_fraction=0, learning_rate=1, decay="linear")
    assert learning_rate(75, linear) == pytest.approx(0.25)


def test_loss_ignores_padding(drift: EpisodeDataset) -> None:
    data = build_data(drift, DataSpec(kind="sequences", device="cpu"))
    policy = train_policy(data, "dt", TINY)
    assert isinstance(policy.network, DecisionTransformer)
    length = torch.tensor([[int(drift.lengths[0])] * 2])
    batch = data.windows(torch.zeros(1, 2, dtype=torch.int64), length - 2, length, K)
    batch.action[~batch.valid] = 1e6
    batch.obs[~batch.valid] = -1e6
    loss = action_loss(policy.network, batch, None)
    predicted = policy.network(batch.obs, batch.action, batch.rtg, batch.time)[:, :, :2]
    torch.testing.assert_close(loss[0], (predicted - batch.action[:, :, :2]).square().mean())


def test_seeds_in_turn_and_all_at_once_make_the_same_step(drift: EpisodeDataset) -> None:
    """A CPU takes them in turn, a GPU at once."""
    data = build_data(drift, DataSpec(kind="sequences", device="cpu"))
    seeds, ratio = range(3), parse_ratio("1:0")
    torch.manual_seed(0)
    start = stack([networks(data, ratio, TINY)["model"] for _ in seeds])
    stepped: list[list[Tensor]] = []
    for at_once in (False, True):
        state = create({"model": copy.deepcopy(start)}, TINY)
        assert len(state.turns) == 3
        state.turns = [state.model] if at_once else state.turns
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        sampler = RatioSampler(data, ratio, TINY.batch_size, generators)
        losses = [update(state, data.windows(*sampler.draw(), K), TINY, generators)["loss"] for _ in range(3)]
        stepped.append([*losses, *state.model.parameters()])
    for one, other in zip(*stepped, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert len(set(stepped[0][0].tolist())) == 3


def test_acting_is_the_forward_pass_over_the_last_steps(drift: EpisodeDataset) -> None:
    data = build_data(drift, DataSpec(kind="sequences", device="cpu"))
    policy = train_policy(data, "dt", TINY)
    assert isinstance(policy, DTPolicy)
    assert isinstance(policy.network, DecisionTransformer)
    rng = np.random.default_rng(0)
    steps, kept = K + 3, np.array([0, 2])
    obs = rng.normal(size=(steps, 3, 4)).astype(np.float32)
    reward = rng.normal(size=(steps, 3))
    policy.reset(3, target_return=2.5)
    actions = []
    for step in range(steps):
        if step == 4:
            policy.keep(kept)
            obs, reward = obs[:, kept], reward[:, kept]
        actions.append(policy.act(obs[step]))
        policy.observe(reward[step])
    asked = 2.5 - np.concatenate([np.zeros((1, 2)), np.cumsum(reward, 0)[:-1]])
    window = slice(-K, None)
    past = np.stack([action[kept] if len(action) == 3 else action for action in actions])
    past[-1] = 0  # the action to come is unknown, and unseen by its own state token
    inputs = (
        torch.as_tensor(data.normalizer.encode(obs)).transpose(0, 1)[:, window],
        torch.as_tensor(past).transpose(0, 1)[:, window],
        torch.as_tensor((asked / data.rtg_scale).astype(np.float32)).T[:, window],
        torch.arange(steps).expand(2, -1)[:, window],
    )
    expected = policy.network(*(x[None] for x in inputs))[0]
    np.testing.assert_allclose(actions[-1], expected[:, -1].detach().numpy(), atol=1e-5)
