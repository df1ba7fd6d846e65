"""The best places to leave and to enter."""

from typing import Any

import numpy as np
import pytest

from raystitch.data.episodes import EpisodeDataset
from raystitch.models.bundle import Bundle
from raystitch.models.embedding import embed
from raystitch.stitching import cuts
from raystitch.stitching.candidates import Pairs
from raystitch.stitching.pairs import pairs_from_trajectories

SEEDS = np.arange(6, dtype=np.int64)


def given(world: EpisodeDataset, bundle: Bundle, **options: Any) -> Pairs:
    source, target = world.episode(1), world.episode(3)
    columns: dict[str, Any] = {
        "source_rewards": source.rewards,
        "source_actions": source.actions,
        "target_rewards": target.rewards,
        "target_actions": target.actions,
    } | options
    return pairs_from_trajectories(bundle, source.observations, target.observations, SEEDS, **columns)


def test_states_are_as_far_apart_as_the_gap_says(world: EpisodeDataset, bundle: Bundle) -> None:
    pairs = given(world, bundle)
    phi = [embed(bundle.embedding, world.episode(number).observations) for number in (1, 3)]
    apart = np.linalg.norm(phi[0][pairs.source_step] - phi[1][pairs.target_step], axis=-1)
    diffusion = bundle.config.diffusion
    np.testing.assert_array_equal(pairs.gap, np.clip(np.rint(apart - 1), diffusion.gap_min, diffusion.gap_max))


def test_the_first_row_promises_most(world: EpisodeDataset, bundle: Bundle) -> None:
    """Against every pair of states, in plain loops."""
    source, target = world.episode(1), world.episode(3)
    pairs = given(world, bundle)
    phi = [embed(bundle.embedding, episode.observations) for episode in (source, target)]
    diffusion, gamma = bundle.config.diffusion, bundle.gamma
    # What the target is worth from each of its states, as the pairs that enter there say.
    worth = dict(zip(pairs.target_step, pairs.return_target, strict=True))
    best = -np.inf
    for leave in range(len(source.observations)):
        for enter in range(len(target.observations) - 1):
            apart = np.linalg.norm(phi[0][leave] - phi[1][enter])
            if enter not in worth or apart - diffusion.gap_max - 1 > cuts.TIME_SLACK:
                continue
            gap = int(np.clip(np.rint(apart - 1), diffusion.gap_min, diffusion.gap_max))
            reward = (source.rewards[min(leave, len(source.rewards) - 1)] + target.rewards[enter]) / 2
            bridge = sum(gamma**step * reward for step in range(gap + 1)) + gamma ** (gap + 1) * worth[enter]
            before = sum(gamma**step * source.rewards[step] for step in range(leave))
            best = max(best, before + gamma**leave * bridge)
    first = [int(column[0]) for column in (pairs.source_step, pairs.target_step, pairs.gap)]
    reward = (source.rewards[min(first[0], len(source.rewards) - 1)] + target.rewards[first[1]]) / 2
    bridge = sum(gamma**step * reward for step in range(first[2] + 1)) + gamma ** (first[2] + 1) * worth[first[1]]
    total = sum(gamma**step * source.rewards[step] for step in range(first[0])) + gamma ** first[0] * bridge
    assert total == pytest.approx(best, rel=1e-4)


def test_a_given_gap_is_kept_and_looked_for(world: EpisodeDataset, bundle: Bundle) -> None:
    free, short = given(world, bundle), given(world, bundle, gap=3)
    assert short.gap.tolist() == [3] * 6
    assert not np.array_equal(free.source_step, short.source_step) or not np.array_equal(
        free.target_step, short.target_step
    )


def test_more_rows_than_states_share_them(world: EpisodeDataset, bundle: Bundle) -> None:
    source, target = world.episode(1).observations[:3], world.episode(3).observations
    pairs = pairs_from_trajectories(bundle, source, target, SEEDS)
    assert sorted(pairs.source_step.tolist()) == [0, 0, 1, 1, 2, 2]


def test_long_trajectories_are_thinned_out(
    world: EpisodeDataset, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuts, "MAX_STATES", 4)
    pairs = given(world, bundle)
    last = len(world.episode(1).actions)
    assert set(pairs.source_step.tolist()) <= {0, round(last / 3), round(2 * last / 3), last}
