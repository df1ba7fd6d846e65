"""Builds training data: the original dataset and what it is augmented with, on the device once or in mapped files.

Three hooks act here (see ``raystitch.shaping``): rewards where dataset and bridges come in, weights on the episodes of
the augmented part, returns-to-go at the end.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raystitch.buffer.bridges import Bridges, References
from raystitch.buffer.episodes import Joins
from raystitch.buffer.shaped import ShapedBridges, shape_bridges
from raystitch.console import say
from raystitch.data.episodes import EpisodeDataset, Floats, Ints
from raystitch.data.normalise import Normalizer
from raystitch.device import resolve_device
from raystitch.errors import UserError, check_choice
from raystitch.io.cache import Scratch
from raystitch.shaping.advantages import EpisodeSteps
from raystitch.shaping.config import ReturnConfig
from raystitch.shaping.returns import VALUED, EpisodeReturns, concatenate, pool_rows, returns_to_go_of, run_sums
from raystitch.shaping.rewards import shape_dataset
from raystitch.shaping.weights import STEP_WEIGHTS, EpisodeFacts, episode_weights
from raystitch.trainers.batches import RatioPart, TrainData
from raystitch.trainers.config import DATA_MODES, DataSpec
from raystitch.trainers.policy import ReturnRule
from raystitch.trainers.pool import TransitionPool, build_pool, pool_bytes
from raystitch.trainers.segments import (
    Segments,
    bridge_segments,
    joined_segments,
    original_segments,
    stitched_segments,
    top_episodes,
)
from raystitch.trainers.value import state_values


def check_trainable(dataset: EpisodeDataset) -> None:
    """Raise UserError when no algorithm can be trained on the dataset."""
    if not (np.isfinite(dataset.action_low).all() and np.isfinite(dataset.action_high).all()):
        raise UserError(f"{dataset.name}: the action space must be bounded to scale policies to it")
    if not dataset.num_transitions:
        raise UserError(f"{dataset.name} has no transitions to train on")


def build_data(
    dataset: EpisodeDataset,
    spec: DataSpec,
    *,
    bridges: Bridges | None = None,
    joined: Joins | None = None,
    scratch: Scratch | None = None,
) -> TrainData:
    """Put the original data and the augmented part on the device.

    Joined episodes give transitions the weight they have in those episodes.

    Args:
        bridges, joined: for ``data`` stitched and joined; other modes do not look at them.
        scratch: where mapped files are kept; None for the user's cache folder.

    Raises:
        UserError: for an unknown mode or hook, missing bridges or pairs, or an unbounded action space.
    """
    _check(dataset, spec, bridges, joined)
    shaped = shape_dataset(dataset, spec.shaping.rewards)
    used = None
    if bridges is not None and spec.data == "stitched":
        used = shape_bridges(bridges, spec.shaping.rewards, dataset)
    normalizer = Normalizer.fit(dataset.observations)
    memory = spec.memory_gib * 2**30
    pool = build_pool(shaped, used, normalizer, memory, scratch)
    ends = dataset.num_transitions + used.ends() if isinstance(used, ShapedBridges) else np.zeros(0, np.int64)
    references = None if used is None else used.all_references
    original, augmented, weights = _parts(shaped, spec, references, joined, pool, ends)
    if weights is not None and not spec.decoupled:
        augmented, weights = augmented.weighted(weights), None
    if spec.kind == "transitions":
        # After a termination there is no next state to know.
        unknown_next = ~dataset.next_observed & ~dataset.transition_terminal
        original, augmented = original.without(unknown_next), augmented.without(unknown_next)
    if weights is not None:
        weights = weights[(augmented.total > 0) & (augmented.weight > 0)]
    original, augmented = original.drawable(), augmented.drawable()
    num_runs = max(original.length.shape[1], augmented.length.shape[1])
    original, augmented = original.widened(num_runs), augmented.widened(num_runs)
    steps = _step_weights(spec, pool, augmented)
    device = resolve_device(spec.device)
    place = device if pool_bytes(shaped, used) <= memory else torch.device("cpu")
    values = _values(dataset, spec, pool, device)
    promised = [returns_to_go_of(spec.shaping.returns, pool.episodes(part, values)) for part in (original, augmented)]
    # The sums of the dataset where they are what is promised: they are exact.
    plain = spec.shaping.returns.name == "plain"
    returns = _returns(shaped, pool) if plain else _at_first_step(original, promised[0])
    scale = float(np.abs(returns).max())
    return TrainData(
        kind=spec.kind,
        observations=pool.observations.to(place),
        obs_row=pool.obs_row.to(place),
        actions=pool.actions.to(place),
        rewards=pool.rewards.to(place),
        dones=pool.dones.to(place),
        **_episodes(
            pool, spec, original, augmented, concatenate(*promised), device, place, None if spec.decoupled else steps
        ),
        actor=_actor_part(augmented, weights, steps if spec.decoupled else None, len(original), device, spec),
        normalizer=normalizer,
        action_low=dataset.action_low,
        action_high=dataset.action_high,
        rtg_scale=scale if scale > 0 else 1.0,
        return_max=float(returns.max()),
        return_span=_return_span(pool, original),
        return_rule=_return_rule(spec.shaping.returns, promised),
        env=dataset.env,
        dataset_name=dataset.name,
        dataset_fingerprint=dataset.fingerprint,
    )


def _check(dataset: EpisodeDataset, spec: DataSpec, bridges: Bridges | None, joined: Joins | None) -> None:
    """Raise UserError for an unknown mode, missing bridges or pairs, or a dataset that cannot be trained on."""
    check_choice("data", spec.data, DATA_MODES)
    check_trainable(dataset)
    if spec.data == "stitched" and bridges is None:
        raise UserError("data=stitched needs bridges: name a buffer of `raystitch augment`")
    if spec.data == "joined" and joined is None:
        raise UserError("data=joined needs pairs of source and target states to concatenate")
    returns = spec.shaping.returns.name
    if spec.kind == "transitions" and returns != "plain":
        raise UserError(f"returns: {returns} changes returns-to-go, which batches of transitions do not have; use dt")


def _values(dataset: EpisodeDataset, spec: DataSpec, pool: TransitionPool, device: torch.device) -> Floats | None:
    """Return V of the pool's observations, float32 [P], where the rule for returns-to-go reads it."""
    if spec.shaping.returns.name not in VALUED:
        return None
    usable = np.ones(len(pool.rewards), np.bool_)
    usable[: dataset.num_transitions] = dataset.next_observed | dataset.transition_terminal
    return state_values(pool, spec.shaping.returns, usable, device)


