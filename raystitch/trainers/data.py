"""Builds training data: the original dataset and what it is augmented with, on the device once."""

from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raystitch.buffer.bridges import BridgeSet
from raystitch.buffer.episodes import Joins
from raystitch.data.episodes import EpisodeDataset, Floats, Ints
from raystitch.data.normalise import Normalizer
from raystitch.data.returns import returns_to_go
from raystitch.device import resolve_device
from raystitch.errors import UserError
from raystitch.trainers.batches import Kind, Part, TrainData
from raystitch.trainers.config import DATA_MODES, DataMode
from raystitch.trainers.segments import (
    Segments,
    bridge_segments,
    joined_segments,
    original_segments,
    return_weights,
    stitched_segments,
    top_episodes,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pool:
    """Transitions in raw units, the dataset's and then the bridges'.

    Attributes:
        observations: [P, O]; obs_row: int64 [N], row of s_t, s_{t+1} is the next row.
        actions [N, A]; rewards, dones [N]; rtg [N]: return-to-go within the dataset episode or the bridge.
    """

    observations: Floats
    obs_row: Ints
    actions: Floats
    rewards: Floats
    dones: Floats
    rtg: Floats


def build_data(
    dataset: EpisodeDataset,
    kind: Kind,
    data: DataMode = "original",
    *,
    bridges: BridgeSet | None = None,
    joined: Joins | None = None,
    synthetic: Literal["bridges", "episodes"] = "bridges",
    top_fraction: float = 1.0,
    device: str = "auto",
) -> TrainData:
    """Puts the original data and the augmented part of mode ``data`` on the device.

    For sequences stitched episodes are always whole; for transitions ``synthetic`` says whether the generated
    transitions alone are drawn. Joined episodes give transitions the weight they have in those episodes.

    Raises:
        UserError: for an unknown mode, missing bridges or pairs, or an unbounded action space.
    """
    if data not in DATA_MODES:
        raise UserError(f"data={data!r} is not one of {', '.join(DATA_MODES)}")
    if not (np.isfinite(dataset.action_low).all() and np.isfinite(dataset.action_high).all()):
        raise UserError(f"{dataset.name}: the action space must be bounded to scale policies to it")
    if not dataset.num_transitions:
        raise UserError(f"{dataset.name} has no transitions to train on")
    used_bridges = bridges if data == "stitched" else None
    if data == "stitched" and bridges is None:
        raise UserError("data=stitched needs bridges: name a buffer of `raystitch augment`")
    if data == "joined" and joined is None:
        raise UserError("data=joined needs pairs of source and target states to concatenate")

    pool = _pool(dataset, used_bridges)
    original = original_segments(dataset)
    limit = dataset.env.max_episode_steps if dataset.env is not None else None
    whole = _augmented(dataset, data, used_bridges, joined, limit)
    augmented = whole
    if used_bridges is not None and kind == "transitions" and synthetic == "bridges":
        augmented = bridge_segments(dataset, used_bridges)
    if top_fraction < 1:
        original, augmented = (
            segments.take(top_episodes(ranked.return_offsets(pool.rewards, pool.rtg)[1], top_fraction))
            for segments, ranked in ((original, original), (augmented, whole))
        )
    if kind == "transitions":
        # After a termination there is no next state to know.
        unknown = ~dataset.next_observed & ~dataset.transition_terminal
        unknown_next = np.append(unknown, np.zeros(len(pool.rewards) - dataset.num_transitions, np.bool_))
        original, augmented = original.without(unknown_next), augmented.without(unknown_next)
    return _on_device(dataset, kind, pool, original.drawable(), augmented.drawable(), resolve_device(device))


def _augmented(
    dataset: EpisodeDataset, data: DataMode, bridges: BridgeSet | None, joined: Joins | None, limit: int | None
) -> Segments:
    """The whole episodes of the augmented part, cut at the time limit."""
    # A source that ran to the time limit leaves no room: what remains would be a copy of the source.
    if data == "stitched" and bridges is not None:
        whole, own = stitched_segments(dataset, bridges)
        return whole.cut(limit).reaching(own)
    if data == "joined" and joined is not None:
        whole = joined_segments(dataset, joined).cut(limit)
        return whole.reaching(np.ones(len(whole), np.int64))
    again = original_segments(dataset).cut(limit)
    if data == "weighted":
        return Segments(start=again.start, length=again.length, weight=return_weights(dataset.returns))
    return again if data == "duplicated" else again.take(np.zeros(0, np.int64))


def _pool(dataset: EpisodeDataset, bridges: BridgeSet | None) -> _Pool:
    pool = _Pool(
        observations=dataset.observations,
        obs_row=dataset.obs_index,
        actions=dataset.actions,
        rewards=dataset.rewards,
        dones=dataset.transition_terminal.astype(np.float32),
        rtg=returns_to_go(dataset.rewards, dataset.offsets),
    )
    if bridges is None or not len(bridges):
        return pool
    more = _Pool(
        observations=bridges.observations,
        obs_row=len(dataset.observations) + bridges.obs_index,
        actions=bridges.actions,
        rewards=bridges.rewards,
        dones=np.zeros(bridges.num_transitions, np.float32),
        rtg=returns_to_go(bridges.rewards, bridges.offsets),
    )
    columns: dict[str, Any] = {
        f.name: np.concatenate([getattr(pool, f.name), getattr(more, f.name)]) for f in fields(_Pool)
    }
    return _Pool(**columns)


def _on_device(
    dataset: EpisodeDataset, kind: Kind, pool: _Pool, original: Segments, augmented: Segments, device: torch.device
) -> TrainData:
    num_runs = max(original.length.shape[1], augmented.length.shape[1])
    original, augmented = original.widened(num_runs), augmented.widened(num_runs)
    normalizer = Normalizer.fit(dataset.observations)
    half_range = np.maximum((dataset.action_high - dataset.action_low) / 2, 1e-8)
    centre = (dataset.action_high + dataset.action_low) / 2
    length = np.concatenate([original.length, augmented.length])
    offsets = [part.return_offsets(pool.rewards, pool.rtg)[0] for part in (original, augmented)]
    returns = dataset.returns[dataset.lengths > 0]
    scale = float(np.abs(returns).max())

    def floats(values: NDArray[np.floating]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    def ints(values: Ints) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    return TrainData(
        kind=kind,
        observations=floats(normalizer.encode(pool.observations)),
        obs_row=ints(pool.obs_row),
        actions=floats((pool.actions - centre) / half_range),
        rewards=floats(pool.rewards),
        dones=floats(pool.dones),
        rtg=floats(pool.rtg),
        run_start=ints(np.concatenate([original.start, augmented.start])),
        run_before=ints(np.cumsum(length, axis=1) - length),
        rtg_offset=floats(np.concatenate(offsets)),
        original=Part.of(original, 0, device),
        augmented=Part.of(augmented, len(original), device),
        normalizer=normalizer,
        action_low=dataset.action_low,
        action_high=dataset.action_high,
        rtg_scale=scale if scale > 0 else 1.0,
        return_max=float(returns.max()),
        env=dataset.env,
        dataset_name=dataset.name,
        dataset_fingerprint=dataset.fingerprint,
    )
