from dataclasses import fields, replace
from typing import Any, cast

import numpy as np
import pytest

from raystitch.data.episodes import EpisodeDataset
from raystitch.errors import UserError
from raystitch.models.bundle import Bundle
from raystitch.models.calibration import SEAM
from raystitch.models.embedding import embed
from raystitch.stitching.bridge import imagine
from raystitch.stitching.candidates import Pairs
from raystitch.stitching.config import GapConfig, PairConfig, SamplerConfig, StitchConfig
from raystitch.stitching.gap import gap_of_steps
from raystitch.stitching.pairs import SELECTORS, SourceIndex, nearest_pairs, pairs_from_trajectories, select_pairs
from raystitch.stitching.pools import States
from raystitch.stitching.selectors import random_options
from raystitch.stitching.stitcher import Stitcher
from raystitch.stitching.values import StateValues

SEEDS = np.arange(64) + 1000


def configured(mode: str, micro_batch: int = 256, **pairs: Any) -> StitchConfig:
    usual = {"split": "value", "terminal_margin": 3, "max_target_reuse": 0, "num_tries": 3}
    settings: dict[str, Any] = {"mode": mode} | usual | pairs
    return StitchConfig(pairs=PairConfig(**settings), sampler=SamplerConfig(num_steps=2, micro_batch=micro_batch))


def same(first: Pairs, second: Pairs) -> None:
    for column in fields(Pairs):
        rounding = 1e-5 if column.name == "seam" else 0  # an imagined future's last bits depend on the batch
        np.testing.assert_allclose(
            getattr(first, column.name), getattr(second, column.name), rtol=rounding, err_msg=column.name
        )


@pytest.mark.parametrize("split", ["value", "return"])
@pytest.mark.parametrize("mode", sorted(SELECTORS))
def test_contract_of_every_selector(mode: str, split: str, world: EpisodeDataset, bundle: Bundle) -> None:
    pairs = select_pairs(world, bundle, configured(mode, split=split), SEEDS)
    diffusion = bundle.config.diffusion
    assert len(pairs) == len(SEEDS)
    assert (pairs.source_episode != pairs.target_episode).all()
    ended = world.terminated[pairs.source_episode]
    assert (pairs.source_step <= world.lengths[pairs.source_episode] - 3 * ended).all()
    assert (pairs.target_step < world.lengths[pairs.target_episode]).all()
    assert ((pairs.gap == 0) | ((pairs.gap >= diffusion.gap_min) & (pairs.gap <= diffusion.gap_max))).all()
    assert np.isfinite(pairs.return_source).all()
    assert np.isfinite(pairs.return_target).all()
    for row in range(len(pairs)):
        source, target = world.episode(int(pairs.source_episode[row])), world.episode(int(pairs.target_episode[row]))
        length, at = int(pairs.prefix_length[row]), int(pairs.source_step[row])
        assert length == min(at + 1, diffusion.prefix_max)
        np.testing.assert_array_equal(pairs.prefix[row, -length:], source.observations[at + 1 - length : at + 1])
        assert not pairs.prefix[row, :-length].any()
        length, at = int(pairs.suffix_length[row]), int(pairs.target_step[row])
        assert length == min(len(target.observations) - at, pairs.suffix.shape[1])
        np.testing.assert_array_equal(pairs.suffix[row, :length], target.observations[at : at + length])
        assert not pairs.suffix[row, length:].any()


@pytest.mark.parametrize("split", ["value", "return"])
@pytest.mark.parametrize("mode", sorted(SELECTORS))
def test_a_row_depends_on_its_seed_alone(mode: str, split: str, world: EpisodeDataset, bundle: Bundle) -> None:
    index = SourceIndex(world, bundle, configured(mode, split=split))
    pairs = index.select(SEEDS)
    order = np.random.default_rng(0).permutation(len(SEEDS))
    same(index.select(SEEDS[order]), pairs.take(order))
    same(index.select(SEEDS[10:13]), pairs.take(np.arange(10, 13)))
    same(SourceIndex(world, bundle, configured(mode, micro_batch=7, split=split)).select(SEEDS), pairs)
    assert not np.array_equal(index.select(SEEDS + 5000).source_step, pairs.source_step)


