"""How fast policies train: gradient steps per second of each algorithm, and of drawing batches alone."""

from dataclasses import replace

import torch

from raystitch.bench.machine import Limits, Row, best_seconds
from raystitch.bench.subject import BenchOptions
from raystitch.bench.synthetic import make_walks
from raystitch.trainers.batches import RatioSampler, TrainData
from raystitch.trainers.config import BCConfig, DTConfig, TD3BCConfig
from raystitch.trainers.data import build_data
from raystitch.trainers.loop import train_policy
from raystitch.trainers.ratio import parse_ratio

STEPS = 120
CONFIGS = {
    "td3bc": TD3BCConfig(),
    "bc": BCConfig(),
    "dt": DTConfig(width=64, num_layers=2, context=10),
}


def rows(limits: Limits, options: BenchOptions) -> list[Row]:
    """Steps per second at the default batch sizes, 1:1 between the data and itself; the ratio compares with batches."""
    dataset = make_walks(20_000)
    found = []
    for algo, settings in CONFIGS.items():
        config = replace(settings, train_steps=STEPS)
        kind = "sequences" if algo == "dt" else "transitions"
        data = build_data(dataset, kind, "duplicated")
        draw = _draw_seconds(data, config.batch_size, getattr(config, "context", 0))
        train_policy(data, algo, replace(config, train_steps=3), "1:1")
        seconds = best_seconds(lambda d=data, a=algo, c=config: train_policy(d, a, c, "1:1"), repeats=2, warmups=0)
        found.append(Row(f"{algo}, batches of {config.batch_size}", STEPS / seconds, "steps/s"))
        share = draw * STEPS / seconds
        found.append(Row(f"  {algo}: drawing one batch", draw * 1e6, "us", "one step", share))
    return found


def _draw_seconds(data: TrainData, batch_size: int, context: int) -> float:
    sampler = RatioSampler(data, parse_ratio("1:1"), batch_size, [torch.Generator(data.device)])

    def draw() -> None:
        for _ in range(20):
            drawn = sampler.draw()
            if context:
                data.windows(*drawn, context)
            else:
                data.transitions(drawn[0], drawn[1])

    return best_seconds(draw) / 20
