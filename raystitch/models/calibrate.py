"""Measures the criteria's numbers on real windows of held-out episodes, at the end of a fit.

Legend: B windows at a time, W windows, V windows that others are compared with, O observation size.
"""

import numpy as np
import torch
from torch import Tensor

from raystitch.data.episodes import EpisodeDataset, Floats, Ints
from raystitch.errors import UserError
from raystitch.models.batches import StateWindows
from raystitch.models.calibration import NOISE, SEAM, Calibration
from raystitch.models.config import FitConfig
from raystitch.models.heads import Heads
from raystitch.seeding import derive_seed

COMPARED_WINDOWS = 100_000
"""Windows of all episodes among which the neighbours of held-out ones are looked for."""
CHUNK = 64
"""Windows whose neighbours are looked for at a time."""


@torch.no_grad()
def calibrate(
    dataset: EpisodeDataset, config: FitConfig, heads: Heads, episodes: Ints, device: torch.device
) -> Calibration:
    """Measures the criteria's numbers on real windows of ``episodes``, with inverse-dynamics actions if nothing else is
    said (``Calibration.tables``).

    Raises:
        UserError: when none of the episodes has a window of gap_min + 2 states.
    """
    diffusion = config.diffusion
    windows = calibration_windows(dataset, config, episodes, device)
    length = diffusion.gap_max + 2
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "calibration"))
    count = min(config.calibration_windows, len(windows))
    chosen = torch.randperm(len(windows), generator=generator)[:count].to(device)
    names = ("residual", "spread", "proposers", "recorded", "noise")
    largest: dict[str, list[Tensor]] = {name: [] for name in names}
    recorded = torch.from_numpy(dataset.actions)
    before = torch.from_numpy(dataset.obs_offsets[1:])
    deviations: list[Tensor] = []
    # Of flags, and of what never changes, every state is at an end, which hides nothing.
    clipped_O = heads.dynamics.inside_sensors(windows.observations).float().mean(0) > 0.5
    for rows in chosen.split(512):
        states, valid = windows.gather(rows, length)
        obs, next_obs = states[:, :-1], states[:, 1:]
        act = heads.inverse(obs, next_obs)
        step = torch.arange(length - 1, device=device)
        exists = step < valid[:, None] - 1
        residual, spread = heads.dynamics.residual_and_spread(obs, act, next_obs, "judges")
        proposers = heads.dynamics.residual(obs, act, next_obs, "proposers")
        starts = windows.starts[rows].cpu()
        steps = starts - torch.searchsorted(before, starts, right=True)  # a row more than transitions in each episode
        real = recorded[(steps[:, None] + torch.arange(length - 1)).clamp(max=len(recorded) - 1)].to(device)
        noisy = states + NOISE * heads.dynamics.state.to_raw(torch.randn(states.shape, generator=generator).to(device))
        hidden = (~heads.dynamics.inside_sensors(obs) & clipped_O).any(-1)
        hidden &= (exists & ~hidden).any(1, keepdim=True)  # a window that is at an end throughout counts as it is
        judged = heads.dynamics.residual(obs, real, next_obs, "judges").masked_fill(hidden, -torch.inf)
        moved = heads.dynamics.residual(noisy[:, :-1], real, noisy[:, 1:], "judges").masked_fill(hidden, -torch.inf)
        for name, value in zip(names, (residual, spread, proposers, judged, moved), strict=True):
            largest[name].append(torch.where(exists, value, torch.nan))
        rolled = heads.dynamics.rollout(obs[:, 0], act, "judges")
        deviations.append(torch.where(exists, heads.dynamics.state.distance(rolled, next_obs), torch.nan))
    at_end = {"rollout": torch.cat(deviations).cpu().numpy()}
    apart = _neighbours_apart(dataset, config, heads, windows, chosen)
    if np.isfinite(apart[:, diffusion.gap_min]).any():  # else no two episodes have neighbours that go on long enough
        at_end[SEAM] = apart
    return Calibration.measure(
        {name: torch.cat(parts).cpu().numpy() for name, parts in largest.items()},
        at_end,
        diffusion.gap_min,
        diffusion.gap_max,
        summed=("residual", "spread"),
    )


def calibration_windows(
    dataset: EpisodeDataset, config: FitConfig, episodes: Ints, device: torch.device
) -> StateWindows:
    shortest = config.diffusion.gap_min + 2
    windows = StateWindows.find(dataset, torch.from_numpy(dataset.observations).to(device), episodes, shortest)
    if len(windows) == 0:
        raise UserError(
            f"{dataset.name}: no held-out episode has gap_min + 2 = {shortest} states, so delta cannot be calibrated; "
            f"raise holdout_fraction={config.holdout_fraction} or lower diffusion.gap_min"
        )
    return windows


def _neighbours_apart(
    dataset: EpisodeDataset, config: FitConfig, heads: Heads, windows: StateWindows, chosen: Tensor
) -> Floats:
    """Return how far each chosen window (int64 [W]) is from its nearest neighbour in another episode after each step.

    The neighbour is the window of any other episode that starts nearest to it. Both begin alike and go on by
    themselves, so this says how far from a state's own future other futures are that it could have had. Dimensions that
    stand still in every episode, such as a goal, do not count: pairs agree on them anyway.

    Returns:
        float32 [W, gap_max + 1], squared L2 in standardised units; NaN past the shorter one's end.
    """
    length, change = config.diffusion.gap_max + 2, heads.dynamics.delta
    moves = (change.active != 0) | (change.mean != 0)

    def moving(observations: Tensor) -> Tensor:
        return heads.dynamics.state.encode(observations) * moves

    every = np.arange(dataset.num_episodes)
    others = StateWindows.find(dataset, windows.observations, every, config.diffusion.gap_min + 2)
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "seams"))
    some_V = torch.randperm(len(others), generator=generator)[:COMPARED_WINDOWS].to(chosen.device)
    stop_V, start_VO = others.stops[some_V], moving(windows.observations[others.starts[some_V]])
    parts: list[Tensor] = []
    for rows_B in chosen.split(CHUNK):
        own_B, stop_B = windows.starts[rows_B], windows.stops[rows_B]
        apart_BV = torch.cdist(moving(windows.observations[own_B]), start_VO)
        apart_BV[stop_B[:, None] == stop_V] = torch.inf  # the same episode
        nearest_B = apart_BV.argmin(1)
        states, valid = windows.gather(rows_B, length)
        others_states, others_valid = others.gather(some_V[nearest_B], length)
        after = torch.arange(length, device=chosen.device) < torch.minimum(valid, others_valid)[:, None]
        after &= apart_BV.gather(1, nearest_B[:, None]).isfinite()
        apart = (moving(states) - moving(others_states)).square().sum(-1)
        parts.append(torch.where(after, apart, torch.nan)[:, 1:])
    return torch.cat(parts).cpu().numpy()
