"""The selectors of episodes: functions of a dataset and a value.

Legend: E episodes, N transitions, N + E observation rows, D numbers per state.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from raystitch.data.checks import absurd_rows
from raystitch.data.episodes import Bools, EpisodeDataset, Floats, Ints
from raystitch.data.normalise import Normalizer
from raystitch.data.selection import (
    episode_list,
    no_value,
    plain_number,
    read_count,
    read_episodes,
    read_range,
    read_share,
)
from raystitch.errors import UserError

Embed = Callable[[EpisodeDataset], Floats]
"""Observations as points [N + E, D] between which distances mean something."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Kept:
    """The answer of a selector.

    Attributes:
        episodes: int64, ascending, rows of the dataset that was asked about.
        reasons: reason -> bool [E], why the others are left out; each by the first that is true. Empty for one
            reason, the selector itself.
        notes: what a user should know, one line each.
    """

    episodes: Ints
    reasons: dict[str, Bools] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class ChooseEpisodes(Protocol):
    """Chooses the episodes of a dataset to keep; a function of its arguments alone."""

    def __call__(self, dataset: EpisodeDataset, value: Any, embed: Embed) -> Kept:
        """Return the episodes to keep; ``embed`` is asked by selectors that compare states."""
        ...


@dataclass(frozen=True)
class EpisodeSelector:
    """A line of ``EPISODE_SELECTORS``.

    Attributes:
        choose: the selector.
        read: (name, value as written) -> the value in its one form; raises UserError.
        mends: True if data with NaN may come in and none goes out.
    """

    choose: ChooseEpisodes
    read: Callable[[str, Any], Any] = no_value
    mends: bool = False


def standardised(dataset: EpisodeDataset) -> Floats:
    """Return the observations in standard deviations, constant dimensions left out, float32 [N + E, D]."""
    normalizer = Normalizer.fit(dataset.observations)
    return normalizer.encode(dataset.observations)[:, normalizer.active]


def all_episodes(dataset: EpisodeDataset, value: Any, embed: Embed) -> Kept:
    """Keep every episode."""
    return Kept(episodes=np.arange(dataset.num_episodes))


def best(dataset: EpisodeDataset, value: Any, embed: Embed) -> Kept:
    """Keep the share ``value`` with the highest returns; of equal returns the first by index."""
    return _by_return(dataset, -_returns(dataset, "best"), value, "best", "lower return")


def worst(dataset: EpisodeDataset, value: Any, embed: Embed) -> Kept:
    """Keep the share ``value`` with the lowest returns; of equal returns the first by index."""
    return _by_return(dataset, _returns(dataset, "worst"), value, "worst", "higher return")


def _by_return(dataset: EpisodeDataset, order: Any, share: float, name: str, reason: str) -> Kept:
    count = int(share * dataset.num_episodes + 0.5)
    step = f"select={name}={plain_number(share)}"
    if not count:
        raise UserError(
            f"{dataset.name}: {step} is less than one of {dataset.num_episodes} episodes; use a larger share"
        )
    episodes = np.sort(np.argsort(order, kind="stable")[:count]).astype(np.int64)
    notes: tuple[str, ...] = ()
    if dataset.num_episodes > 1 and np.ptp(order) == 0:
        notes = (f"{step} is arbitrary: every episode returns {dataset.returns[0]:g}, so the first by index are kept",)
    return Kept(episodes=episodes, reasons={reason: np.ones(dataset.num_episodes, np.bool_)}, notes=notes)


def _returns(dataset: EpisodeDataset, name: str) -> Any:
    bad = np.flatnonzero(~np.isfinite(dataset.returns))
    if len(bad):
        number = dataset.episode_numbers[bad[0]]
        raise UserError(
            f"{dataset.name}: select={name}: episode {number} has no finite return; put clean before {name}"
        )
    return dataset.returns


def in_range(dataset: EpisodeDataset, value: Any, embed: Embed) -> Kept:
    """Keep the episodes whose return lies in ``value``, both ends included."""
    low, high = value
    returns = _returns(dataset, "returns")
    below, above = returns < low, returns > high
    reasons = {f"return below {low:g}": below, f"return above {high:g}": above}
    return Kept(episodes=np.flatnonzero(~below & ~above), reasons=reasons)


