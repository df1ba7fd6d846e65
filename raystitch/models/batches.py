"""The dataset as tensors for training: windows of states and single transitions of the fitted episodes.

Legend: B batch, H horizon, O observation size, M ensemble members.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raystitch.data.episodes import EpisodeDataset, Floats, Ints


@dataclass(frozen=True, eq=False)
class StateWindows:
    """Windows of consecutive recorded states that start at ``starts``.

    Attributes:
        observations: float32 [R, O] in the units wanted, all observation rows of the dataset.
        starts: int64 [W], first row of each window.
        stops: int64 [W], one past the last recorded row of that window's episode.
        returns: float32 [W] from each window's first state on, in the units given; None where nobody needs them.
    """

    observations: Tensor
    starts: Tensor
    stops: Tensor
    returns: Tensor | None = None

    @classmethod
    def find(
        cls,
        dataset: EpisodeDataset,
        observations: Tensor,
        episodes: Ints,
        min_states: int,
        returns: Floats | None = None,
    ) -> "StateWindows":
        """All windows of ``episodes`` with at least ``min_states`` (at least 2) recorded states.

        Args:
            returns: float32 [N], from each transition of the dataset on.
        """
        first, stop = dataset.obs_offsets[episodes], recorded_stops(dataset)[episodes]
        count = np.maximum(stop - first - min_states + 1, 0)
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        starts = np.repeat(first, count) + within
        device = observations.device
        # An episode has one row more than transitions, so e episodes before a row shift it by e.
        steps = starts - np.repeat(episodes, count)
        return cls(
            observations,
            torch.from_numpy(starts).to(device),
            torch.from_numpy(np.repeat(stop, count)).to(device),
            None if returns is None else torch.from_numpy(returns[steps]).to(device),
        )

    def __len__(self) -> int:
        return len(self.starts)

    def gather(self, rows_B: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """States [B, length, O], the last recorded one repeated past the end, and recorded states int64 [B]."""
        start_B, stop_B = self.starts[rows_B], self.stops[rows_B]
        index_BH = start_B[:, None] + torch.arange(length, device=start_B.device)
        return self.observations[index_BH.minimum(stop_B[:, None] - 1)], (stop_B - start_B).clamp(max=length)


def recorded_stops(dataset: EpisodeDataset) -> Ints:
    """One past the last recorded observation row of each episode, int64 [E]."""
    return dataset.obs_offsets[1:] - ~dataset.final_observed


@dataclass(frozen=True, eq=False)
class FitTransitions:
    """Transitions of the fitted episodes whose next state is recorded; raw units.

    Attributes:
        observations: float32 [R, O], all observation rows; ``rows`` int64 [T] is s_t's row, s_{t+1} the next one.
        actions: float32 [N, A], rewards: float32 [N], terminal: float32 [N]; ``steps`` int64 [T] indexes them.
        stops: int64 [T], one past the last recorded row of that transition's episode.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    terminal: Tensor
    rows: Tensor
    steps: Tensor
    stops: Tensor

    @classmethod
    def find(cls, dataset: EpisodeDataset, episodes: Ints, device: torch.device) -> "FitTransitions":
        chosen = np.zeros(dataset.num_episodes, np.bool_)
        chosen[episodes] = True
        steps = np.flatnonzero(chosen[dataset.episode_of] & dataset.next_observed)

        def tensor(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        return cls(
            tensor(dataset.observations),
            tensor(dataset.actions),
            tensor(dataset.rewards),
            tensor(dataset.transition_terminal.astype(np.float32)),
            tensor(dataset.obs_index[steps]),
            tensor(steps),
            tensor(recorded_stops(dataset)[dataset.episode_of[steps]]),
        )

    def __len__(self) -> int:
        return len(self.steps)

    def draw(self, members: int, size: int, generator: torch.Generator) -> Tensor:
        """Positions [M, B] into ``rows`` and ``steps``; each member sees rows of its own."""
        return torch.randint(len(self), (members, size), generator=generator).to(self.steps.device)
