"""Goals that a dataset holds beside its observations: which are read, which are left out, and which are a step late.

Legend: E episodes, R their observations, O observation size.
"""

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from raystitch.data.checks import Problem, problem
from raystitch.data.episodes import Floats, Ints
from raystitch.data.minari_episodes import StoredEpisode
from raystitch.data.spaces import KEYS_MARK
from raystitch.envs.make import GOAL_KEYS, flat_size

GOAL = "desired_goal"
REACHED = "achieved_goal"


def has_goals(space: spaces.Space[Any]) -> bool:
    """Return True if this is the observation space of a Gymnasium goal-conditioned environment."""
    return isinstance(space, spaces.Dict) and set(space.spaces) == GOAL_KEYS


def with_position(keys: tuple[str, ...] | None, space: spaces.Space[Any], stored: StoredEpisode) -> tuple[str, ...]:
    """Return the entries to read by default. ``achieved_goal`` is among them when ``observation`` does not hold it:
    AntMaze's position lies there alone, and without it different states would be equal.

    Args:
        stored: any episode.
    """
    assert keys is not None and isinstance(space, spaces.Dict)
    if not isinstance(space[REACHED], spaces.Box):
        return keys
    reached, observed = stored.numbers(f"observations/{REACHED}"), stored.numbers("observations/observation")
    if reached is None or observed is None:
        return keys
    reached, observed = reached.reshape(len(reached), -1, 1), observed.reshape(len(observed), 1, -1)
    held = np.isclose(reached, observed, rtol=1e-6, atol=1e-9).all(0).any(-1)
    return keys if held.all() else (REACHED, *keys)


def mend_first_goals(
    observations: Floats, obs_offsets: Ints, space: spaces.Space[Any], keys: tuple[str, ...] | None
) -> list[Problem]:
    """Give first states the goal of their own episode where they hold that of the episode before; say how many did.

    PointMaze draws a new goal when one is reached, after it has returned the observation. D4RL's data were recorded in
    one go and cut there, so their episodes begin with the goal that was just reached, while the reward of their first
    step is already that of the new one (Minari's issue 265). Goals that change at any other step are left as they are.

    Args:
        observations: float32 [R, O], changed in place. obs_offsets: int64 [E + 1], rows before each episode.
        keys: the entries of ``space`` that are in the observations, in that order.
    """
    if keys is None or GOAL not in keys or not has_goals(space):
        return []
    assert isinstance(space, spaces.Dict)
    before = sum(flat_size(space[key], None, key) for key in keys[: keys.index(GOAL)])
    goal_dims = slice(before, before + flat_size(space[GOAL], None, GOAL))
    goals = observations[:, goal_dims]
    changes = np.append((goals[1:] != goals[:-1]).any(1), False)  # from each row to the next
    changes[obs_offsets[1:-1] - 1] = False  # to the next episode
    starts = obs_offsets[:-1]
    late = starts[changes[starts]]
    if not len(late) or changes.sum() > len(late):
        return []
    observations[late, goal_dims] = observations[late + 1, goal_dims]
    message = (
        f"{len(late):,} of {len(starts):,} episodes begin with the {GOAL} of the episode before; they are read with "
        "the one that all their other states hold"
    )
    return [problem("late_goal", message, len(late))]


class GoalsLeftOut:
    """Counts the different values of ``desired_goal`` in a dataset of which only ``observation`` is read."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.first: set[bytes] = set()
        self.changing = 0
        self.num_episodes = 0

    @classmethod
    def of(cls, space: spaces.Space[Any], asked_keys: tuple[str, ...] | None) -> "GoalsLeftOut":
        """Count nothing when the user chose what to read, or when there is no goal."""
        if asked_keys is not None or not isinstance(space, spaces.Dict) or not has_goals(space):
            return cls([])
        return cls(_arrays(space[GOAL], f"observations/{GOAL}"))

    def add(self, stored: StoredEpisode) -> None:
        """Add an episode."""
        if not self.names:
            return
        self.num_episodes += 1
        goals = [values for name in self.names if (values := stored.numbers(name)) is not None and len(values)]
        self.first.add(b"".join(_rounded(values[0]) for values in goals))
        self.changing += any((values != values[0]).any() for values in goals)

    def problems(self, dataset_id: str, keys: tuple[str, ...] | None) -> list[Problem]:
        """Return the problem of several goals, if there is more than one."""
        if len(self.first) < 2 and not self.changing:
            return []
        changing = f", and changes within {self.changing:,} of them" if self.changing else ""
        message = (
            f"the observation is read without its {GOAL}, which starts with {len(self.first):,} different values in "
            f"{self.num_episodes:,} episodes{changing}: different tasks become one; keep it with "
            f"minari:{dataset_id}{KEYS_MARK}{','.join((*(keys or ()), GOAL))}"
        )
        return [problem("goal_left_out", message, len(self.first))]


def _arrays(space: spaces.Space[Any], name: str) -> list[str]:
    """Names of the arrays in which a space is stored."""
    if isinstance(space, spaces.Dict):
        return [array for key, part in space.spaces.items() for array in _arrays(part, f"{name}/{key}")]
    return [name]


def _rounded(values: NDArray[Any]) -> bytes:
    return np.asarray(values, np.float32).tobytes()
