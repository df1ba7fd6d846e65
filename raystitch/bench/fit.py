"""``bench fit``: the cost and quality of each fitted part at a quarter, half, all and twice its training steps.

Cost is processor time, so other work on the machine does not count; quality is on episodes that no model is fitted on.
Legend: T held-out transitions, O observation size, A action size.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raystitch.bench.machine import Limits, Row
from raystitch.bench.synthetic import BenchOptions, make_walks
from raystitch.data.episodes import EpisodeDataset, Ints
from raystitch.data.returns import discounted_returns
from raystitch.data.select import holdout_split
from raystitch.device import resolve_device, uses_bf16
from raystitch.models.batches import FitTransitions, StateWindows
from raystitch.models.config import FitConfig
from raystitch.models.diffusion import diffusion_loss, training_masks
from raystitch.models.embedding import embedding_quality
from raystitch.models.loop import train_part
from raystitch.models.parts import FitJob
from raystitch.seeding import derive_seed

FACTORS = (0.25, 0.5, 1.0, 2.0)
HELD_OUT_WINDOWS = 2000
MEASURED_PARTS = ("embedding", "value", "reward", "inverse", "diffusion", "dynamics")
MADE_UP_STEPS = 100
"""Training steps of every part if no dataset is named: enough to show the cost of a step."""
Quality = dict[str, float]


def rows(limits: Limits, options: BenchOptions) -> list[Row]:
    """Rows with seconds and held-out quality per part and budget; ratios are to the full budget."""
    dataset, config = options.dataset, FitConfig()
    if dataset is None:
        dataset = make_walks(20_000)
        short = {part: replace(getattr(config, part), train_steps=MADE_UP_STEPS) for part in MEASURED_PARTS}
        config = replace(config, **short)
    found: list[Row] = []
    for part in MEASURED_PARTS:
        measured = {factor: measure_part(dataset, config, part, factor) for factor in FACTORS}
        full_seconds, full = measured[1.0]
        for factor, (seconds, quality) in measured.items():
            name = f"{part}, {factor:g} x {getattr(config, part).train_steps:,} steps"
            found.append(Row(f"{name}: processor time", seconds, "s", f"{part}, full", seconds / full_seconds))
            found += [
                Row(f"  {name}: {what}", value, "", f"{part}, full", value / full[what] if full[what] else None)
                for what, value in quality.items()
            ]
    return found


def measure_part(dataset: EpisodeDataset, config: FitConfig, part: str, factor: float) -> tuple[float, Quality]:
    """Fit one part for ``factor`` times its steps; return processor seconds and quality on the held-out episodes."""
    settings: Any = getattr(config, part)
    settings = replace(settings, train_steps=max(round(factor * settings.train_steps), 1))
    changed = replace(config, **{part: settings})
    train, held_out = holdout_split(dataset.num_episodes, config.holdout_fraction, derive_seed(config.seed, "holdout"))
    device = resolve_device()
    job = FitJob(dataset, changed, train, device)
    found = next(candidate for candidate in job.parts() if candidate.name == part)
    started = time.process_time()
    train_part(
        found,
        seed=config.seed,
        checkpoint=None,
        checkpoint_every=10**9,
        progress=None,
        bf16=uses_bf16(config.precision, device),
    )
    return time.process_time() - started, _QUALITY[part](job, held_out)


def _quantiles(name: str, values: Tensor) -> Quality:
    median, p90 = np.quantile(values.cpu().numpy(), [0.5, 0.9]).tolist()
    return {f"{name}, median": median, f"{name}, p90": p90}


def _transitions(job: FitJob, episodes: Ints) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return obs, act, next_obs and reward of the episodes' transitions, [T, ..]."""
    data = FitTransitions.find(job.dataset, episodes, job.device)
    return (
        data.observations[data.rows],
        data.actions[data.steps],
        data.observations[data.rows + 1],
        data.rewards[data.steps],
    )


@torch.no_grad()
def _dynamics(job: FitJob, episodes: Ints) -> Quality:
    obs, act, next_obs, _ = _transitions(job, episodes)
    dynamics = job.heads.dynamics
    predicted = torch.cat(
        [dynamics.predict(*part, "all") for part in zip(obs.split(8192), act.split(8192), strict=True)]
    )
    return _quantiles("squared one-step error (standardised)", dynamics.state.distance(predicted, next_obs))


@torch.no_grad()
def _inverse(job: FitJob, episodes: Ints) -> Quality:
    obs, act, next_obs, _ = _transitions(job, episodes)
    error = (job.heads.inverse(obs, next_obs) - act).abs().amax(-1)
    return _quantiles("largest action error", error)


@torch.no_grad()
def _reward(job: FitJob, episodes: Ints) -> Quality:
    obs, act, next_obs, reward = _transitions(job, episodes)
    return _quantiles("absolute reward error", (job.heads.reward(obs, act, next_obs)[0] - reward).abs())


@torch.no_grad()
def _value(job: FitJob, episodes: Ints) -> Quality:
    """Judge the value on terminated episodes, whose discounted returns are known."""
    held_out = job.dataset.subset(episodes[job.dataset.terminated[episodes]])
    if held_out.num_transitions < 2:
        return {}
    returns = discounted_returns(held_out.rewards, held_out.offsets, job.config.gamma)
    predicted = job.heads.value(torch.from_numpy(held_out.observations[held_out.obs_index]).to(job.device))
    return {"correlation with the return": float(np.corrcoef(predicted.cpu().numpy(), returns)[0, 1])}


def _embedding(job: FitJob, episodes: Ints) -> Quality:
    found = embedding_quality(job.heads.embedding, job.dataset, episodes, job.config.diffusion.gap_max + 1)
    return {"rank correlation with the steps": found.rank_correlation, "mean error in steps": found.mean_error}


@torch.no_grad()
def _diffusion(job: FitJob, episodes: Ints) -> Quality:
    """Compute the training loss on held-out windows, always with the same masks, steps and noise."""
    config = job.config.diffusion
    windows = StateWindows.find(job.dataset, job.windows.observations, episodes, config.gap_min + 2)
    generator = torch.Generator().manual_seed(0)
    count = min(HELD_OUT_WINDOWS, len(windows))
    chosen = torch.randperm(len(windows), generator=generator)[:count].to(job.device)
    clean, valid = windows.gather(chosen, config.horizon)
    mask = training_masks(config, valid.cpu(), generator).to(job.device)
    k = torch.randint(config.num_diffusion_steps, (count,), generator=generator).to(job.device)
    noise = torch.randn(clean.shape, generator=generator).to(job.device)
    loss = diffusion_loss(job.unet, job.schedule, config, clean, mask, valid, k, noise)
    return {"held-out loss": float(loss)}


_QUALITY: dict[str, Callable[[FitJob, Ints], Quality]] = {
    "dynamics": _dynamics,
    "inverse": _inverse,
    "reward": _reward,
    "value": _value,
    "embedding": _embedding,
    "diffusion": _diffusion,
}
