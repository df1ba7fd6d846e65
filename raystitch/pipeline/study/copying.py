"""G1 and G2: are generated states copies of training data, and do they cover what was held out?

Everything is a distance between single states: L2 over active dimensions in standardised units.
Legend: R states, D active dimensions, B bridges.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raystitch.buffer.reader import Buffer
from raystitch.data.episodes import Ints
from raystitch.pipeline.study.parts import StatePoints, StudyParts, generated_states, inside_rows, skipped
from raystitch.seeding import numpy_rng

LEVELS = ("q50", "q75", "q90", "q99", "q99.9", "off")
"""Deltas that the buffer is read at, besides the one of its generation."""
MAX_STATES = 500_000
"""Real states that are searched; of larger datasets both parts are thinned alike."""
NUM_GENERATED = 10_000
"""Generated states at each delta."""
NUM_HELD_OUT = 5_000
"""Held-out states that coverage is asked for."""
NUM_OTHERS = 2_000
"""Real states that are compared with other episodes than their own."""
FIRST_NEIGHBOURS, MAX_NEIGHBOURS = 16, 2_000_000
"""Neighbours of a state that are looked at first, and of all states at a time."""
FAR_QUANTILE = 0.99
MIN_STATES = 20
NUM_DRAWS = 1000

Floats64 = NDArray[np.float64]


class StateTree:
    """States to be searched for the one nearest to another state."""

    def __init__(self, points: StatePoints) -> None:
        from scipy.spatial import KDTree  # importing it takes a moment, in every process of a run

        self.points = points
        self.tree = KDTree(points.points)

    def distance(self, queries: StatePoints) -> Floats64:
        """Return the distance of each query to the nearest state, float64 [R]; inf where there is none."""
        return np.asarray(self.tree.query(queries.points)[0], np.float64)

    def distance_to_others(self, queries: StatePoints) -> Floats64:
        """Return the distance of each query to the nearest state of an episode that is not its own, float64 [R]; inf
        where there is none."""
        own = queries.episode.reshape(len(queries), -1)
        found, left, count = np.full(len(queries), np.inf), np.arange(len(queries)), FIRST_NEIGHBOURS
        while len(left):
            count = min(count, len(self.points))
            for rows in np.array_split(left, -(-len(left) * count // MAX_NEIGHBOURS)):
                found_RK = self.tree.query(queries.points[rows], k=count)
                near, at = (np.asarray(values).reshape(len(rows), count) for values in found_RK)
                foreign = (self.points.episode[at][:, :, None] != own[rows][:, None]).all(2)
                found[rows] = np.where(foreign.any(1), near[np.arange(len(rows)), foreign.argmax(1)], np.inf)
            left = left[np.isinf(found[left])] if count < len(self.points) else left[:0]
            count *= 8
        return found


def nearer(to_train: Floats64, to_held_out: Floats64) -> Floats64:
    """Return 1 where the training part is nearer, 0 where the held-out part is, 0.5 where neither, float64 [R]."""
    return np.where(to_train == to_held_out, 0.5, to_train < to_held_out)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Real:
    """Real states that generated ones are compared with.

    Attributes:
        train, held_out: the two parts. queries: the held-out states that coverage is asked for.
        to_train: distance of each query to the training part. far: the distance that 1 % of them exceed.
        radius: the median distance of a training state to the nearest one of another episode.
        reference: G1 of real training states that are compared with other episodes than their own.
    """

    train: StateTree
    held_out: StateTree
    queries: StatePoints
    to_train: Floats64
    far: float
    radius: float
    reference: float

    @classmethod
    def of(cls, parts: StudyParts, rng: np.random.Generator) -> "_Real":
        kept = min(1.0, MAX_STATES / (parts.num_states(parts.train) + parts.num_states(parts.held_out)))
        train, held_out = (
            StateTree(parts.states(episodes, max(1, round(kept * parts.num_states(episodes))), rng))
            for episodes in (parts.train, parts.held_out)
        )
        queries = parts.states(parts.held_out, NUM_HELD_OUT, rng)
        to_train = train.distance(queries)
        some = parts.states(parts.train, NUM_OTHERS, rng)
        to_others = train.distance_to_others(some)
        chance = _chance(train, held_out)
        return cls(
            train=train,
            held_out=held_out,
            queries=queries,
            to_train=to_train,
            far=float(np.quantile(to_train, FAR_QUANTILE)),
            radius=float(np.median(to_others)),
            reference=_rescaled(float(nearer(to_others, held_out.distance(some)).mean()), chance),
        )

    def rescaled(self, share: float) -> float:
        """Return a share of nearer states as G1."""
        return _rescaled(share, _chance(self.train, self.held_out))


def _chance(train: StateTree, held_out: StateTree) -> float:
    return len(train.points) / (len(train.points) + len(held_out.points))


def _rescaled(share: float, chance: float) -> float:
    """Return the share as two sets of equal size would give it: 0.5 at chance level, 1 where all are nearer."""
    return max(0.0, 0.5 + 0.5 * (share - chance) / (1 - chance))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Generated:
    """Generated states of the bridges of any delta, each measured once.

    Attributes:
        states: [R]; row: int64 [R], the bridge's row in the buffer.
        nearer: float64 [R]. away: float64 [R], distance to the nearest real state of either part.
    """

    states: StatePoints
    row: Ints
    nearer: Floats64
    away: Floats64

    @classmethod
    def of(cls, buffer: Buffer, rows: Ints, parts: StudyParts, real: _Real) -> "_Generated":
        states, row = generated_states(buffer, rows, parts)
        to_train, to_held_out = real.train.distance(states), real.held_out.distance(states)
        return cls(states=states, row=row, nearer=nearer(to_train, to_held_out), away=np.minimum(to_train, to_held_out))


def copying_and_coverage(buffer: Buffer, parts: StudyParts, seed: int) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the keys ``copying`` and ``coverage`` of generalise.json; see generalise.py.

    Only bridges inside the training part count; from each delta about equally many generated states are taken.
    """
    rng = numpy_rng(seed, "study", "copying")
    rows = {level: inside_rows(buffer, level, parts.train)[0] for level in ("generation", *LEVELS)}
    gap = buffer.column("gap")
    count = {level: int(gap[at].sum()) for level, at in rows.items()}
    if count["generation"] < MIN_STATES:
        reason = skipped(
            f"{count['generation']} generated states lie between episodes of the training part; at least {MIN_STATES} "
            "are needed"
        )
        return reason, reason
    usable = [level for level in rows if count[level] >= MIN_STATES]
    wanted = min(NUM_GENERATED, *(count[level] for level in usable))
    order = rng.permutation(buffer.num_candidates)  # one order for every delta: they share most of their bridges
    drawn = {level: _first(rows[level], order, gap, wanted) for level in usable}
    real = _Real.of(parts, rng)
    generated = _Generated.of(buffer, np.unique(np.concatenate([*drawn.values()])), parts, real)
    measured = {level: _at_level(generated, at, real) for level, at in drawn.items()}
    shared = {"num_bridges": len(rows["generation"]), "num_sampled": len(drawn["generation"])}
    copying = {
        **shared,
        **_copying(generated, drawn["generation"], real, rng),
        "by_delta": [
            {"level": level, "num_bridges": len(rows[level]), **measured[level]} for level in usable if level in LEVELS
        ],
    }
    coverage = {
        **shared,
        "num_queries": len(real.queries),
        "radius": real.radius,
        "far": real.far,
        **{name: value for name, value in measured["generation"].items() if name != "copying"},
        **_distinct(buffer, rows["generation"]),
    }
    return copying, coverage