def listed(dataset: EpisodeDataset, value: Any, embed: Embed) -> Kept:
    """Keep the episodes of these numbers, which are those in the whole dataset."""
    numbers = np.array(episode_list(value), np.int64)
    rows = dataset.rows_of(numbers)
    if (rows < 0).any():
        missing, of = numbers[np.argmax(rows < 0)], dataset.episode_numbers
        there = f"it has episodes 0 to {of[-1]}" if dataset.selected_from is None else "the steps before leave it out"
        raise UserError(f"{dataset.name}: select=episodes names episode {missing}, but {there}")
    return Kept(episodes=np.sort(rows), reasons={"not listed": np.ones(dataset.num_episodes, np.bool_)})


def clean(dataset: EpisodeDataset, value: Any, embed: Embed) -> Kept:
    """Leave out episodes with a value that is not finite or absurd, and all but the first of equal episodes."""
    bad, absurd = np.zeros(dataset.num_episodes, np.bool_), np.zeros(dataset.num_episodes, np.bool_)
    episode_of_row = np.repeat(np.arange(dataset.num_episodes), dataset.lengths + 1)
    for name, episode_of in (
        ("observations", episode_of_row),
        ("actions", dataset.episode_of),
        ("rewards", dataset.episode_of),
    ):
        values = getattr(dataset, name)
        bad[episode_of[~np.isfinite(values).reshape(len(values), -1).all(1)]] = True
        absurd[episode_of[absurd_rows(name, values)]] = True
    seen: set[bytes] = set()
    again = np.zeros(dataset.num_episodes, np.bool_)
    for index, episode in enumerate(dataset):
        columns = (episode.observations, episode.actions, episode.rewards)
        content = _digest(*columns)
        again[index] = content in seen
        seen.add(content)
    reasons = {"a value is not finite": bad, "an absurd value": absurd, "equal to an earlier episode": again}
    return Kept(episodes=np.flatnonzero(~bad & ~absurd & ~again), reasons=reasons)


def _digest(*columns: Floats) -> bytes:
    """Return a digest of arrays and their shapes."""
    digest = hashlib.sha256()
    for column in columns:
        digest.update(str(column.shape).encode())
        digest.update(np.ascontiguousarray(column).data)
    return digest.digest()


def diverse(dataset: EpisodeDataset, value: Any, embed: Embed) -> Kept:
    """Keep ``value`` episodes by greedy k-centre (Gonzalez 1985): each next one is the farthest from those kept.

    An episode is the mean, the first and the last of its states as points of ``embed``. The first episode kept is the
    nearest to the mean of all.
    """
    _returns(dataset, "diverse")  # a state that is not finite is near nothing
    if value >= dataset.num_episodes:
        note = f"select=diverse={value} keeps all: there are {dataset.num_episodes} episodes"
        return Kept(episodes=np.arange(dataset.num_episodes), notes=(note,))
    points = episode_points(dataset, embed)
    nearest = ((points - points.mean(0)) ** 2).sum(1)
    kept = [int(np.argmin(nearest))]
    distance = ((points - points[kept[0]]) ** 2).sum(1)
    while len(kept) < value:
        kept.append(int(np.argmax(distance)))
        distance = np.minimum(distance, ((points - points[kept[-1]]) ** 2).sum(1))
        distance[kept] = -1.0
    reason = f"within {float(np.sqrt(max(distance.max(), 0.0))):.3g} of a kept episode"
    return Kept(episodes=np.sort(np.array(kept, np.int64)), reasons={reason: np.ones(dataset.num_episodes, np.bool_)})


def episode_points(dataset: EpisodeDataset, embed: Embed) -> Any:
    """Return mean, first and last state of each episode side by side, float64 [E, 3 D]."""
    states = embed(dataset).astype(np.float64)
    starts, ends = dataset.obs_offsets[:-1], dataset.obs_offsets[1:] - 1
    mean = np.add.reduceat(states, starts, axis=0) / (dataset.lengths + 1)[:, None]
    return np.concatenate([mean, states[starts], states[ends]], axis=1)


BUILT_IN = {
    "all": EpisodeSelector(all_episodes),
    "best": EpisodeSelector(best, read_share),
    "worst": EpisodeSelector(worst, read_share),
    "returns": EpisodeSelector(in_range, read_range),
    "episodes": EpisodeSelector(listed, read_episodes),
    "clean": EpisodeSelector(clean, mends=True),
    "diverse": EpisodeSelector(diverse, read_count),
}
