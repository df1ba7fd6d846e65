"""Pair selectors: which state to leave and which to enter. Each mode is one function and one line in ``SELECTORS``.

A mode proposes options for every row. ``choose`` does what all of them share: the value check, the limit on reuse, and
drawing other sources for rows that are left without a target.

Legend: N rows (one seed, one pair each), C source states tried per row, W imagined indices, Q queries per row (C, or
C * W where futures are imagined), K targets found per query, A alternatives per row (best first), R random targets per
row, M target states in all, D dimensions searched, Z embedding dimensions. ``States`` carry the suffix of their arrays.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from raystitch.data.episodes import Bools, Floats, Ints
from raystitch.models.calibration import SEAM
from raystitch.seeding import child_seeds, integers, uniforms
from raystitch.stitching.bridge import RETRIEVAL_STREAM, imagine
from raystitch.stitching.config import StitchConfig
from raystitch.stitching.gap import gap_of_steps
from raystitch.stitching.pools import Pools, States
from raystitch.stitching.retrieval import NEIGHBOURS, Alternatives, limit_reuse

RANDOM_TARGETS = 16
REFILL_ROUNDS = 4
# Modes ``successor`` and ``distance`` try states of this many source episodes per row: some never come near a target.
TRIED_EPISODES = 4
# Mode ``distance`` ranks this many of a row's closest alternatives by value gain.
CLOSEST = 8
# Mode ``distance`` accepts a target whose distance is within this many steps of the drawn gap.
TIME_SLACK = 1.5
# Where states are split by value, a source in which the task starts counts as much as this share of the largest gain.
START_BONUS = 0.25
NO_GAP = 0
JOINED = -1
_EPISODE_DRAW, _STEP_DRAW, _TARGET_DRAW, _GAP_DRAW, _TRY_SEEDS, _REFILL_SEEDS = 1, 2, 3, 4, 5, 6


@dataclass(frozen=True, eq=False)
class Selection:
    """The states to leave and to enter, and the gap that selection found (0: none), each [N].

    ``seam``: float32 [N], squared standardised distance of the target from where the source is expected then. NaN, the
    default, is where it is expected nowhere: ``seam_max`` drops the pair.
    """

    source: States
    target: States
    gap: Ints
    seam: Floats = field(default_factory=lambda: np.zeros(0, np.float32))

    def __post_init__(self) -> None:
        if len(self.seam) != len(self.gap):
            object.__setattr__(self, "seam", np.full(len(self.gap), np.nan, np.float32))


@dataclass(frozen=True, eq=False)
class PairOptions:
    """The options that a mode proposes.

    Attributes:
        source: [N, Q], the states that may be left.
        found: [N, A], targets for them, best first; ``found.query`` says which of the Q each belongs to.
        gap: int64 [N, A], of each alternative.
        far: [N, A], standardised distance of each target from where the source is expected then; None where it is
            expected nowhere, and ``found.distance`` is only an order. The two differ where contexts are matched.
    """

    source: States
    found: Alternatives
    gap: Ints
    far: NDArray[np.float64] | None = None

    def sources(self, rows: Ints, column: Ints) -> States:
        """The source states of alternatives, by row and column; shapes broadcast."""
        query = self.found.query[rows, column]
        return States(self.source.episode[rows, query], self.source.step[rows, query])

    def take(self, rows: Ints) -> "PairOptions":
        far = None if self.far is None else self.far[rows]
        return PairOptions(self.source.at(rows), self.found.take(rows), self.gap[rows], far)

    def reorder(self, order_NA: Ints) -> "PairOptions":
        """The same options with each row's alternatives in another order."""
        gap = np.take_along_axis(self.gap, order_NA, 1)
        far = None if self.far is None else np.take_along_axis(self.far, order_NA, 1)
        return PairOptions(self.source, self.found.reorder(order_NA), gap, far)


Propose = Callable[[Pools, StitchConfig, Ints], PairOptions]


class PairSelector(Protocol):
    """Seeds int64 [N] -> N pairs. A row depends on its seed alone, except where ``max_target_reuse`` binds."""

    def __call__(self, pools: Pools, config: StitchConfig, seeds: Ints) -> Selection: ...


