"""The fitted network as the samplers call it: return guidance, precision, compilation.

Legend: B batch, H horizon, O observation size, k diffusion step.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from raystitch.models.diffusion import Network, Schedule, predict_clean

FARTHEST = 10.0
"""Bound of the clean states that follow from predicted noise, standardised: at the first steps it is divided by a
signal that almost vanishes. The published sampler clips in the same place ("clip denoised")."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Denoiser:
    """Predicts clean states; with ``return_weight`` w > 0 those of windows with a certain return.

    Classifier-free guidance (Ho & Salimans 2022, Eq. 6): ``without + w (with - without)``, both in one batch of 2B
    rows. The clean states are, at a given noisy window, affine in the noise, and the weights sum to 1: combining
    predictions of the one or of the other is the same.

    Attributes:
        network: conditional on a return where ``return_weight`` is not 0.
        return_weight: 0 samples without a return, 1 with it (one evaluation each), more exaggerates the difference.
        return_value: the standardised discounted return asked for.
        bf16: run the network under autocast; what comes out is float32.
    """

    network: Network
    schedule: Schedule
    prediction: Literal["clean", "noise"]
    return_weight: float = 0.0
    return_value: float = 0.0
    bf16: bool = False

    @torch.no_grad()
    def __call__(self, noisy_BHO: Tensor, known_BHO: Tensor, mask_BH: Tensor, k_B: Tensor) -> Tensor:
        """Predicted clean states [B, H, O], standardised units."""
        if self.return_weight == 0:
            return self._predict(noisy_BHO, known_BHO, mask_BH, k_B, None)
        with_B = torch.full_like(noisy_BHO[:, 0, 0], self.return_value)
        if self.return_weight == 1:
            return self._predict(noisy_BHO, known_BHO, mask_BH, k_B, with_B)
        return_2B = torch.cat([with_B, torch.full_like(with_B, torch.nan)])
        noisy, known, mask, k = (torch.cat([rows, rows]) for rows in (noisy_BHO, known_BHO, mask_BH, k_B))
        with_BHO, without_BHO = self._predict(noisy, known, mask, k, return_2B).chunk(2)
        return torch.lerp(without_BHO, with_BHO, self.return_weight)

    def _predict(
        self, noisy_BHO: Tensor, known_BHO: Tensor, mask_BH: Tensor, k_B: Tensor, return_B: Tensor | None
    ) -> Tensor:
        with torch.autocast(noisy_BHO.device.type, torch.bfloat16, enabled=self.bf16):
            clean_BHO = predict_clean(
                self.network, self.schedule, self.prediction, noisy_BHO, known_BHO, mask_BH, k_B, return_B
            )
        if self.prediction == "noise":
            clean_BHO = clean_BHO.clamp(-FARTHEST, FARTHEST)
        return clean_BHO.to(noisy_BHO.dtype)
