from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from raystitch.data.episodes import EpisodeDataset
from raystitch.errors import UserError
from raystitch.models.bundle import Bundle
from raystitch.stitching.bridge import GAP_STREAM, imagine
from raystitch.stitching.candidates import REASONS, Candidates, Pairs
from raystitch.stitching.config import (
    GapConfig,
    GuidanceConfig,
    PairConfig,
    QualifyConfig,
    RepairConfig,
    SamplerConfig,
    StitchConfig,
)
from raystitch.stitching.gap import GAPS
from raystitch.stitching.pairs import pairs_from_trajectories, select_pairs
from raystitch.stitching.qualify import step_residuals
from raystitch.stitching.stitcher import Stitcher

SEEDS = np.arange(48) + 77
NO_REPAIR, NO_GUIDANCE = RepairConfig(rounds=0), GuidanceConfig(schedule="off")


def configured(
    gap_mode: str = "selected",
    micro_batch: int = 256,
    delta: float | str = "q99",
    repair: RepairConfig = NO_REPAIR,
    guidance: GuidanceConfig = NO_GUIDANCE,
    **gap: str,
) -> StitchConfig:
    return StitchConfig(
        pairs=PairConfig(mode="successor", terminal_margin=2, max_target_reuse=0),
        gap=GapConfig(mode=gap_mode, num_candidates=3, **gap),  # pyright: ignore[reportArgumentType]
        sampler=SamplerConfig(num_steps=3, micro_batch=micro_batch),
        guidance=guidance,
        repair=repair,
        qualify=QualifyConfig(delta=delta),
    )


@pytest.fixture(scope="module")
def pairs(world: EpisodeDataset, bundle: Bundle) -> Pairs:
    return select_pairs(world, bundle, configured(), SEEDS)


def same(first: Candidates, second: Candidates) -> None:
    """Equal ids, gaps and decisions, floats to 1e-4."""
    for column in fields(Candidates):
        one, two = getattr(first, column.name), getattr(second, column.name)
        if column.name == "first_row":
            continue
        if np.issubdtype(one.dtype, np.floating):
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4, err_msg=column.name)
        else:
            np.testing.assert_array_equal(one, two, column.name)


@pytest.mark.parametrize("gap_mode", sorted(GAPS))
def test_a_row_does_not_depend_on_its_batch_mates(gap_mode: str, bundle: Bundle, pairs: Pairs) -> None:
    whole = Stitcher(bundle, configured(gap_mode)).stitch(pairs, SEEDS)
    same(Stitcher(bundle, configured(gap_mode, micro_batch=5)).stitch(pairs, SEEDS), whole)
    order = np.random.default_rng(1).permutation(len(SEEDS))
    same(Stitcher(bundle, configured(gap_mode)).stitch(pairs.take(order), SEEDS[order]), whole.take(order))
    alone = np.array([17])
    same(Stitcher(bundle, configured(gap_mode)).stitch(pairs.take(alone), SEEDS[alone]), whole.take(alone))
    low, high = bundle.config.diffusion.gap_min, bundle.config.diffusion.gap_max
    assert whole.gap.min() >= low
    assert whole.gap.max() <= high


def test_the_seed_matters(bundle: Bundle, pairs: Pairs) -> None:
    stitcher = Stitcher(bundle, configured())
    first, second = stitcher.propose(pairs, SEEDS), stitcher.propose(pairs, SEEDS + 1)
    changed = np.abs(first.observations - second.observations).max((1, 2))
    assert (changed > 1e-4).all()


