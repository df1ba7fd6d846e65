"""Whole episodes rebuilt from references: prefix of the source, bridge, suffix of the target.

Source and target are real episodes or, in chain rounds, stitched ones.

An ``EpisodeIndex`` points into two pools, the dataset's rows followed by the bridges' rows, so nothing is copied until
``gather`` and real rows come out bit for bit. Legend: E stitched episodes, N their transitions.
"""

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

from raystitch.buffer.bridges import BridgeSet, ranges
from raystitch.buffer.runs import Runs, single_runs, stitched_runs
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


def _index(
    dataset: EpisodeDataset, joins: Joins, runs: Runs, bridges: BridgeSet | None, limit: int | None
) -> EpisodeIndex:
    target = np.asarray(joins.target_episode)
    total = runs.total
    kept = total if limit is None else np.minimum(total, limit)
    cut = kept < total
    runs = runs.head(kept)
    transition = ranges(runs.start.reshape(-1), runs.length.reshape(-1))
    # A bridge's first and last state are bit for bit the real ones that it joins, so s_t always lies beside its action.
    obs_row = dataset.obs_index
    if bridges is not None:
        obs_row = np.concatenate([obs_row, len(dataset.observations) + bridges.obs_index])
    offsets = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
    entered = dataset.obs_offsets[target] + np.asarray(joins.target_step)  # all there is of an episode without steps
    final = entered if not len(transition) else np.where(kept > 0, obs_row[transition[offsets[1:] - 1]] + 1, entered)
    return EpisodeIndex(
        offsets=offsets,
        transition=transition,
        observation=np.insert(obs_row[transition], offsets[1:], final),
        is_synthetic=transition >= dataset.num_transitions,
        terminated=dataset.terminated[target] & ~cut,
        truncated=dataset.truncated[target] | cut,
        final_observed=dataset.final_observed[target] | cut,
        seam=np.asarray(joins.source_step, np.int64),
    )


def stitched_index(
    dataset: EpisodeDataset,
    bridges: BridgeSet,
    max_episode_steps: TimeLimit = "env",
    rows: Ints | Bools | None = None,
) -> EpisodeIndex:
    """Whole stitched episodes by reference, cut at the time limit (``env``: the dataset's own).

    Args:
        rows: of which bridges, all by default; the parents of chained ones have to be among ``bridges``.

    Raises:
        ValueError: when the parents of a chained bridge are not among ``bridges``.
    """
    runs, joins = stitched_runs(dataset, bridges)[0], bridges
    if rows is not None:
        runs, joins = runs.take(rows), bridges.take(rows)
    return _index(dataset, joins, runs, bridges, _limit(dataset, max_episode_steps))


def joined_runs(dataset: EpisodeDataset, joins: Joins) -> Runs:
    """Two runs per episode: the source's transitions before ``source_step``, the target's from ``target_step`` on."""
    source, target = np.asarray(joins.source_episode), np.asarray(joins.target_episode)
    leave, enter = np.asarray(joins.source_step), np.asarray(joins.target_step)
    prefix = single_runs(dataset.offsets[source], leave)
    return Runs.side_by_side(prefix, single_runs(dataset.offsets[target] + enter, dataset.lengths[target] - enter))


def joined_index(dataset: EpisodeDataset, joins: Joins, max_episode_steps: TimeLimit = "env") -> EpisodeIndex:
    """The baseline without a bridge: the source's transitions before ``source_step``, then the target's.

    At the seam stands the state entered; the state left does not occur, and no transition between the two is invented.
    """
    return _index(dataset, joins, joined_runs(dataset, joins), None, _limit(dataset, max_episode_steps))


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


def concatenate(first: StitchedEpisodes, second: StitchedEpisodes) -> StitchedEpisodes:
    """Two sets of episodes, one after the other; name, bounds and environment are the first's."""
    a, b = first.episodes, second.episodes
    columns = ("observations", "actions", "rewards", "terminated", "truncated", "final_observed")
    both = {name: np.concatenate([getattr(a, name), getattr(b, name)]) for name in columns}
    episodes = replace(a, **both, offsets=np.concatenate([a.offsets, a.offsets[-1] + b.offsets[1:]]))
    return StitchedEpisodes(episodes=episodes, is_synthetic=np.concatenate([first.is_synthetic, second.is_synthetic]))


def rebuild(
    dataset: EpisodeDataset,
    bridges: BridgeSet,
    rows: Ints | Bools | None = None,
    max_episode_steps: TimeLimit = "env",
) -> StitchedEpisodes:
    """Whole stitched episodes of ``rows`` of the bridges (all of them by default).

    Raises:
        ValueError: when the parents of a chained bridge are not among ``bridges``.
    """
    return gather(dataset, stitched_index(dataset, bridges, max_episode_steps, rows), bridges)


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
