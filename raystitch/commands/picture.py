"""A bridge as characters, for terminals and logs."""

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 60, 16


def two_dimensions(states: NDArray[np.float32]) -> tuple[int, int]:
    """The first two dimensions of [T, O] that change; positions come first in most environments."""
    varying = np.flatnonzero(np.ptp(states, axis=0) > 1e-6)
    first = int(varying[0]) if len(varying) else 0
    second = int(varying[1]) if len(varying) > 1 else min(first + 1, states.shape[1] - 1)
    return first, second


def draw_states(states: NDArray[np.float32]) -> str:
    """States [T, O] in the plane of two dimensions: A the state left, B the state entered, o what was generated."""
    x_dim, y_dim = two_dimensions(states)
    points = states[:, [x_dim, y_dim]].astype(np.float64)
    low, high = points.min(0), points.max(0)
    scaled = (points - low) / np.maximum(high - low, 1e-9)
    columns = np.rint(scaled[:, 0] * (WIDTH - 1)).astype(int)
    lines = np.rint((1 - scaled[:, 1]) * (HEIGHT - 1)).astype(int)
    canvas = np.full((HEIGHT, WIDTH), " ")
    canvas[lines, columns] = "o"
    canvas[lines[0], columns[0]], canvas[lines[-1], columns[-1]] = "A", "B"
    body = "\n".join(("|" + "".join(line)).rstrip() for line in canvas)
    caption = (
        f"observation[{x_dim}] {low[0]:.3g} .. {high[0]:.3g} to the right, "
        f"observation[{y_dim}] {low[1]:.3g} .. {high[1]:.3g} up; A left, B entered, o generated"
    )
    return f"{body}\n+{'-' * WIDTH}\n{caption}"
