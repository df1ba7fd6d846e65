"""Joins without a bridge, chained over rounds as bridges are: the strongest use of real fragments alone.

Legend: S observation rows, N joins.
"""

from collections.abc import Callable

import numpy as np

from raystitch.data.episodes import EpisodeDataset, Ints
from raystitch.models.bundle import Bundle
from raystitch.stitching.config import StitchConfig
from raystitch.stitching.links import Links
from raystitch.stitching.pairs import SourceIndex
from raystitch.stitching.values import StateValues

GIVE_UP = 6
"""Shards in a row without a join that gains anything, after which there are no more."""


def chained_joins(
    dataset: EpisodeDataset,
    bundle: Bundle,
    config: StitchConfig,
    known: StateValues,
    seeds_of: Callable[[int], Ints],
    *,
    count: int,
    per_round: int,
) -> Links:
    """Join nearest real states in rounds, by the same rules and in the same order as bridges are generated.

    Args:
        known: what states are worth by their records.
        seeds_of: shard -> seeds int64.
        count: joins in all; fewer where no more gain anything. per_round: joins after which value travels on.

    Returns:
        At most ``count`` joins; their ``next`` is the join that the entered trajectory takes next.
    """
    shard, idle, waiting = 0, 0, Links.none()
    nowhere = np.zeros(0, np.int64)
    index = SourceIndex(dataset, bundle, config, state_values=known)
    while len(known.links) + len(waiting) < count and idle < GIVE_UP:
        found = _gaining(index, known, seeds_of(shard))
        shard, idle = shard + 1, 0 if len(found) else idle + 1
        waiting = waiting.and_more(found).head(count - len(known.links))
        if len(waiting) >= per_round and not known.is_settled:
            known, waiting = known.after(waiting, nowhere, bundle.gamma), Links.none()
            index = index.with_values(known)
    return known.after(waiting, nowhere, bundle.gamma).links


def _gaining(index: SourceIndex, known: StateValues, seeds: Ints) -> Links:
    """Return the joins of a shard that gain something: a join is worth what the state entered is worth."""
    pairs = index.nearest(seeds)
    pairs = pairs.take(np.flatnonzero(index.worthwhile(pairs)))
    row = known.rows(pairs.target_episode, pairs.target_step)
    return Links(
        ids=np.zeros(len(pairs), np.str_),
        source_episode=pairs.source_episode,
        source_step=pairs.source_step,
        target_episode=pairs.target_episode,
        target_step=pairs.target_step,
        parent=known.bridge[row],
        next=known.bridge[row],
        reward=np.zeros(len(pairs)),
        discount=np.ones(len(pairs)),
        value=known.value[row],
    )