def random_options(pools: Pools, config: StitchConfig, seeds: Ints) -> PairOptions:
    """Propose a random source and random targets, as the paper does with a split by return; only value decides."""
    source_N1 = _draw_sources(pools, seeds, 1)
    target_NR, joinable_NR = _random_targets(pools, source_N1, seeds)
    order_NR = np.broadcast_to(np.arange(RANDOM_TARGETS, dtype=np.float64), target_NR.shape)
    found = Alternatives(np.zeros_like(target_NR), target_NR, np.where(joinable_NR, order_NR, np.inf))
    return PairOptions(source_N1, found, np.full(target_NR.shape, NO_GAP))


def successor_options(pools: Pools, config: StitchConfig, seeds: Ints) -> PairOptions:
    """Propose targets nearest to a state of the source's own future, a random gap later."""
    source_NC, gap_NC = _draw_with_future(pools, seeds, config.pairs.num_tries)
    later_NC = States(source_NC.episode, source_NC.step + gap_NC + 1)
    return _nearest(pools, source_NC, gap_NC, pools.encode(pools.observations(later_NC)))


def imagined_options(pools: Pools, config: StitchConfig, seeds: Ints) -> PairOptions:
    """Propose targets nearest to any state of an imagined future, wherever the source itself went afterwards."""
    num_tries = config.pairs.num_tries
    source_NC = _draw_sources(pools, seeds, num_tries)
    prefix, prefix_length = pools.prefixes(States(source_NC.episode.ravel(), source_NC.step.ravel()))
    sampler = replace(config.sampler, num_steps=config.pairs.num_imagine_steps)
    try_seeds = child_seeds(seeds, num_tries, _TRY_SEEDS).ravel()  # [N * C], like the futures
    future_WD = imagine(pools.bundle, prefix, prefix_length, try_seeds, sampler, stream=RETRIEVAL_STREAM)
    num_indices, num_dims = future_WD.shape[1:]
    query_NQD = future_WD.reshape(len(seeds), num_tries * num_indices, num_dims)
    source_NQ = States(*(np.repeat(column, num_indices, axis=1) for column in (source_NC.episode, source_NC.step)))
    gap_Q = np.tile(pools.gap_min + np.arange(num_indices), num_tries)
    return _nearest(pools, source_NQ, np.broadcast_to(gap_Q, source_NQ.step.shape), query_NQD)


def distance_options(pools: Pools, config: StitchConfig, seeds: Ints) -> PairOptions:
    """Propose targets that the embedding puts about the drawn gap away from the source state, ranked by value gain.

    They are searched near the state that the source itself reached after that gap.
    """
    source_NC, gap_NC = _draw_with_future(pools, seeds, config.pairs.num_tries)
    later_NC = States(source_NC.episode, source_NC.step + gap_NC + 1)
    query_NCD = pools.search_points(pools.phi[pools.rows(later_NC)], source_NC.episode)
    num_neighbours = NEIGHBOURS * (4 if pools.overlap else 1)
    target_NCK, distance_NCK = pools.nearest_in_time.query(query_NCD, source_NC.episode, num_neighbours)
    target_states_NCK = pools.targets.at(target_NCK)
    steps_NCK = _steps_between(pools, source_NC, target_states_NCK)
    later_NC1 = States(later_NC.episode[..., None], later_NC.step[..., None])
    seam_NCK = _seams(pools, later_NC1, target_states_NCK)
    usable_NCK = np.isfinite(distance_NCK) & (np.abs(steps_NCK - (gap_NC + 1)[..., None]) <= TIME_SLACK)
    usable_NCK &= seam_NCK >= config.pairs.novelty
    gap_NCK = gap_of_steps(steps_NCK, pools.gap_min, pools.gap_max)
    usable_NCK &= within_reach(pools, seam_NCK**2, gap_NCK)

    num_rows, num_tries, num_found = target_NCK.shape
    shape_NA = num_rows, num_tries * num_found
    query_NA = np.broadcast_to(np.repeat(np.arange(num_tries), num_found), shape_NA)
    seam_NA = np.where(usable_NCK, seam_NCK, np.inf).reshape(shape_NA)
    found = Alternatives(query_NA, target_NCK.reshape(shape_NA), seam_NA)
    options = PairOptions(source_NC, found, gap_NCK.reshape(shape_NA), seam_NA)
    options = options.reorder(np.argsort(seam_NA, axis=1, kind="stable"))
    if not config.pairs.value_check:
        return options
    rank_NA = np.where(np.arange(shape_NA[1]) < CLOSEST, -_gains(pools, options), np.inf)
    return options.reorder(np.argsort(rank_NA, axis=1, kind="stable"))


