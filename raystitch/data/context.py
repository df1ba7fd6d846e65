"""Dimensions that do not change within an episode: constants, and contexts such as a goal.

Legend: E episodes, O observation size.
"""

import numpy as np

from raystitch.data.episodes import Bools, EpisodeDataset

# A constant dimension moves by less than this share of its size; so does a context dimension within an episode.
CONSTANT = 1e-6


def still_dimensions(dataset: EpisodeDataset) -> tuple[Bools, Bools]:
    """Constant dimensions and context dimensions, bool [O] each; values that are not finite are passed over.

    A context is constant within every episode but not between them: a goal, a target orientation, a load.
    """
    starts = dataset.obs_offsets[:-1]
    with np.errstate(invalid="ignore"):
        known = np.where(np.isfinite(dataset.observations), dataset.observations, np.nan)
        low, high = np.fmin.reduceat(known, starts), np.fmax.reduceat(known, starts)
        lowest, highest = np.fmin.reduce(low), np.fmax.reduce(high)
        size = CONSTANT * np.maximum(1.0, np.maximum(np.abs(lowest), np.abs(highest)))
        constant = highest - lowest <= size
        within = np.fmax.reduce(high - low) <= size
    return constant, within & ~constant & (dataset.num_episodes > 1)
