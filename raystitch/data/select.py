"""Which episodes are sources, which are targets, and which no model is fitted on."""

import numpy as np

from raystitch.data.episodes import EpisodeDataset, Ints
from raystitch.errors import UserError
from raystitch.seeding import numpy_rng


def low_high_split(dataset: EpisodeDataset, source_fraction: float, target_fraction: float) -> tuple[Ints, Ints]:
    """Episodes with the lowest and with the highest returns.

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
    """A random split of whole episodes; each part gets at least one.

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
