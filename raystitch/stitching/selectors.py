"""Ways to choose which state to leave and which to enter: one function per mode, one registry line.

Legend: N rows, C steps of the source episode tried per row, Q queries of a row, W imagined indices, D active
dimensions, A alternatives of a row (best first).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from raystitch.data.episodes import Ints
from raystitch.stitching.bridge import RETRIEVAL_STREAM, imagine
from raystitch.stitching.config import StitchConfig
from raystitch.stitching.draws import child_seeds, integers, uniforms
from raystitch.stitching.pools import Pools, States
from raystitch.stitching.retrieval import Alternatives, limit_reuse

RANDOM_TARGETS = 16
NO_GAP = 0
JOINED = -1
_EPISODE_DRAW, _STEP_DRAW, _TARGET_DRAW, _GAP_DRAW, _TRY_SEEDS = 1, 2, 3, 4, 5


@dataclass(frozen=True, eq=False)
class Selection:
    """The states to leave and to enter, and the gap the selection found (0: none), each [N]."""

    source: States
    target: States
    gap: Ints


class PairSelector(Protocol):
    """Seeds int64 [N] -> N pairs. A row depends on its seed alone, except where ``max_target_reuse`` binds."""

    def __call__(self, pools: Pools, config: StitchConfig, seeds: Ints) -> Selection: ...


def random_pairs(pools: Pools, config: StitchConfig, seeds: Ints) -> Selection:
    """The paper's: a random low-return episode and a random high-return one; the value check is the only choice."""
    sources = _draw_sources(pools, seeds, 1)
    source_episode = np.repeat(sources.episode, RANDOM_TARGETS, axis=1)
    target = pools.draw_targets(uniforms(seeds, RANDOM_TARGETS, _TARGET_DRAW), source_episode)
    order = np.broadcast_to(np.arange(RANDOM_TARGETS, dtype=np.float64), target.shape)
    found = Alternatives(np.zeros_like(target), target, order)
    return _choose(pools, sources, np.full_like(sources.step, NO_GAP), found, seeds)


def successor_pairs(pools: Pools, config: StitchConfig, seeds: Ints) -> Selection:
    """Targets nearest to a state of the source's own future, a random gap later."""
    sources = _draw_sources(pools, seeds, config.pairs.num_tries)
    longest = pools.last_future[sources.episode] - sources.step - 1
    gap_range = np.minimum(longest, pools.bundle.config.diffusion.gap_max) - pools.gap_min + 1
    gap = pools.gap_min + integers(uniforms(seeds, config.pairs.num_tries, _GAP_DRAW), gap_range)
    queries = pools.encode(pools.observations(States(sources.episode, sources.step + gap + 1)))
    found = pools.nearest.find(queries, sources.episode, overlap=pools.overlap)
    return _choose(pools, sources, gap, found, seeds)


def imagined_pairs(pools: Pools, config: StitchConfig, seeds: Ints) -> Selection:
    """Targets nearest to any state of an imagined future, wherever the source itself went afterwards."""
    tries = config.pairs.num_tries
    sources = _draw_sources(pools, seeds, tries)
    prefix, prefix_length = pools.prefixes(States(sources.episode.ravel(), sources.step.ravel()))
    sampler = replace(config.sampler, num_steps=config.pairs.num_imagine_steps)
    try_seeds = child_seeds(seeds, tries, _TRY_SEEDS).ravel()
    future = imagine(pools.bundle, prefix, prefix_length, try_seeds, sampler, stream=RETRIEVAL_STREAM)
    num_indices = future.shape[1]
    queries = future.reshape(len(seeds), tries * num_indices, -1)
    source = States(*(np.repeat(column, num_indices, axis=1) for column in (sources.episode, sources.step)))
    gap = np.broadcast_to(np.tile(pools.gap_min + np.arange(num_indices), tries), source.step.shape)
    found = pools.nearest.find(queries, source.episode, overlap=pools.overlap)
    return _choose(pools, source, gap, found, seeds)


def nearest(pools: Pools, config: StitchConfig, seeds: Ints) -> Selection:
    """Targets nearest to the source state itself, for joining without a bridge: gap -1."""
    sources = _draw_sources(pools, seeds, config.pairs.num_tries)
    queries = pools.encode(pools.observations(sources))
    found = pools.nearest.find(queries, sources.episode, overlap=pools.overlap)
    selection = _choose(pools, sources, np.full_like(sources.step, JOINED), found, seeds)
    return replace(selection, gap=np.full(len(seeds), JOINED))


SELECTORS: Mapping[str, PairSelector] = {
    "random": random_pairs,
    "imagine": imagined_pairs,
    "successor": successor_pairs,
}


def _draw_sources(pools: Pools, seeds: Ints, tries: int) -> States:
    return pools.draw_sources(uniforms(seeds, 1, _EPISODE_DRAW), uniforms(seeds, tries, _STEP_DRAW))


def _choose(pools: Pools, sources_NQ: States, gap_NQ: Ints, found: Alternatives, seeds: Ints) -> Selection:
    """The best alternative of each row that promises a gain and is not used up; a random target where none is left."""
    if pools.config.value_check:
        rows = np.arange(len(seeds))[:, None]
        sources = States(sources_NQ.episode[rows, found.query], sources_NQ.step[rows, found.query])
        gap = np.where(gap_NQ == NO_GAP, pools.gap_min, gap_NQ)[rows, found.query]
        gains = pools.promises_gain(sources, pools.targets.at(found.target), gap)
        found = found.reorder(np.argsort(~gains, axis=1, kind="stable"))
    # Rows that retrieval leaves empty-handed enter a random target from their first source state.
    fallback = pools.draw_targets(
        uniforms(seeds, RANDOM_TARGETS, _TARGET_DRAW), np.repeat(sources_NQ.episode[:, :1], RANDOM_TARGETS, axis=1)
    )
    targets = np.concatenate([found.target, fallback], 1)
    enterable = np.ones(fallback.shape, np.bool_)
    if pools.chain is not None:
        enterable = pools.joinable(sources_NQ.episode[:, :1], fallback)
    usable = np.concatenate([np.isfinite(found.distance), enterable], 1)
    column = limit_reuse(targets, usable, pools.config.max_target_reuse)
    column = np.where(column < 0, targets.shape[1] - 1, column)  # fewer targets than the limit has room for
    rows = np.arange(len(seeds))
    retrieved = column < found.target.shape[1]
    query = np.where(retrieved, found.query[rows, np.where(retrieved, column, 0)], 0)
    source = States(sources_NQ.episode[rows, query], sources_NQ.step[rows, query])
    gap = np.where(retrieved, gap_NQ[rows, query], NO_GAP)
    return Selection(source, pools.targets.at(targets[rows, column]), gap)
