"""Steps inside episodes that no motion makes: two episodes that the file's flags do not separate.

Legend: N transitions, O observation size, S transitions inside episodes.
"""

import numpy as np

from raystitch.data.episodes import EpisodeDataset, Floats, Ints

FAR = 20.0
"""A jump is this many times as large as nine in ten steps of its dimension.."""
SHARE = 0.25
"""..in more than this share of the dimensions that move: contacts and wrapped angles jump in one or two."""
MOST = 0.2
"""Where a larger share of the steps are jumps, jumping is what the task does."""
SAMPLE = 100_000
TURNS = (2 * np.pi, 360.0)


def jumps(dataset: EpisodeDataset) -> tuple[Ints, float]:
    """Transitions that jump, int64, and how many times the typical step the largest of them is (0 without one).

    Values that are not finite are passed over.
    """
    inside = np.flatnonzero(dataset.next_observed)
    rows = dataset.obs_index[inside]
    count = np.zeros(len(rows), np.int16)
    moving, worst = 0, np.zeros(len(rows), np.float32)
    if not len(rows):
        return rows, 0.0
    sample = slice(None, None, max(1, len(rows) // SAMPLE))
    for index in range(dataset.obs_dim):
        steps = _steps(dataset.observations[:, index], rows)
        taken = steps[sample]
        taken = taken[taken > 0]
        if len(taken) < 0.01 * len(steps[sample]):
            continue  # a constant, a goal, or something that hardly ever moves
        typical = float(np.quantile(taken, 0.9))
        moving += 1
        count += steps > FAR * typical
        np.maximum(worst, steps / np.float32(typical), out=worst)
    found = np.flatnonzero(count > SHARE * moving) if moving else np.zeros(0, np.int64)
    if not len(found) or len(found) > MOST * len(rows):
        return np.zeros(0, np.int64), 0.0
    return inside[found], float(worst[found].max())


def _steps(column: Floats, rows: Ints) -> Floats:
    """How far one dimension moves in each of S transitions, float32 [S]; across the seam of an angle the short way."""
    with np.errstate(invalid="ignore", over="ignore"):
        steps = np.abs(column[rows + 1] - column[rows])
        width = float(np.fmax.reduce(column) - np.fmin.reduce(column))
        for turn in TURNS:
            if 0.9 * turn < width <= 1.001 * turn:
                steps = np.minimum(steps, np.float32(turn) - steps)
    steps[~np.isfinite(steps)] = 0
    return steps
