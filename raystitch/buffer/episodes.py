"""Whole episodes rebuilt from references: prefix of the source, bridge, suffix of the target.

Source and target are real episodes or, in chain rounds, stitched ones.

An ``EpisodeIndex`` points into two pools, the dataset's rows followed by the bridges' rows, so nothing is copied until
``gather`` and real rows come out bit for bit. Legend: E stitched episodes, N their transitions.
"""

from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from raystitch.buffer.bridges import BridgeSet, References, ranges
from raystitch.data.episodes import Bools, EpisodeDataset, Floats, Ints, wrong_dataset
from raystitch.errors import UserError
from raystitch.stitching.links import CYCLE, depths

if TYPE_CHECKING:
    from raystitch.buffer.reader import Buffer

TimeLimit = int | None | Literal["env"]
BLOCK = 1 << 15
"""Episodes that are put together at a time."""


def on_dataset(buffer: "Buffer", dataset: EpisodeDataset) -> "Buffer":
    """Return the buffer with its episodes as rows of ``dataset``: of the whole that it was made from, or of a part.

    Candidates that refer to an episode which the part lacks have a ``missing_episode``. Only reading them is refused,
    so the buffer can be read at a delta where all that count have their episodes.

    Raises:
        UserError: when the dataset holds other trajectories.
    """
    import pyarrow as pa  # policies are trained where it is not installed

    meta, opened = buffer.meta, copy(buffer)
    whole = meta.selected_from or meta.dataset_fingerprint
    if dataset.whole_fingerprint != whole:
        remedy = "give that dataset, or augment this one"
        raise UserError(wrong_dataset(buffer.uri, meta.dataset_name, whole, dataset, remedy))
    if dataset.selected_from is None:
        return buffer
    missing = np.full(buffer.num_candidates, -1, np.int64)
    for name in ("source_episode", "target_episode"):
        field, pieces = buffer.table.schema.field(name), list[pa.Array]()
        for chunk in buffer.table[name].chunks:
            pieces.append(pa.array(dataset.rows_of(chunk.to_numpy()), field.type))
        rows = pa.chunked_array(pieces, field.type).to_numpy()
        missing = np.where(rows < 0, buffer.column(name), missing)
        place = buffer.table.schema.get_field_index(name)
        opened.table = opened.table.set_column(place, field, pa.chunked_array(pieces, field.type))
    if buffer.ways is not None:
        opened.ways = replace(buffer.ways, last_episode=dataset.rows_of(buffer.ways.last_episode))
    opened.missing_episode = missing
    return opened


@dataclass(frozen=True, eq=False)
class Runs:
    """E episodes as runs of pool rows; ``start``, ``length`` integers [E, R], unused runs have length 0."""

    start: NDArray[np.signedinteger]
    length: NDArray[np.signedinteger]

    @property
    def total(self) -> Ints:
        """Transitions per episode, int64 [E]."""
        return self.length.sum(1)

    def take(self, rows: Ints | Bools) -> "Runs":
        return Runs(self.start[rows], self.length[rows])

    def head(self, steps: Ints | int) -> "Runs":
        """Keep the first ``steps`` (int64 [E] or one number) transitions of each episode."""
        before = np.cumsum(self.length, axis=1) - self.length
        return Runs(self.start, np.clip(np.reshape(steps, (-1, 1)) - before, 0, self.length))

    def tail(self, steps: Ints) -> "Runs":
        """Drop the first ``steps`` (int64 [E]) transitions of each episode."""
        dropped = self.head(steps).length
        return Runs(self.start + dropped, self.length - dropped)

    def widened(self, num_runs: int) -> "Runs":
        """Add unused runs at the end: [E, num_runs]."""
        if num_runs == self.length.shape[1]:
            return self
        more = ((0, 0), (0, num_runs - self.length.shape[1]))
        return Runs(np.pad(self.start, more), np.pad(self.length, more))

    def compact(self) -> "Runs":
        """Drop the unused runs between used ones; the result is as narrow as the episode of most runs."""
        used = self.length > 0
        order = np.argsort(~used, axis=1, kind="stable")[:, : max(1, int(used.sum(1).max(initial=0)))]
        return Runs(np.take_along_axis(self.start, order, 1), np.take_along_axis(self.length, order, 1))

    @staticmethod
    def side_by_side(*parts: "Runs") -> "Runs":
        """The runs of every part of an episode, one after the other."""
        return Runs(np.concatenate([p.start for p in parts], 1), np.concatenate([p.length for p in parts], 1))


def single_runs(start: Ints, length: Ints) -> Runs:
    """One run per episode."""
    return Runs(np.asarray(start, np.int64)[:, None], np.asarray(length, np.int64)[:, None])


