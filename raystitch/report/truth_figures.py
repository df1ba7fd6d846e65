"""Figures on simulator truth, from validate.json; inline SVG like those of ``figures``."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from raystitch.plot.drawing import Array
from raystitch.plot.style import INK, STYLE
from raystitch.report.figures import to_svg

SET_LINES = {
    "accepted": ("stitched", "-", 2.4),
    "repaired": ("good", "-.", 1.5),
    "rejected": ("bad", "-", 1.5),
    "real": ("text", ":", 1.3),
    "real_noise": ("joined", "--", 1.8),
    "real_inverse": ("original", "-", 1.5),
}
"""Set -> colour, dash and width of its line; sets without one are left out of the figures."""
SIZE = (5, 3.9)
FLOOR = 1e-6
"""Smaller errors are drawn at this value: real data comes out at float error, and a log axis has no zero."""

Sets = Mapping[str, tuple[str, Mapping[str, Any]]]
"""Set -> (label, its part of validate.json)."""


def _legend(axis: Axes, ncols: int = 2) -> None:
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="upper center", bbox_to_anchor=(0.45, -0.2), ncols=ncols, handlelength=2.6, columnspacing=0.8)


def error_distributions(sets: Sets) -> str:
    """Share of steps with at most a simulator error, one line per set."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axis = figure.subplots()
        for name, (colour, style, width) in SET_LINES.items():
            if name not in sets:
                continue
            label, found = sets[name]
            errors = np.maximum(np.asarray(found["cdf"]["step_error"], np.float64), FLOOR)
            levels = 100 * np.asarray(found["cdf"]["level"], np.float64)
            # Real data comes out at float error: a line at the left edge would only stretch the axis.
            if len(errors) and errors[-1] > 1e-5:
                axis.plot(errors, levels, style, color=INK[colour], linewidth=width, label=label)
        axis.set_xscale("log")
        axis.set_title("Steps by simulator error")
        axis.set_xlabel("squared L2, standardised units (log)")
        axis.set_ylabel("share of steps %")
        axis.grid()
        _legend(axis)
    return to_svg(figure, "Simulator error of steps")


ALONG = {
    "gap": ("Median error by gap", "generated states per bridge"),
    "step": ("Median error by step", "step of the bridge"),
}


def error_along(sets: Sets, key: Literal["gap", "step"]) -> str:
    """Median simulator error of a step by the gap of its bridge or by its place in it; for accepted bridges also the
    90th percentile."""
    title, xlabel = ALONG[key]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axis = figure.subplots()
        for name, (colour, style, width) in SET_LINES.items():
            if name not in sets or name == "real":
                continue
            label, found = sets[name]
            rows = [row for row in found[f"by_{key}"] if row["median"] is not None]
            if not rows:
                continue
            at, median, p90 = np.array([(row[key], row["median"], row["p90"]) for row in rows], np.float64).T
            axis.plot(at, np.maximum(median, FLOOR), style, color=INK[colour], linewidth=width, label=label)
            if name == "accepted":
                axis.plot(at, np.maximum(p90, FLOOR), ":", color=INK[colour], linewidth=1.4, label=f"{label}, 90 %")
        axis.set_yscale("log")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_title(title)
        axis.set_xlabel(xlabel)
        axis.set_ylabel("squared L2 (log)")
        axis.grid()
        _legend(axis)
    return to_svg(figure, f"Simulator error by {key}")


def _level_axis(title: str, levels: Sequence[str]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axis = figure.subplots()
    axis.set_xticks(range(len(levels)), [level.removeprefix("q") for level in levels])
    axis.set_title(title)
    axis.set_xlabel("delta: quantile of real windows %")
    axis.grid(axis="y")
    return figure, axis


def _line(axis: Axes, values: Sequence[float | None], style: str, colour: str, label: str) -> None:
    """Draw a line over the levels. Unknown values leave a hole; a line of unknown values is not drawn."""
    numbers = np.array([np.nan if value is None else value for value in values], np.float64)
    if np.isfinite(numbers).any():
        axis.plot(range(len(numbers)), numbers, style, color=INK[colour], marker="o", markersize=4, label=label)


def accepted_by_level(curve: Sequence[Mapping[str, Any]]) -> str:
    """Share of real windows and of candidates that delta accepts at each quantile."""
    with mpl.rc_context(STYLE):
        figure, axis = _level_axis("Accepted at a delta", [row["level"] for row in curve])

        def percent(key: str) -> list[float | None]:
            return [None if row[key] is None else 100 * row[key] for row in curve]

        nominal = 100 * np.array([row["nominal"] for row in curve])
        axis.plot(range(len(curve)), nominal, ":", color=INK["muted"], linewidth=1.3, label="nominal")
        _line(axis, percent("real_accepted"), "-", "original", "real held-out windows")
        _line(axis, percent("first_accepted"), "-", "stitched", "first attempts")
        axis.set_ylabel("share accepted %")
        axis.set_ylim(0, 103)
        _legend(axis)
    return to_svg(figure, "Share accepted by delta")


def error_by_level(curve: Sequence[Mapping[str, Any]], noise_median: float | None) -> str:
    """Simulator error of the bridges that the buffer gives at each delta; ``noise_median``: that of real data with
    noise."""
    with mpl.rc_context(STYLE):
        figure, axis = _level_axis("How true it is at a delta", [row["level"] for row in curve])

        def errors(part: str, key: str) -> list[float | None]:
            return [None if row["simulator"] is None else row["simulator"][part][key] for row in curve]

        _line(axis, errors("step_error", "median"), "-", "stitched", "step: median")
        _line(axis, errors("step_error", "p90"), "--", "stitched", "step: 90 %")
        _line(axis, errors("largest_error", "median"), "-", "good", "largest of a bridge: median")
        if noise_median is not None:
            label = "real data + noise, step: median"
            axis.axhline(noise_median, linestyle=":", color=INK["joined"], linewidth=1.5, label=label)
        axis.set_yscale("log")
        axis.set_ylabel("simulator error (log)")
        _legend(axis)
    return to_svg(figure, "Simulator error by delta")


def residual_scatter(points: Mapping[str, Sequence[Any]]) -> str:
    """The judges' largest residual of each bridge against its largest simulator error."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axis = figure.subplots()
        residual, error = (_drawable(points[name]) for name in ("residual", "error"))
        accepted = np.asarray(points["accepted"], np.bool_)
        for rows, colour, label in ((accepted, "stitched", "accepted"), (~accepted, "bad", "rejected")):
            if rows.any():
                axis.scatter(
                    residual[rows], error[rows], s=14, color=INK[colour], alpha=0.55, linewidths=0, label=label
                )
        if len(residual):
            both = np.concatenate([residual, error])
            ends = [float(both.min()), float(both.max())]
            axis.plot(ends, ends, ":", color=INK["muted"], linewidth=1.2, label="equal")
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_title("Judges against the simulator")
        axis.set_xlabel("largest residual of a bridge by the judges (log)")
        axis.set_ylabel("largest simulator error (log)")
        axis.grid()
        _legend(axis, ncols=3)
    return to_svg(figure, "Residual against simulator error")


def _drawable(values: Sequence[float]) -> Array:
    return np.maximum(np.asarray(values, np.float64), FLOOR)
