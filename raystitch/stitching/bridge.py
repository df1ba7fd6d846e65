"""State windows: what is known of them, and the diffusion model filling in the rest (DiffStitch, state stitching).

Legend: N rows, P prefix states, S suffix states, H horizon, O observation size, D active dimensions, G largest gap,
W imagined indices gap_min + 1 .. gap_max + 1.
"""

import numpy as np
import torch

from raystitch.data.episodes import Bools, Floats, Ints
from raystitch.models.bundle import Bundle
from raystitch.models.config import DiffusionConfig
from raystitch.models.samplers import SAMPLERS, seeded_noise
from raystitch.stitching.candidates import Pairs
from raystitch.stitching.config import SamplerConfig

# Each use of a row's seed has its own noise; a sampler draws from its stream and the K that follow.
BRIDGE_STREAM, GAP_STREAM, RETRIEVAL_STREAM = 0, 1 << 20, 2 << 20


def lay_out(
    prefix_NPO: Floats, prefix_length: Ints, suffix_NSO: Floats, suffix_length: Ints, gap: Ints, config: DiffusionConfig
) -> tuple[Floats, Bools, Ints]:
    """Puts prefix, gap and suffix into windows; suffix lengths of 0 leave everything after the prefix unknown.

    Returns:
        known raw states [N, H, O] (0 where unknown), mask bool [N, H], and the position of the state left int64 [N].
    """
    horizon = config.horizon
    width = np.minimum(np.minimum(prefix_length, config.prefix_max), horizon - gap - 1)[:, None]
    position = np.arange(horizon)[None, :]
    in_prefix = position < width
    since_enter = position - width - gap[:, None]
    in_suffix = (since_enter >= 0) & (since_enter < suffix_length[:, None])
    from_prefix = np.clip(prefix_NPO.shape[1] - width + position, 0, prefix_NPO.shape[1] - 1)
    known = np.take_along_axis(prefix_NPO, from_prefix[..., None], 1) * in_prefix[..., None]
    if suffix_NSO.shape[1]:
        from_suffix = np.clip(since_enter, 0, suffix_NSO.shape[1] - 1)
        known += np.take_along_axis(suffix_NSO, from_suffix[..., None], 1) * in_suffix[..., None]
    return known.astype(np.float32), in_prefix | in_suffix, width[:, 0] - 1


def sample_windows(
    bundle: Bundle, known_NHO: Floats, mask_NH: Bools, seeds: Ints, sampler: SamplerConfig, *, stream: int
) -> Floats:
    """Fills unknown states in; raw units [N, H, O]. A row depends on its own window and seed alone."""
    normalizer = bundle.normalizer
    encoded = normalizer.encode(known_NHO) * (mask_NH[..., None] & normalizer.active)
    sampled = np.empty_like(encoded)
    denoise = bundle.denoiser(
        return_weight=sampler.return_weight,
        return_target=sampler.return_target,
        precision=sampler.precision,
        compile=sampler.compile,
    )
    with torch.inference_mode():
        for start in range(0, len(seeds), sampler.micro_batch):
            rows = slice(start, start + sampler.micro_batch)
            sampled[rows] = SAMPLERS[sampler.name](
                denoise,
                torch.from_numpy(encoded[rows]).to(bundle.device),
                torch.from_numpy(mask_NH[rows].astype(np.float32)).to(bundle.device),
                seeded_noise(seeds[rows], encoded.shape[1:], bundle.device, stream),
                bundle.schedule,
                sampler.num_steps,
                sampler.noise_scale,
            ).cpu()
    return normalizer.decode(sampled)


def imagine(
    bundle: Bundle, prefix_NPO: Floats, prefix_length: Ints, seeds: Ints, sampler: SamplerConfig, *, stream: int
) -> Floats:
    """Futures of which only the prefix is known (DiffStitch, step estimation): standardised active dims [N, W, D].

    Entry w is the imagined state gap_min + 1 + w steps after the last prefix state.
    """
    config = bundle.config.diffusion
    longest = np.full(len(seeds), config.gap_max, np.int64)
    nothing = np.zeros((len(seeds), 0, prefix_NPO.shape[-1]), np.float32)
    known, mask, leave = lay_out(prefix_NPO, prefix_length, nothing, np.zeros_like(longest), longest, config)
    windows = sample_windows(bundle, known, mask, seeds, sampler, stream=stream)
    index = leave[:, None] + np.arange(config.gap_min + 1, config.gap_max + 2)
    future = np.take_along_axis(windows, index[..., None], 1)
    return bundle.normalizer.encode(future)[..., bundle.normalizer.active]


def build_bridges(bundle: Bundle, pairs: Pairs, gap: Ints, seeds: Ints, sampler: SamplerConfig) -> Floats:
    """The state left, ``gap`` generated states, the state entered; raw [N, G + 2, O], zero past gap + 2 states."""
    config = bundle.config.diffusion
    known, mask, leave = lay_out(pairs.prefix, pairs.prefix_length, pairs.suffix, pairs.suffix_length, gap, config)
    windows = sample_windows(bundle, known, mask, seeds, sampler, stream=BRIDGE_STREAM)
    step = np.arange(config.gap_max + 2)[None, :]
    index = np.minimum(leave[:, None] + step, config.horizon - 1)
    bridges = np.take_along_axis(windows, index[..., None], 1)
    source, target = pairs.prefix[:, -1:], pairs.suffix[:, :1]
    bridges = np.where(bundle.normalizer.active, bridges, source)  # constant dimensions stay what they are
    is_source, is_target = (step == 0)[..., None], (step == gap[:, None] + 1)[..., None]
    bridges = np.where(is_source, source, np.where(is_target, target, bridges))
    return np.where((step <= gap[:, None] + 1)[..., None], bridges, 0.0).astype(np.float32)
