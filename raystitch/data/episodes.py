"""Trajectories in memory: flat columns plus offsets, every final observation kept.

Legend: E episodes, N transitions, O observation size, A action size.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raystitch.data.bounds import usable_bounds
from raystitch.data.checks import Problem, as_column
from raystitch.envs.spec import EnvSpec
from raystitch.errors import UserError

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Episode:
    """One trajectory as views: ``observations`` [T+1, O], ``actions`` [T, A], ``rewards`` [T]."""

    observations: Floats
    actions: Floats
    rewards: Floats
    terminated: bool
    truncated: bool

    @classmethod
    def recorded(
        cls, observations: Sequence[Any], actions: Sequence[Any], rewards: Sequence[Any], *, terminated: bool
    ) -> "Episode":
        """Return the episode of steps as they were recorded one by one; one that did not terminate was cut."""
        columns = (np.asarray(column, np.float32) for column in (observations, actions, rewards))
        return cls(*columns, terminated=terminated, truncated=not terminated)


@dataclass(frozen=True, kw_only=True, eq=False)
class SelectedFrom:
    """Where the episodes of a selection come from.

    Attributes:
        fingerprint: the whole dataset's.
        episode_numbers: int64 [E], the number that each episode has there.
        select: how ``DatasetRef.select`` writes the selection; None where nothing that it can write made it.
    """

    fingerprint: str
    episode_numbers: Ints
    select: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class EpisodeDataset:
    """A dataset of episodes.

    Attributes:
        name: the reference it was loaded from, for messages.
        observations: float32 [N + E, O]; episode e holds rows ``offsets[e] + e .. offsets[e + 1] + e`` inclusive.
        actions: float32 [N, A].
        rewards: float32 [N].
        terminated: bool [E], the environment ended the episode (no future after the final observation).
        truncated: bool [E], it was cut (time limit or end of recording): the future exists but is not recorded.
        offsets: int64 [E + 1], transitions before each episode.
        action_low, action_high: float32 [A], the bounds of the action space.
        env: how to make the environment again, None when unknown.
        final_observed: bool [E], False where a file lacks the observation after the last action; the row then
            repeats the last known observation and must not be used as a next state.
        found: what the reader found odd, and how it read on; ``inspect`` lists it among the problems.
        selected_from: None for a whole dataset.

    All in raw units, as recorded. ``load_dataset`` reads one, ``from_episodes`` puts one together.

    Raises:
        UserError: when a column does not have the shape, or the rows that ``offsets`` asks for.

    Examples:
        >>> dataset.lengths[:3].tolist(), dataset.returns.shape, dataset.observations.shape
        ([30, 30, 30], (40,), (1240, 4))
        >>> [episode.rewards.shape for episode in dataset.subset(np.array([5, 2]))]
        [(30,), (30,)]
    """

    name: str
    observations: Floats
    actions: Floats
    rewards: Floats
    terminated: Bools
    truncated: Bools
    offsets: Ints
    action_low: Floats
    action_high: Floats
    env: EnvSpec | None = None
    final_observed: Bools = field(default_factory=lambda: np.zeros(0, np.bool_))
    found: tuple[Problem, ...] = ()
    selected_from: SelectedFrom | None = None

    def __post_init__(self) -> None:
        if self.final_observed.size == 0:
            object.__setattr__(self, "final_observed", np.ones(self.num_episodes, np.bool_))
        num_transitions, num_episodes = int(self.offsets[-1]), self.num_episodes
        expected = {
            "observations": num_transitions + num_episodes,
            "actions": num_transitions,
            "rewards": num_transitions,
            "terminated": num_episodes,
            "truncated": num_episodes,
            "final_observed": num_episodes,
        }
        for column, rows in expected.items():
            if len(getattr(self, column)) != rows:
                raise UserError(f"{self.name}: {column} has {len(getattr(self, column))} rows, expected {rows}")
        assert self.selected_from is None or len(self.selected_from.episode_numbers) == num_episodes
        for column, axes in (("observations", 2), ("actions", 2), ("rewards", 1), ("terminated", 1), ("truncated", 1)):
            shape = getattr(self, column).shape
            if len(shape) != axes:
                raise UserError(f"{self.name}: {column} must have {axes} axes, got shape {shape}")

    def __repr__(self) -> str:
        return (
            f"EpisodeDataset({self.name}: {self.num_episodes:,} episodes, {self.num_transitions:,} transitions, "
            f"observation {self.obs_dim}, action {self.act_dim})"
        )

    @property
    def num_episodes(self) -> int:
        """The number of episodes, E."""
        return len(self.offsets) - 1

    @property
    def num_transitions(self) -> int:
        """The number of transitions, N."""
        return int(self.offsets[-1])

    @property
    def obs_dim(self) -> int:
        """The size of an observation, O."""
        return self.observations.shape[1]

    @property
    def act_dim(self) -> int:
        """The size of an action, A."""
        return self.actions.shape[1]

    @cached_property
    def lengths(self) -> Ints:
        """Transitions per episode, int64 [E]."""
        return np.diff(self.offsets)

    @cached_property
    def obs_offsets(self) -> Ints:
        """First observation row of each episode, int64 [E + 1]."""
        return self.offsets + np.arange(len(self.offsets))

    @cached_property
    def episode_of(self) -> Ints:
        """Episode of each transition, int64 [N]."""
        return np.repeat(np.arange(self.num_episodes), self.lengths)

    def episodes_of_rows(self, rows: Ints) -> Ints:
        """Return the episode of each observation row, int64 of its shape."""
        return np.searchsorted(self.obs_offsets, rows, side="right") - 1

    @cached_property
    def obs_index(self) -> Ints:
        """Observation row of each transition's s_t, int64 [N]; s_{t+1} is the next row."""
        return np.arange(self.num_transitions) + self.episode_of

    @cached_property
    def returns(self) -> NDArray[np.float64]:
        """Undiscounted return of each episode, float64 [E]."""
        return np.add.reduceat(np.append(self.rewards.astype(np.float64), 0.0), self.offsets[:-1]) * (self.lengths > 0)

    @cached_property
    def transition_terminal(self) -> Bools:
        """True on the last transition of an episode that terminated, bool [N]."""
        terminal = np.zeros(self.num_transitions, np.bool_)
        ends = self.offsets[1:][self.terminated & (self.lengths > 0)] - 1
        terminal[ends] = True
        return terminal

    @cached_property
    def next_observed(self) -> Bools:
        """True where a transition's next state is recorded, bool [N]."""
        observed = np.ones(self.num_transitions, np.bool_)
        observed[self.offsets[1:][~self.final_observed & (self.lengths > 0)] - 1] = False
        return observed

    @cached_property
    def fingerprint(self) -> str:
        """Return ``sha256:...`` over the content; the same trajectories give the same value however they were
        stored."""
        digest = hashlib.sha256()
        for column in (self.observations, self.actions, self.rewards, self.terminated, self.truncated, self.offsets):
            digest.update(str((column.shape, column.dtype.str)).encode())
            digest.update(np.ascontiguousarray(column).data)
        return "sha256:" + digest.hexdigest()

    @cached_property
    def scaling_fingerprint(self) -> str:
        """``sha256:...`` over the content, the action bounds and the environment: equal where scaled actions are."""
        bounds = [self.action_low.tolist(), self.action_high.tolist()]
        content = [self.fingerprint, *bounds, None if self.env is None else self.env.to_json()]
        return "sha256:" + hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def whole_fingerprint(self) -> str:
        """``fingerprint`` of the dataset that these episodes were selected from; its own for a whole one."""
        return self.fingerprint if self.selected_from is None else self.selected_from.fingerprint

    @cached_property
    def episode_numbers(self) -> Ints:
        """Number of each episode in the whole dataset, int64 [E]; buffers refer to episodes by it."""
        return np.arange(self.num_episodes) if self.selected_from is None else self.selected_from.episode_numbers

    def rows_of(self, numbers: Ints) -> Ints:
        """Return where the episodes of these numbers are in this dataset, int64 like ``numbers``; -1 where left out."""
        order = np.argsort(self.episode_numbers)
        at = np.minimum(np.searchsorted(self.episode_numbers, numbers, sorter=order), self.num_episodes - 1)
        return np.where(self.episode_numbers[order[at]] == numbers, order[at], -1)

    def episode(self, index: int) -> Episode:
        start, stop = int(self.offsets[index]), int(self.offsets[index + 1])
        return Episode(
            observations=self.observations[start + index : stop + index + 1],
            actions=self.actions[start:stop],
            rewards=self.rewards[start:stop],
            terminated=bool(self.terminated[index]),
            truncated=bool(self.truncated[index]),
        )

    def __iter__(self) -> Iterator[Episode]:
        return (self.episode(index) for index in range(self.num_episodes))

    def select(self, episodes: Ints) -> "EpisodeDataset":
        """Return the given episodes, in the given order, as a part of this dataset: they keep their numbers."""
        origin = SelectedFrom(fingerprint=self.whole_fingerprint, episode_numbers=self.episode_numbers[episodes])
        return replace(self.subset(episodes), selected_from=origin)

    def subset(self, episodes: Ints) -> "EpisodeDataset":
        """Return the given episodes, in the given order, as a dataset of its own."""
        episodes = np.asarray(episodes, np.int64)
        lengths = self.lengths[episodes]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        rows = np.repeat(self.offsets[episodes], lengths) + within
        obs_starts = np.concatenate([[0], np.cumsum(lengths + 1)])
        obs_within = np.arange(obs_starts[-1]) - np.repeat(obs_starts[:-1], lengths + 1)
        obs_rows = np.repeat(self.obs_offsets[episodes], lengths + 1) + obs_within
        return EpisodeDataset(
            name=self.name,
            observations=self.observations[obs_rows],
            actions=self.actions[rows],
            rewards=self.rewards[rows],
            terminated=self.terminated[episodes],
            truncated=self.truncated[episodes],
            offsets=offsets,
            action_low=self.action_low,
            action_high=self.action_high,
            env=self.env,
            final_observed=self.final_observed[episodes],
            found=self.found,
        )