def _first(rows: Ints, order: Ints, gap: Ints, wanted: int) -> Ints:
    """Return the first rows in the given order that hold ``wanted`` generated states together, ascending."""
    at = rows[np.argsort(order[rows])]
    return np.sort(at[: int(np.searchsorted(np.cumsum(gap[at]), wanted)) + 1])


def _at_level(generated: _Generated, rows: Ints, real: _Real) -> dict[str, Any]:
    """Return the numbers of the bridges in ``rows``: G1 as ``copying``, and those of coverage."""
    chosen = np.isin(generated.row, rows)
    without = real.to_train <= real.radius
    covered = without | (StateTree(generated.states.take(chosen)).distance(real.queries) <= real.radius)
    far = generated.away[chosen] > real.far
    return {
        "num_states": int(chosen.sum()),
        "copying": real.rescaled(float(generated.nearer[chosen].mean())),
        "without": float(without.mean()),
        "with": float(covered.mean()),
        "gain": float(covered.mean() - without.mean()),
        "far_states": float(far.mean()),
        "far_bridges": len(np.unique(generated.row[chosen][far])) / len(rows),
    }


def _copying(generated: _Generated, rows: Ints, real: _Real, rng: np.random.Generator) -> dict[str, Any]:
    """Return G1 with a 95 % bootstrap interval over bridges, because the states of one are not independent."""
    chosen = np.flatnonzero(np.isin(generated.row, rows))
    place = np.searchsorted(rows, generated.row[chosen])
    sums, counts = np.bincount(place, generated.nearer[chosen], len(rows)), np.bincount(place, minlength=len(rows))
    draws = rng.integers(len(rows), size=(NUM_DRAWS, len(rows)))
    low, high = np.quantile(sums[draws].sum(1) / counts[draws].sum(1), [0.025, 0.975]).tolist()
    return {
        "num_states": len(chosen),
        "value": real.rescaled(float(generated.nearer[chosen].mean())),
        "low": real.rescaled(low),
        "high": real.rescaled(high),
        "reference": real.reference,
    }


def _distinct(buffer: Buffer, rows: Ints) -> dict[str, int]:
    """Count the different episodes and states that bridges leave and enter: diversity, which amount is not."""
    found: dict[str, int] = {}
    for side in ("source", "target"):
        episode, step = (buffer.column(f"{side}_{name}")[rows] for name in ("episode", "step"))
        found[f"{side}_episodes"] = len(np.unique(episode))
        found[f"{side}_states"] = len(np.unique(np.stack([episode, step], axis=1), axis=0))
    return found
