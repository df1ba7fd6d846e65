"""How fast bridges are generated and judged, in one process, stage by stage."""

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from raystitch.bench.machine import Limits, Row, best_seconds
from raystitch.bench.synthetic import make_bundle, make_walks
from raystitch.data.episodes import EpisodeDataset
from raystitch.models.bundle import Bundle
from raystitch.stitching.config import QualifyConfig, SamplerConfig, StitchConfig
from raystitch.stitching.pairs import SourceIndex
from raystitch.stitching.stitcher import Stitcher

NUM_PAIRS = 256
NUM_STEPS = (2, 5)


def rows(limits: Limits) -> list[Row]:
    """Candidates per second; the ratio of the network is its share of the machine's matrix-multiply peak."""
    dataset = make_walks(10_000)
    bundle = make_bundle(dataset)
    found = [_network(bundle, limits)]
    for num_steps in NUM_STEPS:
        found += _stages(dataset, bundle, num_steps)
    return found


def _stages(dataset: EpisodeDataset, bundle: Bundle, num_steps: int) -> list[Row]:
    config = StitchConfig(sampler=SamplerConfig(num_steps=num_steps), qualify=QualifyConfig(delta="off"))
    stitcher, index = Stitcher(bundle, config), SourceIndex(dataset, bundle, config)
    seeds = np.arange(NUM_PAIRS, dtype=np.int64)
    pairs = index.select(seeds)
    candidates = stitcher.propose(pairs, seeds)
    stages = {
        "select": best_seconds(lambda: index.select(seeds), repeats=3, warmups=0),
        "propose": best_seconds(lambda: stitcher.propose(pairs, seeds), repeats=3, warmups=0),
        "qualify": best_seconds(lambda: stitcher.qualify(candidates), repeats=3, warmups=0),
    }
    whole = sum(stages.values())
    name = f"the whole, {num_steps} steps"
    return [
        Row(f"select, propose, qualify; {num_steps} steps", NUM_PAIRS / whole, "candidates/s"),
        *(
            Row(f"  {stage}; {num_steps} steps", seconds / NUM_PAIRS * 1e3, "ms", name, seconds / whole)
            for stage, seconds in stages.items()
        ),
    ]


def _network(bundle: Bundle, limits: Limits) -> Row:
    """One evaluation of the U-Net on a micro-batch."""
    shape = (SamplerConfig().micro_batch, bundle.horizon, bundle.obs_dim)
    noisy, known = torch.randn(2, *shape, device=bundle.device)
    mask = torch.zeros(shape[:2], device=bundle.device)
    steps = torch.full((shape[0],), 50, device=bundle.device)

    def forward() -> None:
        with torch.inference_mode():
            bundle.denoise(noisy, known, mask, steps)

    with FlopCounterMode(display=False) as counter:
        forward()
    gflops = counter.get_total_flops() / best_seconds(forward) / 1e9
    return Row(f"U-Net, {shape[0]} windows of {shape[1]}", gflops, "GFLOP/s", "matmul", gflops / limits.matmul_gflops)
