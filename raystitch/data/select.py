"""Which episodes of a dataset are meant, which are sources, which are targets, and which no model is fitted on."""

from typing import Protocol

import numpy as np

from raystitch.data.episodes import EpisodeDataset, Ints
from raystitch.errors import UserError, check_choice
from raystitch.seeding import numpy_rng


class EpisodeSelector(Protocol):
    """Chooses the episodes of a dataset that a run works on; a function of the dataset alone."""

    def __call__(self, dataset: EpisodeDataset) -> Ints:
        """Return the episodes that are kept, int64, ascending, at least one."""
        ...


def all_episodes(dataset: EpisodeDataset) -> Ints:
    """Keep every episode."""
    return np.arange(dataset.num_episodes)


EPISODE_SELECTORS: dict[str, EpisodeSelector] = {"all": all_episodes}
"""By the name that ``DatasetRef.select`` takes."""


def select_episodes(dataset: EpisodeDataset, name: str) -> EpisodeDataset:
    """Return the part of a dataset that the selector ``name`` keeps; the dataset itself where that is all of it.

    Raises:
        UserError: when there is no such selector, or it keeps nothing.
    """
    selector = find_selector(name)
    kept = selector(dataset)
    assert kept.dtype == np.int64 and (np.diff(kept) > 0).all(), f"{name} must return ascending int64 episodes"
    if not len(kept):
        raise UserError(f"{dataset.name}: select={name} keeps none of {dataset.num_episodes} episodes")
    return dataset if len(kept) == dataset.num_episodes else dataset.select(kept)


def find_selector(name: str) -> EpisodeSelector:
    """Return the selector of a name.

    Raises:
        UserError: when there is none; lists those there are.
    """
    check_choice("select", name, EPISODE_SELECTORS)
    return EPISODE_SELECTORS[name]


def low_high_split(dataset: EpisodeDataset, source_fraction: float, target_fraction: float) -> tuple[Ints, Ints]:
    """Split off the episodes with the lowest and with the highest returns.

    Args:
        source_fraction, target_fraction: shares of the episodes, in (0, 1]; each gives at least one. They may overlap.

    Returns:
        int64 source episodes and int64 target episodes, ascending by return, equal returns by index.
    """
    by_return = np.argsort(dataset.returns, kind="stable").astype(np.int64)
    by_return = by_return[dataset.lengths[by_return] > 0]
    num_sources = max(1, round(source_fraction * len(by_return)))
    num_targets = max(1, round(target_fraction * len(by_return)))
    return by_return[:num_sources], by_return[len(by_return) - num_targets :]


def holdout_split(num_episodes: int, fraction: float, seed: int) -> tuple[Ints, Ints]:
    """Split whole episodes at random; each part gets at least one.

    Returns:
        int64 episodes to fit on and int64 episodes held out, both ascending.

    Raises:
        UserError: when there are fewer than two episodes.
    """
    if num_episodes < 2:
        raise UserError(f"the dataset has {num_episodes} episode(s); at least 2 are needed to hold one out")
    shuffled = numpy_rng(seed, "holdout").permutation(num_episodes).astype(np.int64)
    num_held_out = min(max(1, round(fraction * num_episodes)), num_episodes - 1)
    return np.sort(shuffled[num_held_out:]), np.sort(shuffled[:num_held_out])
