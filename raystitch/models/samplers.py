"""Few-step samplers: noise in, state windows out. One function per sampler, one registry line.

Known states are imposed on the predicted clean window at every step, so they end in the result exactly.
Legend: B batch, H horizon, O observation size, K diffusion steps, k one of them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raystitch.data.episodes import Floats, Ints
from raystitch.models.diffusion import Schedule

Denoise = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(noisy_BHO, known_BHO, mask_BH, k_B) -> predicted clean states [B, H, O]; ``Bundle.denoise`` is one."""

Noise = Callable[[int], Tensor] | Tensor | Sequence[Tensor]
"""Standard normal [B, H, O] for draw i: a function of i or something indexed by i. Draw 0 is the initial noise,
draw i > 0 the noise injected after the i-th of the sampler's steps (DDIM injects none)."""


class Sampler(Protocol):
    """One sampler; all values in standardised units."""

    def __call__(
        self,
        denoise: Denoise,
        known_BHO: Tensor,
        mask_BH: Tensor,
        noise: Noise,
        schedule: Schedule,
        num_steps: int,
        noise_scale: float,
    ) -> Tensor:
        """``known`` [B, H, O] is read where ``mask`` [B, H] is 1 -> sampled windows [B, H, O].

        Args:
            num_steps: network evaluations; more than K of them means K.
            noise_scale: multiplies the initial and the injected noise.
        """
        ...


def step_indices(num_train_steps: int, num_steps: int) -> list[int]:
    """The k visited, from K - 1 downwards, evenly spaced ("trailing" spacing, Lin et al. 2024, Table 2)."""
    count = min(num_steps, num_train_steps)
    return [round(num_train_steps - i * num_train_steps / count) - 1 for i in range(count)]


def ddim(
    denoise: Denoise,
    known_BHO: Tensor,
    mask_BH: Tensor,
    noise: Noise,
    schedule: Schedule,
    num_steps: int,
    noise_scale: float,
) -> Tensor:
    """Deterministic sampler (Song et al. 2021, Eq. 12 with sigma = 0)."""
    return _sample(denoise, known_BHO, mask_BH, noise, schedule, num_steps, noise_scale, _ddim_step)


def ddpm(
    denoise: Denoise,
    known_BHO: Tensor,
    mask_BH: Tensor,
    noise: Noise,
    schedule: Schedule,
    num_steps: int,
    noise_scale: float,
) -> Tensor:
    """Ancestral sampler (Ho et al. 2020, Eq. 6-7) over the visited steps; the published one has num_steps = K."""
    return _sample(denoise, known_BHO, mask_BH, noise, schedule, num_steps, noise_scale, _ddpm_step)


SAMPLERS: Mapping[str, Sampler] = {"ddim": ddim, "ddpm": ddpm}

_Step = Callable[[Tensor, Tensor, float, float, Callable[[], Tensor]], Tensor]


def _sample(
    denoise: Denoise,
    known_BHO: Tensor,
    mask_BH: Tensor,
    noise: Noise,
    schedule: Schedule,
    num_steps: int,
    noise_scale: float,
    step: _Step,
) -> Tensor:
    is_known_BH1 = mask_BH.unsqueeze(-1) > 0.5
    visited = step_indices(schedule.num_steps, num_steps)
    alpha_bars = [*schedule.alpha_bar[visited].tolist(), 1.0]
    x_BHO = noise_scale * _draw(noise, 0)
    clean_BHO = x_BHO
    for i, k in enumerate(visited):
        k_B = torch.full((len(x_BHO),), k, dtype=torch.int64, device=x_BHO.device)
        clean_BHO = torch.where(is_known_BH1, known_BHO, denoise(x_BHO, known_BHO, mask_BH, k_B))
        if i < len(visited) - 1:
            x_BHO = step(
                x_BHO, clean_BHO, alpha_bars[i], alpha_bars[i + 1], lambda i=i: noise_scale * _draw(noise, i + 1)
            )
    return clean_BHO


def _draw(noise: Noise, index: int) -> Tensor:
    return noise(index) if callable(noise) else noise[index]


def _ddim_step(x: Tensor, clean: Tensor, alpha_bar: float, next_alpha_bar: float, draw: Callable[[], Tensor]) -> Tensor:
    direction = (x - alpha_bar**0.5 * clean) / (1 - alpha_bar) ** 0.5
    return next_alpha_bar**0.5 * clean + (1 - next_alpha_bar) ** 0.5 * direction


def _ddpm_step(x: Tensor, clean: Tensor, alpha_bar: float, next_alpha_bar: float, draw: Callable[[], Tensor]) -> Tensor:
    alpha = alpha_bar / next_alpha_bar
    beta = 1 - alpha
    clean_weight = next_alpha_bar**0.5 * beta / (1 - alpha_bar)
    x_weight = alpha**0.5 * (1 - next_alpha_bar) / (1 - alpha_bar)
    sigma = (beta * (1 - next_alpha_bar) / (1 - alpha_bar)) ** 0.5
    return clean_weight * clean + x_weight * x + sigma * draw()


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_STREAM = np.uint64(0xD1B54A32D192ED03)


def _splitmix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The SplitMix64 finaliser (Steele et al. 2014): a bijection that turns a counter into random bits."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def row_noise(seeds: Ints, shape: Sequence[int], stream: int = 0) -> Floats:
    """Standard normal float32 [N, *shape]; row n is a function of (seeds[n], stream) alone, never of its batch-mates.

    A counter-based generator: bits from SplitMix64 at (seed, stream, position), normals by Box-Muller.
    """
    count = int(np.prod(shape, dtype=np.int64))
    half = (count + 1) // 2
    with np.errstate(over="ignore"):
        seed = np.asarray(seeds, np.int64).view(np.uint64)
        key = _splitmix(_splitmix(seed + _GOLDEN) + np.uint64(stream) * _STREAM)
        bits = _splitmix(key[:, None] + np.arange(1, half + 1, dtype=np.uint64) * _GOLDEN)
    scale = np.float32(2.0**-32)
    first = ((bits >> np.uint64(32)).astype(np.float32) + np.float32(0.5)) * scale
    angle = (bits & np.uint64(0xFFFFFFFF)).astype(np.float32) * np.float32(2 * np.pi) * scale
    radius = np.sqrt(-2 * np.log(np.minimum(first, np.float32(1))))
    normals = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], 1)
    return normals[:, :count].reshape(len(seed), *shape).astype(np.float32, copy=False)


def seeded_noise(seeds: Ints, shape: Sequence[int], device: torch.device, stream: int = 0) -> Callable[[int], Tensor]:
    """``row_noise`` as a sampler's noise: draw i uses stream ``stream + i``."""
    return lambda index: torch.from_numpy(row_noise(seeds, shape, stream + index)).to(device)
