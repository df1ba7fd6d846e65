"""What batches contain, against episodes rebuilt one by one."""

import dataclasses

import numpy as np
import pytest
import torch

from raystitch.buffer.bridges import BridgeSet
from raystitch.buffer.episodes import joined as joined_episodes
from raystitch.buffer.episodes import rebuild
from raystitch.data.episodes import Episode, EpisodeDataset, from_episodes
from raystitch.errors import UserError
from raystitch.shaping.config import ShapingConfig, WeightConfig
from raystitch.trainers.batches import RatioSampler, TrainData
from raystitch.trainers.config import DataSpec
from raystitch.trainers.data import build_data
from raystitch.trainers.ratio import parse_ratio
from raystitch.trainers.segments import top_episodes

CONTEXT = 8


def _all_steps(data: TrainData, first: int, episodes: EpisodeDataset) -> None:
    """Every step of every episode of ``data`` from ``first`` on equals the rebuilt episodes'."""
    for index, episode in enumerate(episodes):
        steps = torch.arange(len(episode.actions))
        where = torch.full_like(steps, first + index)
        batch = data.transitions(where, steps)
        np.testing.assert_allclose(batch.action.numpy(), episode.actions, rtol=1e-6)
        np.testing.assert_allclose(batch.reward.numpy(), episode.rewards, rtol=1e-6)
        expected = data.normalizer.encode(episode.observations)
        np.testing.assert_array_equal(batch.obs.numpy(), expected[:-1])
        windows = data.windows(where, steps, torch.full_like(steps, len(steps)), CONTEXT)
        returns = np.cumsum(episode.rewards[::-1].astype(np.float64))[::-1]
        for start in range(len(steps)):
            count = min(CONTEXT, len(steps) - start)
            assert windows.valid[start].tolist() == [True] * count + [False] * (CONTEXT - count)
            taken = slice(start, start + count)
            assert windows.time[start, :count].tolist() == list(range(start, start + count))
            np.testing.assert_array_equal(windows.obs[start, :count].numpy(), expected[:-1][taken])
            np.testing.assert_allclose(windows.action[start, :count].numpy(), episode.actions[taken], rtol=1e-6)
            np.testing.assert_allclose(
                windows.rtg[start, :count].numpy() * data.rtg_scale, returns[taken], atol=2e-5 * data.rtg_scale
            )


def _cut(dataset: EpisodeDataset, limit: int | None) -> EpisodeDataset:
    episodes = [
        Episode(episode.observations[: len(rewards) + 1], episode.actions[:limit], rewards, False, True)
        for episode in dataset
        for rewards in [episode.rewards[:limit]]
    ]
    return from_episodes(episodes, name="cut", action_low=dataset.action_low, action_high=dataset.action_high)


@pytest.mark.parametrize("limit", [60, 20, None])
def test_stitched_windows_are_the_rebuilt_episodes(
    drift: EpisodeDataset, bridges: BridgeSet, limit: int | None
) -> None:
    assert drift.env is not None
    dataset = dataclasses.replace(drift, env=dataclasses.replace(drift.env, max_episode_steps=limit))
    data = build_data(dataset, DataSpec(kind="sequences", data="stitched", device="cpu"), bridges=bridges)
    # A source that ran to the time limit leaves no room for a bridge.
    reached = bridges.take(np.flatnonzero(bridges.source_step < (limit or np.inf)))
    assert limit != 20 or 0 < len(reached) < len(bridges)
    rebuilt = rebuild(dataset, reached).episodes
    assert data.augmented.length.tolist() == rebuilt.lengths.tolist()
    _all_steps(data, data.augmented.first_episode, rebuilt)
    original = _cut(dataset, limit)  # what was recorded beyond the limit is cut as stitched episodes are
    _all_steps(data, 0, original)
    assert data.return_max == pytest.approx(original.returns.max(), abs=1e-5)
    assert data.max_time(parse_ratio("1:0")) == original.lengths.max() - 1
    assert data.max_time(parse_ratio("1:1")) == max(original.lengths.max(), rebuilt.lengths.max()) - 1


def test_joined_windows_are_the_joined_episodes(drift: EpisodeDataset, bridges: BridgeSet) -> None:
    data = build_data(drift, DataSpec(kind="sequences", data="joined", device="cpu"), joined=bridges)
    _all_steps(data, data.augmented.first_episode, joined_episodes(drift, bridges).episodes)


