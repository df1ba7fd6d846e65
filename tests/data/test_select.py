"""Splits of whole episodes."""

from dataclasses import replace

import numpy as np
import pytest

from raystitch.data.episodes import EpisodeDataset
from raystitch.data.select import holdout_split, low_high_split
from raystitch.errors import UserError


def test_sources_have_the_lowest_returns_and_targets_the_highest(drift: EpisodeDataset) -> None:
    sources, targets = low_high_split(drift, 0.5, 0.25)
    assert (len(sources), len(targets)) == (20, 10)
    assert drift.returns[sources].max() <= np.median(drift.returns)
    np.testing.assert_array_equal(np.sort(targets), np.sort(np.argsort(drift.returns)[-10:]))


def test_equal_returns_are_split_by_index(drift: EpisodeDataset) -> None:
    flat = replace(drift, rewards=np.zeros_like(drift.rewards))
    sources, targets = low_high_split(flat, 0.1, 0.1)
    np.testing.assert_array_equal(sources, [0, 1, 2, 3])
    np.testing.assert_array_equal(targets, [36, 37, 38, 39])


def test_tiny_fractions_give_one_episode(drift: EpisodeDataset) -> None:
    sources, targets = low_high_split(drift, 1e-6, 1e-6)
    assert (len(sources), len(targets)) == (1, 1)


def test_holdout_is_a_partition_that_depends_on_the_seed_alone() -> None:
    train, held_out = holdout_split(50, 0.1, seed=3)
    assert len(held_out) == 5
    np.testing.assert_array_equal(np.sort(np.concatenate([train, held_out])), np.arange(50))
    np.testing.assert_array_equal(holdout_split(50, 0.1, seed=3)[1], held_out)
    assert not np.array_equal(holdout_split(50, 0.1, seed=4)[1], held_out)


def test_both_parts_of_a_holdout_have_an_episode() -> None:
    assert [len(part) for part in holdout_split(2, 0.001, seed=0)] == [1, 1]
    assert [len(part) for part in holdout_split(3, 0.999, seed=0)] == [1, 2]
    with pytest.raises(UserError, match="at least 2 are needed"):
        holdout_split(1, 0.1, seed=0)
