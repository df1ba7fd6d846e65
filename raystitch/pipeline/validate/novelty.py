"""Is a bridge generated or copied? Distances to the nearest real window, and how well bridges cover real data.

A distance is the mean over the generated states of a bridge (the states inside a window) of the squared L2 distance to
the real states, over active dimensions in standardised units.
Legend: W windows, Q queries of one gap g, C starts in a chunk, D active dimensions.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raystitch.data.episodes import EpisodeDataset, Floats, Ints
from raystitch.data.normalise import Normalizer
from raystitch.pipeline.validate.windows import TransitionWindows, real_windows

CHUNK_NUMBERS = 2_000_000
LOW_QUANTILE = 0.05

Floats64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RealStates:
    """The recorded states of some episodes, standardised, to be searched for windows.

    Attributes:
        states: float32 [rows, D] of the whole dataset. episode: int64 [rows].
        left: int64 [rows], recorded states from this one to the end of its episode; 0 outside the episodes searched.
    """

    states: Floats
    episode: Ints
    left: Ints

    @classmethod
    def of(cls, dataset: EpisodeDataset, episodes: Ints, normalizer: Normalizer) -> "RealStates":
        sizes = dataset.lengths + 1
        episode = np.repeat(np.arange(dataset.num_episodes), sizes)
        searched = np.zeros(dataset.num_episodes, np.int64)
        searched[episodes] = 1
        stops = (dataset.obs_offsets[:-1] + sizes - ~dataset.final_observed)[episode]
        left = np.maximum(stops - np.arange(len(episode)), 0) * searched[episode]
        states = normalizer.encode(dataset.observations)[:, normalizer.active]
        return cls(np.ascontiguousarray(states), episode, left)


def _inner(windows: TransitionWindows, rows: Ints, normalizer: Normalizer) -> Floats:
    """The inner states of windows of one gap as vectors, standardised, float32 [Q, g * D]."""
    return normalizer.encode(windows.inner_states(rows))[:, :, normalizer.active].reshape(len(rows), -1)


def nearest(windows: TransitionWindows, real: RealStates, normalizer: Normalizer) -> tuple[Floats64, Floats64]:
    """Exact search: distance of each window to the nearest real one of its length, float64 [W].

    Returns:
        The distance to any window searched, and to any of another episode than the window's own; inf where there is
        none.
    """
    found = np.full((2, len(windows)), np.inf)
    for gap in np.unique(windows.gap).tolist():
        rows = np.flatnonzero(windows.gap == gap)
        starts = np.flatnonzero(real.left >= gap)
        if not len(starts):
            continue
        queries = _inner(windows, rows, normalizer)
        best = _search(queries, windows.episode[rows], real, starts, gap)
        for kind in range(2):
            known = best[kind] >= 0
            real_QgD = real.states[best[kind][known][:, None] + np.arange(gap)]
            # The search's expanded squares lose digits exactly where the distance is small.
            difference = queries[known].astype(np.float64) - real_QgD.reshape(int(known.sum()), -1)
            found[kind, rows[known]] = (difference**2).sum(1) / gap
    return found[0], found[1]


def _search(queries: Floats, own: Ints, real: RealStates, starts: Ints, gap: int) -> NDArray[np.int64]:
    """First row of the nearest window for each query: of any, and of another episode; int64 [2, Q], -1 for none."""
    smallest = np.full((2, len(queries)), np.inf, np.float32)
    best = np.full((2, len(queries)), -1, np.int64)
    squared = (queries**2).sum(1)
    for chunk in np.array_split(starts, -(-len(starts) * queries.shape[1] // CHUNK_NUMBERS)):
        candidates = real.states[chunk[:, None] + np.arange(gap)].reshape(len(chunk), -1)
        # ||a - b||^2 = |a|^2 + |b|^2 - 2ab, [C, Q] in one matrix product.
        distance = candidates @ queries.T
        distance *= -2
        distance += squared
        distance += np.einsum("cd,cd->c", candidates, candidates)[:, None]
        for kind in range(2):
            if kind == 1:
                distance[real.episode[chunk][:, None] == own] = np.inf
            at = distance.argmin(0)
            value = distance[at, np.arange(len(queries))]
            better = value < smallest[kind]
            smallest[kind, better] = value[better]
            best[kind, better] = chunk[at[better]]
    return best


def _nearest_of(windows: TransitionWindows, others: TransitionWindows, normalizer: Normalizer) -> Floats64:
    """Distance of each window to the nearest of ``others`` of the same gap and another episode, float64 [W]; inf where
    there is none."""
    found = np.full(len(windows), np.inf)
    for gap in np.unique(windows.gap).tolist():
        mine, theirs = np.flatnonzero(windows.gap == gap), np.flatnonzero(others.gap == gap)
        if len(theirs):
            first, second = (
                _inner(group, rows, normalizer).astype(np.float64)
                for group, rows in ((windows, mine), (others, theirs))
            )
            square = (first**2).sum(1)[:, None] + (second**2).sum(1) - 2 * first @ second.T
            square[windows.episode[mine][:, None] == others.episode[theirs]] = np.inf
            found[mine] = np.maximum(square.min(1), 0) / gap
    return found


def _quantiles(values: Floats64) -> dict[str, float | int | None]:
    values = values[np.isfinite(values)]
    if not len(values):
        return {"count": 0, "p10": None, "median": None, "p90": None}
    p10, median, p90 = np.quantile(values, [0.1, 0.5, 0.9]).tolist()
    return {"count": len(values), "p10": p10, "median": median, "p90": p90}


def novelty(
    bridges: TransitionWindows,
    real: TransitionWindows,
    dataset: EpisodeDataset,
    train: Ints,
    normalizer: Normalizer,
    rng: np.random.Generator,
) -> dict[str, Any] | None:
    """How far bridges are from the data, next to how far real windows are from data they are no part of.

    Args:
        bridges: sampled accepted bridges.
        real: real windows of the same gaps from episodes outside ``train`` (or of any, where nothing was held out).
        train: int64, the episodes that the models were fitted on.

    Returns:
        The keys of ``novelty`` in truth.py; None when there is no bridge or no real window to compare.
    """
    if not len(bridges) or not len(real):
        return None
    everything = RealStates.of(dataset, np.arange(dataset.num_episodes), normalizer)
    any_window, other_episode = nearest(bridges, everything, normalizer)
    _, reference = nearest(real, RealStates.of(dataset, train, normalizer), normalizer)
    described = {"bridges": any_window, "bridges_other_episodes": other_episode, "real": reference}
    found: dict[str, Any] = {name: _quantiles(values) for name, values in described.items()}
    medians = [found[name]["median"] for name in ("bridges_other_episodes", "real")]
    found["ratio"] = medians[0] / medians[1] if None not in medians and medians[1] > 0 else None
    known = reference[np.isfinite(reference)]
    limit = float(np.quantile(known, LOW_QUANTILE)) if len(known) else None
    found["copied_limit"] = limit
    found["copied_share"] = None if limit is None else float((any_window < limit).mean())
    matched = real_windows(dataset, train, bridges.gap, rng)
    to_bridge, to_real = (_nearest_of(real, others, normalizer) for others in (bridges, matched))
    comparable = np.isfinite(to_bridge) & np.isfinite(to_real)
    found["coverage"] = {
        "num_windows": int(comparable.sum()),
        "share": float((to_bridge[comparable] <= to_real[comparable]).mean()) if comparable.any() else None,
        "bridge_median": _quantiles(to_bridge[comparable])["median"],
        "real_median": _quantiles(to_real[comparable])["median"],
    }
    return found
