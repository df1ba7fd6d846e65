"""Checks that every reader makes: shapes, finite values, impossible values, memory, and steps lost in float32.

Legend: N rows, K numbers in a row.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raystitch.errors import UserError

Problem = dict[str, Any]
"""A problem of a dataset, as plain data for JSON: ``kind``, ``message`` and ``count``."""

ABSURD_RATIO = 1e6
"""A value this many times as large as 99 % of its dimension's, and than 1, is an error of recording."""
ABSURD = 1e18
"""The square of a larger number does not fit into float32."""
WIDE = 16.0
"""Below this size float32 resolves a millionth, and no dataset means less."""
LOST_SHARE = 0.5
"""A dimension is reported when more than this share of its steps vanish in float32."""
GIB = 2**30


def problem(kind: str, message: str, count: int) -> Problem:
    return {"kind": kind, "message": message, "count": count}


def as_column(values: NDArray[Any], rows: int) -> NDArray[Any] | None:
    """Return one number per row as [rows], even if the array has more axes of length 1; None for any other shape."""
    return values.reshape(-1) if values.size == rows and rows in values.shape else None


def check_shapes(arrays: dict[str, NDArray[Any]], path: Path) -> None:
    """Bring the flat arrays of a file to their layout's shapes, where the meaning is certain: one row per step.

    Raises:
        UserError: naming the array and its shape, or all lengths where they differ.
    """
    rows = len(arrays["observations"])
    for name in ("rewards", "terminals", "timeouts"):
        if name in arrays:
            column = as_column(arrays[name], rows)
            if column is None and len(arrays[name]) == rows:
                raise UserError(f"{path}: {name} must have one number per row, got shape {arrays[name].shape}")
            arrays[name] = arrays[name] if column is None else column
    lengths = {name: len(values) for name, values in arrays.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in lengths.items())
        raise UserError(f"{path}: the arrays have different lengths: {listed}; every array needs one row per step")
    if not rows:
        raise UserError(f"{path}: the arrays are empty")
    actions = arrays["actions"]
    if actions.ndim == 1 and actions.dtype.kind == "f":
        arrays["actions"] = actions[:, None]
    for name in ("observations", "actions", "next_observations"):
        if name in arrays and arrays[name].ndim != 2:
            hint = "; discrete actions have to be written one-hot" if name == "actions" else ""
            if arrays[name].ndim > 3:
                hint = "; images have to become vectors: write the state, or what an encoder makes of them"
            raise UserError(f"{path}: {name} must be two-dimensional, got shape {arrays[name].shape}{hint}")
    arrays["actions"] = arrays["actions"].astype(np.float32, copy=False)
    if "next_observations" in arrays and arrays["next_observations"].shape != arrays["observations"].shape:
        shapes = f"{arrays['next_observations'].shape} and {arrays['observations'].shape}"
        raise UserError(f"{path}: next_observations and observations have different shapes, {shapes}")


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
    """Rows of [N] or [N, K] with an impossible finite value, int64.

    A few values of observations or actions that dwarf all others of their dimension count, as they spoil its mean and
    standard deviation; rewards may well be rare and large, so only ``ABSURD`` counts there.
    """
    columns = values.reshape(len(values), -1)
    bad = np.zeros(len(columns), np.bool_)
    for index in range(columns.shape[1]):
        column = columns[:, index]
        # Two passes without a copy decide for nearly every dimension.
        with np.errstate(invalid="ignore"):
            largest = max(float(np.fmax.reduce(column, initial=0.0)), -float(np.fmin.reduce(column, initial=0.0)))
        if largest <= ABSURD_RATIO:
            continue
        sizes = np.abs(np.where(np.isfinite(column), column, 0.0))
        limit = ABSURD if name == "rewards" else min(ABSURD, ABSURD_RATIO * max(1.0, float(np.quantile(sizes, 0.99))))
        bad |= sizes > limit
    return np.flatnonzero(bad)


def check_magnitudes(columns: Mapping[str, NDArray[np.floating]], where: str) -> None:
    """Raises: UserError: naming the first array with an impossible value, the value and its row."""
    for name, values in columns.items():
        rows = absurd_rows(name, values)
        if len(rows):
            worst = float(np.abs(values[rows[0]]).max())
            raise UserError(
                f"{where}: {name} has a value of size {worst:.3g} in row {rows[0]} ({len(rows)} such rows in all), far "
                "beyond all others; repair the data or remove those episodes (`raystitch data inspect` lists what is "
                "wrong)"
            )


def free_memory() -> int:
    """Return the bytes that this process can still allocate: the machine's free memory, or a container's lower
    limit."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):  # no such limit, or the word "max"
            free = min(free, int(Path(limit).read_text("ascii")) - int(Path(used).read_text("ascii")))
    return max(free, 0)


class MemoryBudget:
    """Counts the memory for reading one dataset, and refuses a dataset that does not fit before allocating it."""

    def __init__(self, where: str, limit: int | None = None) -> None:
        self.where = where
        self.limit = free_memory() if limit is None else limit
        self.taken = 0

    def take(self, num_bytes: int) -> None:
        """Raises:
        UserError: when everything taken so far does not fit into the memory that was free at the start.
        """
        self.taken += num_bytes
        if self.taken > self.limit:
            raise UserError(
                f"{self.where}: reading it takes {self.taken / GIB:,.1f} GiB or more, but {self.limit / GIB:,.1f} GiB "
                "of memory are free; read fewer episodes, or use a machine with more memory"
            )


class Resolution:
    """Counts, over arrays [N, O] of successive observations, the steps that vanish in float32."""

    def __init__(self) -> None:
        self.moved = np.zeros(0, np.int64)
        self.lost = np.zeros(0, np.int64)
        self.largest = np.zeros(0)
        self.step = np.zeros(0)

    def add(self, observations: NDArray[np.generic]) -> None:
        """Observations [N, O] that follow each other; arrays of float32 and smaller lose nothing."""
        if observations.dtype.itemsize < 8 or len(observations) < 2:
            return
        with np.errstate(invalid="ignore", over="ignore"):
            largest = np.abs(observations).max(0).astype(np.float64)
            if not self.moved.size:
                self.moved, self.lost = (np.zeros(len(largest), np.int64) for _ in range(2))
                self.largest, self.step = np.zeros(len(largest)), np.zeros(len(largest))
            if not (largest > WIDE).any():
                return
            steps = np.abs(np.diff(observations, axis=0))
            narrow = np.diff(observations.astype(np.float32), axis=0)
        self.moved += (steps > 0).sum(0)
        self.lost += ((steps > 0) & (narrow == 0)).sum(0)
        self.step += np.where(np.isfinite(steps), steps, 0.0).sum(0)
        self.largest = np.fmax(self.largest, largest)

    def problems(self) -> list[Problem]:
        """One problem that names the dimensions most of whose steps vanished."""
        found = np.flatnonzero((self.lost > LOST_SHARE * self.moved) & (self.largest > WIDE))
        found = found[self.step[found] / self.moved[found] > 1e-6] if len(found) else found
        if not len(found):
            return []
        first = found[0]
        spacing = np.spacing(np.float32(self.largest[first]))
        message = (
            f"observation dimensions {', '.join(map(str, found[:8]))}{', ...' if len(found) > 8 else ''} move in steps "
            f"that float32 cannot hold (dimension {first}: {self.step[first] / self.moved[first]:.3g} a step around "
            f"{self.largest[first]:.3g}, where float32 is {spacing:.3g} apart), so they seem to stand still; subtract "
            "an offset, such as the episode's first value, before writing them"
        )
        return [problem("float32_resolution", message, len(found))]
