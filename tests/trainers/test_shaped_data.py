"""Weights, rewards and returns-to-go reach the batches that algorithms train on."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raystitch.buffer.bridges import BridgeSet
from raystitch.buffer.episodes import rebuild
from raystitch.data.episodes import EpisodeDataset
from raystitch.io.cache import Scratch
from raystitch.shaping.config import ReturnConfig, RewardConfig, ShapingConfig, WeightConfig
from raystitch.shaping.facts import DataFacts
from raystitch.shaping.returns import RETURNS, EpisodeReturns, PooledEpisodes, pool_rows, step_returns
from raystitch.shaping.rewards import REWARDS, StoredSteps
from raystitch.shaping.weights import WEIGHTS, EpisodeFacts
from raystitch.trainers import ALGORITHMS
from raystitch.trainers.batches import TrainData, WindowBatch
from raystitch.trainers.config import DataSpec, DTConfig, Kind
from raystitch.trainers.data import build_data
from raystitch.trainers.loop import train_policy
from tests.trainers.test_pool import batches

TOY: Any = "toy"


def docked(config: RewardConfig, steps: StoredSteps) -> np.ndarray[Any, Any]:
    """A penalty on generated steps that grows along the bridge; real steps are paid double."""
    return np.where(steps.generated, steps.rewards - 1 - steps.position, 2 * steps.rewards).astype(np.float32)


def by_episode(config: ReturnConfig, episodes: PooledEpisodes) -> EpisodeReturns:
    """Something that no sum over runs gives: 1,000 x the episode's length, and the observation of each row."""
    own = np.repeat(episodes.length.sum(1), episodes.length.sum(1)) * 1000
    seen = episodes.observations[episodes.obs_row[pool_rows(episodes)], 0]
    return step_returns((own + seen).astype(np.float32), episodes)


def longest_best(config: WeightConfig, episodes: EpisodeFacts) -> np.ndarray[Any, Any]:
    """Only the episodes of the largest return, of which there may be several."""
    return (episodes.returns >= np.sort(episodes.returns)[-3]).astype(np.float64)


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry, toy in ((REWARDS, docked), (RETURNS, by_episode), (WEIGHTS, longest_best)):
        entries: Any = registry
        monkeypatch.setitem(entries, "toy", toy)


def spec(kind: Kind, **shaping: Any) -> DataSpec:
    return DataSpec(kind=kind, data="stitched", device="cpu", shaping=ShapingConfig(**shaping))


def shaped_by_hand(drift: EpisodeDataset, bridges: BridgeSet) -> tuple[EpisodeDataset, BridgeSet]:
    place = np.concatenate([np.arange(gap + 1) for gap in bridges.gap])
    real, made = (2 * drift.rewards).astype(np.float32), (bridges.rewards - 1 - place).astype(np.float32)
    return dataclasses.replace(drift, rewards=real), dataclasses.replace(bridges, rewards=made)


@pytest.mark.parametrize("kind", ["transitions", "sequences"])
def test_shaped_rewards_are_those_of_data_that_are_stored_so(
    drift: EpisodeDataset, bridges: BridgeSet, kind: Kind
) -> None:
    asked = spec(kind, rewards=RewardConfig(name=TOY))
    shaped = build_data(drift, asked, bridges=bridges)
    dataset, made = shaped_by_hand(drift, bridges)
    stored = build_data(dataset, spec(kind), bridges=made)
    for one, other in zip(batches(shaped), batches(stored), strict=True):
        assert torch.equal(one, other)
    assert (shaped.rtg_scale, shaped.return_max) == (stored.rtg_scale, stored.return_max)
    assert shaped.return_span == stored.return_span
    assert shaped.dataset_fingerprint == drift.fingerprint  # the trajectories are the same
    assert not torch.equal(shaped.rewards, build_data(drift, spec(kind), bridges=bridges).rewards)