def test_target_reuse_is_limited_per_call(world: EpisodeDataset, bundle: Bundle) -> None:
    free = select_pairs(world, bundle, configured("successor"), SEEDS)
    limited = select_pairs(world, bundle, configured("successor", max_target_reuse=1), SEEDS)

    def largest_use(pairs: Pairs) -> int:
        return int(np.unique(pairs.target_episode * 1000 + pairs.target_step, return_counts=True)[1].max())

    assert largest_use(free) > 1
    assert largest_use(limited) == 1


def test_targets_promise_a_gain_where_any_does(world: EpisodeDataset, bundle: Bundle) -> None:
    settings: dict[str, Any] = {"split": "return", "source_fraction": 1.0, "target_fraction": 1.0}
    checked = select_pairs(world, bundle, configured("random", **settings), SEEDS)
    unchecked = select_pairs(world, bundle, configured("random", value_check=False, **settings), SEEDS)
    np.testing.assert_array_equal(checked.source_step, unchecked.source_step)
    gains = (checked.return_target > checked.return_source).mean()
    assert gains > (unchecked.return_target > unchecked.return_source).mean()
    assert gains > 0.8


def test_imagine_looks_where_the_source_never_went(world: EpisodeDataset, bundle: Bundle) -> None:
    """Sources of the kind south end before the turn north; only crossing episodes show it."""
    kinds = np.arange(world.num_episodes) % 3
    pools: dict[str, Any] = {
        "source_episodes": np.flatnonzero(kinds == 0),
        "target_episodes": np.flatnonzero(kinds == 2),
    }
    pairs = SourceIndex(world, bundle, configured("imagine", num_tries=8), **pools).select(SEEDS)
    random = SourceIndex(world, bundle, configured("random"), **pools).select(SEEDS)

    future = imagine(bundle, pairs.prefix, pairs.prefix_length, SEEDS, SamplerConfig(), stream=0)
    north = future[..., 1] * bundle.normalizer.std[1] + bundle.normalizer.mean[1]
    furthest = max(world.episode(int(index)).observations[:, 1].max() for index in pools["source_episodes"])
    assert (north.max(1) > furthest).mean() > 0.4

    def apart(pairs: Pairs) -> np.floating:
        states = bundle.normalizer.encode(np.stack([pairs.prefix[:, -1], pairs.suffix[:, 0]]))
        return np.median(np.linalg.norm((states[0] - states[1])[:, bundle.normalizer.active], axis=-1))

    assert apart(pairs) < 0.9 * apart(random)
    left = world.lengths[pairs.source_episode] - pairs.source_step
    assert np.median(left) <= np.median(world.lengths[random.source_episode] - random.source_step)
    assert len(np.unique(pairs.target_episode)) > 3
    assert pairs.gap.min() >= bundle.config.diffusion.gap_min


def test_successor_targets_are_near_the_sources_own_future(world: EpisodeDataset, bundle: Bundle) -> None:
    pairs = select_pairs(world, bundle, configured("successor", value_check=False), SEEDS)
    rows = world.obs_offsets[pairs.source_episode] + pairs.source_step + pairs.gap + 1
    assert (pairs.source_step + pairs.gap + 1 <= world.lengths[pairs.source_episode]).all()
    active = bundle.normalizer.active

    def apart(entered: np.ndarray) -> np.ndarray:
        return np.linalg.norm(bundle.normalizer.encode(world.observations[rows] - entered)[:, active], axis=-1)

    random = select_pairs(world, bundle, configured("random"), SEEDS)
    assert np.median(apart(pairs.suffix[:, 0])) < 0.9 * np.median(apart(random.suffix[:, 0]))


def test_successor_gaps_are_uniform_however_many_steps_are_tried(world: EpisodeDataset, bundle: Bundle) -> None:
    seeds = np.arange(4000)
    few, many = (
        select_pairs(world, bundle, configured("successor", value_check=False, num_tries=tries), seeds)
        for tries in (1, 16)
    )
    np.testing.assert_array_equal(few.gap, many.gap)
    diffusion = bundle.config.diffusion
    share = np.bincount(many.gap, minlength=diffusion.gap_max + 1)[diffusion.gap_min :] / len(seeds)
    np.testing.assert_allclose(share, 1 / len(share), atol=0.02)
    assert np.median(seam(world, bundle, many)) < 0.8 * np.median(seam(world, bundle, few))


def seam(world: EpisodeDataset, bundle: Bundle, pairs: Pairs) -> np.ndarray:
    """Distance between the state entered and where the source itself was at that time, standardised units."""
    rows = world.obs_offsets[pairs.source_episode] + pairs.source_step + pairs.gap + 1
    difference = bundle.normalizer.encode(world.observations[rows]) - bundle.normalizer.encode(pairs.suffix[:, 0])
    return np.linalg.norm(difference[:, bundle.normalizer.active], axis=-1)


