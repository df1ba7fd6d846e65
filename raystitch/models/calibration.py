"""What real bridges look like to the judges: quantiles of the largest residual per gap. numpy only."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from raystitch.data.episodes import Floats, Ints
from raystitch.errors import UserError

Delta = float | str | None
QUANTILES = np.concatenate([np.linspace(0, 0.9, 19), np.linspace(0.91, 0.99, 9), [0.995, 0.999, 1.0]])


@dataclass(frozen=True, eq=False)
class Calibration:
    """The largest judge residual of real held-out windows with inverse-dynamics actions.

    Attributes:
        gaps: int64 [G], ascending.
        quantiles: float64 [Q], ascending from 0 to 1.
        values: float64 [G, Q], the residual at each quantile; squared L2 in standardised units.
    """

    gaps: Ints
    quantiles: np.ndarray[tuple[int], np.dtype[np.float64]]
    values: np.ndarray[tuple[int, int], np.dtype[np.float64]]

    @classmethod
    def measure(cls, step_residuals: Floats, gap_min: int, gap_max: int) -> "Calibration":
        """From the residuals of consecutive steps of real windows.

        Args:
            step_residuals: float32 [W, gap_max + 1], NaN past a window's end; a bridge of gap g has g + 1 steps.
        """
        gaps = np.arange(gap_min, gap_max + 1)
        largest = np.maximum.accumulate(step_residuals.astype(np.float64), axis=1)  # NaN stays NaN
        rows: list[np.ndarray[tuple[int], np.dtype[np.float64]]] = []
        for gap in gaps:
            column = largest[:, gap]
            column = column[np.isfinite(column)]
            if column.size == 0:
                break
            rows.append(np.quantile(column, QUANTILES))
        if not rows:
            raise UserError(
                f"no held-out episode has {gap_min + 2} states, so delta cannot be calibrated; "
                f"raise holdout_fraction or lower diffusion.gap_min={gap_min}"
            )
        # Longer gaps than any held-out window: the largest one measured stands in (the maximum grows with the gap).
        values = np.stack([*rows, *[rows[-1]] * (len(gaps) - len(rows))])
        return cls(gaps, QUANTILES, np.maximum.accumulate(values, axis=0))

    def threshold(self, delta: Delta, gaps: Ints) -> Floats:
        """delta as a residual for each row's gap, float32 [N]: a number as it is, ``q99`` from the table, inf for off.

        Gaps outside the table take its nearest end.

        Raises:
            ValueError: for a delta that is none of these.
        """
        count = len(gaps)
        if delta is None or delta == "off":
            return np.full(count, np.inf, np.float32)
        if isinstance(delta, str) and re.fullmatch(r"q(\d{1,2}(\.\d+)?|100)", delta):
            at = float(delta[1:]) / 100
            per_gap = np.array([np.interp(at, self.quantiles, row) for row in self.values])
            nearest = np.clip(np.asarray(gaps) - self.gaps[0], 0, len(self.gaps) - 1)
            return per_gap[nearest].astype(np.float32)
        try:
            number = float(delta)
        except ValueError:
            number = float("nan")
        if not number >= 0:
            raise ValueError(f"delta={delta!r}: use a number >= 0, a quantile such as q99, or off")
        return np.full(count, number, np.float32)

    def to_json(self) -> dict[str, Any]:
        return {
            "gaps": self.gaps.tolist(),
            "quantiles": self.quantiles.tolist(),
            "values": self.values.tolist(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Calibration":
        return cls(
            np.asarray(value["gaps"], np.int64),
            np.asarray(value["quantiles"], np.float64),
            np.asarray(value["values"], np.float64),
        )
