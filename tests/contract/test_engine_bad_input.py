"""What the stitching engine does with data and settings at the edge: a clear answer, and other rows never suffer.

A point pushed about in a plane with one constant dimension (O = 5, A = 2), and models that are fitted in seconds.
"""

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raystitch.buffer.config import AugmentConfig
from raystitch.data.episodes import EpisodeDataset, Ints
from raystitch.errors import RunError, UserError
from raystitch.models.bundle import Bundle
from raystitch.models.config import DiffusionConfig, FitConfig
from raystitch.models.fit import fit_bundle
from raystitch.models.samplers import SAMPLERS
from raystitch.pipeline.generate.augment import augment_local
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
from raystitch.stitching.pairs import pairs_from_trajectories, select_pairs
from raystitch.stitching.stitcher import Stitcher

SEEDS = np.arange(24) + 7
CONSTANT = 4
CONFIG = StitchConfig(
    pairs=PairConfig(terminal_margin=3, num_tries=2), qualify=QualifyConfig(termination_max=None, value_check=False)
)
NUMBERS = ("observations", "actions", "rewards", "return_stitched", "residual_max", "spread_max", "rollout_deviation")


@pytest.fixture(scope="module")
def plane(drift: EpisodeDataset) -> EpisodeDataset:
    column = np.full((len(drift.observations), 1), 0.1, np.float32)
    return replace(drift, env=None, observations=np.concatenate([drift.observations, column], 1))


@pytest.fixture(scope="module")
def fit_config(tiny_fit: FitConfig) -> FitConfig:
    return replace(tiny_fit, dynamics=replace(tiny_fit.dynamics, train_steps=200), gamma=0.95)


@pytest.fixture(scope="module")
def bundle(plane: EpisodeDataset, fit_config: FitConfig) -> Bundle:
    return fit_bundle(plane, fit_config, None, device="cpu")


@pytest.fixture(scope="module")
def pairs(plane: EpisodeDataset, bundle: Bundle) -> Pairs:
    return select_pairs(plane, bundle, CONFIG, SEEDS)


def of_pairs(candidates: Candidates, rows: Ints) -> Candidates:
    """All attempts at some of the pairs."""
    return candidates.take(np.isin(candidates.first_row, rows))


def assert_same(first: Candidates, second: Candidates) -> None:
    assert first.attempt.tolist() == second.attempt.tolist()
    assert first.gap.tolist() == second.gap.tolist()
    assert first.reason.tolist() == second.reason.tolist()
    for name in NUMBERS:
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), rtol=1e-4, atol=1e-4)


def assert_complete(result: Candidates, bundle: Bundle, seeds: Ints = SEEDS) -> None:
    """Every pair has its first attempt, a gap in range, finite numbers, a constant that is one, and real ends."""
    diffusion = bundle.config.diffusion
    assert result.first_row[: len(seeds)].tolist() == list(range(len(seeds)))
    assert (result.attempt[: len(seeds)] == 0).all()
    assert ((result.gap >= diffusion.gap_min) & (result.gap <= diffusion.gap_max)).all()
    for name in NUMBERS:
        assert np.isfinite(getattr(result, name)).all(), name
    exists = np.arange(diffusion.gap_max + 2) <= result.gap[:, None] + 1
    assert (result.observations[..., CONSTANT][exists] == np.float32(0.1)).all()


