"""The diffusion process over state windows: schedule, training masks, loss (DiffStitch section 4.1).

Legend: B batch, H horizon, O observation size, K diffusion steps, k one of them (0 = least noise).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from raystitch.models.config import DiffusionConfig
from raystitch.models.unet import ignored_positions

MAX_BETA = 0.999
RANDOM_SUFFIX_CUT = 0.3

Network = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""(noisy_BHO, known_BHO, mask_BH, k_B, return_B or None) -> clean states or noise [B, H, O]; see ``TemporalUNet``."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """``alpha_bar`` [K]: share of the clean signal's variance left after step k."""

    alpha_bar: Tensor

    @property
    def num_steps(self) -> int:
        return len(self.alpha_bar)

    @cached_property
    def levels(self) -> list[float]:
        """``alpha_bar`` as numbers, fetched from the device once."""
        return self.alpha_bar.tolist()

    def to(self, device: torch.device) -> "Schedule":
        return Schedule(self.alpha_bar.to(device))

    def signal_and_noise(self, k_B: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alpha_bar) and sqrt(1 - alpha_bar) of each row, [B, 1, 1]."""
        alpha_bar = self.alpha_bar[k_B].view(-1, 1, 1)
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


def cosine_schedule(num_steps: int) -> Schedule:
    """Nichol & Dhariwal 2021, Eq. 17, betas capped at 0.999."""
    time = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    level = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
    beta = (1 - level[1:] / level[:-1]).clamp(max=MAX_BETA)
    return Schedule(torch.cumprod(1 - beta, 0).float())


def training_masks(config: DiffusionConfig, valid_B: Tensor, generator: torch.Generator) -> Tensor:
    """Draws which states are known, float [B, H]: prefix + suffix around a gap, prefix only, or random.

    Args:
        valid_B: int64 [B], recorded states in each window (at least gap_min + 2); what lies beyond is padding and
            is never known.
    """
    size, horizon = len(valid_B), config.horizon
    position_H = torch.arange(horizon)

    def uniform() -> Tensor:
        return torch.rand(size, generator=generator)

    def between(low: Tensor | int, high: Tensor) -> Tensor:
        return (low + uniform() * (high - low + 1)).long().clamp(max=horizon).minimum(high)

    prefix_B = between(1, (valid_B - config.gap_min - 1).clamp(1, config.prefix_max))
    gap_B = between(config.gap_min, (valid_B - prefix_B - 1).clamp(max=config.gap_max))
    enter_B = prefix_B + gap_B
    # The suffix ends at the end of the recording, sometimes earlier: a target may be entered close to its end.
    cut_B = uniform() < RANDOM_SUFFIX_CUT
    end_B = torch.where(cut_B, between(enter_B + 1, valid_B), valid_B)

    prefix_BH = position_H < prefix_B[:, None]
    stitch_BH = prefix_BH | ((position_H >= enter_B[:, None]) & (position_H < end_B[:, None]))
    share_B1 = torch.rand(size, 1, generator=generator)
    random_BH = torch.rand(size, horizon, generator=generator) < share_B1
    random_BH[:, 0] = True
    kind_B1 = uniform()[:, None]
    mask_BH = torch.where(
        kind_B1 < config.mask_stitch,
        stitch_BH,
        torch.where(kind_B1 < config.mask_stitch + config.mask_prefix, prefix_BH, random_BH),
    )
    return (mask_BH & (position_H < valid_B[:, None])).float()


def predict_clean(
    network: Network,
    schedule: Schedule,
    prediction: Literal["clean", "noise"],
    noisy_BHO: Tensor,
    known_BHO: Tensor,
    mask_BH: Tensor,
    k_B: Tensor,
    return_B: Tensor | None = None,
) -> Tensor:
    """The network's estimate of the clean states [B, H, O], whichever quantity it predicts."""
    output_BHO = network(noisy_BHO, known_BHO, mask_BH, k_B, return_B)
    if prediction == "clean":
        return output_BHO
    signal, noise = schedule.signal_and_noise(k_B)
    return (noisy_BHO - noise * output_BHO) / signal


def drop_returns(return_B: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """NaN ("no return") in that share of the rows, so that the network also learns to do without."""
    dropped_B = torch.rand(len(return_B), generator=generator) < share
    return return_B.masked_fill(dropped_B.to(return_B.device), torch.nan)


def diffusion_loss(
    network: Network,
    schedule: Schedule,
    config: DiffusionConfig,
    clean_BHO: Tensor,
    mask_BH: Tensor,
    valid_B: Tensor,
    k_B: Tensor,
    noise_BHO: Tensor,
    return_B: Tensor | None = None,
) -> Tensor:
    """Mean squared error over unknown, recorded positions (DiffStitch Eq. 3, with the mask known to the network).

    For clean states also that of the differences of consecutive states, seams included: a bridge whose error is
    smooth in time still obeys the dynamics, one that jitters by the same amount does not.
    """
    signal, noise = schedule.signal_and_noise(k_B)
    noisy_BHO = signal * clean_BHO + noise * noise_BHO
    output_BHO = network(noisy_BHO, clean_BHO * mask_BH.unsqueeze(-1), mask_BH, k_B, return_B)
    recorded_BH = (torch.arange(mask_BH.shape[1], device=mask_BH.device) < valid_B[:, None]).to(mask_BH.dtype)
    wanted_BH = recorded_BH * (1 - mask_BH) * (1 - ignored_positions(mask_BH))
    target_BHO = clean_BHO if config.prediction == "clean" else noise_BHO
    error_BHO = (output_BHO - target_BHO) * wanted_BH.unsqueeze(-1)
    loss = _mean(error_BHO, wanted_BH)
    if config.prediction == "clean" and config.difference_weight > 0:
        step_BH = torch.maximum(wanted_BH[:, 1:], wanted_BH[:, :-1]) * recorded_BH[:, 1:]
        difference_BHO = (error_BHO[:, 1:] - error_BHO[:, :-1]) * step_BH.unsqueeze(-1)
        loss = loss + config.difference_weight * _mean(difference_BHO, step_BH)
    return loss


def _mean(error_BHO: Tensor, weight_BH: Tensor) -> Tensor:
    """Mean square over the positions of weight 1; ``error`` is 0 at the others."""
    return error_BHO.square().mean(-1).sum() / weight_BH.sum().clamp(min=1)