def wrong_dataset(what: str, name: str, fingerprint: str, dataset: EpisodeDataset, remedy: str) -> str:
    """Return the message for ``what`` (a bundle, a buffer, a run) that was made from other trajectories.

    Args:
        name, fingerprint: the dataset that it was made from, the whole of it.
        dataset: the one that was given. remedy: what to do about it.
    """
    return (
        f"{what} was made from {name} ({fingerprint[:19]}..), but {dataset.name} holds other trajectories "
        f"({dataset.whole_fingerprint[:19]}..); {remedy}"
    )


def from_episodes(
    episodes: Sequence[Episode],
    *,
    name: str,
    action_low: ArrayLike,
    action_high: ArrayLike,
    env: EnvSpec | None = None,
) -> EpisodeDataset:
    """Put single episodes together into columns.

    Rewards may have axes of length 1 too many, and vectors of one number may come without their axis.

    Args:
        action_low, action_high: [A], or a number for all; where they are infinite or far too wide, the actions' own
            smallest and largest values are taken (see ``found`` of the result).

    Raises:
        UserError: naming the episode whose arrays do not fit together, or with the others'.
    """
    if not episodes:
        raise UserError(f"{name}: there are no episodes")
    parts = [_columns(episode, f"{name}: episode {index}") for index, episode in enumerate(episodes)]
    for index, (observations, actions, _) in enumerate(parts):
        for what, values, first in (("observations", observations, parts[0][0]), ("actions", actions, parts[0][1])):
            if values.shape[1] != first.shape[1]:
                raise UserError(
                    f"{name}: episode {index} has {what} of {values.shape[1]} numbers, but episode 0 of "
                    f"{first.shape[1]}"
                )
    lengths = np.array([len(actions) for _, actions, _ in parts], np.int64)
    observations, actions, rewards = (np.concatenate(column) for column in zip(*parts, strict=True))
    low, high, found = usable_bounds(action_low, action_high, actions, name)
    return EpisodeDataset(
        name=name,
        observations=observations,
        actions=actions,
        rewards=rewards,
        terminated=np.array([bool(episode.terminated) for episode in episodes], np.bool_),
        truncated=np.array([bool(episode.truncated) for episode in episodes], np.bool_),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        action_low=low,
        action_high=high,
        env=env,
        found=tuple(found),
    )


