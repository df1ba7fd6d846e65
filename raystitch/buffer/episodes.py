"""Whole episodes rebuilt from references: prefix of the source, bridge, suffix of the target.

An ``EpisodeIndex`` points into two pools, the dataset's rows followed by the bridges' rows, so nothing is copied until
``gather`` and real rows come out bit for bit. Legend: E stitched episodes, N their transitions.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from raystitch.buffer.bridges import BridgeSet, ranges
from raystitch.data.episodes import Bools, EpisodeDataset, Floats, Ints

TimeLimit = int | None | Literal["env"]


class Joins(Protocol):
    """Where one episode is left and another entered: ``Pairs`` and ``BridgeSet`` are both."""

    @property
    def source_episode(self) -> Ints: ...
    @property
    def source_step(self) -> Ints: ...
    @property
    def target_episode(self) -> Ints: ...
    @property
    def target_step(self) -> Ints: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class EpisodeIndex:
    """E episodes by reference.

    Attributes:
        offsets: int64 [E + 1], transitions before each episode.
        transition: int64 [N]; a row of the dataset, or the dataset's ``num_transitions`` + a row of the bridges.
        observation: int64 [N + E]; the same over observation rows.
        is_synthetic: bool [N], the transition was generated.
        terminated, truncated, final_observed: bool [E], the target's; truncated where the time limit cuts.
        seam: int64 [E], position in the episode of the first row that is not the source's.
    """

    offsets: Ints
    transition: Ints
    observation: Ints
    is_synthetic: Bools
    terminated: Bools
    truncated: Bools
    final_observed: Bools
    seam: Ints


@dataclass(frozen=True, kw_only=True, eq=False)
class StitchedEpisodes:
    """Gathered episodes; ``is_synthetic`` bool [N], per transition."""

    episodes: EpisodeDataset
    is_synthetic: Bools


def _limit(dataset: EpisodeDataset, max_episode_steps: TimeLimit) -> int | None:
    if max_episode_steps == "env":
        return dataset.env.max_episode_steps if dataset.env is not None else None
    return max_episode_steps


def _index(dataset: EpisodeDataset, joins: Joins, bridges: BridgeSet | None, limit: int | None) -> EpisodeIndex:
    source, target = np.asarray(joins.source_episode), np.asarray(joins.target_episode)
    leave, enter = np.asarray(joins.source_step), np.asarray(joins.target_step)
    assert (leave <= dataset.lengths[source]).all()
    assert (enter <= dataset.lengths[target]).all()
    count = len(source)
    # The three runs of an episode, [E, 3]: prefix, bridge, suffix. The state left is the dataset's own row, the state
    # entered too, so a bridge brings only its gap generated states but gap + 1 transitions.
    lengths, starts = np.zeros((count, 3), np.int64), np.zeros((count, 3), np.int64)
    lengths[:, 0], starts[:, 0] = leave, dataset.offsets[source]
    lengths[:, 2] = dataset.lengths[target] - enter
    starts[:, 2] = dataset.offsets[target] + enter
    obs_lengths, obs_starts = lengths.copy(), np.zeros((count, 3), np.int64)
    obs_starts[:, 0] = dataset.obs_offsets[source]
    obs_lengths[:, 2] += 1
    obs_starts[:, 2] = dataset.obs_offsets[target] + enter
    if bridges is not None:
        lengths[:, 1], starts[:, 1] = bridges.gap + 1, dataset.num_transitions + bridges.offsets[:-1]
        obs_lengths[:, 0] += 1
        obs_lengths[:, 1] = bridges.gap
        obs_starts[:, 1] = len(dataset.observations) + bridges.obs_offsets[:-1] + 1
    total = lengths.sum(1)
    kept = total if limit is None else np.minimum(total, limit)
    cut = kept < total
    lengths = _keep(lengths, kept)
    obs_lengths = _keep(obs_lengths, kept + 1)
    transition = ranges(starts.reshape(-1), lengths.reshape(-1))
    return EpisodeIndex(
        offsets=np.concatenate([[0], np.cumsum(kept)]).astype(np.int64),
        transition=transition,
        observation=ranges(obs_starts.reshape(-1), obs_lengths.reshape(-1)),
        is_synthetic=transition >= dataset.num_transitions,
        terminated=dataset.terminated[target] & ~cut,
        truncated=dataset.truncated[target] | cut,
        final_observed=dataset.final_observed[target] | cut,
        seam=leave.astype(np.int64),
    )


def _keep(lengths: Ints, kept: Ints) -> Ints:
    """The runs [E, 3] cut so that they sum to ``kept`` [E]."""
    before = np.cumsum(lengths, axis=1) - lengths
    return np.clip(kept[:, None] - before, 0, lengths)


def stitched_index(dataset: EpisodeDataset, bridges: BridgeSet, max_episode_steps: TimeLimit = "env") -> EpisodeIndex:
    """Whole stitched episodes by reference, cut at the time limit (``env``: the dataset's own)."""
    return _index(dataset, bridges, bridges, _limit(dataset, max_episode_steps))


def joined_index(dataset: EpisodeDataset, joins: Joins, max_episode_steps: TimeLimit = "env") -> EpisodeIndex:
    """The baseline without a bridge: the source's transitions before ``source_step``, then the target's.

    At the seam stands the state entered; the state left does not occur, and no transition between the two is invented.
    """
    return _index(dataset, joins, None, _limit(dataset, max_episode_steps))


def gather(dataset: EpisodeDataset, index: EpisodeIndex, bridges: BridgeSet | None = None) -> StitchedEpisodes:
    """The rows that an index points to, as a dataset."""

    def rows(real: Floats, generated: Floats | None, at: Ints) -> Floats:
        if generated is None:
            return real[at]
        synthetic = at >= len(real)
        out = np.empty((len(at), *real.shape[1:]), np.float32)
        out[~synthetic] = real[at[~synthetic]]
        out[synthetic] = generated[at[synthetic] - len(real)]
        return out

    generated = (None, None, None) if bridges is None else (bridges.observations, bridges.actions, bridges.rewards)
    episodes = EpisodeDataset(
        name=f"stitched from {dataset.name}",
        observations=rows(dataset.observations, generated[0], index.observation),
        actions=rows(dataset.actions, generated[1], index.transition),
        rewards=rows(dataset.rewards, generated[2], index.transition),
        terminated=index.terminated,
        truncated=index.truncated,
        offsets=index.offsets,
        action_low=dataset.action_low,
        action_high=dataset.action_high,
        env=dataset.env,
        final_observed=index.final_observed,
    )
    return StitchedEpisodes(episodes=episodes, is_synthetic=index.is_synthetic)


def rebuild(
    dataset: EpisodeDataset,
    bridges: BridgeSet,
    rows: Ints | Bools | None = None,
    max_episode_steps: TimeLimit = "env",
) -> StitchedEpisodes:
    """Whole stitched episodes of ``rows`` of the bridges (all of them by default)."""
    chosen = bridges if rows is None else bridges.take(rows)
    return gather(dataset, stitched_index(dataset, chosen, max_episode_steps), chosen)


def joined(dataset: EpisodeDataset, joins: Joins, max_episode_steps: TimeLimit = "env") -> StitchedEpisodes:
    """The joined baseline's episodes, see ``joined_index``."""
    return gather(dataset, joined_index(dataset, joins, max_episode_steps))


def bridge_episodes(dataset: EpisodeDataset, bridges: BridgeSet) -> StitchedEpisodes:
    """Every bridge as an episode of its own: a time-out whose final observation is the real state entered."""
    count = len(bridges)
    episodes = EpisodeDataset(
        name=f"bridges of {dataset.name}",
        observations=bridges.observations,
        actions=bridges.actions,
        rewards=bridges.rewards,
        terminated=np.zeros(count, np.bool_),
        truncated=np.ones(count, np.bool_),
        offsets=bridges.offsets,
        action_low=dataset.action_low,
        action_high=dataset.action_high,
        env=dataset.env,
    )
    return StitchedEpisodes(episodes=episodes, is_synthetic=np.ones(bridges.num_transitions, np.bool_))
