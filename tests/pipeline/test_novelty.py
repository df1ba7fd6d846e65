"""Distances to real windows against a loop over all of them, and what copies and strangers come out as."""

from dataclasses import replace

import numpy as np
import pytest

from raystitch.data.episodes import EpisodeDataset
from raystitch.data.normalise import Normalizer
from raystitch.pipeline.validate.novelty import RealStates, nearest, novelty
from raystitch.pipeline.validate.windows import TransitionWindows, perturbed, real_windows


@pytest.fixture
def normalizer(drift: EpisodeDataset) -> Normalizer:
    return Normalizer.fit(drift.observations)


def pieces(drift: EpisodeDataset, count: int, seed: int = 0, episodes: int = 40) -> TransitionWindows:
    rng = np.random.default_rng(seed)
    return real_windows(drift, np.arange(episodes), rng.integers(3, 9, count), rng)


def test_search_finds_what_a_loop_finds(
    drift: EpisodeDataset, normalizer: Normalizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raystitch.pipeline.validate.novelty.CHUNK_NUMBERS", 997)  # many small chunks
    unobserved = replace(drift, final_observed=np.arange(40) % 2 == 0)
    queries = perturbed(pieces(drift, 12), normalizer, 0.3, np.random.default_rng(1))
    searched = np.arange(0, 40, 3)
    found = nearest(queries, RealStates.of(unobserved, searched, normalizer), normalizer)
    for row in range(len(queries)):
        gap = int(queries.gap[row])
        inner = normalizer.encode(queries.inner_states(np.array([row]))[0])
        smallest = [np.inf, np.inf]
        for episode in searched.tolist():
            states = normalizer.encode(drift.episode(episode).observations)
            states = states[: len(states) - (episode % 2)]
            for start in range(len(states) - gap + 1):
                distance = float(((states[start : start + gap] - inner).astype(np.float64) ** 2).sum() / gap)
                smallest[0] = min(smallest[0], distance)
                if episode != queries.episode[row]:
                    smallest[1] = min(smallest[1], distance)
        assert [values[row] for values in found] == pytest.approx(smallest, rel=1e-4)


def test_a_copy_is_at_distance_zero(drift: EpisodeDataset, normalizer: Normalizer) -> None:
    any_window, other = nearest(pieces(drift, 50), RealStates.of(drift, np.arange(40), normalizer), normalizer)
    assert (any_window == 0).all()
    assert (other > 0).all()


def test_nothing_long_enough_is_infinitely_far(drift: EpisodeDataset, normalizer: Normalizer) -> None:
    short = np.flatnonzero(drift.lengths < 15)
    windows = real_windows(drift, np.arange(40), np.full(5, 25), np.random.default_rng(0))
    found = nearest(windows, RealStates.of(drift, short, normalizer), normalizer)
    assert np.isinf(found).all()


def test_copies_and_strangers_are_told_apart(drift: EpisodeDataset, normalizer: Normalizer) -> None:
    train, held_out = np.arange(30), np.arange(30, 40)
    rng = np.random.default_rng(0)
    real = real_windows(drift, held_out, np.full(150, 5), rng)
    same = real_windows(drift, train, np.full(150, 5), rng)
    copies = novelty(same, real, drift, train, normalizer, np.random.default_rng(1))
    assert copies is not None
    assert copies["bridges"]["median"] == 0.0
    assert copies["copied_share"] == 1.0
    assert 0.4 < copies["ratio"] < 2.5
    assert 0.25 < copies["coverage"]["share"] < 0.75
    far = perturbed(same, normalizer, 3.0, rng)
    strangers = novelty(far, real, drift, train, normalizer, np.random.default_rng(1))
    assert strangers is not None
    assert strangers["ratio"] > 10
    assert strangers["copied_share"] == 0.0
    assert strangers["coverage"]["share"] < 0.05
    assert strangers["real"] == copies["real"]


def test_no_bridge_no_novelty(drift: EpisodeDataset, normalizer: Normalizer) -> None:
    windows = pieces(drift, 5)
    nothing = windows.take(np.zeros(0, np.int64))
    assert novelty(nothing, windows, drift, np.arange(40), normalizer, np.random.default_rng(0)) is None
