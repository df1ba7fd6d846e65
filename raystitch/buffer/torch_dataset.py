"""Transitions of a buffer as a torch Dataset.

It is a module of its own so that reading a buffer does not import torch.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from raystitch.buffer.transitions import Transitions


class BridgeTransitions(Dataset[dict[str, Tensor]]):
    """Generated transitions, read from the mapped files; an index, a list of them or a slice gives a dictionary.

    Keys: ``observation``, ``action``, ``reward``, ``next_observation`` and ``terminated`` (always False: a seam is
    neither terminal nor time-out). A list is fetched at once: give a DataLoader a ``BatchSampler`` as its ``sampler``
    and ``batch_size=None``, or its batches are made of single rows.
    """

    def __init__(self, transitions: Transitions) -> None:
        self._transitions = transitions

    def __len__(self) -> int:
        return len(self._transitions)

    def __getitem__(self, index: int | slice | list[int] | Tensor) -> dict[str, Tensor]:
        if isinstance(index, slice):
            asked = np.arange(*index.indices(len(self)))
        else:
            asked = np.asarray(index)
            if asked.dtype == np.bool_:
                asked = np.flatnonzero(asked)
        batch: Any = self._transitions.at(np.atleast_1d(asked))
        tensors = {name: torch.from_numpy(column) for name, column in batch.items()}
        return {name: tensor[0] for name, tensor in tensors.items()} if asked.ndim == 0 else tensors

    def __getitems__(self, indices: list[int]) -> list[dict[str, Tensor]]:
        """Fetch a batch of rows together, and hand them over one by one: what a DataLoader asks for."""
        batch = self[indices]
        return [{name: column[row] for name, column in batch.items()} for row in range(len(indices))]
