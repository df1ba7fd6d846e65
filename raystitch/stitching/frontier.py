"""The states that a round prefers, where states are split by value: sources where value has just arrived, and, to the
curious, targets far from all that earlier rounds have entered.

Curiosity is after SCoTS, which adds such a term with weight 2 to the progress of a segment. Here it is added to the
gain, so it changes which pairs are tried and nothing that the data say about rewards.
"""

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from raystitch.data.episodes import Floats, Ints
from raystitch.data.neighbours import FAR, nearest_distances, reference_rows, spaced_rows
from raystitch.stitching.values import StateValues

if TYPE_CHECKING:
    from raystitch.stitching.pools import Pools

FRONTIER_STATES, FRONTIER_NEIGHBOURS = 4096, 64
"""States whose value has just arrived, and neighbours of each, among which episodes are looked for that may follow."""
UNIFORM_SHARE, FRONTIER_SHARE = 0.5, 0.3
"""Shares of the sources that are drawn from all episodes and from those beside the frontier; the rest lies on the way
from the states in which the task starts."""
NEIGHBOURS = 10
"""Entered states whose mean distance is the novelty of a state."""


def weighted_sources(pools: "Pools", state_values: StateValues) -> Ints:
    """Source episodes, those beside the frontier or on the way from the task's start several times: each of the three
    kinds makes up its share of the draws, as far as there are any. int64, ascending."""
    everywhere = pools.source_episodes
    starts = np.intersect1d(state_values.on_the_way, everywhere)
    parts = [everywhere]
    for some, share in (
        (_beside_frontier(pools, state_values), FRONTIER_SHARE),
        (starts, 1 - UNIFORM_SHARE - FRONTIER_SHARE),
    ):
        if len(some):
            parts.append(np.repeat(some, max(1, round(share / UNIFORM_SHARE * len(everywhere) / len(some)))))
    return np.sort(np.concatenate(parts))


def _beside_frontier(pools: "Pools", state_values: StateValues) -> Ints:
    """Episodes that come near a state whose value has just arrived, and are worth less there themselves, int64."""
    target_row = pools.rows(pools.targets)
    arrived = np.flatnonzero(state_values.is_new[target_row])
    if not len(arrived):
        return arrived
    arrived = arrived[np.linspace(0, len(arrived) - 1, min(len(arrived), FRONTIER_STATES)).astype(np.int64)]
    at = pools.targets.at(arrived)
    point = pools.search_points(pools.encode(pools.observations(at)), at.episode)
    near, distance = pools.nearest.query(point[:, None], at.episode[:, None], FRONTIER_NEIGHBOURS)
    near, known = near[:, 0], np.isfinite(distance[:, 0])
    worth = state_values.value[target_row]
    follows = known & (worth[near] < worth[arrived][:, None])
    return np.intersect1d(pools.targets.episode[near[follows]], pools.source_episodes)


class EnteredStates:
    """The states that accepted bridges of earlier rounds have entered, or some of them drawn once for all.

    Args:
        pools: of the round that selects now.
    """

    def __init__(self, pools: "Pools", state_values: StateValues) -> None:
        self._pools = pools
        links = state_values.links
        rows = reference_rows(np.unique(state_values.rows(links.target_episode, links.target_step)), "entered")
        self._reference: Floats = pools.encode(state_values.dataset.observations[rows])

    def novelty(self, target: Ints) -> NDArray[np.float64]:
        """Return the novelty of targets, float64 of their shape, in 0 .. 1: 1 from the distance on that 99 % of all
        targets stay below. Before anything was entered it is 0.

        Args:
            target: indices into the pools' ``targets``, any shape.
        """
        if not len(self._reference):
            return np.zeros(target.shape)
        each, place = np.unique(target, return_inverse=True)
        return np.minimum(self._distance(each) / self._unit, 1)[place].reshape(target.shape)

    def _distance(self, target: Ints) -> NDArray[np.float64]:
        states = self._pools.encode(self._pools.observations(self._pools.targets.at(target)))
        return nearest_distances(states, self._reference, NEIGHBOURS).mean(1)

    @cached_property
    def _unit(self) -> float:
        distance = self._distance(spaced_rows(len(self._pools.targets.episode)))
        return max(float(np.quantile(distance, FAR)), 1e-9)
