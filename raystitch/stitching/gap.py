"""Gap estimators: the number of states to generate between the state left and the state entered.

Legend: N rows, C gaps tried per row, W imagined indices, D active dimensions.
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from raystitch.data.episodes import Floats, Ints
from raystitch.models.bundle import Bundle
from raystitch.models.embedding import embed
from raystitch.seeding import uniforms
from raystitch.stitching.bridge import GAP_STREAM, build_bridges, imagine
from raystitch.stitching.candidates import Pairs
from raystitch.stitching.config import StitchConfig
from raystitch.stitching.qualify import largest_residual
from raystitch.stitching.wrapup import infer_actions

_DRAW_STREAM = 11


class GapEstimator(Protocol):
    """Pairs and seeds -> gaps int64 [N] in gap_min .. gap_max."""

    def __call__(self, bundle: Bundle, config: StitchConfig, pairs: Pairs, seeds: Ints) -> Ints: ...


def most_similar_index(bundle: Bundle, config: StitchConfig, pairs: Pairs, seeds: Ints) -> Ints:
    """Take the index of the imagined state most similar to the one entered, less one (DiffStitch, step estimation)."""
    future = imagine(bundle, pairs.prefix, pairs.prefix_length, seeds, config.sampler, stream=GAP_STREAM)
    target = bundle.normalizer.encode(pairs.suffix[:, 0])[..., bundle.normalizer.active]
    similarity = _SIMILARITIES[config.gap.similarity](future, target[:, None])
    best = np.where(np.isfinite(similarity), similarity, -np.inf).argmax(1)
    return bundle.config.diffusion.gap_min + best


def lowest_residual(bundle: Bundle, config: StitchConfig, pairs: Pairs, seeds: Ints) -> Ints:
    """Try several gaps spread over the range, and the selection's own; keep the one that the proposers trust most."""
    low, high = bundle.config.diffusion.gap_min, bundle.config.diffusion.gap_max
    count = min(config.gap.num_candidates, high - low + 1)
    stratum = np.arange(count) + uniforms(seeds, count, _DRAW_STREAM)
    gaps = np.minimum(low + (stratum * (high - low + 1) / count).astype(np.int64), high)
    gaps = np.concatenate([np.where(pairs.gap > 0, pairs.gap, gaps[:, 0])[:, None], gaps], 1)
    rows = np.repeat(np.arange(len(pairs)), gaps.shape[1])
    tried, gap = pairs.take(rows), gaps.ravel()
    bridges = build_bridges(bundle, tried, gap, seeds[rows], config.sampler)
    worst = largest_residual(bundle, bridges, infer_actions(bundle, bridges, gap), gap, "proposers").reshape(gaps.shape)
    return np.take_along_axis(gaps, worst.argmin(1)[:, None], 1)[:, 0]


def temporal_distance(bundle: Bundle, config: StitchConfig, pairs: Pairs, seeds: Ints) -> Ints:
    """Take the steps between the two states by the temporal-distance embedding, less one."""
    left, entered = (embed(bundle.embedding, states) for states in (pairs.prefix[:, -1], pairs.suffix[:, 0]))
    steps = np.linalg.norm(left - entered, axis=-1)
    return gap_of_steps(steps, bundle.config.diffusion.gap_min, bundle.config.diffusion.gap_max)


def gap_of_steps(steps: Floats, gap_min: int, gap_max: int) -> Ints:
    """The gap, gap_min .. gap_max, of bridges of about ``steps`` steps (any shape); gap_min where not finite."""
    finite = np.where(np.isfinite(steps), steps, 0.0)
    return np.clip(np.rint(finite).astype(np.int64) - 1, gap_min, gap_max)


def as_selected(bundle: Bundle, config: StitchConfig, pairs: Pairs, seeds: Ints) -> Ints:
    """Take the gap that came with the pair, or ``lowest_residual`` where none did."""
    gap = pairs.gap.copy()
    missing = np.flatnonzero(gap <= 0)
    if len(missing):
        gap[missing] = lowest_residual(bundle, config, pairs.take(missing), seeds[missing])
    return gap


def _cosine(first: Floats, second: Floats) -> Floats:
    norms = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    return (first * second).sum(-1) / np.maximum(norms, 1e-12)


def _closeness(first: Floats, second: Floats) -> Floats:
    return -np.linalg.norm(first - second, axis=-1)


_SIMILARITIES = {"cosine": _cosine, "distance": _closeness}

GAPS: Mapping[str, GapEstimator] = {
    "imagine": most_similar_index,
    "residual": lowest_residual,
    "distance": temporal_distance,
    "selected": as_selected,
}
