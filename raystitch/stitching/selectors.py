"""Ways to choose which state to leave and which to enter: one function per mode, one registry line.

Each mode proposes options for every row; what they have in common (the value check, the cap on reuse, drawing other
sources for rows that are left without a target) is done once, by ``choose``.

Legend: N rows, C steps of the source episode tried per row, Q queries of a row, W imagined indices, A alternatives of
a row (best first), K neighbours of a query.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from raystitch.data.episodes import Bools, Ints
from raystitch.seeding import child_seeds, integers, uniforms
from raystitch.stitching.bridge import RETRIEVAL_STREAM, imagine
from raystitch.stitching.config import StitchConfig
from raystitch.stitching.gap import gap_of_steps
from raystitch.stitching.pools import Pools, States
from raystitch.stitching.retrieval import NEIGHBOURS, Alternatives, limit_reuse

RANDOM_TARGETS = 16
REFILL_ROUNDS = 4
# Modes ``successor`` and ``distance`` try states of so many source episodes per row: some never come near a target.
TRIED_EPISODES = 4
# Of the candidates of a row in mode ``distance``, so many of the closest are ranked by value gain.
CLOSEST = 8
# In mode ``distance``, a target is in time when its distance is within so many steps of the gap that was drawn.
TIME_SLACK = 1.5
NO_GAP = 0
JOINED = -1
_EPISODE_DRAW, _STEP_DRAW, _TARGET_DRAW, _GAP_DRAW, _TRY_SEEDS, _REFILL_SEEDS = 1, 2, 3, 4, 5, 6


@dataclass(frozen=True, eq=False)
class Selection:
    """The states to leave and to enter, and the gap the selection found (0: none), each [N]."""

    source: States
    target: States
    gap: Ints


@dataclass(frozen=True, eq=False)
class PairOptions:
    """What a mode proposes: source states and gaps [N, Q] and, by ``found.query``, targets for them, best first.

    ``gap`` [N, A] belongs to the alternatives.
    """

    source: States
    found: Alternatives
    gap: Ints

    def sources(self, rows: Ints, column: Ints) -> States:
        query = self.found.query[rows, column]
        return States(self.source.episode[rows, query], self.source.step[rows, query])

    def take(self, rows: Ints) -> "PairOptions":
        return PairOptions(self.source.at(rows), self.found.take(rows), self.gap[rows])


Propose = Callable[[Pools, StitchConfig, Ints], PairOptions]


class PairSelector(Protocol):
    """Seeds int64 [N] -> N pairs. A row depends on its seed alone, except where ``max_target_reuse`` binds."""

    def __call__(self, pools: Pools, config: StitchConfig, seeds: Ints) -> Selection: ...


def random_options(pools: Pools, config: StitchConfig, seeds: Ints) -> PairOptions:
    """The paper's: a random low-return episode and a random high-return one; the value check is the only choice."""
    sources = _draw_sources(pools, seeds, 1)
    target, joinable = _random_targets(pools, sources, seeds)
    order = np.broadcast_to(np.arange(RANDOM_TARGETS, dtype=np.float64), target.shape)
    found = Alternatives(np.zeros_like(target), target, np.where(joinable, order, np.inf))
    return PairOptions(sources, found, np.full(target.shape, NO_GAP))


def successor_options(pools: Pools, config: StitchConfig, seeds: Ints) -> PairOptions:
    """Targets nearest to a state of the source's own future, a random gap later."""
    sources, gap = _draw_with_future(pools, seeds, config.pairs.num_tries)
    queries = pools.encode(pools.observations(States(sources.episode, sources.step + gap + 1)))
    return _nearest(pools, sources, gap, queries)


def imagined_options(pools: Pools, config: StitchConfig, seeds: Ints) -> PairOptions:
    """Targets nearest to any state of an imagined future, wherever the source itself went afterwards."""
    tries = config.pairs.num_tries
    sources = _draw_sources(pools, seeds, tries)
    prefix, prefix_length = pools.prefixes(States(sources.episode.ravel(), sources.step.ravel()))
    sampler = replace(config.sampler, num_steps=config.pairs.num_imagine_steps)
    try_seeds = child_seeds(seeds, tries, _TRY_SEEDS).ravel()
    future = imagine(pools.bundle, prefix, prefix_length, try_seeds, sampler, stream=RETRIEVAL_STREAM)
    num_indices = future.shape[1]
    queries = future.reshape(len(seeds), tries * num_indices, future.shape[-1])
    source = States(*(np.repeat(column, num_indices, axis=1) for column in (sources.episode, sources.step)))
    gap = np.broadcast_to(np.tile(pools.gap_min + np.arange(num_indices), tries), source.step.shape)
    return _nearest(pools, source, gap, queries)


