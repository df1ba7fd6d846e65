"""Usable action bounds, from the recorded ones.

Legend: N transitions, A action size.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raystitch.data.checks import Problem, problem
from raystitch.errors import UserError

Floats = NDArray[np.float32]

WIDE = 1000.0
"""Bounds that are this many times as far apart as the actions carry no information."""


def usable_bounds(low: ArrayLike, high: ArrayLike, actions: Floats, where: str) -> tuple[Floats, Floats, list[Problem]]:
    """Return action bounds float32 [A] that can scale the actions, and the problem if they are not the recorded ones.

    Bounds that are infinite, the largest float, or a thousand times as wide as the actions are replaced by the actions'
    own smallest and largest value, dimension by dimension.

    Args:
        low, high: [A], or a single number for all dimensions. actions: [N, A]; may hold NaN.

    Raises:
        UserError: for bounds of another size than the actions, or a low one that is not below its high one.
    """
    size = actions.shape[1]
    sides = []
    for name, bound in (("action_low", low), ("action_high", high)):
        side = np.asarray(bound, np.float64).reshape(-1)
        if side.size not in (1, size) or np.isnan(side).any():
            raise UserError(f"{where}: {name} must have one number for each of {size} actions, got {str(bound)[:80]}")
        sides.append(np.broadcast_to(side, (size,)).copy())
    lowest, highest = sides
    if (lowest > highest).any():
        index = int(np.argmax(lowest > highest))
        raise UserError(
            f"{where}: action {index} has the bounds {lowest[index]:g} and {highest[index]:g}; the first must be the "
            "smaller one"
        )
    least, most = _range(actions)
    reach = np.maximum(most - least, np.maximum(np.abs(least), np.abs(most)))
    wide = ~(highest - lowest <= WIDE * reach)
    if not wide.any():
        return lowest.astype(np.float32), highest.astype(np.float32), []
    index = int(np.argmax(wide))
    message = (
        f"the bounds of {wide.sum()} of {size} actions are infinite or far wider than the recorded actions (action "
        f"{index}: {lowest[index]:.3g} to {highest[index]:.3g}, in the data {least[index]:.3g} to {most[index]:.3g}); "
        "the smallest and largest action in the data replace them, and no policy acts beyond those"
    )
    lowest[wide], highest[wide] = least[wide], most[wide]
    found = [problem("wide_action_bounds", message, int(wide.sum()))]
    return lowest.astype(np.float32), highest.astype(np.float32), found


def _range(actions: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Smallest and largest finite value of each action, float64 [A] each, at least a little apart."""
    known = np.isfinite(actions)
    least = np.min(actions, 0, initial=np.inf, where=known).astype(np.float64)
    most = np.max(actions, 0, initial=-np.inf, where=known).astype(np.float64)
    least, most = np.where(np.isfinite(least), least, 0.0), np.where(np.isfinite(most), most, 0.0)
    alike = most <= least
    return np.where(alike, least - 1.0, least), np.where(alike, most + 1.0, most)