class TestStates:
    def test_far_outside_the_data(self, bundle: Bundle, pairs: Pairs) -> None:
        far = np.arange(0, len(pairs), 4)
        prefix, suffix = pairs.prefix.copy(), pairs.suffix.copy()
        away = 1e3 * bundle.normalizer.std * bundle.normalizer.active
        prefix[far[::2]] += away
        suffix[far[1::2]] -= away
        result = Stitcher(bundle, CONFIG).stitch(replace(pairs, prefix=prefix, suffix=suffix), SEEDS)
        assert_complete(result, bundle)
        hit = of_pairs(result, far)
        assert not hit.accepted.any()
        assert {REASONS[reason] for reason in hit.reason} == {"residual"}
        rest = np.setdiff1d(np.arange(len(pairs)), far)
        assert_same(of_pairs(result, rest), of_pairs(Stitcher(bundle, CONFIG).stitch(pairs, SEEDS), rest))

    def test_constant_dimensions_count_nowhere(self, plane: EpisodeDataset, bundle: Bundle, pairs: Pairs) -> None:
        """A caller whose constant has another value gets that value back, and the same bridges."""
        prefix, suffix = pairs.prefix.copy(), pairs.suffix.copy()
        prefix[..., CONSTANT] = suffix[..., CONSTANT] = 250.0
        plain = Stitcher(bundle, CONFIG).stitch(pairs, SEEDS)
        other = Stitcher(bundle, CONFIG).stitch(replace(pairs, prefix=prefix, suffix=suffix), SEEDS)
        exists = np.arange(plain.observations.shape[1]) <= other.gap[:, None] + 1
        assert (other.observations[..., CONSTANT][exists] == 250.0).all()
        other.observations[..., CONSTANT] = plain.observations[..., CONSTANT]
        assert_same(plain, other)

    def test_contexts_stay(self, plane: EpisodeDataset, fit_config: FitConfig) -> None:
        """A goal that is still within each episode: no model moves it, no generated state leaves it."""
        goal = np.random.default_rng(1).integers(0, 2, plane.num_episodes) * 5.0
        column = np.repeat(goal, plane.lengths + 1).astype(np.float32)
        dataset = replace(plane, observations=np.concatenate([plane.observations, column[:, None]], 1))
        bundle = fit_bundle(dataset, fit_config, None, device="cpu")
        obs = torch.from_numpy(dataset.observations[:50])
        act = torch.from_numpy(dataset.actions[:50])
        torch.testing.assert_close(
            bundle.dynamics.member_next(obs, act)[..., 4:], obs[:, 4:].expand(3, -1, -1), rtol=0, atol=1e-6
        )
        assert (bundle.dynamics.derivatives(obs, act, "proposers")[0][:, 5, :5] == 0).all()
        assert bundle.still.tolist() == [False] * 4 + [True] * 2
        result = Stitcher(bundle, CONFIG).stitch(select_pairs(dataset, bundle, CONFIG, SEEDS), SEEDS)
        exists = np.arange(result.observations.shape[1]) <= result.gap[:, None] + 1
        wanted = goal[result.source_episode]
        assert (np.where(exists, result.observations[..., 5], wanted[:, None]) == wanted[:, None]).all()

    def test_huge_and_tiny_scales(self, plane: EpisodeDataset, fit_config: FitConfig) -> None:
        scale = np.array([1e6, 1.0, 1e-6, 1.0, 1.0], np.float32)
        dataset = replace(plane, observations=plane.observations * scale)
        bundle = fit_bundle(dataset, fit_config, None, device="cpu")
        np.testing.assert_allclose(bundle.normalizer.encode(dataset.observations)[:, :4].std(0), 1, rtol=1e-3)
        result = Stitcher(bundle, CONFIG).stitch(select_pairs(dataset, bundle, CONFIG, SEEDS), SEEDS)
        assert_complete(result, bundle)

    @pytest.mark.parametrize(("dim", "factor"), [(0, 1e3), (3, 1e3), (2, 1e-3), (2, 1e-6)])
    def test_units_do_not_matter(
        self, plane: EpisodeDataset, bundle: Bundle, fit_config: FitConfig, pairs: Pairs, dim: int, factor: float
    ) -> None:
        scale = np.ones(5, np.float32)
        scale[dim] = factor
        dataset = replace(plane, observations=plane.observations * scale)
        rescaled = fit_bundle(dataset, fit_config, None, device="cpu")
        plain = Stitcher(bundle, CONFIG).stitch(pairs, SEEDS)
        other = Stitcher(rescaled, CONFIG).stitch(select_pairs(dataset, rescaled, CONFIG, SEEDS), SEEDS)
        first, second = plain.take(plain.attempt == 0), other.take(other.attempt == 0)
        assert (first.gap == second.gap).mean() >= 0.9
        assert (first.accepted == second.accepted).mean() >= 0.9
        np.testing.assert_allclose(np.median(first.residual_max), np.median(second.residual_max), rtol=0.05)