def test_distance_enters_in_time_and_away_from_the_source(world: EpisodeDataset, bundle: Bundle) -> None:
    def select(**pairs: Any) -> Pairs:
        found = select_pairs(world, bundle, configured("distance", num_tries=8, **pairs), SEEDS)
        return found.take(found.gap > 0)

    close, novel = select(), select(novelty=1.2)
    assert len(close) > 0.9 * len(SEEDS)
    for pairs in (close, novel):
        phi, phi_target = (embed(bundle.embedding, states) for states in (pairs.prefix[:, -1], pairs.suffix[:, 0]))
        steps = np.linalg.norm(phi - phi_target, axis=-1)
        np.testing.assert_array_equal(pairs.gap, gap_of_steps(steps, 2, 16))
    # The gap that was drawn, and with it the source's own state, is within two steps of the one that is bridged.
    assert np.median(seam(world, bundle, close)) < 1.0
    assert np.median(seam(world, bundle, novel)) > np.median(seam(world, bundle, close))


@pytest.mark.parametrize("mode", sorted(SELECTORS))
def test_novel_targets_are_away_from_where_the_source_itself_was(
    world: EpisodeDataset, bundle: Bundle, mode: str
) -> None:
    def own_seams(novelty: float) -> np.ndarray:
        settings = configured(mode, num_tries=8, value_check=False, max_target_reuse=0, novelty=novelty)
        pairs = select_pairs(world, bundle, settings, SEEDS)
        found = pairs.take(pairs.gap > 0) if mode != "random" else replace(pairs, gap=np.full(len(pairs), 2))
        ahead = np.minimum(found.gap + 1, world.lengths[found.source_episode] - found.source_step)
        return seam(world, bundle, replace(found, gap=ahead - 1))

    assert (own_seams(0) < 0.4).any()
    novel = own_seams(0.4)
    # Mode ``distance`` may bridge a step or two more than it looked ahead.
    assert len(novel) > 10 and np.mean(novel >= 0.4 - 1e-5) > (0.8 if mode == "distance" else 0.999)


@pytest.mark.parametrize("split", ["value", "return"])
@pytest.mark.parametrize("mode", sorted(SELECTORS))
def test_no_pair_is_less_novel_than_asked(world: EpisodeDataset, bundle: Bundle, mode: str, split: str) -> None:
    def kept(novelty: float) -> tuple[Pairs, int]:
        index = SourceIndex(world, bundle, configured(mode, split=split, novelty=novelty))
        pairs = index.select(SEEDS)
        rows = np.flatnonzero(index.worthwhile(pairs))
        return pairs.take(rows), len(rows)

    pairs, count = kept(0.5)
    assert count
    ahead = np.where(pairs.gap > 0, pairs.gap, bundle.config.diffusion.gap_min) + 1
    ahead = np.minimum(ahead, world.lengths[pairs.source_episode] - pairs.source_step)
    assert (seam(world, bundle, replace(pairs, gap=ahead - 1)) >= 0.5 - 1e-5).all()
    assert kept(1000)[1] == 0


def test_distance_ranks_by_gain_among_the_closest(world: EpisodeDataset, bundle: Bundle) -> None:
    def gains(value_check: bool) -> float:
        settings = configured("distance", split="return", num_tries=8, value_check=value_check)
        index = SourceIndex(world, bundle, settings)
        pairs = index.select(SEEDS)
        sources, targets = (
            States(pairs.source_episode, pairs.source_step),
            States(pairs.target_episode, pairs.target_step),
        )
        return float(index.pools.gain(sources, targets, np.maximum(pairs.gap, 2)).mean())

    assert gains(True) > gains(False) + 0.01


