"""Returns-to-go relabelled by a value function (QDT): the recursion, the windows, V, and the policy that is asked."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raystitch.buffer.bridges import BridgeSet
from raystitch.buffer.episodes import rebuild
from raystitch.data.episodes import EpisodeDataset, Floats, Ints
from raystitch.data.made import make_grid
from raystitch.envs.grid import GOAL, MOVES, SIZE, move_of, step_grid
from raystitch.errors import UserError
from raystitch.io.cache import Scratch
from raystitch.shaping.config import ReturnConfig, ShapingConfig
from raystitch.shaping.returns import RETURNS, PooledEpisodes
from raystitch.trainers.batches import TrainData, rebuilt
from raystitch.trainers.config import DataMode, DataSpec, DTConfig
from raystitch.trainers.data import build_data
from raystitch.trainers.loop import train_policies, train_policy
from raystitch.trainers.policy import Policy
from raystitch.trainers.pool import TransitionPool
from raystitch.trainers.registry import load_policy
from raystitch.trainers.value import state_values

QUICK = ReturnConfig(name="qdt", gamma=0.9, steps=30, batch_size=16, hidden=8)
TINY = DTConfig(train_steps=3, batch_size=8, context=4, width=16, num_layers=1)


def spec(data: DataMode = "original", returns: ReturnConfig = QUICK, **fields: Any) -> DataSpec:
    fields = {"kind": "sequences", "device": "cpu", **fields}
    return DataSpec(data=data, shaping=ShapingConfig(returns=returns), **fields)


def pooled(dataset: EpisodeDataset, values: Floats) -> PooledEpisodes:
    """Return the recorded episodes with the value of every observation, float32 [N + E]."""
    return PooledEpisodes(
        start=dataset.offsets[:-1, None],
        length=dataset.lengths[:, None],
        rewards=dataset.rewards,
        dones=dataset.transition_terminal.astype(np.float32),
        rest=np.zeros(dataset.num_transitions, np.float32),
        observations=dataset.observations,
        obs_row=dataset.obs_index,
        values=values,
    )


def optimal_values(gamma: float) -> np.ndarray[Any, Any]:
    """V* of the grid by value iteration, [x, y]; 0 at the goal, where every episode ends."""
    values = np.zeros((SIZE, SIZE))
    for _ in range(60):
        for cell in np.ndindex(SIZE, SIZE):
            if cell != GOAL:
                moves = [step_grid((int(cell[0]), int(cell[1])), move) for move in range(len(MOVES))]
                values[cell] = max(reward + gamma * values[there] for there, reward, _ in moves)
    return values


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_an_exact_value_gives_the_exact_optimal_returns_to_go(gamma: float) -> None:
    dataset = make_grid()
    values = optimal_values(gamma)
    assert values[0, 0] == pytest.approx(sum(-(gamma**t) for t in range(4)) + 10 * gamma**4)
    cells = dataset.observations.astype(int)
    episodes = pooled(dataset, values[cells[:, 0], cells[:, 1]].astype(np.float32))
    found = RETURNS["qdt"](ReturnConfig(name="qdt", gamma=gamma), episodes).values
    for row, action in enumerate(dataset.actions):
        x, y = cells[dataset.obs_index[row]]
        there, reward, _ = step_grid((int(x), int(y)), move_of(action))
        assert found[row] == pytest.approx(reward + gamma * values[there], abs=1e-4)  # Q*(s, a)


def test_without_any_value_ahead_the_returns_are_those_of_the_record(drift: EpisodeDataset) -> None:
    """V far below everything: R is the discounted sum, except that a time-out goes on with V."""
    low = np.full(len(drift.observations), -1e6, np.float32)
    episodes = pooled(drift, low)
    found = RETURNS["qdt"](QUICK, episodes).values
    ended = int(np.flatnonzero(drift.terminated)[0])
    rewards = drift.episode(ended).rewards.astype(np.float64)
    expected = [sum(0.9**k * r for k, r in enumerate(rewards[t:])) for t in range(len(rewards))]
    rows = slice(int(drift.offsets[ended]), int(drift.offsets[ended + 1]))
    np.testing.assert_allclose(found[rows], expected, atol=1e-4)
    cut = int(np.flatnonzero(~drift.terminated)[0])
    assert found[drift.offsets[cut + 1] - 1] == pytest.approx(drift.rewards[drift.offsets[cut + 1] - 1] - 9e5)


def test_only_the_last_return_of_a_window_stands() -> None:
    rng = np.random.default_rng(0)
    rtg, reward = (torch.tensor(rng.normal(size=(2, 3, 5)), dtype=torch.float32) for _ in range(2))
    count = torch.tensor([[5, 3, 1], [4, 2, 5]])
    found = rebuilt(rtg, reward, count, 0.9)
    for at in np.ndindex(2, 3):
        expected, last = rtg[at].clone(), int(count[at]) - 1
        for step in range(last - 1, -1, -1):
            expected[step] = reward[at][step] + 0.9 * expected[step + 1]
        torch.testing.assert_close(found[at], expected)


@dataclass(frozen=True)
class Seams:
    """Where episodes are joined."""

    source_episode: Ints
    source_step: Ints
    target_episode: Ints
    target_step: Ints


def joins(drift: EpisodeDataset) -> Seams:
    rng = np.random.default_rng(2)
    source, target = rng.integers(0, 20, 15), rng.integers(20, 40, 15)
    return Seams(source, rng.integers(0, drift.lengths[source]), target, rng.integers(0, drift.lengths[target]))


@pytest.mark.parametrize("data", ["original", "stitched", "joined"])
def test_windows_of_every_kind_of_data_follow_the_rule(
    drift: EpisodeDataset, bridges: BridgeSet, data: DataMode
) -> None:
    built = build_data(drift, spec(data), bridges=bridges, joined=joins(drift))
    assert built.return_rule is not None
    part = built.original if data == "original" else built.augmented
    assert len(part) > 0
    episode = torch.arange(len(part))[None] + part.first_episode
    window = built.windows(episode, torch.zeros_like(episode), part.length[None], 4)
    rtg, rows = window.rtg[0] * built.rtg_scale, built._rows(episode[..., None].expand_as(window.time), window.time)[0]
    reward = built.rewards[rows][0]
    inside = window.valid[0, :, 1:]
    torch.testing.assert_close(rtg[:, :-1][inside], (reward[:, :-1] + 0.9 * rtg[:, 1:])[inside], atol=1e-3, rtol=1e-4)
    # One step alone has the relabelled return, which is no smaller than the one rebuilt from a later step's.
    first = built.windows(episode, torch.zeros_like(episode), part.length[None], 1).rtg[0, :, 0] * built.rtg_scale
    assert (first >= rtg[:, 0] - 1e-3).all()
    assert built.return_rule.low <= float(first.min()) <= float(first.max()) <= built.return_rule.high + 1e-4


def test_values_are_learnt_and_stay_the_same() -> None:
    dataset = make_grid()
    asked = ReturnConfig(
        name="qdt", gamma=1.0, expectile=0.98, steps=600, batch_size=128, hidden=32, learning_rate=5e-3
    )
    data = build_data(dataset, spec(returns=asked))
    again = build_data(dataset, spec(returns=asked))
    assert torch.equal(data.rtg, again.rtg)
    # No episode is near the best way, which is worth 6; V puts them together.
    assert dataset.returns.max() + 2 < data.return_max < 6.5
    assert data.return_rule is not None and data.return_rule.gamma == 1


def test_v_is_kept_for_the_next_process(drift: EpisodeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = drift.num_transitions
    pool = TransitionPool(
        observations=torch.from_numpy(drift.observations),
        obs_row=torch.from_numpy(drift.obs_index),
        actions=torch.from_numpy(drift.actions),
        rewards=torch.from_numpy(drift.rewards),
        dones=torch.from_numpy(drift.transition_terminal.astype(np.float32)),
        rtg=torch.zeros(count),
    )
    usable, scratch, device = np.ones(count, np.bool_), Scratch("values", parent=tmp_path), torch.device("cpu")
    before = torch.get_rng_state()
    first = state_values(pool, QUICK, usable, device, scratch)
    assert torch.equal(before, torch.get_rng_state())
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    np.save(folder / "values.npy", first + 1)  # so that reading is told from fitting
    np.testing.assert_array_equal(state_values(pool, QUICK, usable, device, scratch), first + 1)
    other = state_values(pool, dataclasses.replace(QUICK, seed=1), usable, device, scratch)
    assert np.abs(other - first).max() > 1e-3
    with pytest.raises(UserError, match="transitions with a recorded next state, there is none"):
        state_values(pool, QUICK, ~usable, device, scratch)


def test_a_policy_goes_on_in_discounted_units(drift: EpisodeDataset, tmp_path: Path) -> None:
    data = build_data(drift, spec())
    policy = train_policy(data, "dt", TINY)
    policy.save(tmp_path)
    loaded = load_policy(tmp_path, "cpu")
    assert loaded.meta.return_rule == data.return_rule
    rule = data.return_rule
    assert rule is not None
    for acting in (policy, loaded):
        asked: Any = acting  # looks inside
        acting.reset(2, (rule.low + rule.high) / 2)
        before = asked._target * data.rtg_scale
        acting.act(drift.observations[:2])
        acting.observe(np.array([0.1, 1e6]))
        after = asked._target * data.rtg_scale
        assert float(after[0]) == pytest.approx(float((before[0] - 0.1) / 0.9), rel=1e-4)
        assert float(after[1]) == pytest.approx(rule.low, rel=1e-4)  # within what was trained on


def test_plain_policies_are_written_as_before(drift: EpisodeDataset, tmp_path: Path) -> None:
    policy = train_policy(build_data(drift, spec(returns=ReturnConfig())), "dt", TINY)
    assert policy.meta.return_rule is None
    assert "return_rule" not in policy.meta.to_json()
    assert "prompt" not in policy.meta.record["config"]


def test_seeds_share_what_they_are_asked_for(drift: EpisodeDataset) -> None:
    data: TrainData = build_data(drift, spec())
    policies = train_policies(data, "dt", TINY, "1:0", (3, 4))
    assert {policy.meta.return_max for policy in policies if isinstance(policy, Policy)} == {data.return_max}


def test_algorithms_without_returns_to_go_are_refused(drift: EpisodeDataset) -> None:
    with pytest.raises(UserError, match="returns: qdt changes returns-to-go"):
        build_data(drift, spec(kind="transitions"))


@pytest.mark.parametrize(
    ("setting", "value"), [("gamma", 0.0), ("gamma", 1.1), ("expectile", 1.0), ("steps", 0), ("seed", -1)]
)
def test_wrong_settings_are_quoted(setting: str, value: float) -> None:
    fields: Any = {setting: value}
    with pytest.raises(ValueError, match=f"{setting}={value}"):
        ReturnConfig(name="qdt", **fields)


def test_a_stitched_episode_is_promised_what_v_says_beyond_it(drift: EpisodeDataset, bridges: BridgeSet) -> None:
    """The values of a stitched episode's steps are those of the same episode written out."""
    built = build_data(drift, spec("stitched"), bridges=bridges)
    whole = rebuild(drift, bridges).episodes
    kept = np.flatnonzero(whole.lengths > np.minimum(bridges.source_step, 60))
    assert len(kept) == len(built.augmented)
    for at, index in list(enumerate(kept))[:5]:
        episode = torch.tensor([[at + built.augmented.first_episode]])
        length = built.augmented.length[at][None, None]
        steps = int(length)
        promised = [
            float(built.windows(episode, torch.tensor([[t]]), length, 1).rtg) * built.rtg_scale for t in range(steps)
        ]
        reward = whole.episode(int(index)).rewards
        for t in range(steps - 1):  # no less than going on as recorded
            assert promised[t] >= reward[t] + 0.9 * promised[t + 1] - 1e-3
