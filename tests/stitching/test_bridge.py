from dataclasses import replace

import numpy as np

from raystitch.data.episodes import EpisodeDataset
from raystitch.models.bundle import Bundle
from raystitch.models.config import DiffusionConfig
from raystitch.stitching.bridge import BRIDGE_STREAM, build_bridges, imagine, lay_out, sample_windows
from raystitch.stitching.config import PairConfig, SamplerConfig, StitchConfig
from raystitch.stitching.pairs import select_pairs

CONFIG = DiffusionConfig(horizon=12, multipliers=(1, 2), gap_min=2, gap_max=8, prefix_max=3)
SAMPLER = SamplerConfig(num_steps=3)


def test_lay_out_matches_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    count, width, reach = 60, 4, 9
    prefix_length, suffix_length = rng.integers(1, width + 1, count), rng.integers(0, reach + 1, count)
    gap = rng.integers(2, 9, count)
    gap[0], prefix_length[0] = 8, 4
    prefix = rng.normal(size=(count, width, 2)).astype(np.float32)
    suffix = rng.normal(size=(count, reach, 2)).astype(np.float32)
    known, mask, leave = lay_out(prefix, prefix_length, suffix, suffix_length, gap, CONFIG)
    for row in range(count):
        kept = min(prefix_length[row], 3, 12 - gap[row] - 1)
        states = [*prefix[row, width - kept :], *[None] * gap[row], *suffix[row, : suffix_length[row]]][:12]
        states += [None] * (12 - len(states))
        assert leave[row] == kept - 1
        assert mask[row].tolist() == [state is not None for state in states]
        expected = np.array([np.zeros(2) if state is None else state for state in states], np.float32)
        np.testing.assert_array_equal(known[row], expected)
    # The longest prefix and gap still leave room for a state to enter.
    assert mask[np.arange(count), leave + gap + 1][suffix_length > 0].all()


def test_bridges_keep_the_real_states_and_the_constant_dimensions(world: EpisodeDataset, bundle: Bundle) -> None:
    config = StitchConfig(pairs=PairConfig(mode="random", terminal_margin=1))
    pairs = select_pairs(world, bundle, config, np.arange(40))
    gap = 2 + np.arange(40) % 15
    bridges = build_bridges(bundle, pairs, gap, np.arange(40), SAMPLER)
    assert bridges.shape == (40, bundle.config.diffusion.gap_max + 2, world.obs_dim)
    for row in range(40):
        np.testing.assert_array_equal(bridges[row, 0], pairs.prefix[row, -1])
        np.testing.assert_array_equal(bridges[row, gap[row] + 1], pairs.suffix[row, 0])
        assert (bridges[row, : gap[row] + 2, 4] == 7.0).all()
        assert not bridges[row, gap[row] + 2 :].any()
        assert np.unique(bridges[row, 1 : gap[row] + 1, :4], axis=0).shape[0] == gap[row]


def test_sampled_windows_hold_the_known_states(world: EpisodeDataset, bundle: Bundle) -> None:
    horizon = bundle.horizon
    known = np.tile(world.observations[None, :horizon], (5, 1, 1))
    mask = np.random.default_rng(0).random((5, horizon)) < 0.5
    sampled = sample_windows(bundle, known, mask, np.arange(5), SAMPLER, stream=BRIDGE_STREAM)
    np.testing.assert_allclose(sampled[mask], known[mask], atol=1e-5)
    # What stands at unknown positions is never looked at.
    other = np.where(mask[..., None], known, 123.0).astype(np.float32)
    again = sample_windows(bundle, other, mask, np.arange(5), SAMPLER, stream=BRIDGE_STREAM)
    np.testing.assert_array_equal(again, sampled)


def test_imagined_futures_start_at_the_smallest_gap(world: EpisodeDataset, bundle: Bundle) -> None:
    """With the shortest prefix and with the longest, for an episode of any length."""
    diffusion = bundle.config.diffusion
    prefix = np.zeros((2, 3, world.obs_dim), np.float32)
    prefix[0, -1] = world.observations[0]
    prefix[1] = world.observations[:3]
    future = imagine(bundle, prefix, np.array([1, 3]), np.array([5, 6]), SAMPLER, stream=0)
    assert future.shape == (2, diffusion.gap_max - diffusion.gap_min + 1, 4)  # the constant dimension is left out
    alone = imagine(bundle, prefix[1:], np.array([3]), np.array([6]), replace(SAMPLER, micro_batch=1), stream=0)
    np.testing.assert_allclose(alone[0], future[1], atol=1e-4)