def nearest_options(pools: Pools, config: StitchConfig, seeds: Ints) -> PairOptions:
    """Propose targets nearest to the source state itself, for joining without a bridge."""
    source_NC = _draw_sources(pools, seeds, config.pairs.num_tries)
    gap_NC = np.full_like(source_NC.step, JOINED)
    return _nearest(pools, source_NC, gap_NC, pools.encode(pools.observations(source_NC)))


def nearest(pools: Pools, config: StitchConfig, seeds: Ints) -> Selection:
    """Select pairs for joining without a bridge, gap -1."""
    found = choose(nearest_options, pools, config, seeds)
    return Selection(found.source, found.target, np.full(len(seeds), JOINED))


def choose(propose: Propose, pools: Pools, config: StitchConfig, seeds: Ints) -> Selection:
    """Select the best option of each row that promises a gain and whose target is not used up.

    Rows without one draw other sources, up to ``REFILL_ROUNDS`` times, from seeds of their own. Rows that are still
    empty take the best of their first options without a gain, or else a random target.
    """
    used_M = np.zeros(len(pools.targets.episode), np.int64)
    open_rows = np.arange(len(seeds))
    parts: list[tuple[Ints, Selection]] = []
    options, gain_NA = _best_first(pools, propose(pools, config, seeds))
    first = options
    for refill in range(REFILL_ROUNDS + 1):
        if refill:
            refill_seeds = child_seeds(seeds[open_rows], REFILL_ROUNDS, _REFILL_SEEDS)[:, refill - 1]
            options, gain_NA = _best_first(pools, propose(pools, config, refill_seeds))
        usable_NA = np.isfinite(options.found.distance)
        if pools.config.value_check:
            usable_NA &= gain_NA > 0
        column_N = limit_reuse(options.found.target, usable_NA, pools.config.max_target_reuse, used_M)
        settled = np.flatnonzero(column_N >= 0)
        parts.append((open_rows[settled], _pick(pools, options.take(settled), column_N[settled])))
        open_rows = open_rows[column_N < 0]
        if not len(open_rows):
            break
    if len(open_rows):
        parts.append((open_rows, _leftovers(pools, first.take(open_rows), seeds[open_rows], used_M)))
    return _in_row_order(parts)


def _best_first(pools: Pools, options: PairOptions) -> tuple[PairOptions, NDArray[np.float64]]:
    """Order options by nearness and promise, where states are split by value, and return them with their gains [N, A];
    elsewhere leave them as they are.

    A gain is taken relative to the promised value above the least there is: it is 1 where nothing was known and small
    where a known way gets a little shorter, near the goal and far from it. Curiosity adds to it. Targets within a
    recorded step of where the source itself went are equally near; beyond that a step counts as much as the largest
    gain.
    """
    state_values, gain_NA = pools.state_values, _gains(pools, options)
    if state_values is None:
        return options, gain_NA
    num_rows, num_options = options.gap.shape
    source_NA = options.sources(np.arange(num_rows)[:, None], np.arange(num_options))
    source_row = pools.rows(source_NA)
    promised_NA = gain_NA + state_values.own[source_row] - state_values.floor
    score_NA = np.clip(gain_NA / np.maximum(promised_NA, 1e-9), 0, 1)
    score_NA += START_BONUS * state_values.at_start[source_row]
    far_NA = options.found.distance
    if pools.config.curiosity:
        found_NA = np.isfinite(far_NA)
        score_NA[found_NA] += pools.config.curiosity * pools.entered.novelty(options.found.target[found_NA])
    if options.far is not None:
        far_NA = np.maximum(far_NA / max(pools.step_length, 1e-9), 1)
    else:
        far_NA = np.where(np.isfinite(far_NA), 0.0, np.inf)
    order_NA = np.argsort(far_NA - score_NA, axis=1, kind="stable")
    return options.reorder(order_NA), np.take_along_axis(gain_NA, order_NA, 1)