class TestTrajectories:
    def test_identical_ones_are_joined_like_any_others(self, plane: EpisodeDataset, bundle: Bundle) -> None:
        """A cycle or a shortcut within one trajectory is a fair wish: the pair is made, and judged like any other."""
        same = plane.episode(1).observations
        for cut in ("best", "ends"):
            pairs = pairs_from_trajectories(bundle, same, same, SEEDS, cut=cut)
            assert_complete(Stitcher(bundle, CONFIG).stitch(pairs, SEEDS), bundle)

    @pytest.mark.parametrize("cut", ["best", "ends"])
    def test_a_terminal_source_is_never_left_at_its_end(self, plane: EpisodeDataset, bundle: Bundle, cut: Any) -> None:
        source, target = plane.episode(0), plane.episode(1)
        pairs = pairs_from_trajectories(
            bundle,
            source.observations,
            target.observations,
            SEEDS,
            source_terminated=True,
            cut=cut,
            config=CONFIG.pairs,
        )
        assert (pairs.source_step <= len(source.actions) - 3).all()
        with pytest.raises(UserError, match="2 steps that end in a termination"):
            pairs_from_trajectories(
                bundle,
                source.observations[-3:],
                target.observations,
                SEEDS,
                source_terminated=True,
                cut=cut,
                config=CONFIG.pairs,
            )

    @pytest.mark.parametrize(("states", "cut"), itertools.product([2, 3, 5], ["best", "ends"]))
    def test_shorter_than_the_horizon(self, plane: EpisodeDataset, bundle: Bundle, states: int, cut: Any) -> None:
        source, target = plane.episode(1).observations, plane.episode(2).observations
        for first, second in ((source[:states], target), (source, target[:states]), (source[:states], target[:states])):
            pairs = pairs_from_trajectories(bundle, first, second, SEEDS, cut=cut)
            assert (pairs.target_step < len(second) - 1).all()
            assert_complete(Stitcher(bundle, CONFIG).stitch(pairs, SEEDS), bundle)

    def test_a_dataset_of_short_episodes(self, plane: EpisodeDataset, fit_config: FitConfig) -> None:
        short = replace(
            plane,
            observations=plane.observations[plane.obs_offsets[:-1, None] + np.arange(4)].reshape(-1, 5),
            actions=plane.actions[plane.offsets[:-1, None] + np.arange(3)].reshape(-1, 2),
            rewards=plane.rewards[plane.offsets[:-1, None] + np.arange(3)].ravel(),
            offsets=3 * np.arange(plane.num_episodes + 1),
            terminated=np.ones(plane.num_episodes, np.bool_),
            truncated=np.zeros(plane.num_episodes, np.bool_),
        )
        with pytest.raises(UserError, match="the longest has 4 states"):
            fit_bundle(short, fit_config, None, device="cpu")
        small = DiffusionConfig(
            horizon=4, width=8, multipliers=(1, 2), gap_min=1, gap_max=2, prefix_max=1, train_steps=20, batch_size=16
        )
        fitted = fit_bundle(short, replace(fit_config, diffusion=small), None, device="cpu")
        with pytest.raises(UserError, match="40 terminate, and none is long enough"):
            select_pairs(short, fitted, StitchConfig(pairs=PairConfig(split="value")), SEEDS)
        config = replace(CONFIG, pairs=PairConfig(split="value", terminal_margin=1))
        assert_complete(Stitcher(fitted, config).stitch(select_pairs(short, fitted, config, SEEDS), SEEDS), fitted)

    def test_nothing_to_calibrate_on_is_said_before_the_fit(self, plane: EpisodeDataset, fit_config: FitConfig) -> None:
        steps: list[str] = []
        longest = int(np.argmax(plane.lengths))
        few = plane.subset(np.array([longest, int(np.argmin(plane.lengths))]))
        diffusion = replace(fit_config.diffusion, horizon=40, gap_min=20, gap_max=30)
        said = 0
        for seed in range(8):  # whichever of the two is held out
            config = replace(fit_config, diffusion=diffusion, seed=seed)
            try:
                fit_bundle(few, config, None, device="cpu", progress=lambda step: steps.append(step.part))
            except UserError as error:
                said += "cannot be calibrated" in str(error) or "no fitted episode" in str(error)
        assert said == 8
        assert not steps


@contextmanager
def spoilt(parameter: torch.Tensor) -> Iterator[None]:
    """NaN in some weights of a network."""
    before = parameter.detach().clone()
    with torch.no_grad():
        parameter[0].fill_(torch.nan)
    yield
    with torch.no_grad():
        parameter.copy_(before)


