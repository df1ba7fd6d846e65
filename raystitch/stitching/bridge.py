"""Windows of states: the known ones are laid out, and the diffusion model fills in the rest (DiffStitch, state
stitching).

Legend: N rows, P prefix states, S suffix states, H horizon, O observation size, D active dimensions, G largest gap,
W imagined indices gap_min + 1 .. gap_max + 1.
"""

from dataclasses import dataclass

import numpy as np
import torch

from raystitch.data.episodes import Bools, Floats, Ints
from raystitch.models.bundle import Bundle
from raystitch.models.config import DiffusionConfig
from raystitch.models.samplers import SAMPLERS, Start, seeded_noise
from raystitch.stitching.candidates import Pairs
from raystitch.stitching.config import GuidanceConfig, SamplerConfig
from raystitch.stitching.guidance import DynamicsGuide

# Each use of a row's seed has its own noise; a sampler draws from its stream and the K that follow.
BRIDGE_STREAM, GAP_STREAM, RETRIEVAL_STREAM, REPAIR_STREAM = (use << 20 for use in range(4))


@dataclass(frozen=True, eq=False)
class Draft:
    """Bridges to re-noise part of the way and denoise again, perhaps with other gaps.

    Attributes:
        bridges: raw [N, G + 2, O]. gap: int64 [N], of each bridge.
        noise_level: share of the diffusion steps that is undone, in (0, 1].
    """

    bridges: Floats
    gap: Ints
    noise_level: float

    def stretched(self, gap: Ints) -> Floats:
        """Stretch the bridges to other gaps by interpolating linearly between their states, [N, G + 2, O]."""
        step = np.arange(self.bridges.shape[1])[None, :]
        at = np.minimum(step * ((self.gap + 1) / (gap + 1))[:, None], (self.gap + 1)[:, None])
        low = at.astype(np.int64)
        high = np.minimum(low + 1, self.bridges.shape[1] - 1)
        first, second = (np.take_along_axis(self.bridges, index[..., None], 1) for index in (low, high))
        return (first + (second - first) * (at - low)[..., None]).astype(np.float32)


def lay_out(
    prefix_NPO: Floats, prefix_length: Ints, suffix_NSO: Floats, suffix_length: Ints, gap: Ints, config: DiffusionConfig
) -> tuple[Floats, Bools, Ints]:
    """Lay out prefix, gap and suffix in windows; with a suffix length of 0, everything after the prefix is unknown.

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
    bundle: Bundle,
    known_NHO: Floats,
    mask_NH: Bools,
    seeds: Ints,
    sampler: SamplerConfig,
    *,
    stream: int,
    guidance: GuidanceConfig | None = None,
    draft_NHO: Floats | None = None,
    noise_level: float = 1.0,
) -> Floats:
    """Fill in the unknown states, raw [N, H, O]. A row depends on its own window and seed alone.

    Args:
        guidance: settings of the guidance by the dynamics; None for no guidance.
        draft_NHO: raw windows to re-noise to ``noise_level`` and begin from; None begins from pure noise.
    """
    normalizer, device = bundle.normalizer, bundle.device
    encoded = normalizer.encode(known_NHO) * (mask_NH[..., None] & normalizer.active)
    begin = None if draft_NHO is None else normalizer.encode(draft_NHO) * normalizer.active
    sampled = np.empty_like(encoded)
    denoise = bundle.denoiser(
        return_weight=sampler.return_weight,
        return_target=sampler.return_target,
        precision=sampler.precision,
        compile=sampler.compile,
    )
    # Not inference mode: guidance by the gradient could not pass through tensors made in it.
    with torch.inference_mode(False), torch.no_grad():
        for first in range(0, len(seeds), sampler.micro_batch):
            rows = slice(first, first + sampler.micro_batch)
            mask = torch.from_numpy(mask_NH[rows].astype(np.float32)).to(device)
            sampled[rows] = SAMPLERS[sampler.name](
                denoise,
                torch.from_numpy(encoded[rows]).to(device),
                mask,
                seeded_noise(seeds[rows], encoded.shape[1:], device, stream),
                bundle.schedule,
                sampler.num_steps,
                sampler.noise_scale,
                refine=None if guidance is None else DynamicsGuide(bundle, mask, guidance, sampler.precision),
                start=None if begin is None else Start(torch.from_numpy(begin[rows]).to(device), noise_level),
            ).cpu()
    return normalizer.decode(sampled)


def imagine(
    bundle: Bundle, prefix_NPO: Floats, prefix_length: Ints, seeds: Ints, sampler: SamplerConfig, *, stream: int
) -> Floats:
    """Imagine futures from the prefix alone (DiffStitch, step estimation): standardised active dims [N, W, D].

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


def build_bridges(
    bundle: Bundle,
    pairs: Pairs,
    gap: Ints,
    seeds: Ints,
    sampler: SamplerConfig,
    *,
    guidance: GuidanceConfig | None = None,
    draft: Draft | None = None,
    stream: int = BRIDGE_STREAM,
) -> Floats:
    """Build bridges: the state left, ``gap`` generated states, the state entered; raw [N, G + 2, O], padded with zeros.

    Constant dimensions, and contexts on which both ends agree, are the same in every state of a bridge. No state is
    beyond the end of its sensor.

    Args:
        draft: bridges to begin from instead of noise.
    """
    config = bundle.config.diffusion
    known, mask, leave = lay_out(pairs.prefix, pairs.prefix_length, pairs.suffix, pairs.suffix_length, gap, config)
    step = np.arange(config.gap_max + 2)[None, :]
    index = np.minimum(leave[:, None] + step, config.horizon - 1)[..., None]
    windows, noise_level = None, 1.0
    if draft is not None:
        exists = (step <= gap[:, None] + 1)[..., None]
        windows, noise_level = known.copy(), draft.noise_level
        np.put_along_axis(
            windows, index, np.where(exists, draft.stretched(gap), np.take_along_axis(windows, index, 1)), 1
        )
    windows = sample_windows(
        bundle,
        known,
        mask,
        seeds,
        sampler,
        stream=stream,
        guidance=guidance,
        draft_NHO=windows,
        noise_level=noise_level,
    )
    bridges = bundle.within_sensors(np.take_along_axis(windows, index, 1))
    source, target = pairs.prefix[:, -1:], pairs.suffix[:, :1]
    stays = ~bundle.normalizer.active | (bundle.still & (source == target))
    bridges = np.where(stays, source, bridges)
    is_source, is_target = (step == 0)[..., None], (step == gap[:, None] + 1)[..., None]
    bridges = np.where(is_source, source, np.where(is_target, target, bridges))
    return np.where((step <= gap[:, None] + 1)[..., None], bridges, 0.0).astype(np.float32)
