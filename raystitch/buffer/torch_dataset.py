"""A buffer as a torch Dataset; the only file of this package that imports torch, and only when asked for."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from raystitch.buffer.bridges import BridgeSet


class BridgeTransitions(Dataset[dict[str, Tensor]]):
    """Generated transitions; an index, a list of them or a slice gives a dictionary of tensors.

    Keys: ``observation``, ``action``, ``reward``, ``next_observation`` and ``terminated`` (always False: a seam is
    neither terminal nor time-out).
    """

    def __init__(self, bridges: BridgeSet) -> None:
        self._observations = torch.from_numpy(np.ascontiguousarray(bridges.observations))
        self._actions = torch.from_numpy(np.ascontiguousarray(bridges.actions))
        self._rewards = torch.from_numpy(np.ascontiguousarray(bridges.rewards))
        self._obs_index = torch.from_numpy(bridges.obs_index)

    def __len__(self) -> int:
        return len(self._rewards)

    def __getitem__(self, index: int | slice | list[int] | Tensor) -> dict[str, Tensor]:
        row = self._obs_index[index]
        reward = self._rewards[index]
        return {
            "observation": self._observations[row],
            "action": self._actions[index],
            "reward": reward,
            "next_observation": self._observations[row + 1],
            "terminated": torch.zeros_like(reward, dtype=torch.bool),
        }
