"""The reach of stitched episodes from the states in which the task starts; known before anything is trained.

Legend: K states in which the task starts, J recorded states beside them.
"""

import numpy as np
from numpy.typing import NDArray

from raystitch.buffer.bridges import BridgeSet, MappedBridges
from raystitch.buffer.episodes import rebuild
from raystitch.buffer.reach_file import GOAL, Reach
from raystitch.data.episodes import EpisodeDataset, Ints
from raystitch.data.returns import is_goal_task
from raystitch.stitching.links import RECORD
from raystitch.stitching.values import StateValues

TOP_DECILE = 0.9


def measure_reach(known: StateValues, accepted: MappedBridges) -> Reach:
    """Measure what the trajectories of ``known`` reach, whose bridges are ``accepted``."""
    dataset = known.dataset
    if len(known.start):
        start, row = known.start, known.start_row
    else:
        start, row = np.arange(dataset.num_episodes), dataset.obs_offsets[:-1]
    best = _best_rows(known.value, start, row)
    best_recorded = _best_rows(known.record, start, row)
    promised, steps, ends = _followed(known, accepted, best)
    own, own_steps, own_ends = _recorded(dataset, best_recorded)
    if is_goal_task(dataset):
        # What takes longer than the environment allows is cut before it gets there, in training and in evaluation.
        limit = (dataset.env.max_episode_steps if dataset.env is not None else None) or np.inf
        goal, reached, own_reached = GOAL, ends & (steps <= limit), own_ends & (own_steps <= limit)
    else:
        whole, _, _ = _recorded(dataset, dataset.obs_offsets[:-1][dataset.lengths > 0])
        bar = float(np.quantile(whole, TOP_DECILE))
        bar -= 1e-6 * max(1.0, abs(bar))  # what returns as much as the bar reaches it, however it was summed
        goal, reached, own_reached = "top decile of returns", promised >= bar, own >= bar
    counted = reached if reached.any() else np.ones(len(reached), np.bool_)
    best_bridge, best_step = _most_promising(known, best, np.where(counted, promised, -np.inf))
    return Reach(
        num_rounds=known.num_rounds,
        goal=goal,
        num_starts=len(best),
        share=float(reached.mean()),
        own_share=float(own_reached.mean()),
        promised=float(np.median(promised[counted])),
        own=float(np.median(own)),
        steps=float(np.median(steps[counted])),
        longest_chain=known.longest_chain,
        num_sources=len(np.unique(known.links.source_episode)),
        num_targets=len(np.unique(known.links.target_episode)),
        best_bridge=best_bridge,
        best_step=best_step,
    )


def _most_promising(known: StateValues, row: Ints, promised: NDArray[np.float64]) -> tuple[str | None, int]:
    """Return the first bridge of the most promising trajectory that takes one, and the step at which it begins."""
    promised = np.where(known.bridge[row] == RECORD, -np.inf, promised)
    best = row[promised.argmax()]
    if not np.isfinite(promised.max()):
        return None, 0
    return str(known.links.ids[known.bridge[best]]), int(_steps(known.dataset, best))


def _best_rows(value: NDArray[np.float64], start: Ints, row: Ints) -> Ints:
    """Return the row of the largest value beside each start, int64 [K]."""
    order = np.lexsort((value[row], start))
    last = np.append(np.diff(start[order]) != 0, True)
    return row[order][last]


def _steps(dataset: EpisodeDataset, row: Ints) -> Ints:
    """Return the step of each row in its episode."""
    return row - dataset.obs_offsets[dataset.episodes_of_rows(row)]


def _recorded(dataset: EpisodeDataset, row: Ints) -> tuple[NDArray[np.float64], Ints, NDArray[np.bool_]]:
    """Return the undiscounted return and length of the record from each row on, and whether it terminates."""
    episode = dataset.episodes_of_rows(row)
    first = dataset.offsets[episode] + _steps(dataset, row)
    summed = np.concatenate([[0.0], np.cumsum(dataset.rewards, dtype=np.float64)])
    end = dataset.offsets[episode + 1]
    return summed[end] - summed[first], end - first, dataset.terminated[episode]


def _followed(
    known: StateValues, accepted: MappedBridges, row: Ints
) -> tuple[NDArray[np.float64], Ints, NDArray[np.bool_]]:
    """Return the same of the best trajectory from each row on, which may take bridges."""
    returns, steps, ends = _recorded(known.dataset, row)
    bridge = known.bridge[row]
    chained = np.flatnonzero(bridge != RECORD)
    if not len(chained):
        return returns, steps, ends
    wanted = np.unique(bridge[chained])
    needed = accepted.all_references.with_ancestors(wanted)
    bridges: BridgeSet = accepted.take_positions(needed)
    made = rebuild(known.dataset, bridges, np.searchsorted(needed, wanted), None).episodes
    at = np.searchsorted(wanted, bridge[chained])
    step = _steps(known.dataset, row[chained])
    summed = np.concatenate([[0.0], np.cumsum(made.rewards, dtype=np.float64)])
    first, end = made.offsets[at] + step, made.offsets[at + 1]
    returns[chained], steps[chained], ends[chained] = summed[end] - summed[first], end - first, made.terminated[at]
    return returns, steps, ends
