"""Rehearses bridges on held-out data, where the true next state is known: how true are those that the judges believe?

Legend: J judges, W windows, T steps, O observation size, G gaps, Q quantiles.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raystitch.data.episodes import Ints

FEWEST = 40
"""Windows that a share is worked out from, at least."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RehearsedSteps:
    """Steps of real windows of which the proposers predict the next state, in standardised units.

    Attributes:
        error: float32 [W, T, O], the prediction minus the recorded next state.
        doubt: float32 [J, W, T, O], the prediction minus each judge's.
        hidden: bool [W, T], steps whose true next state nobody knows.
        exists: bool [W, T], steps that the window has; its first ones.
    """

    error: Tensor
    doubt: Tensor
    hidden: Tensor
    exists: Tensor


def rehearse(
    steps: RehearsedSteps,
    gaps: Ints,
    limits: NDArray[np.float64],
    shares: NDArray[np.float64],
    generator: torch.Generator,
) -> NDArray[np.float64]:
    """Return the largest residual below which a share of rehearsed bridges is true, float64 [G, Q]; 0 where there is
    none.

    A rehearsed bridge is a real window whose next states are the proposers' predictions, as guidance makes them, and
    noise, for what guidance leaves over. The noise of a window is scaled so that the largest of its steps is spread
    evenly between none and twice the limit: half of the bridges would be true if the proposers never erred. Their error
    is what was recorded minus what was rehearsed, and the judges' residual is what it would be of a generated one.

    Args:
        gaps: int64 [G], ascending; a gap of g has g + 1 steps. limits: [G], a bridge whose largest squared error is
            below it is true. shares: [Q].
    """
    noise = torch.randn(steps.error.shape, generator=generator).to(steps.error.device)
    amount = torch.rand(len(noise), generator=generator).to(noise.device)
    found = np.zeros((len(gaps), len(shares)))
    for at, (gap, limit) in enumerate(zip(gaps.tolist(), limits.tolist(), strict=True)):
        rows, upto = torch.nonzero(steps.exists[:, gap])[:, 0], slice(gap + 1)
        drawn = noise[rows, upto]
        largest = drawn.square().sum(-1).amax(1).clamp_min(1e-12)
        drawn = drawn * (2 * limit * amount[rows] / largest).sqrt()[:, None, None]
        errors = (steps.error[rows, upto] + drawn).square().sum(-1)
        error = errors.masked_fill(steps.hidden[rows, upto], -torch.inf).amax(1)
        residual = (steps.doubt[:, rows, upto] + drawn).square().sum(-1).mean(0).amax(1)
        known = error.isfinite()
        found[at] = _thresholds(residual[known].cpu().numpy(), (error < limit)[known].cpu().numpy(), shares)
        if len(rows) < FEWEST and at:
            found[at] = found[at - 1]  # the last gap that there are windows of stands in for longer ones
    return np.maximum.accumulate(found, axis=0)  # a longer bridge is not judged more strictly for want of windows


def _thresholds(
    residual: NDArray[np.float32], true: NDArray[np.bool_], shares: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return for each share the largest residual up to which so many are true, [Q]; 0 for none."""
    order = np.argsort(residual, kind="stable")
    counts = np.arange(1, len(order) + 1)
    precision = np.where(counts >= FEWEST, np.cumsum(true[order]) / counts, -1.0)
    enough = [np.flatnonzero(precision >= share) for share in shares]
    return np.array([residual[order[rows[-1]]] if len(rows) else 0.0 for rows in enough], np.float64)
