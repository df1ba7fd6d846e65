"""Repair: bridges that the proposers doubt are re-noised part of the way and denoised again.

The proposers decide which bridges are tried again and which gap is kept; the judges take no part.
Legend: N pairs, R of them tried again, C gaps tried per pair.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from raystitch.data.episodes import Floats, Ints
from raystitch.models.bundle import Bundle
from raystitch.stitching.bridge import REPAIR_STREAM, Draft, build_bridges
from raystitch.stitching.candidates import Pairs
from raystitch.stitching.config import StitchConfig
from raystitch.stitching.qualify import largest_residual
from raystitch.stitching.wrapup import infer_actions


@dataclass(frozen=True, eq=False)
class Attempt:
    """One attempt at some of the pairs.

    Attributes:
        rows: int64 [R], the pairs. gap: int64 [R]. bridges: raw states [R, G + 2, O]. actions: [R, G + 1, A].
    """

    rows: Ints
    gap: Ints
    bridges: Floats
    actions: Floats


def repairs(bundle: Bundle, config: StitchConfig, pairs: Pairs, seeds: Ints, first: Attempt) -> Iterator[Attempt]:
    """Make up to ``repair.rounds`` further attempts, each for the pairs whose last one the proposers still doubt.

    The first repair keeps the gap, the second tries its neighbours, and so on up to ``gap_shift``; the gap whose
    largest residual is smallest is kept. A row's noise depends on its seed and the attempt's number alone.
    """
    repair, diffusion = config.repair, bundle.config.diffusion
    sampler = replace(config.sampler, num_steps=repair.num_steps)
    guidance = replace(config.guidance, moves=repair.moves)
    last = first
    for number in range(1, repair.rounds + 1):
        residual = largest_residual(bundle, last.bridges, last.actions, last.gap, "proposers")
        limit = bundle.calibration.threshold(repair.repair_delta, last.gap, "proposers")
        again = np.flatnonzero(np.isfinite(residual) & (residual >= limit))
        if not len(again):
            return
        shift = 0 if pairs.gap_is_given else min(number - 1, repair.gap_shift)
        shift_C = np.unique([-shift, shift])
        tried = np.repeat(again, len(shift_C))
        gap = np.clip(last.gap[tried] + np.tile(shift_C, len(again)), diffusion.gap_min, diffusion.gap_max)
        rows = last.rows[tried]
        bridges = build_bridges(
            bundle,
            pairs.take(rows),
            gap,
            seeds[rows],
            sampler,
            guidance=guidance,
            draft=Draft(last.bridges[tried], last.gap[tried], repair.noise_level),
            stream=REPAIR_STREAM + (number << 20),
        )
        actions = infer_actions(bundle, bridges, gap)
        doubt = largest_residual(bundle, bridges, actions, gap, "proposers").reshape(len(again), -1)
        best = doubt.argmin(1) + np.arange(len(again)) * len(shift_C)
        last = Attempt(rows[best], gap[best], bridges[best], actions[best])
        yield last