def distance_options(pools: Pools, config: StitchConfig, seeds: Ints) -> PairOptions:
    """Targets that the temporal-distance embedding puts the drawn gap away, near to where the source itself was then,
    ranked by value gain."""
    sources, gap = _draw_with_future(pools, seeds, config.pairs.num_tries)
    later = States(sources.episode, sources.step + gap + 1)
    phi = pools.phi
    queries = pools.search_points(phi[pools.rows(later)], sources.episode)
    target, distance = pools.nearest_in_time.query(queries, sources.episode, NEIGHBOURS * (4 if pools.overlap else 1))
    states = pools.targets.at(target)
    steps = np.linalg.norm(phi[pools.rows(sources)][:, :, None] - phi[pools.rows(states)], axis=-1)
    usable = np.isfinite(distance) & (np.abs(steps - (gap + 1)[..., None]) <= TIME_SLACK)
    seam = pools.encode(pools.observations(later))[:, :, None] - pools.encode(pools.observations(states))
    apart = np.linalg.norm(seam, axis=-1).astype(np.float64)
    usable &= apart >= config.pairs.novelty
    num_rows, tries, count = target.shape
    query = np.broadcast_to(np.repeat(np.arange(tries), count), (num_rows, tries * count))
    found = Alternatives(query, target.reshape(query.shape), np.where(usable, apart, np.inf).reshape(query.shape))
    options = PairOptions(
        sources, found, gap_of_steps(steps, pools.gap_min, pools.bundle.config.diffusion.gap_max).reshape(query.shape)
    )
    options = _reorder(options, np.argsort(found.distance, axis=1, kind="stable"))
    if not config.pairs.value_check:
        return options
    rank = np.where(np.arange(query.shape[1]) < CLOSEST, -_gains(pools, options), np.inf)
    return _reorder(options, np.argsort(rank, axis=1, kind="stable"))


def nearest_options(pools: Pools, config: StitchConfig, seeds: Ints) -> PairOptions:
    """Targets nearest to the source state itself, for joining without a bridge."""
    sources = _draw_sources(pools, seeds, config.pairs.num_tries)
    gap = np.full_like(sources.step, JOINED)
    return _nearest(pools, sources, gap, pools.encode(pools.observations(sources)))


def nearest(pools: Pools, config: StitchConfig, seeds: Ints) -> Selection:
    """Pairs for joining without a bridge, gap -1."""
    return replace(choose(nearest_options, pools, config, seeds), gap=np.full(len(seeds), JOINED))


def choose(propose: Propose, pools: Pools, config: StitchConfig, seeds: Ints) -> Selection:
    """The best option of each row that promises a gain and is not used up.

    Rows without one draw other sources, up to ``REFILL_ROUNDS`` times, from seeds of their own. What is still empty
    takes its best first option without a gain, and failing that a random target.
    """
    used = np.zeros(len(pools.targets.episode), np.int64)
    rows = np.arange(len(seeds))
    parts: list[tuple[Ints, Selection]] = []
    first = propose(pools, config, seeds)
    options, round_seeds = first, seeds
    for refill in range(REFILL_ROUNDS + 1):
        if refill:
            round_seeds = child_seeds(seeds[rows], REFILL_ROUNDS, _REFILL_SEEDS)[:, refill - 1]
            options = propose(pools, config, round_seeds)
        usable = np.isfinite(options.found.distance)
        if pools.config.value_check:
            usable &= _gains(pools, options) > 0
        column = limit_reuse(options.found.target, usable, pools.config.max_target_reuse, used)
        settled = np.flatnonzero(column >= 0)
        parts.append((rows[settled], _pick(pools, options.take(settled), column[settled])))
        rows = rows[column < 0]
        if not len(rows):
            break
    if len(rows):
        parts.append((rows, _leftovers(pools, first.take(rows), seeds[rows], used)))
    order = np.argsort(np.concatenate([part[0] for part in parts]), kind="stable")

    def gather(column: Callable[[Selection], Ints]) -> Ints:
        return np.concatenate([column(part[1]) for part in parts])[order]

    return Selection(
        States(gather(lambda part: part.source.episode), gather(lambda part: part.source.step)),
        States(gather(lambda part: part.target.episode), gather(lambda part: part.target.step)),
        gather(lambda part: part.gap),
    )


