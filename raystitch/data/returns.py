"""Returns over flat columns, and whether rewards are sparse.

Legend: N transitions, E episodes.
"""

from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from raystitch.data.episodes import EpisodeDataset, Floats, Ints

GOAL_SHARE = 0.99
"""Least share of the terminated episodes that end with the largest reward there is, for termination to be a goal."""
USUAL_SHARE = 0.9
"""Least share of the transitions that give the same reward, for rewards to be sparse."""
TOGETHER = 16
"""Least number of episodes whose returns are worked out side by side; fewer are done one after the other."""


def returns_to_go(rewards: Floats, offsets: Ints) -> Floats:
    """Undiscounted sum of the rewards from each transition to its episode's end, float32 [N]."""
    # One sum over the whole column from the back; the part past an episode's end is subtracted.
    from_here = np.append(np.cumsum(rewards[::-1], dtype=np.float64)[::-1], 0.0)
    after_episode = np.repeat(from_here[offsets[1:]], np.diff(offsets))
    return (from_here[:-1] - after_episode).astype(np.float32)


def discounted_returns(
    rewards: Floats, offsets: Ints, gamma: float, bootstrap: NDArray[np.floating] | None = None
) -> Floats:
    """R_t = r_t + gamma * R_{t+1}, float32 [N].

    Args:
        rewards: float32 [N].
        offsets: int64 [E + 1].
        gamma: in (0, 1].
        bootstrap: [E], value of the final observation: the fitted value at time-outs, 0 at terminals. None is all 0.
    """
    values = np.zeros(len(offsets) - 1) if bootstrap is None else np.asarray(bootstrap, np.float64)
    if len(values) != len(offsets) - 1:
        raise ValueError(
            f"bootstrap must have one value per episode, got {len(values)} for {len(offsets) - 1} episodes"
        )
    # The longest episodes first, all of them backwards at once, until few are left.
    length_E = np.diff(offsets)
    order_E = np.argsort(-length_E, kind="stable")
    length_E, last_E, after_E = length_E[order_E], offsets[1:][order_E] - 1, values[order_E]
    steps = np.arange(1, length_E.max(initial=0) + 1)
    going = np.searchsorted(-length_E, -steps, side="right")  # episodes that have so many steps
    together = int(np.searchsorted(-going, -TOGETHER, side="right"))
    wide = rewards.astype(np.float64)
    result = np.empty(len(rewards), np.float32)
    for back, count in enumerate(going[:together].tolist()):
        at = last_E[:count] - back
        after_E = wide[at] + gamma * after_E[:count]
        result[at] = after_E
    for last, length, after in zip(last_E.tolist(), length_E.tolist(), after_E.tolist(), strict=False):
        begin, end = last + 1 - length, last + 1 - together
        if begin < end:
            backwards = accumulate(wide[begin:end][::-1].tolist(), lambda R, r: r + gamma * R, initial=after)
            result[begin:end] = list(backwards)[:0:-1]
    return result


def discounted_before(rewards: Floats, gamma: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Discounted reward that a trajectory of T rewards has collected before each of its T + 1 states, and the discount
    there; float64 [T + 1] each."""
    discounts = gamma ** np.arange(len(rewards) + 1, dtype=np.float64)
    return np.concatenate([[0.0], np.cumsum(rewards * discounts[:-1])]), discounts


def is_goal_task(dataset: EpisodeDataset) -> bool:
    """Return True if to terminate is the aim: terminated episodes end with the largest reward, which is rare."""
    ended = np.flatnonzero(dataset.terminated & (dataset.lengths > 0))
    if not len(ended):
        return False
    best = dataset.rewards.max()
    last = dataset.rewards[dataset.offsets[ended + 1] - 1]
    return bool((last == best).mean() >= GOAL_SHARE and (dataset.rewards == best).mean() < 0.5)


def usual_reward(dataset: EpisodeDataset) -> float:
    """Return the reward that most steps have.

    Raises:
        ValueError: for a dataset without a step.
    """
    reward, count = np.unique(dataset.rewards, return_counts=True)
    return float(reward[count.argmax()])


def has_sparse_rewards(dataset: EpisodeDataset) -> bool:
    """Return True if few steps are worth reaching: episodes terminate at a goal, nearly all rewards are the same and
    the others better, or every step costs the same until episodes terminate."""
    if is_goal_task(dataset):
        return True
    reward, count = np.unique(dataset.rewards, return_counts=True)
    if not len(reward):
        return False
    usual = reward[count.argmax()]
    if len(reward) == 1:
        return bool(usual < 0 and dataset.terminated.any())
    return bool(count.max() >= USUAL_SHARE * count.sum() and reward[-1] > usual)