def _columns(episode: Episode, where: str) -> tuple[Floats, Floats, Floats]:
    """Return the episode's observations [T + 1, O], actions [T, A] and rewards [T]."""
    arrays: dict[str, NDArray[Any]] = {}
    for column in ("observations", "actions", "rewards"):
        try:
            arrays[column] = np.asarray(getattr(episode, column))
        except ValueError as error:
            raise UserError(f"{where}: {column} must be an array of numbers, got rows of different lengths") from error
        if arrays[column].dtype.kind not in "bifu":
            raise UserError(f"{where}: {column} must be an array of numbers, got {arrays[column].dtype}")
    steps = len(arrays["actions"]) if arrays["actions"].ndim else 0
    matrices = []
    for column, rows in (("observations", steps + 1), ("actions", steps)):
        values, floats = arrays[column], arrays[column].dtype.kind == "f"
        if values.ndim == 1 and floats:
            values = values[:, None]
        if values.ndim != 2 or len(values) != rows:
            hint = "; discrete actions have to be one-hot" if column == "actions" and not floats else ""
            raise UserError(
                f"{where}: {column} must have {rows} rows of one vector each, got shape {arrays[column].shape}{hint}"
            )
        matrices.append(values.astype(np.float32))
    rewards = as_column(arrays["rewards"], steps)
    if rewards is None:
        raise UserError(
            f"{where}: rewards must have one number for each of {steps} actions, got shape {arrays['rewards'].shape}"
        )
    return matrices[0], matrices[1], rewards.astype(np.float32)
