"""Cutting steps out of episodes: what is left of an episode becomes several, and connections may be spared.

Legend: E episodes, N transitions, M = N + E observation rows.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, connected_components

from raystitch.data.episodes import Bools, EpisodeDataset
from raystitch.data.normalise import NearStates
from raystitch.errors import UserError

NEIGHBOURS = 8
"""Recorded states of other episodes that a state is linked to at most, the nearest."""


def without_steps(dataset: EpisodeDataset, removed: Bools) -> EpisodeDataset:
    """Return what is left when steps are taken out, as a dataset of its own; the steps beside them are not joined.

    A piece that ends before its episode does is a time-out, and its last observation is the recorded one.

    Args:
        removed: bool [N].

    Raises:
        UserError: when nothing is left.
    """
    if not removed.any():
        return replace(dataset, selected_from=None)
    kept = ~removed
    first_of_episode = np.zeros(dataset.num_transitions, np.bool_)
    first_of_episode[dataset.offsets[:-1][dataset.lengths > 0]] = True
    begins = kept & (first_of_episode | np.append(True, removed[:-1]))
    starts = np.flatnonzero(begins)
    if not len(starts):
        raise UserError(f"{dataset.name}: no step is left; use a larger quantile or number")
    lengths = np.add.reduceat(kept.astype(np.int64), starts)  # up to the next start, between which none else is kept
    episode = dataset.episode_of[starts]
    to_the_end = starts + lengths == dataset.offsets[episode + 1]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    rows = np.flatnonzero(kept)
    last = dataset.obs_index[starts + lengths - 1] + 1
    return replace(
        dataset,
        observations=dataset.observations[np.insert(dataset.obs_index[rows], offsets[1:], last)],
        actions=dataset.actions[rows],
        rewards=dataset.rewards[rows],
        terminated=dataset.terminated[episode] & to_the_end,
        truncated=np.where(to_the_end, dataset.truncated[episode], True),
        offsets=offsets,
        final_observed=np.where(to_the_end, dataset.final_observed[episode], True),
        selected_from=None,
    )


@dataclass(frozen=True)
class StepRun:
    """Consecutive steps of one episode, ``start`` to ``stop`` (excluded)."""

    start: int
    stop: int


def runs_of(dataset: EpisodeDataset, removed: Bools) -> list[StepRun]:
    """Return the runs of steps that are removed, in order."""
    at = np.flatnonzero(removed)
    if not len(at):
        return []
    breaks = np.flatnonzero((np.diff(at) > 1) | (np.diff(dataset.episode_of[at]) > 0)) + 1
    return [StepRun(int(run[0]), int(run[-1]) + 1) for run in np.split(at, breaks)]


def connecting(dataset: EpisodeDataset, removed: Bools) -> Bools:
    """Return the steps among ``removed`` without which states could no longer be reached, bool [N].

    Recorded states are the nodes of a graph. Its links are the steps that are kept, and pairs of states of different
    episodes that lie within a median step of each other (the ``NEIGHBOURS`` nearest). A run of removed steps connects
    as far as it leads to a state, or past one of another episode, that cannot be reached from where the run begins over
    what is kept. Each run is judged as if all others were gone, so of two connections that do the same both stay.

    Args:
        removed: bool [N].
    """
    spared = np.zeros(dataset.num_transitions, np.bool_)
    runs = runs_of(dataset, removed)
    if not runs:
        return spared
    graph, near, there = _links(dataset, removed)
    strongly = connected_components(graph, directed=True, connection="strong")[1]
    for run in runs:
        left = int(dataset.obs_index[run.start])
        if not there[left]:
            continue  # an episode's beginning: nothing leads into it
        reached: Bools | None = None
        for step in range(run.stop - 1, run.start - 1, -1):
            row = int(dataset.obs_index[step]) + 1
            ends = near[row][near[row] >= 0]
            if step == run.stop - 1 and there[row]:
                ends = np.append(ends, row)  # kept steps follow
            ends = ends[strongly[ends] != strongly[left]]
            if len(ends):
                reached = _reached(graph, left) if reached is None else reached
                if not reached[ends].all():
                    spared[run.start : step + 1] = True
                    break
    return spared


def _links(dataset: EpisodeDataset, removed: Bools) -> tuple[csr_matrix, NDArray[np.int32], Bools]:
    """The graph of what is kept [M, M], the kept states near each one [M, K], -1 for none, and which are kept [M]."""
    size = len(dataset.observations)
    kept = dataset.obs_index[~removed & dataset.next_observed]
    there = np.zeros(size, np.bool_)
    there[kept], there[kept + 1] = True, True
    used = there.copy()
    used[dataset.obs_index[removed]], used[dataset.obs_index[removed] + 1] = True, True
    rows = np.flatnonzero(used)
    near = np.full((size, NEIGHBOURS), -1, np.int32)
    # Neighbours in time are found too, and dropped: look at twice as many.
    found, _ = NearStates(dataset).neighbours(rows, there, 2 * NEIGHBOURS)
    order = np.argsort(found < 0, axis=1, kind="stable")[:, :NEIGHBOURS]
    near[rows] = np.take_along_axis(found, order, 1)
    linked = (near >= 0) & there[:, None]
    source, target = np.nonzero(linked)[0], near[linked]
    # Whoever is near is near in both directions, also where only one is among the nearest of the other.
    heads = np.concatenate([kept, source, target])
    tails = np.concatenate([kept + 1, target, source])
    return csr_matrix((np.ones(len(heads), np.int8), (heads, tails)), shape=(size, size)), near, there


def _reached(graph: csr_matrix, row: int) -> Bools:
    reached = np.zeros(len(graph.indptr) - 1, np.bool_)
    reached[breadth_first_order(graph, row, return_predecessors=False)] = True
    return reached
