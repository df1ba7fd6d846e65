"""Runs of consecutive transitions that are compared with the simulator: bridges, and pieces of real episodes.

Legend: W windows, T their transitions, O observation size, A action size.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from raystitch.buffer.bridges import BridgeSet, ranges
from raystitch.data.episodes import EpisodeDataset, Floats, Ints
from raystitch.data.normalise import Normalizer
from raystitch.models.bundle import Bundle


@dataclass(frozen=True, kw_only=True, eq=False)
class TransitionWindows:
    """W runs of consecutive transitions; a window of gap g has g + 1.

    Attributes:
        observations, next_observations: float32 [T, O]. actions: float32 [T, A]. rewards: float32 [T].
        window: int64 [T], the window of each transition, ascending. step: int64 [T], its place in the window.
        gap: int64 [W]. episode: int64 [W], the one a window is from; a bridge's is the one it leaves.
    """

    observations: Floats
    next_observations: Floats
    actions: Floats
    rewards: Floats
    window: Ints
    step: Ints
    gap: Ints
    episode: Ints

    def __len__(self) -> int:
        return len(self.gap)

    def largest(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Largest value per window, from a value per transition [T]. NaN is left out; a window of NaN alone stays
        NaN."""
        return np.fmax.reduceat(values, self.starts) if len(self) else np.zeros(0)

    @property
    def starts(self) -> Ints:
        """First transition of each window, int64 [W]."""
        return np.cumsum(self.gap + 1) - (self.gap + 1)

    def steps_of(self, rows: Ints) -> Ints:
        """The transitions of the given windows, in their order, int64."""
        return ranges(self.starts[rows], self.gap[rows] + 1)

    def take(self, rows: Ints) -> "TransitionWindows":
        """The given windows, in the given order."""
        steps = self.steps_of(rows)
        window, step = _places(self.gap[rows])
        return TransitionWindows(
            observations=self.observations[steps],
            next_observations=self.next_observations[steps],
            actions=self.actions[steps],
            rewards=self.rewards[steps],
            window=window,
            step=step,
            gap=self.gap[rows],
            episode=self.episode[rows],
        )

    def inner_states(self, rows: Ints) -> Floats:
        """The states between the first and the last of windows of one gap g, float32 [len(rows), g, O]: of a bridge
        the generated ones."""
        gap = int(self.gap[rows[0]])
        return self.next_observations[self.starts[rows][:, None] + np.arange(gap)]


def _places(gap: Ints) -> tuple[Ints, Ints]:
    """``window`` and ``step`` of the transitions of windows of these gaps."""
    lengths = gap + 1
    return np.repeat(np.arange(len(gap)), lengths), ranges(np.zeros(len(gap), np.int64), lengths)


def bridge_windows(bridges: BridgeSet) -> TransitionWindows:
    """Bridges as windows, their own reward estimates included."""
    window, step = _places(bridges.gap)
    return TransitionWindows(
        observations=bridges.observations[bridges.obs_index],
        next_observations=bridges.observations[bridges.obs_index + 1],
        actions=bridges.actions,
        rewards=bridges.rewards,
        window=window,
        step=step,
        gap=bridges.gap,
        episode=bridges.source_episode,
    )


def real_windows(dataset: EpisodeDataset, episodes: Ints, gaps: Ints, rng: np.random.Generator) -> TransitionWindows:
    """Draw one piece of a real episode per gap, uniformly; gaps longer than every episode are left out."""
    recorded = dataset.lengths[episodes] - ~dataset.final_observed[episodes]
    nothing = np.zeros(0, np.int64)
    starts, kept, origin = [nothing], [nothing], [nothing]
    for gap, count in zip(*np.unique(gaps, return_counts=True), strict=True):
        places = np.maximum(recorded - gap, 0)
        before = np.cumsum(places) - places
        if not places.sum():
            continue
        drawn = rng.integers(places.sum(), size=count)
        episode = np.searchsorted(before + places, drawn, side="right")
        starts.append(dataset.offsets[episodes[episode]] + drawn - before[episode])
        kept.append(np.full(count, gap, np.int64))
        origin.append(episodes[episode])
    gap = np.concatenate(kept)
    rows = ranges(np.concatenate(starts), gap + 1)
    window, step = _places(gap)
    return TransitionWindows(
        observations=dataset.observations[dataset.obs_index[rows]],
        next_observations=dataset.observations[dataset.obs_index[rows] + 1],
        actions=dataset.actions[rows],
        rewards=dataset.rewards[rows],
        window=window,
        step=step,
        gap=gap,
        episode=np.concatenate(origin),
    )


def perturbed(
    windows: TransitionWindows, normalizer: Normalizer, noise_std: float, rng: np.random.Generator
) -> TransitionWindows:
    """Move every state by N(0, noise_std) per active dimension in standardised units, once per state."""
    scale = noise_std * normalizer.std * normalizer.active
    noise = (scale * rng.standard_normal(windows.observations.shape)).astype(np.float32)
    last = (scale * rng.standard_normal(windows.observations.shape)).astype(np.float32)
    inner = np.flatnonzero(windows.step[1:] > 0)
    last[inner] = noise[inner + 1]  # the next state of a transition is the state of the one after
    return replace(
        windows,
        observations=windows.observations + noise,
        next_observations=windows.next_observations + last,
    )


def inverse_actions(windows: TransitionWindows, bundle: Bundle) -> TransitionWindows:
    """Replace the actions by those that the bundle's inverse dynamics gives between the states."""
    with torch.inference_mode():
        obs, next_obs = (
            torch.from_numpy(states).to(bundle.device) for states in (windows.observations, windows.next_observations)
        )
        return replace(windows, actions=bundle.inverse(obs, next_obs).cpu().numpy())


def judged_residuals(windows: TransitionWindows, bundle: Bundle) -> NDArray[np.float64]:
    """The judges' residual of each transition, float64 [T]."""
    with torch.inference_mode():
        columns = (windows.observations, windows.actions, windows.next_observations)
        obs, act, next_obs = (torch.from_numpy(column).to(bundle.device) for column in columns)
        residual = bundle.dynamics.residual(obs, act, next_obs, "judges")
    return residual.cpu().numpy().astype(np.float64)
