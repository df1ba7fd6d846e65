"""Checks that every reader makes on what it found.

Legend: N rows, K numbers in a row.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raystitch.errors import UserError

Problem = dict[str, Any]
"""What is odd about a dataset, as plain data for JSON: ``kind``, ``message`` and ``count``."""

ABSURD_RATIO = 1e6
"""A value this many times as large as 99 % of its dimension's, and than 1, is an error of recording."""
ABSURD = 1e18
"""The square of anything larger does not fit into float32."""


def problem(kind: str, message: str, count: int) -> Problem:
    return {"kind": kind, "message": message, "count": count}


def as_column(values: NDArray[Any], rows: int) -> NDArray[Any] | None:
    """One number per row as [rows], however many axes of length 1 there are besides; None for any other shape."""
    return values.reshape(-1) if values.size == rows and rows in values.shape else None


def check_finite(columns: Mapping[str, NDArray[np.floating]], where: str) -> None:
    """Raises:
    UserError: naming the first array with a NaN or an infinity, its first such row, and how many rows have one.
    """
    for name, values in columns.items():
        if np.isfinite(values).all():
            continue
        bad_rows = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(1))
        kind = "NaN" if np.isnan(values[bad_rows[0]]).any() else "an infinity"
        raise UserError(
            f"{where}: {name} has {kind} in row {bad_rows[0]} ({len(bad_rows)} such rows in all); "
            "repair the data or remove those episodes (`raystitch data inspect` lists what is wrong)"
        )


def absurd_rows(name: str, values: NDArray[np.floating]) -> NDArray[np.int64]:
    """Rows of [N] or [N, K] with a finite value that cannot be meant, int64.

    A few values of observations or actions that dwarf all others of their dimension count, as they spoil its mean and
    standard deviation; rewards may well be rare and large, so only ``ABSURD`` counts there.
    """
    columns = values.reshape(len(values), -1)
    bad = np.zeros(len(columns), np.bool_)
    for index in range(columns.shape[1]):
        column = columns[:, index]
        # Two passes without a copy: nearly every dimension is done here.
        with np.errstate(invalid="ignore"):
            largest = max(float(np.fmax.reduce(column, initial=0.0)), -float(np.fmin.reduce(column, initial=0.0)))
        if largest <= ABSURD_RATIO:
            continue
        sizes = np.abs(np.where(np.isfinite(column), column, 0.0))
        limit = ABSURD if name == "rewards" else min(ABSURD, ABSURD_RATIO * max(1.0, float(np.quantile(sizes, 0.99))))
        bad |= sizes > limit
    return np.flatnonzero(bad)


def check_magnitudes(columns: Mapping[str, NDArray[np.floating]], where: str) -> None:
    """Raises:
    UserError: naming the first array with a value that cannot be meant, the value and its row.
    """
    for name, values in columns.items():
        rows = absurd_rows(name, values)
        if len(rows):
            worst = float(np.abs(values[rows[0]]).max())
            raise UserError(
                f"{where}: {name} has a value of size {worst:.3g} in row {rows[0]} ({len(rows)} such rows in all), far "
                "beyond all others; repair the data or remove those episodes (`raystitch data inspect` lists what is "
                "wrong)"
            )