def test_candidates_are_what_the_models_say(bundle: Bundle, pairs: Pairs) -> None:
    """Every stored number, recomputed one row at a time."""
    config = configured()
    result = Stitcher(bundle, config).stitch(pairs, SEEDS)
    assert (result.actions >= bundle.action_low).all()
    assert (result.actions <= bundle.action_high).all()
    np.testing.assert_array_equal(result.first_row, np.arange(len(SEEDS)))
    thresholds = bundle.calibration.threshold("q99", result.gap)
    for row in range(len(SEEDS)):
        steps = int(result.gap[row]) + 1
        states = torch.from_numpy(result.observations[row, : steps + 1])
        actions = torch.from_numpy(result.actions[row, :steps])
        np.testing.assert_allclose(bundle.inverse(states[:-1], states[1:]).numpy(), actions.numpy(), atol=1e-5)
        mean, std = bundle.reward(states[:-1], actions, states[1:])
        np.testing.assert_allclose(result.rewards[row, :steps], mean.numpy(), atol=1e-4)
        pessimistic = (mean - config.qualify.kappa * std).numpy()
        value = sum(bundle.gamma**j * pessimistic[j] for j in range(steps))
        value += bundle.gamma**steps * float(pairs.return_target[row])
        np.testing.assert_allclose(result.return_stitched[row], value, rtol=1e-3, atol=1e-4)
        residual = bundle.dynamics.residual(states[:-1], actions, states[1:], "judges").numpy()
        np.testing.assert_allclose(result.residuals[row, :steps], residual, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(result.residual_max[row], residual.max(), rtol=1e-3)
        np.testing.assert_allclose(result.residual_mean[row], residual.mean(), rtol=1e-3)
        spread = bundle.dynamics.residual_and_spread(states[:-1], actions, states[1:], "judges")[1].numpy()
        np.testing.assert_allclose(result.spread_max[row], spread.max(), rtol=1e-3, atol=1e-6)
        ended = bundle.termination(states[1:-1]).max().item()
        np.testing.assert_allclose(result.termination_max[row], ended, rtol=1e-3, atol=1e-5)
        state = states[:1]
        for step in range(steps):
            state = bundle.dynamics.predict(state, actions[step : step + 1], "judges")
        deviation = bundle.standardizer.distance(state[0], states[-1]).item()
        np.testing.assert_allclose(result.rollout_deviation[row], deviation, rtol=1e-3, atol=1e-4)
        expected = (
            "residual"
            if residual.max() >= thresholds[row]
            else "termination"
            if ended > 0.5
            else "return"
            if value <= pairs.return_source[row]
            else "ok"
        )
        assert REASONS[int(result.reason[row])] == expected
        assert np.isnan(result.residuals[row, steps:]).all()
        assert not result.actions[row, steps:].any()
        assert not result.rewards[row, steps:].any()


@pytest.mark.filterwarnings("ignore:overflow")
def test_non_finite_rows_are_rejected_and_the_rest_goes_on(bundle: Bundle, pairs: Pairs) -> None:
    broken = replace(pairs, prefix=pairs.prefix.copy())
    broken.prefix[3] = 1e38
    for gap_mode in GAPS:
        stitcher = Stitcher(bundle, configured(gap_mode, delta="off"))
        result, healthy = stitcher.stitch(broken, SEEDS), stitcher.stitch(pairs, SEEDS)
        assert REASONS[int(result.reason[3])] == "non_finite"
        assert not result.accepted[3]
        others = np.arange(len(SEEDS)) != 3
        same(result.take(others), healthy.take(others))
        assert (result.reason[others] != REASONS.index("non_finite")).all()


def test_delta_off_accepts_what_delta_zero_rejects(bundle: Bundle, pairs: Pairs) -> None:
    none = Stitcher(bundle, configured(delta=0.0)).stitch(pairs, SEEDS)
    assert not none.accepted.any()
    assert (none.reason == REASONS.index("residual")).all()
    everything = Stitcher(bundle, configured(delta="off")).stitch(pairs, SEEDS)
    assert (everything.reason != REASONS.index("residual")).all()
    assert everything.accepted.any()
    np.testing.assert_allclose(none.residual_max, everything.residual_max, rtol=1e-5)


def test_residual_mode_keeps_the_gap_the_proposers_trust_most(bundle: Bundle, pairs: Pairs) -> None:
    def worst(gap: np.ndarray) -> np.ndarray:
        fixed = Stitcher(bundle, configured()).propose(replace(pairs, gap=gap), SEEDS)
        return np.nanmax(step_residuals(bundle, fixed.observations, fixed.actions, gap, "proposers")[0], axis=1)

    chosen = Stitcher(bundle, configured("residual")).propose(pairs, SEEDS).gap
    assert (worst(chosen) <= worst(pairs.gap) + 1e-5).all()
    assert (chosen != pairs.gap).any()


@pytest.mark.parametrize("similarity", ["cosine", "distance"])
def test_imagine_mode_is_the_most_similar_index(similarity: str, bundle: Bundle, pairs: Pairs) -> None:
    config = configured("imagine", similarity=similarity)
    gap = Stitcher(bundle, config).propose(pairs, SEEDS).gap
    future = imagine(bundle, pairs.prefix, pairs.prefix_length, SEEDS, config.sampler, stream=GAP_STREAM)
    for row in range(len(SEEDS)):
        target = bundle.normalizer.encode(pairs.suffix[row, 0])[bundle.normalizer.active]
        scores = [
            state @ target / (np.linalg.norm(state) * np.linalg.norm(target))
            if similarity == "cosine"
            else -np.linalg.norm(state - target)
            for state in future[row]
        ]
        assert scores[gap[row] - bundle.config.diffusion.gap_min] >= max(scores) - 1e-4


def test_caller_given_trajectories(world: EpisodeDataset, bundle: Bundle) -> None:
    source, target = world.episode(0), world.episode(2)
    pairs = pairs_from_trajectories(bundle, source.observations, target.observations, SEEDS[:8], gap=6)
    result = Stitcher(bundle).stitch(pairs, SEEDS[:8])
    assert (result.gap == 6).all()  # of the repairs too
    assert result.attempt[:8].tolist() == [0] * 8
    assert np.isfinite(result.residual_max).all()


def test_no_pairs_at_all(bundle: Bundle, pairs: Pairs) -> None:
    result = Stitcher(bundle, configured()).stitch(pairs.take(np.arange(0)), SEEDS[:0])
    assert len(result) == 0
    assert result.observations.shape[1:] == (18, 5)


def test_wrong_sizes_are_refused(bundle: Bundle, pairs: Pairs) -> None:
    with pytest.raises(ValueError, match="47 seeds for 48 pairs"):
        Stitcher(bundle).propose(pairs, SEEDS[:-1])
    narrow = replace(pairs, prefix=pairs.prefix[..., :3], suffix=pairs.suffix[..., :3])
    with pytest.raises(UserError, match="3 observation dimensions, the stitcher was fitted on 5"):
        Stitcher(bundle).propose(narrow, SEEDS)