class TestNetworks:
    def test_overflow_in_some_rows(self, bundle: Bundle, pairs: Pairs) -> None:
        """States that no float32 network survives: those rows go, the others are as they were."""
        hit = np.arange(0, len(pairs), 5)
        prefix = pairs.prefix.copy()
        prefix[hit, :, 0] = 1e38
        plain = Stitcher(bundle, CONFIG).stitch(pairs, SEEDS)
        result = Stitcher(bundle, CONFIG).stitch(replace(pairs, prefix=prefix), SEEDS)
        assert {REASONS[reason] for reason in of_pairs(result, hit).reason} == {"non_finite"}
        assert not of_pairs(result, hit).accepted.any()
        rest = np.setdiff1d(np.arange(len(pairs)), hit)
        assert_same(of_pairs(result, rest), of_pairs(plain, rest))

    @pytest.mark.parametrize("mode", ["successor", "imagine", "distance"])
    def test_unet_that_is_not_finite(self, plane: EpisodeDataset, bundle: Bundle, mode: Any) -> None:
        config = replace(CONFIG, pairs=replace(CONFIG.pairs, mode=mode))
        with spoilt(next(bundle.diffusion.parameters())):
            result = Stitcher(bundle, config).stitch(select_pairs(plane, bundle, config, SEEDS), SEEDS)
        assert len(result) == len(SEEDS)  # there is nothing that could be repaired
        assert {REASONS[reason] for reason in result.reason} == {"non_finite"}

    @pytest.mark.parametrize("mode", ["random", "imagine", "successor", "distance"])
    @pytest.mark.parametrize("solver", ["newton", "gradient"])
    def test_what_the_judges_think_never_reaches_a_proposal(
        self, plane: EpisodeDataset, bundle: Bundle, mode: Any, solver: Any
    ) -> None:
        """Pairs, gaps, guided states and repairs are the same when the judges know nothing."""
        first_judge = bundle.dynamics.mlp.num_members - bundle.dynamics.num_judges
        for gap_mode in ("imagine", "residual", "distance", "selected"):
            config = replace(
                CONFIG,
                pairs=replace(CONFIG.pairs, mode=mode),
                gap=GapConfig(mode=gap_mode),
                guidance=GuidanceConfig(solver=solver),
                repair=RepairConfig(rounds=2, repair_delta=0.0),
            )
            stitcher = Stitcher(bundle, config)
            before = stitcher.propose(select_pairs(plane, bundle, config, SEEDS), SEEDS)
            with ExitStack() as stack:
                for parameter in bundle.dynamics.mlp.parameters():
                    for judge in parameter[first_judge:]:
                        stack.enter_context(spoilt(judge))
                after = stitcher.propose(select_pairs(plane, bundle, config, SEEDS), SEEDS)
            for name in ("source_step", "target_step", "gap", "attempt", "observations", "actions", "return_stitched"):
                np.testing.assert_array_equal(getattr(after, name), getattr(before, name))

    @pytest.mark.parametrize("part", ["inverse", "dynamics", "reward", "termination"])
    def test_head_that_is_not_finite(self, bundle: Bundle, pairs: Pairs, part: str) -> None:
        mlp = getattr(bundle, part).mlp
        with spoilt(mlp.biases[-1][-1] if part == "dynamics" else mlp.biases[-1]):  # the last member is a judge
            result = Stitcher(bundle, CONFIG).stitch(pairs, SEEDS)
        assert not result.accepted.any()
        assert {REASONS[reason] for reason in result.reason} == {"non_finite"}


