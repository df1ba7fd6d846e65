"""Thresholds (delta), and what the criteria's numbers are on real data: quantiles per gap. numpy only."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raystitch.data.episodes import Floats, Ints
from raystitch.errors import UserError

Delta = float | str | None
"""A threshold of the residual: a number, a quantile of real windows such as ``q99``, ``auto`` (see
``Calibration.truthful``), or ``off`` (None) for no limit."""

AUTO = "auto"
SEAM = "seam"
"""The table of ``pairs.seam_max``."""
NOISE = 0.05
"""Standard deviation of the noise, in standardised units, with which real states are the reference for true bridges."""
TRUE_SHARE = 0.95
"""The share of bridges that ``auto`` is to keep true."""
QUANTILES = np.concatenate([np.linspace(0, 0.9, 19), np.linspace(0.91, 0.99, 9), [0.995, 0.999, 1.0]])
_QUANTILE = re.compile(r"q(\d{1,2}(\.\d+)?|100)")


def check_delta(delta: Delta) -> Delta:
    """Return a threshold of the residual: ``auto``, or what ``check_threshold`` takes.

    Raises:
        ValueError: for anything else, with the value.
    """
    return AUTO if delta == AUTO else check_threshold(delta, "delta", also=f"{AUTO}, ")


def check_threshold(delta: Delta, name: str, also: str = "") -> Delta:
    """Return a threshold: a number >= 0, a quantile such as ``q99``, ``q99.5``, or ``off`` / None, which gives None.

    Args:
        name: of the setting, for messages. also: what else it may be.

    Raises:
        ValueError: for anything else, with the value.
    """
    if delta is None or delta == "off":
        return None
    if isinstance(delta, str):
        if _QUANTILE.fullmatch(delta):
            return delta
        try:
            delta = float(delta)
        except ValueError:
            raise ValueError(f"{name}={delta!r}: use a number >= 0, a quantile such as q99, {also}or off") from None
    if not delta >= 0:
        raise ValueError(f"{name} must be >= 0, got {name}={delta}")
    return float(delta)


def delta_text(delta: Delta) -> str:
    """The delta of a stitched cell as results.parquet has it: a number, ``q99``, ``auto`` or ``off``."""
    checked = check_delta(delta)
    return "off" if checked is None else checked if isinstance(checked, str) else f"{checked:g}"


@dataclass(frozen=True, eq=False)
class Calibration:
    """The criteria's numbers on real windows of episodes that no model was fitted on, with inverse-dynamics actions
    unless a table says otherwise.

    Attributes:
        gaps: int64 [G], ascending.
        quantiles: float64 [Q], ascending from 0 to 1.
        tables: criterion -> float64 [G, Q], its value at each quantile. ``residual``, ``spread`` (of the judges) and
            ``proposers`` (the proposers' residual) are the largest of the window's steps, ``residual_sum`` and
            ``spread_sum`` the sums over them, ``rollout`` the distance at its end; all squared L2 in standardised
            units. ``recorded`` is the residual with the actions as they were recorded, ``noise`` the same with every
            state moved by ``NOISE``; both of steps from states inside all sensors alone, since nobody knows what has to
            follow one at the end of a sensor. ``seam`` is how far apart a window and one of another episode end that
            start as nearest neighbours; there is none where no two episodes go on long enough. Earlier versions kept
            neither of these three, and before them no sums.
    """

    gaps: Ints
    quantiles: NDArray[np.float64]
    tables: Mapping[str, NDArray[np.float64]]

    @classmethod
    def measure(
        cls,
        largest: Mapping[str, Floats],
        at_end: Mapping[str, Floats],
        gap_min: int,
        gap_max: int,
        summed: Sequence[str] = (),
    ) -> "Calibration":
        """Compute the tables from the numbers of consecutive steps of real windows.

        Args:
            largest: criterion -> float32 [W, gap_max + 1], NaN past a window's end, -inf at steps that do not count;
                the largest up to a step counts (a bridge of gap g has g + 1 steps).
            at_end: the same, the number at the last step counts.
            summed: of ``largest``, those whose sums up to a step count too, as ``NAME_sum``.

        Raises:
            UserError: when no window reaches the smallest gap.
        """
        gaps = np.arange(gap_min, gap_max + 1)
        tables = {name: _table(np.maximum.accumulate(steps, axis=1), gaps) for name, steps in largest.items()}
        tables |= {f"{name}_sum": _table(np.cumsum(largest[name], axis=1), gaps) for name in summed}
        tables |= {name: _table(steps, gaps) for name, steps in at_end.items()}
        return cls(gaps, QUANTILES, tables)

    def threshold(self, delta: Delta, gaps: Ints, criterion: str = "residual") -> Floats:
        """Return a threshold for each row's gap, float32 [N]: a number as it is, ``q99`` from the table, inf for off,
        ``auto`` as ``truthful`` has it.

        Gaps outside the table take its nearest end.

        Raises:
            ValueError: for a delta that is none of these.
            UserError: for ``auto``, where ``truthful`` has none; for a quantile that is not known.
        """
        delta = check_delta(delta) if criterion == "residual" else check_threshold(delta, criterion)
        if isinstance(delta, str):
            if criterion == SEAM and SEAM not in self.tables:
                raise UserError(
                    f"pairs.seam_max={delta}: this stitcher does not say how far apart neighbours end: an earlier "
                    "version fitted it, or no two episodes go on long enough; fit again in another folder, or give a "
                    "number"
                )
            per_gap = self.truthful() if delta == AUTO else self._at(float(delta[1:]) / 100, criterion)
            return per_gap[self._rows(gaps)].astype(np.float32)
        return np.full(len(gaps), np.inf if delta is None else delta, np.float32)

    def _rows(self, gaps: Ints) -> Ints:
        return np.clip(np.asarray(gaps) - self.gaps[0], 0, len(self.gaps) - 1)

    def check(self, deltas: Iterable[Delta]) -> None:
        """Refuse deltas that have no threshold here.

        Raises:
            UserError: for ``auto``, where ``truthful`` has none.
        """
        for delta in deltas:
            self.threshold(delta, self.gaps)

    def believed(self, gaps: Ints | None = None) -> NDArray[np.float64]:
        """Return the largest residual per gap that real windows with ``NOISE`` have in the median, for ``gaps`` (int64
        [N], outside the table its nearest end) or all gaps of the table.

        Raises:
            UserError: when an earlier version made the calibration.
        """
        if "noise" not in self.tables:
            raise UserError(
                "an earlier version fitted this stitcher, and its calibration lacks real windows with noise; fit again "
                "in another folder, or name pairs.mode and pairs.seam_max"
            )
        noise = self._at(0.5, "noise")
        return noise if gaps is None else noise[self._rows(gaps)]

    def truthful(self) -> NDArray[np.float64]:
        """Return the delta per gap below which bridges are true, by held-out windows alone, float64 [G]; 0, which
        refuses every bridge, at a gap where the judges err more than the noise.

        A bridge counts as true if the largest error of its steps is below the median of real windows with ``NOISE``.
        Its error is its residual and the judges' own error together; both have many dimensions and no common
        direction, so the squares add up. The judges' error is on ``TRUE_SHARE`` of the real windows at most their
        ``recorded`` residual at that quantile, so the answer is the difference of the two. It holds for that share of
        bridges if the judges err on them as they do on real data.

        Raises:
            UserError: when the judges err more than that everywhere, or an earlier version made the calibration.
        """
        if "recorded" not in self.tables or "noise" not in self.tables:
            raise UserError(
                "delta=auto: an earlier version fitted this stitcher, and its calibration lacks real windows with "
                "noise; fit again in another folder, or give a quantile such as delta=q99"
            )
        noise, error = self.believed(), self._at(TRUE_SHARE, "recorded")
        if (error >= noise).all():
            raise UserError(
                f"delta=auto: the judges err too much on real data to tell true bridges from others ({error[0]:.3g} at "
                f"{100 * TRUE_SHARE:g} %, while noise of {NOISE} makes {noise[0]:.3g}); fit dynamics longer "
                "(dynamics.train_steps), or give a quantile such as delta=q99"
            )
        return np.maximum(noise - error, 0.0)

    def _at(self, quantile: float, criterion: str) -> NDArray[np.float64]:
        """Return a criterion's number at a quantile for every gap, [G]."""
        return np.array([np.interp(quantile, self.quantiles, row) for row in self.tables[criterion]])

    def to_json(self) -> dict[str, Any]:
        return {
            "gaps": self.gaps.tolist(),
            "quantiles": self.quantiles.tolist(),
            "tables": {name: table.tolist() for name, table in self.tables.items()},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Calibration":
        return cls(
            np.asarray(value["gaps"], np.int64),
            np.asarray(value["quantiles"], np.float64),
            {name: np.asarray(table, np.float64) for name, table in value["tables"].items()},
        )


def _table(per_gap: Floats, gaps: Ints) -> NDArray[np.float64]:
    """Quantiles per gap, [G, Q]; made to grow with the gap, so that a longer bridge is not judged more strictly for
    want of windows, and the last measured gap stands in for longer ones."""
    rows: list[NDArray[np.float64]] = []
    for gap in gaps:
        column = per_gap[:, gap].astype(np.float64)
        column = column[np.isfinite(column)]
        if column.size == 0:
            break
        rows.append(np.quantile(column, QUANTILES))
    if not rows:
        raise UserError(
            f"no held-out episode has {gaps[0] + 2} states, so delta cannot be calibrated; "
            f"raise holdout_fraction or lower diffusion.gap_min={gaps[0]}"
        )
    return np.maximum.accumulate(np.stack([*rows, *[rows[-1]] * (len(gaps) - len(rows))]), axis=0)
