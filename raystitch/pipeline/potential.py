"""Stitch potential of a dataset with the bridges of a buffer, and as a file of a run.

Legend: B bridges, T their transitions.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from raystitch.buffer.bridges import CHUNK_TRANSITIONS
from raystitch.buffer.reader import Buffer
from raystitch.data.episodes import EpisodeDataset, Ints
from raystitch.data.potential import GAMMA, BridgeEdges, Potential, potential
from raystitch.data.returns import has_sparse_rewards, usual_reward
from raystitch.envs.starts import start_observations
from raystitch.errors import UserError
from raystitch.io.files import read_json, write_json
from raystitch.models.calibration import Delta
from raystitch.report.names import POTENTIAL_FILE

MAX_STEPS = 250_000
"""A run does not look at the potential of more transitions by itself: it would take longer than a minute."""

LARGEST_GAMMA = 0.999
"""Without a discount a loop of joins would be worth without end."""


def bridge_edges(buffer: Buffer, dataset: EpisodeDataset, gamma: float, delta: Delta = "generation") -> BridgeEdges:
    """Return the bridges between real episodes that count at ``delta``; those of chain rounds are built on them.

    Args:
        buffer: on ``dataset`` (``raystitch.buffer.episodes.on_dataset``).
    """
    accepted = buffer.accepted_rows(delta)
    rows = accepted[(buffer.parents[0][accepted] == -1) & (buffer.parents[1][accepted] == -1)]
    gap = buffer.column("gap")[rows]
    ends: list[Ints] = []
    for name in ("source", "target"):
        episode, step = (buffer.column(f"{name}_{column}")[rows].astype(np.int64) for column in ("episode", "step"))
        ends.append(dataset.obs_offsets[episode] + step)
    reward = np.zeros(len(rows))
    usual = usual_reward(dataset) if has_sparse_rewards(dataset) else None
    per_chunk = max(1, CHUNK_TRANSITIONS // (int(gap.max(initial=0)) + 1))
    for first in range(0, len(rows), per_chunk):
        taken = buffer.take(rows[first : first + per_chunk])
        within = np.arange(taken.num_transitions) - np.repeat(taken.offsets[:-1], taken.gap + 1)
        of = np.repeat(np.arange(len(taken)), taken.gap + 1)
        # Where few steps are rewarded, a loop of bridges would collect what the reward model is wrong by, without end.
        rewards = taken.rewards if usual is None else np.full(len(within), usual)
        reward[first : first + len(taken)] = np.bincount(of, rewards * gamma**within, len(taken))
    return BridgeEdges(
        source=ends[0],
        target=ends[1],
        reward=reward,
        discount=gamma ** (gap + 1.0),
        left_out=len(accepted) - len(rows),
    )


def potential_with(dataset: EpisodeDataset, gamma: float | None = None, buffer: Buffer | None = None) -> Potential:
    """Compute the potential of a dataset, from where its task starts if its environment can be asked.

    Args:
        gamma: None for the buffer's, or 0.99 without one; at most ``LARGEST_GAMMA`` is taken.
        buffer: on ``dataset``; None leaves bridges out.

    Raises:
        UserError: as ``potential``.
    """
    asked = gamma if gamma is not None else GAMMA if buffer is None else buffer.meta.gamma
    gamma = min(asked, LARGEST_GAMMA)
    starts = None if dataset.env is None else start_observations(dataset.env, dataset.obs_dim)
    found = potential(dataset, gamma, None if buffer is None else bridge_edges(buffer, dataset, gamma), starts)
    return found if gamma == asked else replace(found, notes=(f"gamma {asked:g} is taken as {gamma:g}",))


def write_potential(folder: Path, dataset: EpisodeDataset, buffer: Buffer) -> None:
    """Write the potential of a run into its folder, unless it is there for this dataset and buffer, or too large.

    Args:
        buffer: on ``dataset``.
    """
    if dataset.num_transitions > MAX_STEPS:
        return
    path = folder / POTENTIAL_FILE
    inputs: dict[str, Any] = {"dataset": dataset.fingerprint, "buffer": buffer.hash}
    try:
        if path.is_file() and read_json(path).get("inputs") == inputs:
            return
    except UserError:
        pass  # damaged: it is computed again
    write_json(path, potential_with(dataset, buffer=buffer).to_json() | {"inputs": inputs})