class TestSettings:
    def test_a_delta_that_nothing_passes(self, plane: EpisodeDataset, bundle: Bundle, tmp_path: Path) -> None:
        config = replace(CONFIG, qualify=replace(CONFIG.qualify, delta=1e-12))
        augment = AugmentConfig(num_bridges=10, pairs_per_shard=8, patience=2)
        with pytest.raises(RunError, match=r"none of the first \d+ candidates.*smallest residual \d.*residual \d+"):
            augment_local(plane, bundle, config, augment, out=tmp_path / "buffer")

    def test_no_pairs(self, plane: EpisodeDataset, bundle: Bundle) -> None:
        for mode in ("random", "imagine", "successor", "distance"):
            config = replace(CONFIG, pairs=replace(CONFIG.pairs, mode=mode))
            none = select_pairs(plane, bundle, config, SEEDS[:0])
            assert len(Stitcher(bundle, config).stitch(none, SEEDS[:0])) == 0

    def test_one_proposer_and_one_judge(self, plane: EpisodeDataset, fit_config: FitConfig) -> None:
        config = replace(fit_config, dynamics=replace(fit_config.dynamics, num_members=2), num_judges=1)
        fitted = fit_bundle(plane, config, None, device="cpu")
        result = Stitcher(fitted, CONFIG).stitch(select_pairs(plane, fitted, CONFIG, SEEDS), SEEDS)
        assert_complete(result, fitted)
        assert (result.spread_max == 0).all()
        assert result.accepted.any()
        with pytest.raises(UserError, match=r"qualify\.spread=q99 is the disagreement .* only one"):
            Stitcher(fitted, replace(CONFIG, qualify=QualifyConfig(spread="q99")))

    @pytest.mark.parametrize(
        "changes",
        [
            {"gap_min": 5, "gap_max": 5},
            {"prefix_max": 1},
            {"gap_min": 2, "gap_max": 14},  # the horizon holds the gap and its two ends
            {"gap_min": 14, "gap_max": 14, "prefix_max": 1},
        ],
        ids=["one gap", "one prefix state", "gap fills the horizon", "all of it"],
    )
    def test_extreme_windows(self, plane: EpisodeDataset, fit_config: FitConfig, changes: dict[str, int]) -> None:
        diffusion = replace(fit_config.diffusion, **changes)
        fitted = fit_bundle(plane, replace(fit_config, diffusion=diffusion), None, device="cpu")
        for mode in ("imagine", "successor"):
            config = replace(CONFIG, pairs=replace(CONFIG.pairs, mode=mode))
            for gap_mode in ("imagine", "residual", "distance", "selected"):
                config = replace(config, gap=replace(config.gap, mode=gap_mode))
                result = Stitcher(fitted, config).stitch(select_pairs(plane, fitted, config, SEEDS), SEEDS)
                assert_complete(result, fitted)

    @pytest.mark.parametrize("prediction", ["clean", "noise"])
    def test_every_sampler_with_every_solver_and_repair(
        self, plane: EpisodeDataset, fit_config: FitConfig, prediction: Any
    ) -> None:
        diffusion = replace(fit_config.diffusion, prediction=prediction, return_dropout=0.25)
        fitted = fit_bundle(plane, replace(fit_config, diffusion=diffusion), None, device="cpu")
        pairs, seeds = select_pairs(plane, fitted, CONFIG, SEEDS[:6]), SEEDS[:6]
        for name, solver, rounds, weight in itertools.product(SAMPLERS, ("newton", "gradient"), (0, 2), (0.0, 1.2)):
            names: dict[str, Any] = {"sampler": name, "solver": solver}
            config = replace(
                CONFIG,
                sampler=SamplerConfig(name=names["sampler"], num_steps=5, return_weight=weight),
                guidance=GuidanceConfig(solver=names["solver"], schedule="scheduled", last_steps=9),
                repair=RepairConfig(rounds=rounds, repair_delta=0.0),
            )
            result = Stitcher(fitted, config).stitch(pairs, seeds)
            assert_complete(result, fitted, seeds)
            assert len(result) == len(seeds) * (1 + rounds)


def test_bad_qualification_settings_are_quoted() -> None:
    for setting, value in (("termination_max", 1.5), ("kappa", -1.0), ("kappa", float("nan"))):
        changes: dict[str, Any] = {setting: value}
        with pytest.raises(ValueError, match=rf"{setting}={value}"):
            QualifyConfig(**changes)


def test_settings_that_do_not_suit_the_stitcher_leave_no_buffer(
    plane: EpisodeDataset, bundle: Bundle, tmp_path: Path
) -> None:
    config = StitchConfig(sampler=SamplerConfig(return_weight=1.2))
    with pytest.raises(UserError, match="return_dropout"):
        augment_local(plane, bundle, config, out=tmp_path / "buffer")
    assert not (tmp_path / "buffer").exists()