def _return_rule(config: ReturnConfig, promised: Sequence[EpisodeReturns]) -> ReturnRule | None:
    """Return how windows and policies carry relabelled returns-to-go on; None where they add up."""
    if config.name not in VALUED:
        return None
    largest = max(float(part.values.max(initial=-np.inf)) for part in promised)
    smallest = min(float(part.values.min(initial=np.inf)) for part in promised)
    return ReturnRule(gamma=config.gamma, low=smallest, high=largest)


def _limit(dataset: EpisodeDataset) -> int | None:
    return dataset.env.max_episode_steps if dataset.env is not None else None


def _parts(
    dataset: EpisodeDataset,
    spec: DataSpec,
    bridges: References | None,
    joined: Joins | None,
    pool: TransitionPool,
    ends: Ints,
) -> tuple[Segments, Segments, NDArray[np.float64] | None]:
    """Return the episodes of the original and of the augmented part, chosen by return, and the weights of the latter,
    None where nothing is weighted.

    Args:
        ends: pool rows before which the rule for rewards ends episodes, ascending.
    """
    original = original_segments(dataset).cut(_limit(dataset))  # as stitched episodes are
    alone = bridges is not None and spec.kind == "transitions" and spec.synthetic == "bridges"
    is_weighted = spec.weights.name != "uniform" and spec.weights.name not in STEP_WEIGHTS
    if bridges is not None and alone and not is_weighted and spec.top_fraction == 1:
        # Whole episodes would take memory for nothing.
        return original, bridge_segments(dataset, bridges).ended(ends), None
    whole = _augmented(dataset, spec, bridges, joined, ends)
    augmented = bridge_segments(dataset, bridges).ended(ends) if bridges is not None and alone else whole
    joins = joined if spec.data == "joined" else bridges
    weights = _weights(dataset, spec, whole, pool, joins) if is_weighted else None
    if spec.top_fraction < 1:
        best, rows = (
            top_episodes(run_sums(pool.episodes(ranked))[1], spec.top_fraction) for ranked in (original, whole)
        )
        original, augmented = original.take(best), augmented.take(rows)
        weights = None if weights is None else weights[rows]
    return original, augmented, weights


def _weights(
    dataset: EpisodeDataset, spec: DataSpec, whole: Segments, pool: TransitionPool, joins: Joins | None
) -> NDArray[np.float64]:
    """Return the weights of the augmented part's episodes, by what whole ones return; 0 for those without a bridge."""
    sources = np.arange(len(whole)) if joins is None else np.asarray(joins.source_episode)
    counts = whole.weight > 0
    weights = np.zeros(len(whole))
    weights[counts] = episode_weights(
        spec.weights, _facts(dataset, spec, whole, pool, sources).take(counts), lambda line: say(f"note: {line}")
    )
    return weights


def _step_weights(spec: DataSpec, pool: TransitionPool, augmented: Segments) -> NDArray[np.float64] | None:
    """Return the weights of all steps of the augmented part, episode after episode; None for rules of episodes."""
    if spec.weights.name not in STEP_WEIGHTS or not len(augmented):
        return None
    steps = EpisodeSteps(
        observations=pool.observations.numpy(),
        obs_row=pool.obs_row.numpy(),
        actions=pool.actions.numpy(),
        rewards=pool.rewards.numpy(),
        dones=pool.dones.numpy(),
        row=pool_rows(pool.episodes(augmented)),
    )
    return STEP_WEIGHTS[spec.weights.name](steps)


