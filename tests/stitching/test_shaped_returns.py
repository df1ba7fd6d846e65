"""The returns that ``augment`` reports start from the shaped rewards; the rewards of bridges stay as generated."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from raystitch.data.episodes import EpisodeDataset
from raystitch.models.bundle import Bundle
from raystitch.shaping.config import RewardConfig
from raystitch.shaping.rewards import REWARDS, StoredSteps
from raystitch.stitching.config import StitchConfig
from raystitch.stitching.pairs import SourceIndex
from raystitch.stitching.stitcher import Stitcher

TOY: Any = "toy"


def one_more(config: RewardConfig, steps: StoredSteps) -> np.ndarray[Any, Any]:
    return (steps.rewards + np.where(steps.generated, 1, -1)).astype(np.float32)


def test_returns_of_pairs_and_bridges_count_the_shaped_rewards(
    world: EpisodeDataset, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries: Any = REWARDS
    monkeypatch.setitem(entries, "toy", one_more)
    seeds, shaped = np.arange(8), RewardConfig(name=TOY)
    stored = replace(world, rewards=(world.rewards - 1).astype(np.float32))
    pairs = SourceIndex(world, bundle, StitchConfig(), rewards=shaped).select(seeds)
    by_hand = SourceIndex(stored, bundle, StitchConfig()).select(seeds)
    np.testing.assert_array_equal(pairs.return_source, by_hand.return_source)
    np.testing.assert_array_equal(pairs.return_target, by_hand.return_target)

    plain = Stitcher(bundle, StitchConfig()).propose(pairs, seeds)
    found = Stitcher(bundle, StitchConfig(), rewards=shaped).propose(pairs, seeds)
    np.testing.assert_array_equal(plain.rewards, found.rewards)
    more = (
        bundle.gamma ** np.arange(plain.rewards.shape[1]) * (np.arange(plain.rewards.shape[1]) <= plain.gap[:, None])
    ).sum(1)
    np.testing.assert_allclose(found.return_stitched - plain.return_stitched, more, rtol=1e-4)
