"""The third hook: returns-to-go of episodes that are runs of rows in a pool.

A pool holds the dataset's rows and then the bridges'. An episode is runs of them, one after the other: for a stitched
episode a prefix, a bridge and a suffix, more where bridges are chained, none copied. So the same row may have another
return-to-go in every episode that it occurs in.

Legend: E episodes, R runs, N pool rows, P observation rows, O observation size, M values.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from raystitch.data.episodes import Floats, Ints
from raystitch.errors import check_choice
from raystitch.shaping.config import ReturnConfig

BLOCK = 1 << 15
"""Episodes that are worked on at a time."""

VALUED = frozenset({"qdt"})
"""Rules that read ``PooledEpisodes.values``, which are fitted for them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PooledEpisodes:
    """E episodes as runs of rows of a pool, which may be larger than memory.

    Attributes:
        start, length: integers [E, R], first row and number of rows of each run; unused runs have length 0.
        rewards: float32 [N], shaped. dones: float32 [N], 1 at terminations.
        rest: float32 [N], sum of the rewards from each row to the end of its dataset episode or bridge.
        observations: float32 [P, O], standardised. obs_row: int64 [N], row of s_t; s_{t+1} is the next one.
        values: float32 [P], V of every observation in raw units; None for rules that are not among ``VALUED``.
    """

    start: NDArray[np.signedinteger]
    length: NDArray[np.signedinteger]
    rewards: Floats
    dones: Floats
    rest: Floats
    observations: Floats
    obs_row: Ints
    values: Floats | None = None

    def __len__(self) -> int:
        return len(self.start)


@dataclass(frozen=True, kw_only=True, eq=False)
class EpisodeReturns:
    """Returns-to-go of E episodes in raw units: ``values[start[e, r] + i] + offset[e, r]`` at step i of run r of e.

    Attributes:
        values: float32 [M].
        offset: float32 [E, R].
        start: integers [E, R]; None where the values are those of pool rows, M = N: nothing is copied per episode.
    """

    values: Floats
    offset: Floats
    start: NDArray[np.signedinteger] | None = None


def step_returns(values: Floats, episodes: PooledEpisodes) -> EpisodeReturns:
    """Return the returns-to-go of a rule that has a value for every step of every episode.

    Args:
        values: float32 [M], those of all steps of the first episode, then of the second, as ``pool_rows`` lists them.
    """
    length = episodes.length.astype(np.int64)
    ends = np.cumsum(length.reshape(-1)).reshape(length.shape)
    assert len(values) == int(length.sum())
    return EpisodeReturns(values=values, offset=np.zeros(length.shape, np.float32), start=ends - length)


def pool_rows(episodes: PooledEpisodes) -> Ints:
    """Return the pool row of every step, all of the first episode, of the second, ..., int64 [M]."""
    start, length = episodes.start.reshape(-1), episodes.length.reshape(-1).astype(np.int64)
    before = np.cumsum(length) - length
    return np.arange(int(length.sum())) + np.repeat(start - before, length)


class ReturnFunction(Protocol):
    """A rule for returns-to-go, one line of ``RETURNS``."""

    def __call__(self, config: ReturnConfig, episodes: PooledEpisodes) -> EpisodeReturns:
        """Return the returns-to-go.

        A rule that adds up over runs keeps ``rest`` and gives offsets, as ``plain`` does; any other gives a value for
        every step of every episode, see ``step_returns``. An episode's must not depend on the others.
        """
        ...


def plain(config: ReturnConfig, episodes: PooledEpisodes) -> EpisodeReturns:
    """Return undiscounted sums of the rewards up to the episode's end: the identity."""
    return EpisodeReturns(values=episodes.rest, offset=run_sums(episodes)[0])


