"""Checks that every reader makes on what it found."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from raystitch.errors import UserError


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