def bridge_runs(dataset: EpisodeDataset, bridges: References) -> Runs:
    """The generated transitions alone."""
    return single_runs(dataset.num_transitions + bridges.offsets[:-1], np.diff(bridges.offsets))


def stitched_runs(dataset: EpisodeDataset, bridges: References) -> tuple[Runs, NDArray[np.int8]]:
    """Every bridge's whole episode, uncut, and which of its runs is the bridge itself (int8 [B]).

    The runs are int32 where the pool allows it: there are 3 of them and more per bridge, and many bridges.

    Raises:
        ValueError: when the parents of a chained bridge are not among ``bridges``, or lead back to it.
    """
    pool_rows = dataset.num_transitions + bridges.num_transitions
    kind = np.int32 if pool_rows < 2**31 else np.int64
    parents = bridges.parent_positions()
    position = np.zeros(len(bridges), np.int8)
    made = Runs(np.zeros((len(bridges), 3), kind), np.zeros((len(bridges), 3), kind))
    depth = depths(*parents)
    if (depth == CYCLE).any():
        raise ValueError("a bridge is chained onto itself")
    for level in np.unique(depth):
        of_level = np.flatnonzero(depth == level)
        for first in range(0, len(of_level), BLOCK):
            rows = of_level[first : first + BLOCK]
            source, target = (
                _trajectories(dataset, made, parent[rows], episode[rows])
                for parent, episode in zip(parents, (bridges.source_episode, bridges.target_episode), strict=True)
            )
            prefix = source.head(bridges.source_step[rows])
            own = single_runs(dataset.num_transitions + bridges.offsets[rows], bridges.gap[rows] + 1)
            whole = Runs.side_by_side(prefix, own, target.tail(bridges.target_step[rows])).compact()
            position[rows] = (prefix.length > 0).sum(1)
            width = max(made.length.shape[1], whole.length.shape[1])
            made, whole = made.widened(width), whole.widened(width)
            made.start[rows], made.length[rows] = whole.start, whole.length
    return made, position


def _trajectories(dataset: EpisodeDataset, made: Runs, parent: Ints, episode: Ints) -> Runs:
    """The stitched episode of each row's parent, or its real episode where the parent is -1."""
    real = single_runs(dataset.offsets[episode], dataset.lengths[episode]).widened(made.length.shape[1])
    chained = (parent >= 0)[:, None]
    stitched = made.take(parent)  # what row -1 gives is not used
    return Runs(np.where(chained, stitched.start, real.start), np.where(chained, stitched.length, real.length))


class Joins(Protocol):
    """Places where one episode is left and another entered; ``Pairs`` and ``BridgeSet`` are both such."""

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


@dataclass(frozen=True, kw_only=True, eq=False)
class ChainedJoins:
    """B joins, each of which may enter the episode that an earlier one made; a ``Joins``.

    Attributes:
        source_episode, source_step, target_step: int64 [B]. target_episode: int64 [B], with which the result ends.
        parent: int64 [B], the join whose episode is entered, at ``target_step``; -1 for a real episode.
    """

    source_episode: Ints
    source_step: Ints
    target_episode: Ints
    target_step: Ints
    parent: Ints


def joined_runs(dataset: EpisodeDataset, joins: Joins) -> Runs:
    """The source's transitions before ``source_step``, one run, then the target's from ``target_step`` on."""
    source, target = np.asarray(joins.source_episode), np.asarray(joins.target_episode)
    leave, enter = np.asarray(joins.source_step), np.asarray(joins.target_step)
    prefix = single_runs(dataset.offsets[source], leave)
    if isinstance(joins, ChainedJoins) and (joins.parent >= 0).any():
        return _chained_runs(dataset, joins, prefix)
    return Runs.side_by_side(prefix, single_runs(dataset.offsets[target] + enter, dataset.lengths[target] - enter))


def _chained_runs(dataset: EpisodeDataset, joins: ChainedJoins, prefix: Runs) -> Runs:
    """Put chained joins together, those first that others enter; run 0 is the source's, run 1 the first entered."""
    depth = depths(joins.parent)
    made = Runs(np.zeros((len(depth), 2), np.int64), np.zeros((len(depth), 2), np.int64))
    for level in range(int(depth.max()) + 1):
        rows = np.flatnonzero(depth == level)
        target = _trajectories(dataset, made, joins.parent[rows], joins.target_episode[rows])
        whole = Runs.side_by_side(prefix.take(rows), target.tail(joins.target_step[rows]).compact())
        width = max(made.length.shape[1], whole.length.shape[1])
        made, whole = made.widened(width), whole.widened(width)
        made.start[rows], made.length[rows] = whole.start, whole.length
    return made


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
    offsets = np.concatenate([a.offsets, a.offsets[-1] + b.offsets[1:]])
    episodes = replace(a, **both, offsets=offsets, selected_from=None)
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
