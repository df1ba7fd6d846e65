"""Thresholds as users write them; torch-free, like the configurations that hold them."""

import re

Delta = float | str | None
_QUANTILE = re.compile(r"q(\d{1,2}(\.\d+)?|100)")


def check_delta(delta: Delta, name: str = "delta") -> Delta:
    """A threshold: a number >= 0, a quantile such as ``q99``, ``q99.5``, or ``off`` / None, which gives None.

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
            raise ValueError(f"{name}={delta!r}: use a number >= 0, a quantile such as q99, or off") from None
    if not delta >= 0:
        raise ValueError(f"{name} must be >= 0, got {name}={delta}")
    return float(delta)
