"""Pictures of numbers: outcomes, residuals and gaps of candidates, returns of episodes.

Legend: N candidates, E episodes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray

from raystitch.buffer.reader import AtDelta, Buffer
from raystitch.data.episodes import Bools, EpisodeDataset, Ints
from raystitch.errors import UserError
from raystitch.models.calibration import Delta, check_delta
from raystitch.plot.drawing import (
    BELOW_LEGEND,
    FIRST,
    REPAIRED,
    RESIDUAL_LABEL,
    draw_gaps,
    draw_outcomes,
    draw_residuals,
    draw_returns,
)
from raystitch.plot.style import INK, drawing
from raystitch.stitching.candidates import REASONS, Candidates

SIZE = (5.0, 2.9)
"""Inches of a histogram."""


class HasReturns(Protocol):
    """Evaluated episodes: what ``evaluate`` returns."""

    @property
    def returns(self) -> NDArray[np.float64]:
        """Undiscounted return of each episode, float64 [E]."""
        ...


def acceptance(found: Buffer | Candidates, delta: AtDelta = "generation", *, ax: Axes | None = None) -> Axes:
    """Draw how many candidates are accepted, and why the others are not: the first criterion that each fails.

    Args:
        found: a buffer, or the candidates of ``Stitcher.stitch``.
        delta: at which a buffer is read: a number, a quantile such as ``q99``, ``auto`` or ``off``; ``generation`` is
            what it was made with. Candidates have been decided on already.
        ax: where to draw; None for a new figure of pyplot.

    Raises:
        UserError: for anything else than these, or a delta that is none.

    Example:
        >>> rs.plot.acceptance(buffer, "q50").get_title()
        'Candidates by outcome'
    """
    judged = _judged(found, delta)
    present = [number for number in range(len(REASONS)) if (judged.reason == number).any()]
    kinds = {FIRST: judged.attempt == 0, REPAIRED: judged.attempt > 0}
    counts = {
        kind: [int((rows & (judged.reason == number)).sum()) for number in present]
        for kind, rows in kinds.items()
        if kind == FIRST or rows.any()
    }
    with drawing(ax, (SIZE[0], 0.75 + 0.42 * len(present))) as axis:
        draw_outcomes(axis, [REASONS[number] for number in present], counts)
    return axis


def residuals(found: Buffer | Candidates, delta: AtDelta = "generation", *, ax: Axes | None = None) -> Axes:
    """Draw the largest residual of every candidate, and delta, below which it has to stay.

    Args:
        found, delta, ax: as of ``acceptance``. A quantile is shown at the median gap; each bridge has that of its own.

    Raises:
        UserError: as ``acceptance``.

    Example:
        >>> rs.plot.residuals(buffer, 0.5).get_xscale()
        'log'
    """
    judged = _judged(found, delta)
    with drawing(ax, SIZE) as axis:
        draw_residuals(axis, judged.residual.astype(np.float64), judged.accepted)
        if judged.threshold is not None:
            axis.axvline(judged.threshold, ymax=BELOW_LEGEND, color=INK["text"], linewidth=1.2, linestyle="--")
            axis.set_xlabel(f"{RESIDUAL_LABEL}; dashed: delta {judged.delta}")
    return axis


def gaps(found: Buffer | Candidates, delta: AtDelta = "generation", *, ax: Axes | None = None) -> Axes:
    """Draw how many states were generated per candidate.

    Args:
        found, delta, ax: as of ``acceptance``.

    Raises:
        UserError: as ``acceptance``.

    Example:
        >>> rs.plot.gaps(buffer).get_xlabel()
        'generated states per bridge'
    """
    judged = _judged(found, delta)
    with drawing(ax, SIZE) as axis:
        draw_gaps(axis, judged.gap.astype(np.float64), judged.accepted)
    return axis


def returns(groups: Mapping[str, EpisodeDataset | HasReturns | ArrayLike], *, ax: Axes | None = None) -> Axes:
    """Draw the return of every episode of some groups, one row per group, and the groups' means.

    Args:
        groups: name -> a dataset, what ``evaluate`` returned, or returns [E].
        ax: as of ``acceptance``.

    Raises:
        UserError: when there is no group, or one without episodes or with returns that are not finite.

    Example:
        >>> rs.plot.returns({"recorded": dataset, "best ten": np.sort(dataset.returns)[-10:]}).get_xlabel()
        'undiscounted return'
    """
    arrays = {name: getattr(group, "returns", group) for name, group in groups.items()}
    values = {name: np.ravel(np.asarray(array, np.float64)) for name, array in arrays.items()}
    if not values:
        raise UserError("returns needs at least one group of episodes")
    for name, found in values.items():
        if not len(found) or not np.isfinite(found).all():
            raise UserError(f"the returns of {name!r} must be finite numbers, at least one")
    with drawing(ax, (SIZE[0], 1.0 + 0.75 * len(values))) as axis:
        draw_returns(axis, values)
    return axis


@dataclass(frozen=True, kw_only=True, eq=False)
class _Judged:
    """The numbers of N candidates and the decision on each; ``threshold``: the largest residual, where there is one."""

    gap: Ints
    attempt: Ints
    residual: NDArray[np.floating]
    accepted: Bools
    reason: Ints
    delta: Delta = None
    threshold: float | None = None


def _judged(found: Buffer | Candidates, delta: AtDelta) -> _Judged:
    if isinstance(found, Candidates):
        if delta != "generation":
            raise UserError(f"candidates were decided on when they were made; delta={delta} is for buffers")
        columns = {"gap": found.gap, "attempt": found.attempt, "residual": found.residual_max}
        return _Judged(**columns, accepted=found.accepted, reason=found.reason)
    if not isinstance(found, Buffer):
        raise UserError(f"this is drawn from a buffer or from candidates, got {type(found).__name__}")
    accepted, reason = found.passing(delta)
    asked = check_delta(found.meta.stitch.qualify.delta if delta == "generation" else delta)
    gap, threshold = found.column("gap"), None
    if asked is not None and len(gap):
        threshold = float(found.calibration.threshold(asked, np.array([round(float(np.median(gap)))]))[0])
    columns = {"gap": gap, "attempt": found.column("attempt"), "residual": found.column("residual_max")}
    return _Judged(**columns, accepted=accepted, reason=reason, delta=asked, threshold=threshold)