def test_rows_without_a_gain_draw_other_sources(world: EpisodeDataset, bundle: Bundle) -> None:
    """Nothing is gained by leaving the reward in the north for a crossing."""
    kinds = np.arange(world.num_episodes) % 3
    pools: dict[str, Any] = {
        "source_episodes": np.flatnonzero(kinds > 0),
        "target_episodes": np.flatnonzero(kinds == 2),
    }
    index = SourceIndex(world, bundle, configured("random"), **pools)
    seeds = np.arange(3000)
    first = random_options(index.pools, index.config, seeds)
    pairs = index.select(seeds)

    def gain(source: States, target: States) -> np.ndarray:
        return index.pools.gain(source, target, np.full(source.step.shape, 2))

    rows = np.arange(len(seeds))[:, None]
    promised = gain(first.sources(rows, np.arange(first.gap.shape[1])), index.pools.targets.at(first.found.target))
    empty = ~(promised > 0).any(1)
    assert empty.sum() > 20
    gained = gain(States(pairs.source_episode, pairs.source_step), States(pairs.target_episode, pairs.target_step)) > 0
    assert gained[empty].mean() > 0.8
    np.testing.assert_array_equal(pairs.source_step[~empty], first.source.step[~empty, 0])


def test_nearest_pairs_join_without_a_bridge(world: EpisodeDataset, bundle: Bundle) -> None:
    config = configured("random", split="return", num_tries=1, value_check=False)
    joined = nearest_pairs(world, bundle, config, SEEDS)
    drawn = select_pairs(world, bundle, config, SEEDS)
    assert (joined.gap == -1).all()
    np.testing.assert_array_equal(joined.source_step, drawn.source_step)  # the same sources
    encode = bundle.normalizer.encode
    near = np.linalg.norm(encode(joined.prefix[:, -1]) - encode(joined.suffix[:, 0]), axis=-1)
    far = np.linalg.norm(encode(drawn.prefix[:, -1]) - encode(drawn.suffix[:, 0]), axis=-1)
    assert (near <= far + 1e-5).all()


def test_a_join_is_worth_while_by_what_it_promises_without_a_bridge(world: EpisodeDataset, bundle: Bundle) -> None:
    index = SourceIndex(world, bundle, configured("random", num_tries=1))
    pairs = index.nearest(SEEDS)
    assert isinstance(index.known, StateValues)
    gained = pairs.return_target > pairs.return_source
    np.testing.assert_array_equal(index.worthwhile(pairs), gained & ~index.known.loops(pairs))
    assert gained.any()


def test_no_pair_that_loops_or_gains_nothing_is_worth_while(world: EpisodeDataset, bundle: Bundle) -> None:
    index = SourceIndex(world, bundle, configured("random"))
    pairs = index.select(SEEDS)
    again = replace(pairs, target_episode=pairs.source_episode, target_step=np.zeros_like(pairs.target_step))
    assert not index.worthwhile(again).any()
    back = replace(
        pairs,
        source_episode=pairs.target_episode,
        source_step=pairs.target_step,
        target_episode=pairs.source_episode,
        target_step=np.minimum(pairs.source_step, world.lengths[pairs.source_episode] - 1),
    )
    assert not (index.worthwhile(pairs) & index.worthwhile(back)).all()
    free = SourceIndex(world, bundle, configured("random", value_check=False))
    assert free.worthwhile(back).all()


@pytest.mark.parametrize("mode", ["successor", "distance", "imagine"])
@pytest.mark.parametrize("split", ["value", "return"])
@pytest.mark.parametrize("share", [0.3, 0.98])
def test_no_target_is_farther_than_asked_from_where_the_source_is_expected(
    world: EpisodeDataset, bundle: Bundle, mode: str, split: str, share: float
) -> None:
    free = select_pairs(world, bundle, configured(mode, split=split), SEEDS)
    cap = float(np.nanquantile(free.seam, share))
    index = SourceIndex(world, bundle, configured(mode, split=split, seam_max=cap))
    near = index.select(SEEDS)
    kept = index.worthwhile(near)
    assert kept.mean() > share  # other sources were drawn
    assert (near.seam[kept] <= cap).all()
    assert not kept[~(near.seam <= cap)].any()
    same(index.with_seam_max(None).select(SEEDS), free)


def test_the_seam_is_the_distance_to_the_sources_own_later_state(world: EpisodeDataset, bundle: Bundle) -> None:
    pairs = select_pairs(world, bundle, configured("successor"), SEEDS)
    own = world.obs_offsets[pairs.source_episode] + pairs.source_step + pairs.gap + 1
    target = world.obs_offsets[pairs.target_episode] + pairs.target_step
    encode, active = bundle.normalizer.encode, bundle.normalizer.active
    apart = (encode(world.observations[own]) - encode(world.observations[target]))[:, active]
    known = np.isfinite(pairs.seam)
    assert known.mean() > 0.9
    np.testing.assert_allclose(pairs.seam[known], np.square(apart[known]).sum(1), rtol=1e-4, atol=1e-6)