def test_joined_transitions_are_original_ones_and_never_cross_the_seam(
    drift: EpisodeDataset, bridges: BridgeSet
) -> None:
    data = build_data(drift, DataSpec(kind="transitions", data="joined", device="cpu"), joined=bridges)
    assert len(data.observations) == len(drift.observations)
    episode, step = (x[0] for x in data.augmented.draw(20_000, [torch.Generator().manual_seed(0)]))
    batch = data.transitions(episode, step)
    # The pool is the dataset, so equal observation rows mean equal transitions; count how often each is drawn.
    rows, _ = data._rows(episode, step)
    assert torch.equal(batch.next_obs, data.observations[data.obs_row[rows] + 1])
    drawn = np.bincount(rows.numpy(), minlength=drift.num_transitions) / 20_000
    contained = np.zeros(drift.num_transitions)
    for pair in range(len(bridges)):
        source, target = int(bridges.source_episode[pair]), int(bridges.target_episode[pair])
        left = min(int(bridges.source_step[pair]), 60)
        contained[drift.offsets[source] : drift.offsets[source] + left] += 1
        start = int(drift.offsets[target] + bridges.target_step[pair])
        contained[start : min(int(drift.offsets[target + 1]), start + 60 - left)] += 1
    expected = contained / contained.sum()
    assert np.abs(drawn - expected).max() < 5 * np.sqrt(expected.max() / 20_000)
    assert not drawn[expected == 0].any()


def test_bridge_transitions_are_never_terminal(drift: EpisodeDataset, bridges: BridgeSet) -> None:
    data = build_data(drift, DataSpec(kind="transitions", data="stitched", device="cpu"), bridges=bridges)
    assert int(data.augmented.length.sum()) == bridges.num_transitions
    for index in range(len(bridges)):
        steps = torch.arange(int(bridges.gap[index]) + 1)
        batch = data.transitions(torch.full_like(steps, data.augmented.first_episode + index), steps)
        start = int(bridges.offsets[index]) + index
        states = data.normalizer.encode(bridges.observations[start : start + len(steps) + 1])
        np.testing.assert_array_equal(batch.obs.numpy(), states[:-1])
        np.testing.assert_array_equal(batch.next_obs.numpy(), states[1:])
        assert not batch.done.any()
    everything = torch.arange(drift.num_episodes)
    last = data.transitions(everything, torch.as_tensor(drift.lengths) - 1)
    assert last.done.bool().tolist() == drift.terminated.tolist()


def test_tails_are_the_episodes_without_their_prefix(drift: EpisodeDataset, bridges: BridgeSet) -> None:
    data = build_data(
        drift, DataSpec(kind="transitions", data="stitched", synthetic="tails", device="cpu"), bridges=bridges
    )
    whole = rebuild(drift, bridges).episodes
    left = np.minimum(bridges.source_step, 60)
    reached = whole.lengths > left  # a bridge past the time limit is not there
    assert data.augmented.length.tolist() == (whole.lengths - left)[reached].tolist()
    for at, index in enumerate(np.flatnonzero(reached)):
        steps = torch.arange(int(data.augmented.length[at]))
        batch = data.transitions(torch.full_like(steps, data.augmented.first_episode + at), steps)
        here = slice(int(whole.offsets[index] + left[index]), int(whole.offsets[index + 1]))
        np.testing.assert_allclose(batch.reward.numpy(), whole.rewards[here], atol=1e-6)


def test_transitions_without_a_next_state_are_left_out(drift: EpisodeDataset) -> None:
    dataset = dataclasses.replace(drift, final_observed=np.arange(drift.num_episodes) % 2 == 0)
    lost = drift.num_episodes // 2
    assert (
        int(build_data(dataset, DataSpec(kind="transitions", device="cpu")).original.length.sum())
        == drift.num_transitions - lost
    )
    assert (
        int(build_data(dataset, DataSpec(kind="sequences", device="cpu")).original.length.sum())
        == drift.num_transitions
    )


def test_a_terminal_transition_needs_no_next_state(drift: EpisodeDataset) -> None:
    """D4RL files without next_observations lack the state after a termination, not the termination."""
    ended = np.arange(drift.num_episodes) % 2 == 0
    lacking = dataclasses.replace(
        drift, final_observed=np.zeros(drift.num_episodes, np.bool_), terminated=ended, truncated=~ended
    )
    data = build_data(lacking, DataSpec(kind="transitions", device="cpu"))
    assert data.original.length.tolist() == (lacking.lengths - ~ended).tolist()


def test_every_batch_has_exactly_the_ratio(drift: EpisodeDataset, bridges: BridgeSet) -> None:
    data = build_data(drift, DataSpec(kind="sequences", data="stitched", device="cpu"), bridges=bridges)
    sampler = RatioSampler(data, parse_ratio("2:1"), 64, [torch.Generator().manual_seed(0)])
    for _ in range(20):
        episode, step, length = sampler.draw()
        assert int((episode < drift.num_episodes).sum()) == 43
        assert (step < length).all()
        assert (step >= 0).all()


