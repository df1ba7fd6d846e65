from dataclasses import replace

import numpy as np
import pytest

from raystitch.data.episodes import EpisodeDataset
from raystitch.models.bundle import Bundle
from raystitch.stitching.bridge import Draft
from raystitch.stitching.candidates import Candidates, Pairs
from raystitch.stitching.config import PairConfig, RepairConfig, SamplerConfig, StitchConfig
from raystitch.stitching.pairs import select_pairs
from raystitch.stitching.qualify import largest_residual
from raystitch.stitching.stitcher import Stitcher

SEEDS = np.arange(400) + 5
CONFIG = StitchConfig(
    pairs=PairConfig(mode="successor", terminal_margin=2, max_target_reuse=0),
    sampler=SamplerConfig(num_steps=2),
    repair=RepairConfig(rounds=2, repair_delta="q10", gap_shift=1),
)


@pytest.fixture(scope="module")
def pairs(world: EpisodeDataset, bundle: Bundle) -> Pairs:
    return select_pairs(world, bundle, CONFIG, SEEDS)


@pytest.fixture(scope="module")
def repaired(bundle: Bundle, pairs: Pairs) -> Candidates:
    return Stitcher(bundle, CONFIG).stitch(pairs, SEEDS)


def proposers(bundle: Bundle, rows: Candidates) -> np.ndarray:
    return largest_residual(bundle, rows.observations, rows.actions, rows.gap, "proposers")


def test_attempts_follow_the_first_ones_and_name_their_pair(repaired: Candidates, pairs: Pairs) -> None:
    count = len(pairs)
    np.testing.assert_array_equal(repaired.first_row[:count], np.arange(count))
    assert not repaired.attempt[:count].any()
    later = repaired.take(np.arange(count, len(repaired)))
    assert set(later.attempt) == {1, 2}
    for name in ("source_episode", "source_step", "target_episode", "target_step"):
        np.testing.assert_array_equal(getattr(later, name), getattr(pairs, name)[later.first_row])
    np.testing.assert_array_equal(later.seed, SEEDS[later.first_row])
    np.testing.assert_array_equal(later.observations[:, 0], pairs.prefix[later.first_row, -1])
    entered = later.observations[np.arange(len(later)), later.gap + 1]
    np.testing.assert_array_equal(entered, pairs.suffix[later.first_row, 0])


def test_only_what_the_proposers_doubt_is_tried_again(repaired: Candidates, bundle: Bundle) -> None:
    doubt = proposers(bundle, repaired) >= bundle.calibration.threshold("q10", repaired.gap, "proposers")
    for number in (1, 2):
        before = repaired.attempt == number - 1
        np.testing.assert_array_equal(
            np.sort(repaired.first_row[repaired.attempt == number]), np.sort(repaired.first_row[before & doubt])
        )


def test_repair_makes_most_doubted_bridges_better(repaired: Candidates, bundle: Bundle) -> None:
    residual = proposers(bundle, repaired)
    first, later = repaired.attempt == 0, repaired.attempt > 0
    best = np.full(int(first.sum()), np.inf)
    np.minimum.at(best, repaired.first_row[later], residual[later])
    doubted = np.isfinite(best)
    assert doubted.sum() >= 10
    assert np.median(best[doubted] / residual[first][doubted]) < 0.9


def test_first_the_same_gap_then_its_neighbours(repaired: Candidates, bundle: Bundle) -> None:
    first, second, third = (repaired.take(np.flatnonzero(repaired.attempt == number)) for number in range(3))
    np.testing.assert_array_equal(second.gap, first.gap[second.first_row])
    shift = third.gap - first.gap[third.first_row]
    assert len(third)
    assert (np.abs(shift) == 1).all()
    assert repaired.gap.min() >= bundle.config.diffusion.gap_min
    assert repaired.gap.max() <= bundle.config.diffusion.gap_max


def test_a_given_gap_is_kept(bundle: Bundle, pairs: Pairs) -> None:
    given = replace(pairs, gap=np.full(len(pairs), 7), gap_is_given=True)
    result = Stitcher(bundle, CONFIG).propose(given, SEEDS)
    assert (result.attempt > 0).any()
    assert (result.gap == 7).all()


def test_rows_do_not_depend_on_their_batch_mates(bundle: Bundle, pairs: Pairs, repaired: Candidates) -> None:
    small = replace(CONFIG, sampler=replace(CONFIG.sampler, micro_batch=7))
    again = Stitcher(bundle, small).stitch(pairs, SEEDS)
    for name in ("first_row", "attempt", "gap", "reason"):
        np.testing.assert_array_equal(getattr(again, name), getattr(repaired, name))
    for name in ("observations", "actions", "residual_max"):
        np.testing.assert_allclose(getattr(again, name), getattr(repaired, name), rtol=1e-4, atol=1e-4)


def test_switched_off(bundle: Bundle, pairs: Pairs) -> None:
    off = replace(CONFIG, repair=replace(CONFIG.repair, rounds=0))
    assert len(Stitcher(bundle, off).propose(pairs, SEEDS)) == len(pairs)


def test_a_draft_is_stretched_along_straight_lines() -> None:
    bridge = np.zeros((1, 6, 1), np.float32)
    bridge[0, :4, 0] = [0, 1, 2, 3]  # gap 2, evenly spaced: so is every other gap of it
    draft = Draft(bridge, np.array([2]), 0.5)
    for gap in (1, 2, 3, 4):
        states = draft.stretched(np.array([gap]))[0, : gap + 2, 0]
        np.testing.assert_allclose(states, np.linspace(0, 3, gap + 2), atol=1e-6)
