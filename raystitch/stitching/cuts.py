"""The best places to leave one trajectory and enter another, by the temporal-distance embedding: all pairs of their
states are compared at once, which costs a product of two small matrices.

Legend: L states that may be left, M states that may be entered, N rows.
"""

import numpy as np

from raystitch.data.episodes import Floats, Ints
from raystitch.data.returns import discounted_before
from raystitch.stitching.pools import Pools, States
from raystitch.stitching.selectors import TIME_SLACK, Selection

MAX_STATES = 1024
"""States compared per trajectory; of a longer one so many, evenly spread."""


def best_cuts(pools: Pools, count: int, gap: int | None = None) -> Selection:
    """``count`` cuts between the one source and the one target of ``pools``, the most promising first.

    A state may be entered from another when the embedding puts it within the gaps that the models know (or at ``gap``).
    Of the states that may be entered from a state, the one is taken for which the whole stitched trajectory's
    discounted return from its start is largest, the bridge's steps giving what the two states it joins give. Cuts
    without a gain come after all others, and those that are too far apart last, the nearest first. When there are
    fewer states to leave than rows, rows share them, each with a noise of its own.
    """
    (source_episode,), target_episode = pools.source_episodes, int(pools.targets.episode[0])
    leave = _spread(np.arange(int(pools.first_leave[source_episode]), int(pools.last_leave[source_episode]) + 1))
    enter = _spread(pools.targets.step)
    sources = States(np.full_like(leave, source_episode), leave)
    targets = States(np.full_like(enter, target_episode), enter)
    source_rows, target_rows = pools.rows(sources), pools.rows(targets)
    steps_LM = _distances(pools.phi[source_rows], pools.phi[target_rows])

    diffusion, gamma = pools.bundle.config.diffusion, pools.bundle.gamma
    gap_LM = np.rint(np.clip(steps_LM - 1, diffusion.gap_min, diffusion.gap_max)).astype(np.int64)
    if gap is None:
        too_far = np.maximum(steps_LM - (diffusion.gap_max + 1) - TIME_SLACK, 0)
    else:
        gap_LM = np.full_like(gap_LM, gap)
        too_far = np.maximum(np.abs(steps_LM - (gap + 1)) - TIME_SLACK, 0)

    # Powers of gamma are looked up: there are few gaps and a million entries.
    powers = np.float32(gamma) ** np.arange(diffusion.gap_max + 2, dtype=np.float32)
    annuity = np.concatenate([[0], np.cumsum(powers[:-1])]).astype(np.float32)
    reward_LM = (pools.rewards_of(sources)[:, None] + pools.rewards_of(targets)[None, :]) / 2
    stitched_LM = annuity[gap_LM + 1] * reward_LM + powers[gap_LM + 1] * pools.returns[target_rows][None, :]
    gain_LM = stitched_LM - pools.returns[source_rows][:, None]
    collected, discounts = discounted_before(pools.dataset.episode(int(source_episode)).rewards, gamma)
    until_L, discount_L = (column[leave].astype(np.float32) for column in (collected, discounts))
    total_LM = until_L[:, None] + discount_L[:, None] * stitched_LM

    # Three classes, best first; within each its own score.
    kind_LM = np.where(too_far > 0, 2, np.where(gain_LM > 0, 0, 1))
    score_LM = np.where(too_far > 0, -too_far, total_LM)
    best = np.where(kind_LM == kind_LM.min(1, keepdims=True), score_LM, -np.inf).argmax(1)
    at = np.arange(len(leave))
    order = np.lexsort((-score_LM[at, best], kind_LM[at, best]))
    chosen = order[np.arange(count) % len(order)]
    return Selection(sources.at(chosen), targets.at(best[chosen]), gap_LM[chosen, best[chosen]])


def _spread(steps: Ints) -> Ints:
    """At most ``MAX_STATES`` of the steps, evenly spread, the first and the last among them."""
    if len(steps) <= MAX_STATES:
        return steps
    return steps[np.linspace(0, len(steps) - 1, MAX_STATES).round().astype(np.int64)]


def _distances(phi_LZ: Floats, phi_MZ: Floats) -> Floats:
    """L2 distances of all pairs, float32 [L, M]; infinite where they cannot be told."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares = (phi_LZ**2).sum(1)[:, None] + (phi_MZ**2).sum(1)[None, :] - 2 * phi_LZ @ phi_MZ.T
    return np.sqrt(np.maximum(np.nan_to_num(squares, nan=np.inf), 0))
