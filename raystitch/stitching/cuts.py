"""The best places to leave one trajectory and enter another, by the temporal-distance embedding.

All pairs of their states are compared at once, which costs a product of two small matrices.

Legend: L states that may be left, M states that may be entered, Z embedding dimensions, N rows.
"""

import numpy as np
from numpy.typing import NDArray

from raystitch.data.episodes import Floats, Ints
from raystitch.data.returns import discounted_before
from raystitch.stitching.pools import Pools, States
from raystitch.stitching.selectors import TIME_SLACK, Selection

Scores = NDArray[np.floating]
MAX_STATES = 1024
"""States compared per trajectory; a longer one is thinned out evenly."""


def best_cuts(pools: Pools, count: int, gap: int | None = None) -> Selection:
    """Choose ``count`` cuts between the one source and the one target of ``pools``, the most promising first.

    A state may be entered from another if the embedding puts it within the gaps that the models know (or at ``gap``).
    From each state that may be left, the cut enters where the whole stitched trajectory has the largest discounted
    return from its start, if every step of the bridge gives the mean reward of the two states it joins. Cuts without a
    gain come after all others; cuts that are too far come last, nearest first. If there are fewer states to leave than
    rows, rows share them, each with its own noise.
    """
    (source_episode,), target_episode = pools.source_episodes, int(pools.targets.episode[0])
    leave = _spread(np.arange(int(pools.first_leave[source_episode]), int(pools.last_leave[source_episode]) + 1))
    enter = _spread(pools.targets.step)
    source_L = States(np.full_like(leave, source_episode), leave)
    target_M = States(np.full_like(enter, target_episode), enter)
    gap_LM, too_far_LM = _gaps(pools, source_L, target_M, gap)
    gain_LM, total_LM = _returns(pools, source_L, target_M, gap_LM)

    # Three classes, best first, and a score within each.
    kind_LM = np.where(too_far_LM > 0, 2, np.where(gain_LM > 0, 0, 1))
    score_LM = np.where(too_far_LM > 0, -too_far_LM, total_LM)
    best_L = np.where(kind_LM == kind_LM.min(1, keepdims=True), score_LM, -np.inf).argmax(1)
    at = np.arange(len(leave))
    order_L = np.lexsort((-score_LM[at, best_L], kind_LM[at, best_L]))
    chosen_N = order_L[np.arange(count) % len(order_L)]
    return Selection(source_L.at(chosen_N), target_M.at(best_L[chosen_N]), gap_LM[chosen_N, best_L[chosen_N]])


def _gaps(pools: Pools, source_L: States, target_M: States, gap: int | None) -> tuple[Ints, Floats]:
    """The gap of each cut [L, M] (``gap`` where given), and how many steps it is too far apart for it (0: not)."""
    steps_LM = _distances(pools.phi[pools.rows(source_L)], pools.phi[pools.rows(target_M)])
    gap_LM = np.rint(np.clip(steps_LM - 1, pools.gap_min, pools.gap_max)).astype(np.int64)
    if gap is None:
        return gap_LM, np.maximum(steps_LM - (pools.gap_max + 1) - TIME_SLACK, 0)
    return np.full_like(gap_LM, gap), np.maximum(np.abs(steps_LM - (gap + 1)) - TIME_SLACK, 0)


def _returns(pools: Pools, source_L: States, target_M: States, gap_LM: Ints) -> tuple[Scores, Scores]:
    """Promised gain of each cut [L, M], and the discounted return of its whole stitched trajectory [L, M]."""
    gamma, longest = pools.bundle.gamma, pools.gap_max + 1
    return_L, return_M = pools.returns[pools.rows(source_L)], pools.returns[pools.rows(target_M)]
    # Powers of gamma are looked up: there are few gaps and a million entries.
    powers = np.float32(gamma) ** np.arange(longest + 1, dtype=np.float32)
    annuity = np.concatenate([[0], np.cumsum(powers[:-1])]).astype(np.float32)
    reward_LM = (pools.rewards_of(source_L)[:, None] + pools.rewards_of(target_M)[None, :]) / 2
    stitched_LM = annuity[gap_LM + 1] * reward_LM + powers[gap_LM + 1] * return_M[None, :]
    collected, discounts = discounted_before(pools.dataset.episode(int(source_L.episode[0])).rewards, gamma)
    until_L, discount_L = (column[source_L.step].astype(np.float32) for column in (collected, discounts))
    return stitched_LM - return_L[:, None], until_L[:, None] + discount_L[:, None] * stitched_LM


def _spread(steps: Ints) -> Ints:
    """At most ``MAX_STATES`` of the steps, evenly spread, including the first and the last."""
    if len(steps) <= MAX_STATES:
        return steps
    return steps[np.linspace(0, len(steps) - 1, MAX_STATES).round().astype(np.int64)]


def _distances(phi_LZ: Floats, phi_MZ: Floats) -> Floats:
    """L2 distances of all pairs, float32 [L, M]; infinite where they are not finite numbers."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares = (phi_LZ**2).sum(1)[:, None] + (phi_MZ**2).sum(1)[None, :] - 2 * phi_LZ @ phi_MZ.T
    return np.sqrt(np.maximum(np.nan_to_num(squares, nan=np.inf), 0))
