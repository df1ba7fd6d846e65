"""Builds training data: the original dataset and what it is augmented with, on the device once or in mapped files."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raystitch.buffer.bridges import Bridges, References
from raystitch.buffer.episodes import Joins
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.normalise import Normalizer
from raystitch.device import resolve_device
from raystitch.errors import UserError
from raystitch.io.cache import Scratch
from raystitch.trainers.batches import Kind, RatioPart, TrainData, UniformOver
from raystitch.trainers.config import DATA_MODES, MEMORY_GIB, DataMode, Synthetic
from raystitch.trainers.pool import TransitionPool, build_pool, pool_bytes
from raystitch.trainers.segments import (
    Segments,
    bridge_segments,
    joined_segments,
    original_segments,
    return_weights,
    stitched_segments,
    top_episodes,
)


def check_trainable(dataset: EpisodeDataset) -> None:
    """Raises: UserError when no algorithm can be trained on the dataset."""
    if not (np.isfinite(dataset.action_low).all() and np.isfinite(dataset.action_high).all()):
        raise UserError(f"{dataset.name}: the action space must be bounded to scale policies to it")
    if not dataset.num_transitions:
        raise UserError(f"{dataset.name} has no transitions to train on")


def build_data(
    dataset: EpisodeDataset,
    kind: Kind,
    data: DataMode = "original",
    *,
    bridges: Bridges | None = None,
    joined: Joins | None = None,
    synthetic: Synthetic = "bridges",
    uniform_over: UniformOver = "transitions",
    top_fraction: float = 1.0,
    device: str = "auto",
    memory_gib: float = MEMORY_GIB,
    scratch: Scratch | None = None,
) -> TrainData:
    """Puts the original data and the augmented part of mode ``data`` on the device.

    For sequences stitched episodes are always whole; for transitions ``synthetic`` says whether the generated
    transitions alone are drawn, those and what follows them (``tails``), or the whole episodes. Joined episodes give
    transitions the weight they have in those episodes.

    Args:
        uniform_over: of the augmented part, whether every transition is as likely as any other or every bridge.
        memory_gib: training data up to this size lie in memory, or on the device; larger ones in mapped files. Batches
            are the same, to the bit.
        scratch: where those files are kept; None for the user's cache folder.

    Raises:
        UserError: for an unknown mode, missing bridges or pairs, or an unbounded action space.
    """
    if data not in DATA_MODES:
        raise UserError(f"data={data!r} is not one of {', '.join(DATA_MODES)}")
    check_trainable(dataset)
    used_bridges = bridges if data == "stitched" else None
    if data == "stitched" and bridges is None:
        raise UserError("data=stitched needs bridges: name a buffer of `raystitch augment`")
    if data == "joined" and joined is None:
        raise UserError("data=joined needs pairs of source and target states to concatenate")

    references = None if used_bridges is None else used_bridges.all_references
    normalizer = Normalizer.fit(dataset.observations)
    pool = build_pool(dataset, used_bridges, normalizer, memory_gib * 2**30, scratch)
    rewards, rtg = pool.rewards.numpy(), pool.rtg.numpy()
    limit = dataset.env.max_episode_steps if dataset.env is not None else None
    original = original_segments(dataset).cut(limit)  # as stitched episodes are: otherwise they would differ by more
    only_bridges = references is not None and kind == "transitions" and synthetic == "bridges"
    if references is not None and only_bridges and top_fraction == 1:
        augmented = bridge_segments(dataset, references)
    else:
        augmented = whole = _augmented(
            dataset, data, references, joined, limit, kind == "transitions" and synthetic == "tails"
        )
        if references is not None and only_bridges:
            augmented = bridge_segments(dataset, references)
        if top_fraction < 1:
            original, augmented = (
                segments.take(top_episodes(ranked.return_offsets(rewards, rtg)[1], top_fraction))
                for segments, ranked in ((original, original), (augmented, whole))
            )
    if kind == "transitions":
        # After a termination there is no next state to know.
        unknown_next = ~dataset.next_observed & ~dataset.transition_terminal
        original, augmented = original.without(unknown_next), augmented.without(unknown_next)
    fits = pool_bytes(dataset, used_bridges) <= memory_gib * 2**30
    return _on_device(
        dataset,
        kind,
        pool,
        normalizer,
        original.drawable(),
        augmented.drawable(),
        uniform_over,
        resolve_device(device),
        fits,
    )


def _augmented(
    dataset: EpisodeDataset,
    data: DataMode,
    bridges: References | None,
    joined: Joins | None,
    limit: int | None,
    only_tails: bool,
) -> Segments:
    """The episodes of the augmented part, cut at the time limit; ``only_tails`` from the bridge on."""
    # A source that ran to the time limit leaves no room: what remains would be a copy of the source.
    if data == "stitched" and bridges is not None:
        whole, own = stitched_segments(dataset, bridges)
        whole = whole.cut(limit).reaching(own)
        return whole.from_run(own) if only_tails else whole
    if data == "joined" and joined is not None:
        whole = joined_segments(dataset, joined).cut(limit)
        return whole.reaching(np.ones(len(whole), np.int64))
    again = original_segments(dataset).cut(limit)
    if data == "weighted":
        return Segments(start=again.start, length=again.length, weight=return_weights(dataset.returns))
    return again if data == "duplicated" else again.take(np.zeros(0, np.int64))


def _returns(dataset: EpisodeDataset, rewards: NDArray[Any], rtg: NDArray[Any]) -> NDArray[np.float64]:
    """Returns of the episodes that have transitions, up to the time limit, float64."""
    limit = dataset.env.max_episode_steps if dataset.env is not None else None
    returns = dataset.returns
    if limit is not None and dataset.lengths.max() > limit:
        returns = original_segments(dataset).cut(limit).return_offsets(rewards, rtg)[1]
    return returns[dataset.lengths > 0]


def _on_device(
    dataset: EpisodeDataset,
    kind: Kind,
    pool: TransitionPool,
    normalizer: Normalizer,
    original: Segments,
    augmented: Segments,
    uniform_over: UniformOver,
    device: torch.device,
    fits: bool,
) -> TrainData:
    """``fits``: the pool moves to the device too; otherwise batches are gathered where it is and then moved."""
    num_runs = max(original.length.shape[1], augmented.length.shape[1])
    original, augmented = original.widened(num_runs), augmented.widened(num_runs)
    rewards, rtg = pool.rewards.numpy(), pool.rtg.numpy()
    returns = _returns(dataset, rewards, rtg)
    scale = float(np.abs(returns).max())
    small: np.dtype[Any] = np.dtype(np.int32 if len(rewards) < 2**31 else np.int64)

    def both(of_original: NDArray[Any], of_augmented: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.concatenate([of_original, of_augmented])).to(device)

    def before(segments: Segments) -> NDArray[Any]:
        ends = np.cumsum(segments.length, axis=1, dtype=small)
        ends -= segments.length.astype(small, copy=False)
        return ends

    place = device if fits else torch.device("cpu")
    return TrainData(
        kind=kind,
        observations=pool.observations.to(place),
        obs_row=pool.obs_row.to(place),
        actions=pool.actions.to(place),
        rewards=pool.rewards.to(place),
        dones=pool.dones.to(place),
        rtg=pool.rtg.to(place),
        run_start=both(original.start.astype(small, copy=False), augmented.start.astype(small, copy=False)),
        run_before=both(before(original), before(augmented)),
        rtg_offset=both(*(part.return_offsets(rewards, rtg)[0] for part in (original, augmented))),
        original=RatioPart.of(original, 0, device),
        augmented=RatioPart.of(augmented, len(original), device, uniform_over),
        normalizer=normalizer,
        action_low=dataset.action_low,
        action_high=dataset.action_high,
        rtg_scale=scale if scale > 0 else 1.0,
        return_max=float(returns.max()),
        env=dataset.env,
        dataset_name=dataset.name,
        dataset_fingerprint=dataset.fingerprint,
    )
