"""Few-step samplers: noise in, state windows out. One loop; a sampler is one update rule and one registry line.

Known states are imposed on the predicted clean window at every step, so they end in the result exactly.
Legend: B batch, H horizon, O observation size, K diffusion steps, k one of them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from raystitch.data.episodes import Floats, Ints
from raystitch.models.diffusion import Schedule
from raystitch.seeding import GOLDEN, splitmix64

Denoise = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(noisy_BHO, known_BHO, mask_BH, k_B) -> predicted clean states [B, H, O]; ``Bundle.denoise`` is one."""

Refine = Callable[[Tensor, int, int], Tensor]
"""(clean_BHO, step_index, num_steps) -> better clean states [B, H, O]; called after every network evaluation."""

Noise = Callable[[int], Tensor] | Tensor | Sequence[Tensor]
"""Standard normal [B, H, O] for draw i: a function of i or something indexed by i. Draw 0 is the initial noise,
draw i > 0 the noise injected after the i-th of the sampler's steps (only DDPM injects any)."""


@dataclass(frozen=True, eq=False)
class Start:
    """Windows to begin from instead of pure noise: re-noised part of the way and denoised again.

    Attributes:
        clean_BHO: standardised states.
        noise_level: share of the diffusion steps that is undone, in (0, 1].
    """

    clean_BHO: Tensor
    noise_level: float

    def __post_init__(self) -> None:
        if not 0 < self.noise_level <= 1:
            raise ValueError(f"noise_level must be in (0, 1], got noise_level={self.noise_level}")


class Update(Protocol):
    """The step from one noise level to the next; the one thing in which samplers differ."""

    def __call__(
        self, x_BHO: Tensor, clean_BHO: Tensor, alpha_bar: float, next_alpha_bar: float, draw: Callable[[], Tensor]
    ) -> Tensor:
        """Noisy windows at ``alpha_bar`` and what they are predicted to hide -> the windows at ``next_alpha_bar``.

        ``draw`` gives scaled noise [B, H, O]. The last step needs no update: there the prediction is the result.
        """
        ...


@dataclass(frozen=True)
class Sampler:
    """One sampler; ``make_update`` is called once per batch, so what an update remembers never meets another batch."""

    make_update: Callable[[], Update]

    def __call__(
        self,
        denoise: Denoise,
        known_BHO: Tensor,
        mask_BH: Tensor,
        noise: Noise,
        schedule: Schedule,
        num_steps: int,
        noise_scale: float,
        *,
        refine: Refine | None = None,
        start: Start | None = None,
    ) -> Tensor:
        """``known`` [B, H, O] is read where ``mask`` [B, H] is 1 -> windows [B, H, O]; all in standardised units.

        Args:
            num_steps: network evaluations; more than there are diffusion steps means all of those.
            noise_scale: multiplies the initial and the injected noise.
            refine: improves each predicted clean window before it is used; cannot change known states.
            start: windows to re-noise and denoise again; None starts from pure noise.
        """
        is_known_BH1 = mask_BH.unsqueeze(-1) > 0.5
        update = self.make_update()
        steps_undone = schedule.num_steps if start is None else max(round(start.noise_level * schedule.num_steps), 1)
        visited = step_indices(steps_undone, num_steps)
        alpha_bars = [schedule.levels[k] for k in visited]
        x_BHO = noise_scale * _draw(noise, 0)
        if start is not None:
            x_BHO = alpha_bars[0] ** 0.5 * start.clean_BHO + (1 - alpha_bars[0]) ** 0.5 * x_BHO
        clean_BHO = x_BHO
        for i, k in enumerate(visited):
            k_B = torch.full((len(x_BHO),), k, dtype=torch.int64, device=x_BHO.device)
            clean_BHO = torch.where(is_known_BH1, known_BHO, denoise(x_BHO, known_BHO, mask_BH, k_B))
            if refine is not None:
                clean_BHO = torch.where(is_known_BH1, known_BHO, refine(clean_BHO, i, len(visited)))
            if i < len(visited) - 1:
                x_BHO = update(
                    x_BHO, clean_BHO, alpha_bars[i], alpha_bars[i + 1], lambda i=i: noise_scale * _draw(noise, i + 1)
                )
        return clean_BHO


def step_indices(num_train_steps: int, num_steps: int) -> list[int]:
    """The k visited, from K - 1 downwards, evenly spaced ("trailing" spacing, Lin et al. 2024, Table 2)."""
    count = min(num_steps, num_train_steps)
    return [round(num_train_steps - i * num_train_steps / count) - 1 for i in range(count)]


def _draw(noise: Noise, index: int) -> Tensor:
    return noise(index) if callable(noise) else noise[index]


