"""The trajectories of a chain round, from the closed rounds of a buffer.

Legend: B accepted bridges, C those whose stitched episodes are taken, S states of all trajectories.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from raystitch.buffer.bridges import BridgeSet, MappedBridges, References
from raystitch.buffer.episodes import Runs, StitchedEpisodes, concatenate, gather, stitched_index, stitched_runs
from raystitch.buffer.reader import Buffer
from raystitch.buffer.schema import ClosedRound
from raystitch.buffer.shaped import shape_bridges
from raystitch.data.episodes import Bools, EpisodeDataset, Ints
from raystitch.models.bundle import Bundle
from raystitch.seeding import derive_seed, numpy_rng
from raystitch.shaping.config import RECORDED, RewardConfig
from raystitch.shaping.rewards import shape_dataset
from raystitch.stitching.chain import Trajectories
from raystitch.stitching.links import RECORD, Links
from raystitch.stitching.values import StateValues


def values_after(known: StateValues, bundle: Bundle, buffer: Buffer) -> StateValues:
    """Return what states are worth after all rounds of a buffer, from what they are worth after the first of them.

    A function of what was decided about the candidates.

    Args:
        known: of the dataset that the buffer's episodes are rows of.
        buffer: of pairs that are split by value: sources are real, targets are states of real episodes too.
    """
    rows, rounds = buffer.accepted_rows(), buffer.column("chain_round")
    num_rounds = max(len(buffer.meta.rounds), int(rounds.max(initial=-1)) + 1)  # one may have no candidate
    for chain_round in range(known.num_rounds, num_rounds):
        of_round = rows[rounds[rows] == chain_round]
        failed = _failed_sources(known.dataset, buffer, np.flatnonzero(rounds == chain_round), of_round)
        known = known.after(_links(known, buffer, rows, of_round, bundle.gamma), failed, bundle.gamma)
    return known


def _links(known: StateValues, buffer: Buffer, rows: Ints, of_round: Ints, gamma: float) -> Links:
    """Return the accepted bridges of a round between states of the dataset.

    Args:
        rows: accepted rows of all rounds, ascending; ``of_round``: those of the round.
    """
    parent_row = buffer.parents[1][of_round]
    chained = parent_row != -1
    parent = np.where(chained, np.searchsorted(rows, parent_row), RECORD)
    columns = {name: buffer.column(name)[of_round] for name in ("source_episode", "source_step", "target_step", "gap")}
    # A trajectory begins with its bridge's source, and a target is entered before its next bridge.
    target = buffer.column("target_episode")[of_round].copy()
    target[chained] = known.links.source_episode[parent[chained]]
    value = buffer.column("return_stitched")[of_round].astype(np.float64)
    discount = gamma ** (columns["gap"] + 1.0)
    ids = buffer.table["bridge_id"].take(pa.array(of_round)).to_pylist()
    return Links(
        ids=np.array(ids, np.str_),
        source_episode=columns["source_episode"],
        source_step=columns["source_step"],
        target_episode=target,
        target_step=columns["target_step"],
        parent=parent,
        next=parent,
        reward=value - discount * known.value[known.rows(target, columns["target_step"])],
        discount=discount,
        value=value,
    )


def _failed_sources(dataset: EpisodeDataset, buffer: Buffer, candidates: Ints, accepted: Ints) -> Ints:
    """Return the observation rows that candidates of a round left, and none with success, int64."""
    lost = candidates[~np.isin(buffer.pairs[candidates], buffer.pairs[accepted])]
    episode, step = (buffer.column(name) for name in ("source_episode", "source_step"))
    row = dataset.obs_offsets[episode] + step
    return np.setdiff1d(row[lost], row[accepted])


def chained_trajectories(
    dataset: EpisodeDataset,
    buffer: Buffer,
    rounds: Sequence[ClosedRound],
    max_stitched: int,
    rewards: RewardConfig = RECORDED,
) -> Trajectories:
    """Return the dataset's episodes and at most ``max_stitched`` stitched ones of ``rounds``.

    They are a function of what was decided about the candidates.

    Stitched episodes are cut at the environment's time limit, and one whose bridge does not end before it is left out.
    """
    num_rows = sum(stats.rows for stats in buffer.stats.values() if stats.shard < rounds[-1].end)
    rows = buffer.accepted_rows()
    dataset = shape_dataset(dataset, rewards)
    closed = shape_bridges(MappedBridges(buffer, rows[rows < num_rows]), rewards)
    of_all = closed.all_references
    limit = dataset.env.max_episode_steps if dataset.env is not None else None
    fits = of_all.source_step + of_all.gap + 1 < (np.inf if limit is None else limit)
    drawn = _draw(of_all, np.flatnonzero(fits), max_stitched, derive_seed(buffer.meta.seed, "chain", len(rounds)))
    needed = of_all.with_ancestors(drawn)
    bridges, chosen = closed.take_positions(needed), np.searchsorted(needed, drawn)
    index = stitched_index(dataset, bridges, rows=chosen)
    stitched = gather(dataset, index, bridges)
    real = StitchedEpisodes(episodes=dataset, is_synthetic=np.zeros(dataset.num_transitions, np.bool_))
    leave, enter = _real_states(stitched, _is_generated(dataset, bridges, index.observation), limit)
    everywhere = np.ones(len(dataset.observations), np.bool_)
    own, none = np.arange(dataset.num_episodes), np.full(dataset.num_episodes, "", np.str_)
    runs = stitched_runs(dataset, bridges)[0].take(chosen)
    ends = np.stack([bridges.source_episode, bridges.target_episode], 1)[chosen]
    return Trajectories(
        dataset=concatenate(real, stitched).episodes,
        may_leave=np.concatenate([everywhere, leave]),
        may_enter=np.concatenate([everywhere, enter]),
        fragments=_fragments(dataset, runs, ends),
        bridge_ids=np.concatenate([none, bridges.ids[chosen]]),
        first_episode=dataset.episode_numbers[np.concatenate([own, ends[:, 0]])],
        last_episode=dataset.episode_numbers[np.concatenate([own, ends[:, 1]])],
    )


def _draw(bridges: References, rows: Ints, count: int, seed: int) -> Ints:
    """Draw at most ``count`` of the rows, ascending: no source is drawn twice before every source was drawn once."""
    shuffled = numpy_rng(seed).permutation(rows)
    source = np.stack([bridges.source_parent, bridges.source_episode], 1)[shuffled]
    _, group = np.unique(source, axis=0, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], group[order], side="left")
    turn = np.empty(len(rows), np.int64)
    turn[order] = np.arange(len(rows)) - starts
    return np.sort(shuffled[np.argsort(turn, kind="stable")[:count]])


def _is_generated(dataset: EpisodeDataset, bridges: BridgeSet, observation: Ints) -> Bools:
    """Mark the rows of the two pools that are generated states: not a bridge's first and last, which are real."""
    inner = np.ones(len(bridges.observations), np.bool_)
    inner[bridges.obs_offsets[:-1]] = False
    inner[bridges.obs_offsets[1:] - 1] = False
    return np.concatenate([np.zeros(len(dataset.observations), np.bool_), inner])[observation]


