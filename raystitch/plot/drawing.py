"""What the report and the public plots draw alike: functions that take axes and numbers, and set no style.

Legend: N candidates, T points of a line.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from raystitch.data.plane import Ground
from raystitch.plot.style import INK

Array = NDArray[np.float64]

REASON_NAMES = {
    "ok": "accepted",
    "residual": "residual too large",
    "spread": "judges disagree",
    "rollout": "roll-out goes elsewhere",
    "termination": "may terminate",
    "return": "no gain in return",
    "non_finite": "not finite",
}
RESIDUAL_LABEL = "squared L2, standardised units (log)"
BELOW_LEGEND = 0.83
"""Share of the height of a histogram that its bars fill."""
FIRST, REPAIRED = "first attempt", "repaired"
"""Kinds of attempt."""


@dataclass(frozen=True, kw_only=True)
class BridgeLines:
    """A bridge and the parts that it joins as polylines [T, 2] in a plane; the parts may be the states joined alone."""

    before: Array
    bridge: Array
    after: Array


def draw_walls(axis: Axes, ground: Ground) -> None:
    """Draw the walls of a maze."""
    for x, y, width, height in ground.walls:
        axis.add_patch(Rectangle((x, y), width, height, facecolor=INK["wall"], edgecolor=INK["wall"], lw=0.5))


def draw_recorded(axis: Axes, ground: Ground, lines: Sequence[Array]) -> None:
    """Draw recorded trajectories, polylines [T, 2]."""
    draw_walls(axis, ground)
    axis.add_collection(LineCollection(list(lines), colors=INK["real"], linewidths=0.7, alpha=0.45))
    axis.set_title("Real trajectories")


def draw_bridges(axis: Axes, ground: Ground, lines: Sequence[BridgeLines]) -> list[Patch]:
    """Draw bridges with the parts that they join; return what a legend of it shows."""
    draw_walls(axis, ground)
    for parts, colour, width, alpha in (
        ([line.before for line in lines], "original", 1.0, 0.6),
        ([line.after for line in lines], "joined", 1.0, 0.6),
        ([line.bridge for line in lines], "stitched", 2.2, 0.9),
    ):
        axis.add_collection(LineCollection(parts, colors=INK[colour], linewidths=width, alpha=alpha))
    for end, colour in ((0, "original"), (-1, "joined")):
        _draw_dots(axis, np.array([line.bridge[end] for line in lines]).reshape(-1, 2), colour, size=12)
    axis.set_title("Stitched: source, bridge, target")
    return [
        Patch(color=INK["original"], label="source (real)"),
        Patch(color=INK["stitched"], label="bridge (generated)"),
        Patch(color=INK["joined"], label="target (real)"),
    ]


def draw_bridge(axis: Axes, ground: Ground, lines: BridgeLines, behind: Sequence[Array] = ()) -> None:
    """Draw one bridge, state by state, with the parts that it joins over thin lines of other trajectories."""
    draw_walls(axis, ground)
    axis.add_collection(LineCollection(list(behind), colors=INK["real"], linewidths=0.6, alpha=0.2))
    _draw_part(axis, lines.before, "original", "source")
    look = {"color": INK["stitched"], "linewidth": 1.6, "marker": "o", "markersize": 3.6}
    axis.plot(*lines.bridge.T, **look, label="bridge (generated)")
    _draw_part(axis, lines.after, "joined", "target")
    ends = [("state left", "original", lines.before), ("state entered", "joined", lines.after)]
    for (label, colour, part), point in zip(ends, lines.bridge[[0, -1]], strict=True):
        _draw_dots(axis, point[None], colour, size=46, label=label if len(part) < 2 else None)


def _draw_part(axis: Axes, part: Array, colour: str, label: str) -> None:
    """Draw the source or the target of a bridge, where more is known of it than the state that the bridge joins."""
    if len(part) > 1:
        axis.plot(*part.T, color=INK[colour], linewidth=2.6, solid_capstyle="round", label=label)


def _draw_dots(axis: Axes, points: Array, colour: str, size: float, label: str | None = None) -> None:
    look = {"color": INK[colour], "edgecolors": INK["surface"], "linewidths": 0.5}
    axis.scatter(*points.T, s=size, zorder=3, label=label, **look)


def finish_ground(axis: Axes, ground: Ground) -> None:
    """Name the places and the axes of a picture of states, and fit its limits to what was drawn."""
    for text, x, y in ground.marks:
        axis.scatter([x], [y], marker="*" if text == "goal" else "o", s=70, color=_text(), zorder=4)
        axis.annotate(text, (x, y), xytext=(6, 6), textcoords="offset points", color=_text(), fontsize=9)
    axis.set_xlabel(ground.xlabel)
    axis.set_ylabel(ground.ylabel)
    axis.autoscale_view()
    axis.spines[["left", "bottom"]].set_visible(not len(ground.walls))
    if len(ground.walls):
        axis.set_aspect("equal")
        axis.tick_params(length=0)


def _text() -> Any:
    return mpl.rcParams["text.color"]


def draw_outcomes(axis: Axes, reasons: Sequence[str], counts: Mapping[str, Sequence[int]]) -> None:
    """Draw how many candidates there are of each reason; ``counts``: kind of attempt -> count per reason."""
    total = max(1, sum(sum(values) for values in counts.values()))
    left = np.zeros(len(reasons))
    colours = [INK["good"] if reason == "ok" else INK["bad"] for reason in reasons]
    for kind, values in counts.items():
        alpha = 1.0 if kind == FIRST else 0.5
        axis.barh(range(len(reasons)), values, left=left, color=colours, alpha=alpha, height=0.62)
        left += np.asarray(values, np.float64)
    for row, value in enumerate(left):
        text = f"{int(value):,} ({100 * value / total:.0f} %)"
        axis.annotate(text, (value, row), xytext=(6, 0), textcoords="offset points", va="center", color=_text())
    axis.set_yticks(range(len(reasons)), [REASON_NAMES.get(reason, reason) for reason in reasons])
    axis.invert_yaxis()
    axis.set_xlim(0, max(1.0, left.max(initial=0.0)) * 1.28)
    axis.set_xticks([])
    axis.spines[["bottom", "left"]].set_visible(False)
    axis.tick_params(length=0)
    axis.set_title("Candidates by outcome")
    if len(counts) > 1:
        axis.set_xlabel("pale: repaired attempts")


def draw_residuals(axis: Axes, residual: Array, accepted: NDArray[np.bool_]) -> None:
    """Draw the largest judge residual of each candidate [N] on a log axis, accepted over rejected."""
    usable = np.isfinite(residual)
    values = np.maximum(residual[usable], 1e-6)
    if values.size:
        low, high = np.percentile(values, [0.2, 99.8])
        bins = np.geomspace(low * 0.95, max(high, low * 1.1) * 1.05, 45)
        groups = [np.clip(values[rows], bins[0], bins[-1]) for rows in (~accepted[usable], accepted[usable])]
        _stacked(axis, groups, bins)
        axis.set_xscale("log")
        decades = np.log10(bins[-1] / bins[0])
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 3 else (1.0, 2.0, 5.0)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_title("Largest residual of a bridge")
    axis.set_xlabel(RESIDUAL_LABEL)


def draw_gaps(axis: Axes, gap: Array, accepted: NDArray[np.bool_]) -> None:
    """Draw the generated states per candidate [N], accepted over rejected."""
    if gap.size:
        bins = np.arange(gap.min() - 0.5, gap.max() + 1)
        _stacked(axis, [gap[~accepted], gap[accepted]], bins)
    axis.set_title("Gap")
    axis.set_xlabel("generated states per bridge")


def _stacked(axis: Axes, groups: Sequence[Array], bins: Array) -> None:
    colours = [INK["bad"], INK["good"]]
    counts, _, _ = axis.hist(
        groups[::-1], bins=bins.tolist(), stacked=True, color=colours[::-1], label=["accepted", "rejected"], rwidth=0.92
    )
    axis.set_ylim(0, float(np.max(np.asarray(counts))) / BELOW_LEGEND)
    axis.set_ylabel("candidates")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(axis="y")
    axis.legend(loc="upper right", ncols=2, borderaxespad=0.2, columnspacing=1.2)


def draw_returns(axis: Axes, groups: Mapping[str, Array]) -> None:
    """Draw one dot per episode and the mean of each group of returns, undiscounted."""
    rng = np.random.default_rng(0)  # spreads the dots of a row, nothing else
    for row, (name, returns) in enumerate(groups.items()):
        colour, height = INK.get(name, INK["real"]), row + rng.uniform(-0.18, 0.18, len(returns))
        axis.scatter(returns, height, s=16, color=colour, alpha=0.45, linewidths=0)
        mean = float(returns.mean())
        axis.plot([mean, mean], [row - 0.3, row + 0.3], color=colour, linewidth=2.4, solid_capstyle="round")
        axis.annotate(f"{mean:.3g}", (mean, row - 0.34), va="bottom", ha="center", color=_text(), fontsize=9)
    axis.set_yticks(range(len(groups)), list(groups))
    axis.set_ylim(len(groups) - 0.4, -0.7)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.grid(axis="x")
    axis.set_title("Returns of episodes, and their means")
    axis.set_xlabel("undiscounted return")