def test_files_of_shaped_rewards_are_not_those_of_the_recorded_ones(
    drift: EpisodeDataset, bridges: BridgeSet, tmp_path: Path
) -> None:
    scratch = Scratch("pools", parent=tmp_path)
    for rewards in (RewardConfig(), RewardConfig(name=TOY)):
        asked = spec("sequences", rewards=rewards)
        memory = build_data(drift, asked, bridges=bridges)
        mapped = build_data(drift, dataclasses.replace(asked, memory_gib=0), bridges=bridges, scratch=scratch)
        for one, other in zip(batches(memory), batches(mapped), strict=True):
            assert torch.equal(one, other)
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2


def test_what_a_buffer_keeps_of_each_step_reaches_the_rule(
    drift: EpisodeDataset, bridges: BridgeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[StoredSteps] = []
    entries: Any = REWARDS

    def look(config: RewardConfig, steps: StoredSteps) -> np.ndarray[Any, Any]:
        seen.append(steps)
        return steps.rewards

    monkeypatch.setitem(entries, "toy", look)
    numbers = np.random.default_rng(0).uniform(0, 1, (2, bridges.num_transitions)).astype(np.float32)
    kept = dataclasses.replace(bridges, residual=numbers[0], spread=numbers[1])
    build_data(drift, spec("transitions", rewards=RewardConfig(name=TOY)), bridges=kept)
    real, generated = seen
    assert len(real) == drift.num_transitions
    assert not real.generated.any()
    assert generated.gap.tolist() == np.repeat(bridges.gap, bridges.gap + 1).tolist()
    assert generated.position[:3].tolist() == [0, 1, 2]
    np.testing.assert_array_equal(generated.residual, numbers[0])
    np.testing.assert_array_equal(generated.spread, numbers[1])


@pytest.mark.parametrize("kind", ["transitions", "sequences"])
def test_cut_ends_stitched_episodes_as_time_outs(
    drift: EpisodeDataset, bridges: BridgeSet, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubt = np.concatenate([np.arange(gap + 1) for gap in bridges.gap]).astype(np.float32)
    kept = dataclasses.replace(bridges, residual=doubt, spread=doubt)
    limits = {"residual_sum": np.full(3, 3.5, np.float32)}  # 0 + 1 + 2 is less, + 3 is more
    monkeypatch.setattr(
        "raystitch.buffer.shaped.data_facts", lambda dataset, _: DataFacts(dataset=dataset, limits=limits, first_gap=1)
    )
    asked = dataclasses.replace(spec(kind, rewards=RewardConfig(name="cut")), synthetic="episodes")
    data = build_data(drift, asked, bridges=kept)
    whole = build_data(drift, dataclasses.replace(asked, shaping=ShapingConfig()), bridges=kept)
    drawn = rebuild(drift, bridges).episodes.lengths
    there = np.flatnonzero(kept.source_step < 60)  # the others end before their bridge does
    assert len(there) == len(data.augmented) == len(whole.augmented)
    long = kept.gap[there] >= 3
    assert long.any() and not long.all()
    before = whole.augmented.length.numpy()
    expected = np.where(long, np.minimum(before, kept.source_step[there] + 3), before)
    np.testing.assert_array_equal(data.augmented.length.numpy(), expected)
    assert (expected < before).any() and (drawn[there] >= before).all()
    assert not data.dones[drift.num_transitions :].any()


@pytest.mark.parametrize("kind", ["transitions", "sequences"])
def test_sources_are_drawn_alike_however_many_bridges_leave_them(
    drift: EpisodeDataset, bridges: BridgeSet, kind: Kind
) -> None:
    asked = dataclasses.replace(spec(kind, weights=WeightConfig(name="sources")), synthetic="episodes")
    data = build_data(drift, asked, bridges=bridges)
    there = bridges.source_episode[bridges.source_step < 60]
    weights = np.diff(data.augmented.cumulative.numpy(), prepend=0) / data.augmented.length.numpy()
    weights /= weights.max()
    np.testing.assert_allclose(weights, [1 / (there == source).sum() / weights_of(there) for source in there])


def weights_of(sources: np.ndarray[Any, Any]) -> float:
    """The largest 1 / k."""
    return float(1 / np.unique(sources, return_counts=True)[1].min())


def check_windows(data: TrainData, drift: EpisodeDataset, bridges: BridgeSet) -> None:
    """Every window of stitched episodes holds what ``by_episode`` promises."""
    whole = rebuild(drift, bridges).episodes
    kept = np.flatnonzero(whole.lengths > np.minimum(bridges.source_step, 60))
    assert len(kept) == len(data.augmented)
    for at, index in enumerate(kept):
        length = int(whole.lengths[index])
        start = torch.arange(length)[None]
        episode = torch.full_like(start, data.augmented.first_episode + at)
        windows = data.windows(episode, start, torch.full_like(start, length), 1)
        states = whole.observations[int(whole.obs_offsets[index]) :][:length]
        expected = length * 1000 + data.normalizer.encode(states)[:, 0]
        np.testing.assert_allclose(windows.rtg[0, :, 0].numpy() * data.rtg_scale, expected, rtol=1e-5)


@pytest.mark.parametrize("memory_gib", [1.0, 0.0])
def test_returns_of_a_step_may_differ_by_episode(
    drift: EpisodeDataset, bridges: BridgeSet, tmp_path: Path, memory_gib: float
) -> None:
    asked = dataclasses.replace(spec("sequences", returns=ReturnConfig(name=TOY)), memory_gib=memory_gib)
    data = build_data(drift, asked, bridges=bridges, scratch=Scratch("pools", parent=tmp_path))
    check_windows(data, drift, bridges)
    episode = torch.arange(len(data.original))[None]
    first = data.windows(episode, torch.zeros_like(episode), data.original.length[episode], context=1)
    promised = first.rtg[0, :, 0] * data.rtg_scale
    assert data.return_max == pytest.approx(float(promised.max()))  # what a policy asks for by itself
    assert data.rtg_scale == pytest.approx(float(promised.abs().max()))


def test_returns_by_episode_reach_the_batches_of_dt(
    drift: EpisodeDataset, bridges: BridgeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[WindowBatch] = []
    algorithm = ALGORITHMS["dt"]

    def watched(state: Any, batch: WindowBatch, *rest: Any) -> Any:
        seen.append(batch)
        return algorithm.update(state, batch, *rest)

    monkeypatch.setitem(ALGORITHMS, "dt", dataclasses.replace(algorithm, update=watched))
    data = build_data(drift, spec("sequences", returns=ReturnConfig(name=TOY)), bridges=bridges)
    config = DTConfig(train_steps=3, batch_size=16, context=4, width=16, num_layers=1)
    train_policy(data, "dt", config, "0:1", seed=1)
    lengths = set(data.augmented.length.tolist())
    assert len(seen) == 3
    for batch in seen:
        promised = batch.rtg[batch.valid] * data.rtg_scale
        assert {int(value) for value in (promised / 1000).round()} <= lengths


def test_weights_of_stitched_episodes_say_which_are_drawn(drift: EpisodeDataset, bridges: BridgeSet) -> None:
    returns = rebuild(drift, bridges).episodes.returns
    best = np.sort(np.argsort(-returns)[:3])
    for kind, length in (("sequences", None), ("transitions", bridges.gap[best] + 1)):
        asked: Any = spec(kind, weights=WeightConfig(name=TOY))  # pyright: ignore[reportArgumentType]
        data = build_data(drift, asked, bridges=bridges)
        assert len(data.augmented) == 3
        assert len(data.original) == drift.num_episodes  # the original part is never weighted
        if length is not None:
            assert data.augmented.length.tolist() == length.tolist()


def test_weighted_data_are_weighted_by_return_unless_other_weights_are_named(drift: EpisodeDataset) -> None:
    def drawn(data: Any, weights: WeightConfig) -> torch.Tensor:
        asked = DataSpec(kind="transitions", data=data, device="cpu", shaping=ShapingConfig(weights=weights))
        return build_data(drift, asked).augmented.cumulative

    rw = WeightConfig(name="rw")
    assert torch.equal(drawn("weighted", WeightConfig()), drawn("weighted", rw))
    assert torch.equal(drawn("weighted", rw), drawn("duplicated", rw))
    assert len(drawn("weighted", WeightConfig(name=TOY))) == 3
    other = drawn("weighted", WeightConfig(name="rw", temperature=1))
    assert not torch.equal(drawn("weighted", rw), other)