def _in_row_order(parts: Sequence[tuple[Ints, Selection]]) -> Selection:
    """Join selections for some of the rows each, into one for all rows in order."""
    order_N = np.argsort(np.concatenate([rows for rows, _ in parts]), kind="stable")

    def gather(column: Callable[[Selection], NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate([column(selection) for _, selection in parts])[order_N]

    return Selection(
        States(gather(lambda part: part.source.episode), gather(lambda part: part.source.step)),
        States(gather(lambda part: part.target.episode), gather(lambda part: part.target.step)),
        gather(lambda part: part.gap),
        gather(lambda part: part.seam),
    )


def _novel(propose: Propose) -> Propose:
    """Return a mode that leaves out targets nearer than ``novelty`` to where the source itself was at that time; after
    the end of its record, to where that ends."""

    def propose_novel(pools: Pools, config: StitchConfig, seeds: Ints) -> PairOptions:
        options = propose(pools, config, seeds)
        if not config.pairs.novelty:
            return options
        num_rows, num_alternatives = options.gap.shape
        source_NA = options.sources(np.arange(num_rows)[:, None], np.arange(num_alternatives))
        novel_NA = novel_enough(pools, source_NA, pools.targets.at(options.found.target), options.gap)
        return replace(options, found=options.found.only(novel_NA))

    return propose_novel


def novel_enough(pools: Pools, source: States, target: States, gap: Ints) -> Bools:
    """Return True where a target is at least ``novelty`` away from where the source itself was at that time; shapes
    broadcast. Joins have no such time: any will do."""
    ahead = np.where(gap == NO_GAP, pools.gap_min, gap) + 1
    own = States(source.episode, np.minimum(source.step + ahead, pools.last_state[source.episode]))
    return (gap == JOINED) | (_seams(pools, own, target) >= pools.config.novelty)


def _within_reach(propose: Propose) -> Propose:
    """Return a mode that leaves out targets farther than ``seam_max`` from where the source was expected."""

    def propose_within(pools: Pools, config: StitchConfig, seeds: Ints) -> PairOptions:
        options = propose(pools, config, seeds)
        assert options.far is not None
        near_NA = within_reach(pools, options.far**2, options.gap)
        return replace(options, found=options.found.only(near_NA))

    return propose_within


def within_reach(pools: Pools, seam: NDArray[np.floating], gap: Ints) -> Bools:
    """Return True where a squared distance from where the source is expected is at most ``seam_max``; equal shapes.
    Where it is not known (NaN) it is not."""
    if pools.config.seam_max is None:
        return np.ones(seam.shape, np.bool_)
    at_most = pools.bundle.calibration.threshold(pools.config.seam_max, gap.ravel(), SEAM).reshape(gap.shape)
    return seam <= at_most


def _selector(propose: Propose) -> PairSelector:
    def select(pools: Pools, config: StitchConfig, seeds: Ints) -> Selection:
        return choose(propose, pools, config, seeds)

    return select


SELECTORS: Mapping[str, PairSelector] = {
    "random": _selector(_novel(random_options)),
    "imagine": _selector(_novel(_within_reach(imagined_options))),
    "successor": _selector(_novel(_within_reach(successor_options))),
    "distance": _selector(distance_options),  # looks for novel targets within reach before it ranks them
}
NEEDS_FUTURE = ("successor", "distance")


def _draw_sources(pools: Pools, seeds: Ints, num_tries: int) -> States:
    """Source states [N, C] of one episode per row."""
    return pools.draw_sources(uniforms(seeds, 1, _EPISODE_DRAW), uniforms(seeds, num_tries, _STEP_DRAW))


def _draw_with_future(pools: Pools, seeds: Ints, num_tries: int) -> tuple[States, Ints]:
    """Source states [N, C] whose record goes on past a gap, ``num_tries`` in each of several episodes; the gap [N, C].

    A row has one gap, uniform over rows: trying more states does not favour gaps at which targets are near.
    """
    gap_range = pools.gap_max - pools.gap_min + 1
    gap_N1 = pools.gap_min + integers(uniforms(seeds, 1, _GAP_DRAW), gap_range)
    gap_N1 = np.minimum(gap_N1, pools.longest_future - 1)
    episode_NC = np.repeat(uniforms(seeds, TRIED_EPISODES, _EPISODE_DRAW), num_tries, axis=1)
    step_NC = uniforms(seeds, TRIED_EPISODES * num_tries, _STEP_DRAW)
    source_NC = pools.draw_sources(episode_NC, step_NC, gap_N1 + 1)
    return source_NC, np.broadcast_to(gap_N1, source_NC.step.shape)


def _random_targets(pools: Pools, source_NQ: States, seeds: Ints) -> tuple[Ints, Bools]:
    """Targets [N, R] for the first source of each row, and whether it may go on in them."""
    episode_NR = np.repeat(source_NQ.episode[:, :1], RANDOM_TARGETS, axis=1)
    target_NR = pools.draw_targets(uniforms(seeds, RANDOM_TARGETS, _TARGET_DRAW), episode_NR)
    return target_NR, pools.joinable(episode_NR, target_NR)


def _nearest(pools: Pools, source_NQ: States, gap_NQ: Ints, query_NQD: Floats) -> PairOptions:
    """Options whose targets are the nearest to standardised states, one per source state."""
    points_NQD = pools.search_points(query_NQD, source_NQ.episode)
    found = pools.nearest.find(points_NQD, source_NQ.episode, overlap=pools.overlap)
    far_NA = found.distance
    if pools.contexts is not None:  # the distances between points count contexts too
        state_NAD = pools.encode(pools.observations(pools.targets.at(found.target)))
        apart_NA = np.linalg.norm(query_NQD[np.arange(len(far_NA))[:, None], found.query] - state_NAD, axis=-1)
        far_NA = np.where(np.isfinite(far_NA), apart_NA, np.inf)
    return PairOptions(source_NQ, found, np.take_along_axis(gap_NQ, found.query, 1), far_NA)


def _steps_between(pools: Pools, source_NC: States, target_NCK: States) -> Floats:
    """Steps from each source to its targets by the embedding, float32 [N, C, K]."""
    phi_NCZ, phi_NCKZ = pools.phi[pools.rows(source_NC)], pools.phi[pools.rows(target_NCK)]
    return np.linalg.norm(phi_NCZ[:, :, None] - phi_NCKZ, axis=-1)


def _seams(pools: Pools, later: States, target: States) -> NDArray[np.float64]:
    """Standardised distance from each source's own later state to the targets found near it; shapes broadcast."""
    apart = pools.encode(pools.observations(later)) - pools.encode(pools.observations(target))
    return np.linalg.norm(apart, axis=-1).astype(np.float64)


def _gains(pools: Pools, options: PairOptions) -> NDArray[np.float64]:
    """Promised gain of every alternative, [N, A]; where no gap is known, that of the shortest bridge."""
    num_rows, num_alternatives = options.gap.shape
    source_NA = options.sources(np.arange(num_rows)[:, None], np.arange(num_alternatives))
    gap_NA = np.where(options.gap == NO_GAP, pools.gap_min, options.gap)
    return pools.gain(source_NA, pools.targets.at(options.found.target), gap_NA)


def _pick(pools: Pools, options: PairOptions, column_N: Ints) -> Selection:
    """One alternative of each row, by column."""
    rows = np.arange(len(column_N))
    target_N = pools.targets.at(options.found.target[rows, column_N])
    gap_N, source_N = options.gap[rows, column_N], options.sources(rows, column_N)
    if options.far is None:
        return Selection(source_N, target_N, gap_N)
    return Selection(source_N, target_N, gap_N, (options.far[rows, column_N] ** 2).astype(np.float32))


def _leftovers(pools: Pools, options: PairOptions, seeds: Ints, used_M: Ints) -> Selection:
    """Select for rows without an option that promises a gain: any option, or else a random target for their first
    source."""
    target_NR, joinable_NR = _random_targets(pools, options.source, seeds)
    found = options.found
    extended = PairOptions(
        options.source,
        Alternatives(
            np.concatenate([found.query, np.zeros_like(target_NR)], 1),
            np.concatenate([found.target, target_NR], 1),
            np.concatenate([found.distance, np.where(joinable_NR, 0.0, np.inf)], 1),
        ),
        np.concatenate([options.gap, np.full_like(target_NR, NO_GAP)], 1),
        None if options.far is None else np.concatenate([options.far, np.full(target_NR.shape, np.nan)], 1),
    )
    usable_NA = np.isfinite(extended.found.distance)
    column_N = limit_reuse(extended.found.target, usable_NA, pools.config.max_target_reuse, used_M)
    # If there are fewer targets than the limit needs, the limit gives way.
    column_N = np.where(column_N < 0, found.target.shape[1] + joinable_NR.argmax(1), column_N)
    return _pick(pools, extended, column_N)