def qdt(config: ReturnConfig, episodes: PooledEpisodes) -> EpisodeReturns:
    """Return R_t = r_t + gamma max(R_{t+1}, V(s_{t+1})), backwards (Q-learning Decision Transformer, Yamagata et al.
    2023, arXiv 2209.03993, Algorithm 1, here with one discount for V and for R).

    At the last step there is no R_{t+1}: after a termination R is the reward, after a time-out the reward and
    gamma V(s_{t+1}). At the seam of joined episodes s_{t+1} is the target's state.
    """
    blocks = [
        _relabelled(
            config.gamma,
            replace(episodes, start=episodes.start[at : at + BLOCK], length=episodes.length[at : at + BLOCK]),
        )
        for at in range(0, len(episodes), BLOCK)
    ]
    return step_returns(np.concatenate([*blocks, np.zeros(0, np.float32)]), episodes)


def _relabelled(gamma: float, episodes: PooledEpisodes) -> Floats:
    """Return the returns-to-go of ``qdt`` of every step, as ``pool_rows`` lists them, float32."""
    assert episodes.values is not None, "this rule needs the values of the observations"
    rows, length = pool_rows(episodes), episodes.length.sum(1, dtype=np.int64)
    end = np.cumsum(length)[length > 0]
    seen, last = episodes.obs_row[rows], end - 1
    ahead = np.zeros(len(rows), np.float32)  # V(s_{t+1})
    ahead[:-1] = episodes.values[seen[1:]]
    ahead[last] = np.where(episodes.dones[rows[last]] > 0, 0, episodes.values[seen[last] + 1])
    found = episodes.rewards[rows]  # a copy, which becomes R from the back
    end = end[np.argsort(-length[length > 0], kind="stable")]
    going = np.cumsum(np.bincount(length[length > 0])[::-1])[::-1][1:]  # episodes of more than 0, 1, .. steps
    rest = np.full(len(end), -np.inf)  # R_{t+1}
    for before, count in enumerate(going):
        at = end[:count] - 1 - before
        rest = found[at] + gamma * np.maximum(rest[:count], ahead[at])
        found[at] = rest
    return found


RETURNS: dict[str, ReturnFunction] = {"plain": plain, "qdt": qdt}


def returns_to_go_of(config: ReturnConfig, episodes: PooledEpisodes) -> EpisodeReturns:
    """Return the returns-to-go of ``config``.

    Raises:
        UserError: for a name that no rule has.
    """
    check_choice("returns", config.name, RETURNS)
    return RETURNS[config.name](config, episodes)


def concatenate(first: EpisodeReturns, second: EpisodeReturns) -> EpisodeReturns:
    """Return the returns-to-go of two sets of episodes of one pool, both of R runs and by the same rule, as one."""
    offset = np.concatenate([first.offset, second.offset])
    if first.start is None or second.start is None:
        assert first.start is second.start, "a rule gives pool rows always or never"
        return EpisodeReturns(values=first.values, offset=offset)
    start = np.concatenate([first.start, second.start + len(first.values)])
    return EpisodeReturns(values=np.concatenate([first.values, second.values]), offset=offset, start=start)


def run_sums(episodes: PooledEpisodes) -> tuple[Floats, NDArray[np.float64]]:
    """Return what to add to ``rest`` in each run for undiscounted returns-to-go, and the return of each episode.

    Returns:
        float32 [E, R] and float64 [E].
    """
    offset, whole = np.zeros(episodes.length.shape, np.float32), np.zeros(len(episodes))
    rest, rewards = episodes.rest, episodes.rewards
    for first in range(0, len(episodes), BLOCK):
        here = slice(first, first + BLOCK)
        length = episodes.length[here]
        used = length > 0
        begin = np.where(used, episodes.start[here], 0)
        last = np.where(used, episodes.start[here] + length - 1, 0)
        after = np.where(used, rest[last].astype(np.float64) - rewards[last], 0.0)
        run_return = np.where(used, rest[begin].astype(np.float64), 0.0) - after
        later = np.cumsum(run_return[:, ::-1], axis=1)[:, ::-1] - run_return
        offset[here], whole[here] = later - after, run_return.sum(1)
    return offset, whole
