"""V(s) of a dataset by in-sample expectile regression, for the returns-to-go that are relabelled by it (QDT).

V(s) <- the expectile of r + gamma V(s') over the recorded steps that leave s: implicit Q-learning (Kostrikov et al.
2021, arXiv 2110.06169, Eq. 5) without its Q, as in HIQL (Park et al. 2023, arXiv 2307.11949, Eq. 4). V is never asked
about a state that the data do not have. Q would average over chance before the expectile is taken; recorded returns do
not do so either, and the simulators here are deterministic. Without Q a step costs half, and the actions of generated
steps, which an inverse model has made up, do not matter. There are two networks; of their slowly following copies the
smaller value counts.

Legend: P observation rows, N transitions, O observation size, B batch.
"""

import copy
import hashlib
import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from raystitch.data.episodes import Bools, Floats
from raystitch.errors import RunError, UserError
from raystitch.io.cache import Scratch
from raystitch.seeding import derive_seed
from raystitch.shaping.config import ReturnConfig
from raystitch.trainers.mlp import StackedMLP
from raystitch.trainers.pool import TransitionPool

VERSION = 1
"""Version of the stored values; part of their name."""
FOLLOWING = 0.005
"""Share of the networks that their copies take over at every step."""
LAYERS, CHUNK = 2, 1 << 16
FILE = "values.npy"


def state_values(
    pool: TransitionPool, config: ReturnConfig, usable: Bools, device: torch.device, scratch: Scratch | None = None
) -> Floats:
    """Return V of every observation of a pool, float32 [P], in raw units.

    Fitted once and then read from the cache folder, so that all seeds of a cell have the same V whichever process
    trains them.

    Args:
        usable: bool [N], the transitions whose next state, or end, is known.
        scratch: where the values are kept; None for the user's cache folder.

    Raises:
        UserError: when there is no usable transition.
        RunError: when V becomes infinite.
    """
    if not usable.any():
        raise UserError(f"returns: {config.name} needs transitions with a recorded next state, there is none")

    def write(folder: Path) -> None:
        np.save(folder / FILE, fit_values(pool, config, usable, device))

    kept = Scratch("values") if scratch is None else scratch
    return np.load(kept.folder(_name(pool, config, usable), write) / FILE, allow_pickle=False)


def _name(pool: TransitionPool, config: ReturnConfig, usable: Bools) -> str:
    """Return a hash of everything that V depends on."""
    digest = hashlib.sha256(json.dumps([VERSION, asdict(config)], sort_keys=True).encode())
    for column in (pool.observations, pool.obs_row, pool.rewards, pool.dones):
        digest.update(np.ascontiguousarray(column.numpy()).data)
    digest.update(np.packbits(usable).data)
    return digest.hexdigest()[:32]


def fit_values(pool: TransitionPool, config: ReturnConfig, usable: Bools, device: torch.device) -> Floats:
    """Fit V and return it at every observation, float32 [P], in raw units; equal arguments give equal values."""
    unit = reward_unit(pool, config.gamma)
    seed = derive_seed(config.seed, "values")
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        value = StackedMLP(pool.observations.shape[1], 1, config.hidden, LAYERS, stack=(2,)).to(device)
    slow = copy.deepcopy(value).requires_grad_(False)
    optimizer = torch.optim.Adam(value.parameters(), lr=config.learning_rate, fused=True)
    generator = torch.Generator().manual_seed(seed)
    rows, rewards = torch.from_numpy(np.flatnonzero(usable)), pool.rewards / unit
    average = get_ema_multi_avg_fn(1 - FOLLOWING)
    for step in range(config.steps):
        row = rows[torch.randint(len(rows), (config.batch_size,), generator=generator)]
        at = pool.obs_row[row]
        obs, next_obs = (pool.observations[index].to(device) for index in (at, at + 1))
        reward, done = (column[row].to(device) for column in (rewards, pool.dones))
        with torch.no_grad():
            aim = reward + config.gamma * (1 - done) * smaller(slow, next_obs)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * (1 + math.cos(math.pi * step / config.steps)) / 2
        loss = expectile_loss(aim - value(obs.expand(2, -1, -1)).squeeze(-1), config.expectile).mean(-1).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average([*slow.parameters()], [*value.parameters()], 0)
    values = unit * _everywhere(slow, pool.observations, device)
    if not np.isfinite(values).all():
        raise RunError(f"V of returns: {config.name} became infinite; lower its learning_rate or gamma={config.gamma}")
    return values


def reward_unit(pool: TransitionPool, gamma: float) -> float:
    """Return the unit in which V is of the order of 1: the largest return that the rewards could give, but no more
    than the largest recorded sum up to an episode's end."""
    largest, whole = float(pool.rewards.abs().max()), float(pool.rtg.abs().max())
    endless = largest / (1 - gamma) if gamma < 1 else math.inf
    return min(whole, endless) or largest or 1.0


def expectile_loss(error: Tensor, expectile: float) -> Tensor:
    """Return |expectile - 1[error < 0]| error^2; ``error`` is what was aimed at minus the estimate."""
    return torch.where(error > 0, expectile, 1 - expectile) * error.square()


def smaller(value: StackedMLP, obs: Tensor) -> Tensor:
    """Return the smaller of the two networks' values at ``obs`` [B, O], [B]."""
    return value(obs.expand(2, -1, -1)).squeeze(-1).amin(0)


@torch.no_grad()
def _everywhere(value: StackedMLP, observations: Tensor, device: torch.device) -> Floats:
    parts = [smaller(value, part.to(device)).cpu() for part in observations.split(CHUNK)]
    return torch.cat(parts).numpy()