def _real_states(stitched: StitchedEpisodes, generated: Bools, limit: int | None) -> tuple[Bools, Bools]:
    """Mark the states of stitched episodes to leave (after the first bridge) and enter (before the last), bool [S]."""
    episodes = stitched.episodes
    lengths = episodes.lengths + 1
    step = np.arange(len(episodes.observations)) - np.repeat(episodes.obs_offsets[:-1], lengths)
    synthetic = np.flatnonzero(stitched.is_synthetic)
    episode = episodes.episode_of[synthetic]
    first, last = episodes.lengths.copy(), np.full(episodes.num_episodes, -1, np.int64)
    np.minimum.at(first, episode, synthetic - episodes.offsets[episode])
    np.maximum.at(last, episode, synthetic - episodes.offsets[episode])
    leave = ~generated & (step > np.repeat(first, lengths))
    if limit is not None:
        leave &= step < limit
    return leave, ~generated & (step <= np.repeat(last, lengths))


def _fragments(dataset: EpisodeDataset, runs: Runs, ends: Ints) -> Ints:
    """The real episodes in each trajectory, the dataset's own first: int64 [E + C, M], unused places -1."""
    real = (runs.length > 0) & (runs.start < dataset.num_transitions)
    episode = np.searchsorted(dataset.offsets, runs.start, side="right") - 1
    parts = np.sort(np.concatenate([ends, np.where(real, episode, -1)], 1), axis=1)
    parts[:, 1:][parts[:, 1:] == parts[:, :-1]] = -1
    parts = np.sort(parts, axis=1)[:, ::-1]
    width = max(1, int((parts >= 0).sum(1).max(initial=0)))
    own = np.full((dataset.num_episodes, width), -1, np.int64)
    own[:, 0] = np.arange(dataset.num_episodes)
    return np.concatenate([own, parts[:, :width]])