def _ddim(
    x_BHO: Tensor, clean_BHO: Tensor, alpha_bar: float, next_alpha_bar: float, draw: Callable[[], Tensor]
) -> Tensor:
    direction_BHO = (x_BHO - alpha_bar**0.5 * clean_BHO) / (1 - alpha_bar) ** 0.5
    return next_alpha_bar**0.5 * clean_BHO + (1 - next_alpha_bar) ** 0.5 * direction_BHO


def _ddpm(
    x_BHO: Tensor, clean_BHO: Tensor, alpha_bar: float, next_alpha_bar: float, draw: Callable[[], Tensor]
) -> Tensor:
    alpha = alpha_bar / next_alpha_bar
    beta = 1 - alpha
    clean_weight = next_alpha_bar**0.5 * beta / (1 - alpha_bar)
    x_weight = alpha**0.5 * (1 - next_alpha_bar) / (1 - alpha_bar)
    sigma = (beta * (1 - next_alpha_bar) / (1 - alpha_bar)) ** 0.5
    return clean_weight * clean_BHO + x_weight * x_BHO + sigma * draw()


class _DpmSolver2M:
    """Lu et al. 2022, Algorithm 2. Lambda is half the log signal-to-noise ratio, h its step."""

    def __init__(self) -> None:
        self.before: tuple[Tensor, float] | None = None

    def __call__(
        self, x_BHO: Tensor, clean_BHO: Tensor, alpha_bar: float, next_alpha_bar: float, draw: Callable[[], Tensor]
    ) -> Tensor:
        h = _half_log_snr(next_alpha_bar) - _half_log_snr(alpha_bar)
        target_BHO = clean_BHO
        if self.before is not None:  # the first step has nothing to extrapolate from: first order, which is DDIM
            clean_before_BHO, h_before = self.before
            target_BHO = torch.lerp(clean_before_BHO, clean_BHO, 1 + h / (2 * h_before))
        self.before = clean_BHO, h
        keep = ((1 - next_alpha_bar) / (1 - alpha_bar)) ** 0.5
        return keep * x_BHO - next_alpha_bar**0.5 * math.expm1(-h) * target_BHO


def _half_log_snr(alpha_bar: float) -> float:
    return 0.5 * math.log(alpha_bar / (1 - alpha_bar))


ddim = Sampler(lambda: _ddim)
"""Deterministic sampler (Song et al. 2021, Eq. 12 with sigma = 0)."""

ddpm = Sampler(lambda: _ddpm)
"""Ancestral sampler (Ho et al. 2020, Eq. 6-7) over the visited steps; the published one has num_steps = K."""

dpmpp_2m = Sampler(_DpmSolver2M)
"""DPM-Solver++(2M) (Lu et al. 2022): deterministic, second order from the second step on; the last step is first
order, because it ends without noise."""

SAMPLERS: Mapping[str, Sampler] = {"ddim": ddim, "ddpm": ddpm, "dpmpp_2m": dpmpp_2m}

_STREAM = np.uint64(0xD1B54A32D192ED03)


def row_noise(seeds: Ints, shape: Sequence[int], stream: int = 0) -> Floats:
    """Standard normal float32 [N, *shape]; row n is a function of (seeds[n], stream) alone, never of its batch-mates.

    A counter-based generator: bits from SplitMix64 at (seed, stream, position), normals by Box-Muller.
    """
    count = int(np.prod(shape, dtype=np.int64))
    half = (count + 1) // 2
    with np.errstate(over="ignore"):
        seed = np.asarray(seeds, np.int64).view(np.uint64)
        key = splitmix64(splitmix64(seed + GOLDEN) + np.uint64(stream) * _STREAM)
        bits = splitmix64(key[:, None] + np.arange(1, half + 1, dtype=np.uint64) * GOLDEN)
    scale = np.float32(2.0**-32)
    first = ((bits >> np.uint64(32)).astype(np.float32) + np.float32(0.5)) * scale
    angle = (bits & np.uint64(0xFFFFFFFF)).astype(np.float32) * np.float32(2 * np.pi) * scale
    radius = np.sqrt(-2 * np.log(np.minimum(first, np.float32(1))))
    normals = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], 1)
    return normals[:, :count].reshape(len(seed), *shape).astype(np.float32, copy=False)


def seeded_noise(seeds: Ints, shape: Sequence[int], device: torch.device, stream: int = 0) -> Callable[[int], Tensor]:
    """``row_noise`` as a sampler's noise: draw i uses stream ``stream + i``."""
    return lambda index: torch.from_numpy(row_noise(seeds, shape, stream + index)).to(device)
