"""The original data's standardisation as a torch module, so that it moves and is saved with a model."""

import numpy as np
import torch
from torch import Tensor, nn

from raystitch.data.normalise import Normalizer


class Standardizer(nn.Module):
    """Raw units <-> standardised units; ``active`` (float, 0 or 1) marks the dimensions that vary.

    The others are 0 to a network, and its outputs for them, which nothing fits, are taken as 0: they count nowhere.
    """

    mean: Tensor
    std: Tensor
    active: Tensor

    def __init__(self, normalizer: Normalizer) -> None:
        super().__init__()
        for name in ("mean", "std", "active"):
            self.register_buffer(name, torch.from_numpy(np.asarray(getattr(normalizer, name), np.float32).copy()))

    def encode(self, raw: Tensor) -> Tensor:
        """Raw [..., O] -> standardised [..., O]; 0 in dimensions that are not active."""
        return (raw - self.mean) / self.std * self.active

    def decode(self, standardised: Tensor) -> Tensor:
        """Standardised [..., O] -> raw [..., O]; the mean in dimensions that are not active."""
        return standardised * (self.std * self.active) + self.mean

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        """Squared L2 distance of raw [..., O] states in standardised units over the active dimensions -> [...]."""
        return (((first - second) / self.std * self.active) ** 2).sum(-1)


def identity_normalizer(dim: int) -> Normalizer:
    """Leaves values as they are; what an unfitted model is built with before its weights are loaded."""
    return Normalizer(np.zeros(dim, np.float32), np.ones(dim, np.float32), np.ones(dim, np.bool_))