def _actor_part(
    augmented: Segments,
    weights: NDArray[np.float64] | None,
    steps: NDArray[np.float64] | None,
    num_original: int,
    device: torch.device,
    spec: DataSpec,
) -> RatioPart | None:
    """Return the augmented part as the policy alone draws it; None where all draw the same."""
    if not len(augmented) or (weights is None and steps is None):
        return None
    weighted = augmented if weights is None else augmented.weighted(weights)
    return RatioPart.of(weighted, num_original, device, spec.uniform_over, steps)


def _augmented(
    dataset: EpisodeDataset, spec: DataSpec, bridges: References | None, joined: Joins | None, ends: Ints
) -> Segments:
    """Return the episodes of the augmented part, cut at the time limit; for ``tails`` from the bridge on."""
    limit = _limit(dataset)
    # A source that ran to the time limit leaves no room: what remains would be a copy of the source.
    if bridges is not None:
        whole, own = stitched_segments(dataset, bridges)
        whole = whole.led_in(own, spec.prefix).cut(limit).ended(ends).reaching(own)
        return whole.from_run(own) if spec.kind == "transitions" and spec.synthetic == "tails" else whole
    if spec.data == "joined" and joined is not None:
        whole = joined_segments(dataset, joined)
        target = np.ones(len(whole), np.int64)
        return whole.led_in(target, spec.prefix).cut(limit).reaching(target)
    again = original_segments(dataset).cut(limit)
    return again if spec.data in ("weighted", "duplicated") else again.take(np.zeros(0, np.int64))


def _facts(
    dataset: EpisodeDataset, spec: DataSpec, episodes: Segments, pool: TransitionPool, sources: Ints
) -> EpisodeFacts:
    """Return what weights may depend on; the dataset's own episodes have their whole return, beyond the time limit."""
    own = spec.data in ("weighted", "duplicated")
    used = episodes.length > 0
    first = np.take_along_axis(np.where(used, episodes.start, 0), used.argmax(1)[:, None], 1)[:, 0]
    return EpisodeFacts(
        returns=dataset.returns if own else run_sums(pool.episodes(episodes))[1],
        lengths=episodes.total,
        first_observations=pool.observations.numpy()[pool.obs_row.numpy()[first]],
        sources=sources,
    )


def _at_first_step(episodes: Segments, returns: EpisodeReturns) -> NDArray[np.float64]:
    """Return the return-to-go at the first step of each of the dataset's own episodes, which are one run each."""
    first = episodes.start[:, 0] if returns.start is None else returns.start[:, 0]
    return returns.values[first].astype(np.float64) + returns.offset[:, 0]


def _returns(dataset: EpisodeDataset, pool: TransitionPool) -> NDArray[np.float64]:
    """Return the returns of the episodes that have transitions, up to the time limit, float64."""
    limit = _limit(dataset)
    returns = dataset.returns
    if limit is not None and dataset.lengths.max() > limit:
        returns = run_sums(pool.episodes(original_segments(dataset).cut(limit)))[1]
    return returns[dataset.lengths > 0]


def _return_span(pool: TransitionPool, original: Segments) -> float:
    """Return the difference between the largest and the smallest return of the original part; 0 where it is empty."""
    if not len(original):
        return 0.0
    episodes = pool.episodes(original)
    returns = episodes.rest[original.start[:, 0]] + run_sums(episodes)[0][:, 0]
    return float(returns.max() - returns.min())


def _episodes(
    pool: TransitionPool,
    spec: DataSpec,
    original: Segments,
    augmented: Segments,
    returns: EpisodeReturns,
    device: torch.device,
    place: torch.device,
    steps: NDArray[np.float64] | None,
) -> dict[str, Any]:
    """Return the fields of ``TrainData`` that say which rows episodes have and what these promise."""
    small: np.dtype[Any] = np.dtype(np.int32 if len(pool.rewards) < 2**31 else np.int64)

    def both(of_original: NDArray[Any], of_augmented: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.concatenate([of_original, of_augmented])).to(device)

    def before(segments: Segments) -> NDArray[Any]:
        ends = np.cumsum(segments.length, axis=1, dtype=small)
        ends -= segments.length.astype(small, copy=False)
        return ends

    return {
        "run_start": both(original.start.astype(small, copy=False), augmented.start.astype(small, copy=False)),
        "run_before": both(before(original), before(augmented)),
        "rtg": torch.from_numpy(returns.values).to(place),
        "rtg_start": None if returns.start is None else torch.from_numpy(returns.start).to(device),
        "rtg_offset": torch.from_numpy(returns.offset).to(device),
        "original": RatioPart.of(original, 0, device),
        "augmented": RatioPart.of(augmented, len(original), device, spec.uniform_over, steps),
    }