def _selector(propose: Propose) -> PairSelector:
    def select(pools: Pools, config: StitchConfig, seeds: Ints) -> Selection:
        return choose(propose, pools, config, seeds)

    return select


SELECTORS: Mapping[str, PairSelector] = {
    "random": _selector(random_options),
    "imagine": _selector(imagined_options),
    "successor": _selector(successor_options),
    "distance": _selector(distance_options),
}
NEEDS_FUTURE = ("successor", "distance")


def _draw_sources(pools: Pools, seeds: Ints, tries: int) -> States:
    return pools.draw_sources(uniforms(seeds, 1, _EPISODE_DRAW), uniforms(seeds, tries, _STEP_DRAW))


def _draw_with_future(pools: Pools, seeds: Ints, tries: int) -> tuple[States, Ints]:
    """Source states [N, C], ``tries`` of each episode, whose record goes on past a gap; the gap as [N, C].

    There is one gap per row, uniform over the rows, so that trying more states does not favour gaps at which targets
    are near.
    """
    gap_range = pools.bundle.config.diffusion.gap_max - pools.gap_min + 1
    gap = pools.gap_min + integers(uniforms(seeds, 1, _GAP_DRAW), gap_range)
    gap = np.minimum(gap, pools.longest_future - 1)
    episode = np.repeat(uniforms(seeds, TRIED_EPISODES, _EPISODE_DRAW), tries, axis=1)
    sources = pools.draw_sources(episode, uniforms(seeds, TRIED_EPISODES * tries, _STEP_DRAW), gap + 1)
    return sources, np.broadcast_to(gap, sources.step.shape)


def _random_targets(pools: Pools, sources: States, seeds: Ints) -> tuple[Ints, Bools]:
    """Targets [N, R] for the first source of each row, and whether it may go on in them."""
    episode = np.repeat(sources.episode[:, :1], RANDOM_TARGETS, axis=1)
    target = pools.draw_targets(uniforms(seeds, RANDOM_TARGETS, _TARGET_DRAW), episode)
    return target, pools.joinable(episode, target)


def _nearest(pools: Pools, sources: States, gap_NQ: Ints, queries: NDArray[np.float32]) -> PairOptions:
    points = pools.search_points(queries, sources.episode)
    found = pools.nearest.find(points, sources.episode, overlap=pools.overlap)
    return PairOptions(sources, found, np.take_along_axis(gap_NQ, found.query, 1))


def _reorder(options: PairOptions, order: Ints) -> PairOptions:
    return PairOptions(options.source, options.found.reorder(order), np.take_along_axis(options.gap, order, 1))


def _gains(pools: Pools, options: PairOptions) -> NDArray[np.float64]:
    """Promised gain of every alternative [N, A]; where no gap is known, of the shortest bridge."""
    num_rows, count = options.gap.shape
    rows, column = np.arange(num_rows)[:, None], np.arange(count)
    gap = np.where(options.gap == NO_GAP, pools.gap_min, options.gap)
    return pools.gain(options.sources(rows, column), pools.targets.at(options.found.target), gap)


def _pick(pools: Pools, options: PairOptions, column: Ints) -> Selection:
    rows = np.arange(len(column))
    target = pools.targets.at(options.found.target[rows, column])
    return Selection(options.sources(rows, column), target, options.gap[rows, column])


def _leftovers(pools: Pools, options: PairOptions, seeds: Ints, used: Ints) -> Selection:
    """Rows without an option that promises a gain: any option, or else a random target from their first source."""
    target, joinable = _random_targets(pools, options.source, seeds)
    found = options.found
    extended = PairOptions(
        options.source,
        Alternatives(
            np.concatenate([found.query, np.zeros_like(target)], 1),
            np.concatenate([found.target, target], 1),
            np.concatenate([found.distance, np.where(joinable, 0.0, np.inf)], 1),
        ),
        np.concatenate([options.gap, np.full_like(target, NO_GAP)], 1),
    )
    usable = np.isfinite(extended.found.distance)
    column = limit_reuse(extended.found.target, usable, pools.config.max_target_reuse, used)
    # Fewer targets than the limit has room for: the limit gives way.
    column = np.where(column < 0, found.target.shape[1] + joinable.argmax(1), column)
    return _pick(pools, extended, column)