def test_episodes_are_drawn_in_proportion_to_length(drift: EpisodeDataset) -> None:
    data = build_data(drift, DataSpec(kind="sequences", device="cpu"))
    episode, step = (x[0] for x in data.original.draw(50_000, [torch.Generator().manual_seed(0)]))
    share = np.bincount(episode.numpy(), minlength=drift.num_episodes) / 50_000
    assert np.abs(share - drift.lengths / drift.num_transitions).max() < 0.005
    position = (step / data.original.length[episode]).numpy()
    assert abs(position.mean() - 0.5 * (1 - (1 / drift.lengths).mean())) < 0.02


def test_bridges_are_drawn_uniformly_when_asked(drift: EpisodeDataset, bridges: BridgeSet) -> None:
    data = build_data(
        drift, DataSpec(kind="transitions", data="stitched", uniform_over="bridges", device="cpu"), bridges=bridges
    )
    episode = data.augmented.draw(50_000, [torch.Generator().manual_seed(0)])[0][0]
    share = np.bincount(episode.numpy() - data.augmented.first_episode, minlength=len(bridges)) / 50_000
    assert np.abs(share - 1 / len(bridges)).max() < 0.005
    assert (bridges.gap.max() + 1) / (bridges.gap.mean() + 1) > 1.2


def test_seeds_draw_from_their_own_generators(drift: EpisodeDataset, bridges: BridgeSet) -> None:
    data = build_data(drift, DataSpec(kind="transitions", data="stitched", device="cpu"), bridges=bridges)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    together = RatioSampler(data, parse_ratio("1:1"), 16, generators)
    alone = RatioSampler(data, parse_ratio("1:1"), 16, [torch.Generator().manual_seed(4)])
    for _ in range(3):
        for both, one in zip(together.draw(), alone.draw(), strict=True):
            assert torch.equal(both[1], one[0])


def test_weighted_and_duplicated(drift: EpisodeDataset) -> None:
    duplicated = build_data(drift, DataSpec(kind="transitions", data="duplicated", device="cpu"))
    assert duplicated.augmented.length.tolist() == duplicated.original.length.tolist()
    weighted = build_data(drift, DataSpec(kind="transitions", data="weighted", device="cpu"))
    episode = weighted.augmented.draw(5000, [torch.Generator().manual_seed(0)])[0][0]
    drawn = drift.returns[(episode - weighted.augmented.first_episode).numpy()]
    assert drawn.mean() > drift.returns.mean() + drift.returns.std()
    again = build_data(
        drift,
        DataSpec(
            kind="transitions",
            data="duplicated",
            shaping=ShapingConfig(weights=WeightConfig(name="rw")),
            device="cpu",
        ),
    )
    assert torch.equal(again.augmented.cumulative, weighted.augmented.cumulative)


def test_top_fraction_keeps_the_best_episodes(drift: EpisodeDataset, bridges: BridgeSet) -> None:
    data = build_data(
        drift, DataSpec(kind="transitions", data="stitched", top_fraction=0.1, device="cpu"), bridges=bridges
    )
    assert (len(data.original), len(data.augmented)) == (4, 5)
    assert data.original.length.tolist() == drift.lengths[np.sort(np.argsort(-drift.returns)[:4])].tolist()
    best = np.sort(np.argsort(-rebuild(drift, bridges).episodes.returns)[:5])
    assert data.augmented.length.tolist() == (bridges.gap[best] + 1).tolist()
    assert top_episodes(np.zeros(10), 0.01).tolist() == [0]


def test_user_errors(drift: EpisodeDataset, bridges: BridgeSet) -> None:
    nothing = bridges.take(np.zeros(0, np.int64))
    data = build_data(drift, DataSpec(kind="transitions", data="stitched", device="cpu"), bridges=nothing)
    with pytest.raises(UserError, match="no accepted bridge"):
        RatioSampler(data, parse_ratio("1:1"), 8, [torch.Generator()])
    RatioSampler(data, parse_ratio("1:0"), 8, [torch.Generator()]).draw()
    with pytest.raises(UserError, match="needs bridges"):
        build_data(drift, DataSpec(kind="transitions", data="stitched"))
    with pytest.raises(UserError, match="needs pairs"):
        build_data(drift, DataSpec(kind="sequences", data="joined"))
    unbounded = dataclasses.replace(drift, action_high=np.full(2, np.inf, np.float32))
    with pytest.raises(UserError, match="bounded"):
        build_data(unbounded, DataSpec(kind="transitions"))


def test_actions_and_observations_are_scaled_by_the_original_alone(drift: EpisodeDataset, bridges: BridgeSet) -> None:
    wider = dataclasses.replace(drift, action_low=np.full(2, -4, np.float32), action_high=np.full(2, 2, np.float32))
    data = build_data(wider, DataSpec(kind="transitions", data="stitched", device="cpu"), bridges=bridges)
    np.testing.assert_allclose(data.actions.numpy()[: drift.num_transitions], (drift.actions + 1) / 3, atol=1e-6)
    np.testing.assert_allclose(data.observations.numpy()[: len(drift.observations)].mean(0), 0, atol=1e-4)