def test_a_quantile_of_seam_max_is_one_of_recorded_neighbours(world: EpisodeDataset, bundle: Bundle) -> None:
    index = SourceIndex(world, bundle, configured("successor", seam_max="q50"))
    pairs = index.select(SEEDS)
    kept = index.worthwhile(pairs)
    at_most = bundle.calibration.threshold("q50", pairs.gap, SEAM)
    assert kept.any()
    assert (pairs.seam[kept] <= at_most[kept]).all()


def test_joins_know_no_seam(world: EpisodeDataset, bundle: Bundle) -> None:
    index = SourceIndex(world, bundle, configured("successor", seam_max=1e-6))
    joins = index.nearest(SEEDS)
    assert np.isnan(joins.seam).all()
    free = SourceIndex(world, bundle, configured("successor"))
    np.testing.assert_array_equal(index.worthwhile(joins), free.worthwhile(free.nearest(SEEDS)))


def test_pairs_that_a_pilot_has_to_choose_are_refused(world: EpisodeDataset, bundle: Bundle) -> None:
    for asked in (configured("auto"), configured("successor", seam_max="auto")):
        with pytest.raises(UserError, match="auto is decided at the start of augment; name a mode"):
            SourceIndex(world, bundle, asked)


def test_another_dataset_is_refused(world: EpisodeDataset, bundle: Bundle) -> None:
    with pytest.raises(UserError, match="other trajectories"):
        select_pairs(world.subset(np.arange(10)), bundle, configured("random"), SEEDS)


class TestGiven:
    def test_best_cut_and_inferred_rewards(self, world: EpisodeDataset, bundle: Bundle) -> None:
        source, target = world.episode(0), world.episode(2)
        pairs = pairs_from_trajectories(bundle, source.observations, target.observations, SEEDS)
        assert (pairs.source_episode == -1).all()
        assert (pairs.target_episode == -1).all()
        row = np.arange(len(pairs))
        np.testing.assert_array_equal(pairs.prefix[row, -1], source.observations[pairs.source_step])
        np.testing.assert_array_equal(pairs.suffix[row, 0], target.observations[pairs.target_step])

    def test_ends_cut_with_a_terminal_source(self, world: EpisodeDataset, bundle: Bundle) -> None:
        source, target = world.episode(0), world.episode(2)
        length = len(source.actions)
        for terminated, step in ((False, length), (True, length - 8)):
            pairs = pairs_from_trajectories(
                bundle,
                source.observations,
                target.observations,
                SEEDS[:3],
                source_rewards=source.rewards,
                target_rewards=target.rewards,
                source_terminated=terminated,
                cut="ends",
                gap=5,
            )
            assert pairs.source_step.tolist() == [step] * 3
            assert pairs.target_step.tolist() == [0] * 3
            for mode in ("imagine", "residual", "selected"):
                config = StitchConfig(gap=GapConfig(mode=mode), sampler=SamplerConfig(num_steps=2))
                assert Stitcher(bundle, config).propose(pairs, SEEDS[:3]).gap.tolist() == [5] * 3

    def test_an_unknown_cut_is_named(self, world: EpisodeDataset, bundle: Bundle) -> None:
        states, cut = world.episode(0).observations, cast("Any", "middle")
        with pytest.raises(UserError, match="cut='middle' is not one of best, ends"):
            pairs_from_trajectories(bundle, states, states, SEEDS, cut=cut)

    def test_bad_input_names_the_field(self, world: EpisodeDataset, bundle: Bundle) -> None:
        good = world.episode(0).observations
        bad = good.copy()
        bad[1, 2] = np.nan
        cases = [
            ((good[:, :2], good, {}), r"source.observations has shape"),
            ((good, good[:1], {}), r"target.observations has 1 rows"),
            ((bad, good, {}), r"source.observations: row 1 is not finite"),
            ((good, good, {"target_rewards": np.zeros(3, np.float32)}), r"target.rewards has shape \(3,\)"),
            ((good, good, {"source_actions": np.zeros((2, 2), np.float32)}), r"source.actions has shape"),
            ((good, good, {"gap": 99}), r"gap=99 is outside .*2..16"),
            ((good[:4], good, {"source_terminated": True}), r"source: 3 steps that end in a termination"),
        ]
        for (source, target, options), message in cases:
            with pytest.raises(UserError, match=message):
                pairs_from_trajectories(bundle, source, target, SEEDS, **options)
