"""The published sampler, for comparison: DiffStitch's settings run by the same code.

An untrained network takes the same time as a trained one.
"""

import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from raystitch.bench.machine import wait
from raystitch.bench.stages import StageClock, replaced
from raystitch.data.episodes import EpisodeDataset
from raystitch.models.bundle import Bundle, build_unet
from raystitch.models.config import FitConfig
from raystitch.models.diffusion import cosine_schedule
from raystitch.models.heads import build_heads
from raystitch.models.scales import HeadScales
from raystitch.presets import PRESETS
from raystitch.stitching.pairs import SourceIndex
from raystitch.stitching.stitcher import Stitcher

NUM_PAIRS = 8
TIMED_STEPS = 10


def published_bundle(bundle: Bundle, fit: FitConfig) -> Bundle:
    """Return the bundle with the published networks, untrained, in place of its own."""
    generator = torch.Generator().manual_seed(0)
    heads = build_heads(fit, HeadScales.blank(bundle.obs_dim, bundle.act_dim, 0), generator)
    return replace(
        bundle,
        config=fit,
        diffusion=build_unet(bundle.obs_dim, fit),
        schedule=cosine_schedule(fit.diffusion.num_diffusion_steps),
        **vars(heads),
    )


def num_parameters(bundle: Bundle) -> int:
    return sum(parameter.numel() for parameter in bundle.diffusion.parameters())


@dataclass(frozen=True, eq=False)
class PublishedSampler:
    """Selects, proposes and qualifies ``num_pairs`` pairs as published.

    That is step estimation and then stitching, each of 100 steps with and without the return. Only ``timed_steps`` of
    the 100 are run; the time of the sampling loops is scaled, everything else counts once.
    """

    bundle: Bundle
    index: SourceIndex
    num_pairs: int
    timed_steps: int

    @classmethod
    def of(
        cls,
        dataset: EpisodeDataset,
        bundle: Bundle,
        *,
        fit: FitConfig | None = None,
        num_pairs: int = NUM_PAIRS,
        timed_steps: int = TIMED_STEPS,
    ) -> "PublishedSampler":
        """Make it for a dataset and a bundle fitted on it, of which it takes the scales."""
        published = published_bundle(bundle, fit or PRESETS["diffstitch"].fit)
        return cls(published, SourceIndex(dataset, published, PRESETS["diffstitch"].stitch), num_pairs, timed_steps)

    def seconds(self) -> float:
        """Measure the seconds for all pairs."""
        config = PRESETS["diffstitch"].stitch
        all_steps = config.sampler.num_steps
        stitcher = Stitcher(self.bundle, replace(config, sampler=replace(config.sampler, num_steps=self.timed_steps)))
        seeds = np.arange(self.num_pairs, dtype=np.int64)
        clock = StageClock()
        with replaced(clock.sampling()):
            started = time.perf_counter()
            stitcher.stitch(self.index.select(seeds), seeds)
            wait()
            whole = time.perf_counter() - started
        return whole + (all_steps / self.timed_steps - 1) * clock.seconds["sampling"]
