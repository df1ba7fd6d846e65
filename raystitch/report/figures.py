"""Figures as inline SVG whose colours are CSS variables of the page, so that they follow light and dark."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, PathPatch, Rectangle
from matplotlib.path import Path as MplPath
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Figures are drawn in these exact colours; the page's variables of the same name then replace them.
INK = {
    "text": "#0a0b01",
    "muted": "#0a0b02",
    "grid": "#0a0b03",
    "wall": "#0a0b04",
    "original": "#0a0b05",
    "joined": "#0a0b06",
    "stitched": "#0a0b07",
    "bad": "#0a0b08",
    "surface": "#0a0b09",
    "real": "#0a0b0a",
    "good": "#0a0b0b",
    "weighted": "#0a0b0c",
    "duplicated": "#0a0b0d",
}
STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK["text"],
    "axes.edgecolor": INK["grid"],
    "axes.labelcolor": INK["muted"],
    "axes.titlecolor": INK["text"],
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": INK["muted"],
    "ytick.color": INK["muted"],
    "grid.color": INK["grid"],
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
}


def to_svg(figure: Figure, title: str) -> str:
    """Return the figure as an ``<svg>`` element; ``title`` describes it to screen readers and keeps its ids apart."""
    buffer = io.StringIO()
    with mpl.rc_context({**STYLE, "svg.hashsalt": title}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"<g id=\"[^\"]*\">", "<g>", svg)
    svg = re.sub(r"font-family: [^;\"]*;?", "", svg)
    svg = re.sub(r"font: ([0-9.]+px)[^;\"]*", r"font-size: \1", svg)
    for name, colour in INK.items():
        svg = svg.replace(colour, f"var(--{name})")
    label = title.replace("&", "and").replace('"', "'").replace("<", "")
    sized = r'<svg ([^>]*?)width="[0-9.]+pt" height="[0-9.]+pt"'
    return re.sub(sized, rf'<svg role="img" aria-label="{label}" \1', svg, count=1)


@dataclass(frozen=True)
class Curve:
    """A measure along training: ``values`` [S, P] over S seeds at ``steps`` [P]."""

    label: str
    data: str
    emphasis: bool
    steps: Array
    values: Array


SHORT_LABEL = 32
"""Letters of a label up to which two fit beside each other under a panel."""


def learning_curves(panels: Mapping[str, Sequence[Curve]], ylabel: str, ylim: tuple[float, float] | None = None) -> str:
    """One panel per algorithm; lines are means over seeds, bands their range."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 4.0 * ((len(panels) + 1) // 2)), layout="constrained")
        axes = figure.subplots((len(panels) + 1) // 2, min(2, len(panels)), squeeze=False)
        for axis in axes.flat[len(panels) :]:
            axis.remove()
        for axis, (title, curves) in zip(axes.flat, panels.items(), strict=False):
            dashes = iter(("-", "--", "-.", ":") * len(curves))
            for curve in curves:
                style = next(dashes) if curve.data == "stitched" else "-"
                colour, width = INK.get(curve.data, INK["muted"]), 2.2 if curve.emphasis else 1.3
                axis.plot(
                    curve.steps,
                    curve.values.mean(0),
                    style,
                    color=colour,
                    linewidth=width,
                    label=curve.label,
                )
                if len(curve.values) > 1 and curve.emphasis:
                    low, high = curve.values.min(0), curve.values.max(0)
                    axis.fill_between(curve.steps, low, high, color=colour, alpha=0.13, linewidth=0)
            axis.set_title(title)
            axis.set_xlabel("gradient steps")
            axis.set_ylabel(ylabel)
            axis.grid(axis="y")
            beside = all(len(curve.label) <= SHORT_LABEL for curve in curves)
            axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2 if beside else 1)
            if ylim is not None:
                axis.set_ylim(*ylim)
    return to_svg(figure, "Learning curves")


def acceptance(reasons: Sequence[str], counts: Mapping[str, Sequence[int]]) -> str:
    """Candidates by reason; ``counts``: kind of attempt -> count per reason."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5, 0.75 + 0.42 * len(reasons)), layout="constrained")
        axis = figure.subplots()
        total = max(1, sum(sum(values) for values in counts.values()))
        left = np.zeros(len(reasons))
        colours = [INK["good"] if reason == "ok" else INK["bad"] for reason in reasons]
        for kind, values in counts.items():
            alpha = 1.0 if kind == "first attempt" else 0.5
            axis.barh(range(len(reasons)), values, left=left, color=colours, alpha=alpha, height=0.62)
            left += np.asarray(values, np.float64)
        for row, value in enumerate(left):
            text = f"{int(value):,} ({100 * value / total:.0f} %)"
            axis.annotate(text, (value, row), xytext=(6, 0), textcoords="offset points", va="center", color=INK["text"])
        axis.set_yticks(range(len(reasons)), [REASON_NAMES.get(reason, reason) for reason in reasons])
        axis.invert_yaxis()
        axis.set_xlim(0, max(1.0, left.max()) * 1.28)
        axis.set_xticks([])
        axis.spines[["bottom", "left"]].set_visible(False)
        axis.tick_params(length=0)
        axis.set_title("Candidates by outcome")
        if len(counts) > 1:
            axis.set_xlabel("pale: repaired attempts")
    return to_svg(figure, "Candidates by outcome")


REASON_NAMES = {
    "ok": "accepted",
    "residual": "residual too large",
    "termination": "may terminate",
    "return": "no gain in return",
    "non_finite": "not finite",
}


def residual_histogram(residual: Array, accepted: NDArray[np.bool_]) -> str:
    """Largest judge residual of each candidate on a log axis, accepted over rejected."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5, 2.9), layout="constrained")
        axis = figure.subplots()
        usable = np.isfinite(residual)
        values = np.maximum(residual[usable], 1e-6)
        if values.size:
            low, high = np.percentile(values, [0.2, 99.8])
            bins = np.geomspace(low * 0.95, max(high, low * 1.1) * 1.05, 45)
            groups = [
                np.clip(values[~accepted[usable]], bins[0], bins[-1]),
                np.clip(values[accepted[usable]], bins[0], bins[-1]),
            ]
            _stacked(axis, groups, bins)
            axis.set_xscale("log")
        axis.set_title("Largest residual of a bridge")
        axis.set_xlabel("squared L2, standardised units (log)")
    return to_svg(figure, "Histogram of residuals")


def gap_histogram(gap: Array, accepted: NDArray[np.bool_]) -> str:
    """Generated states per candidate."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5, 2.9), layout="constrained")
        axis = figure.subplots()
        if gap.size:
            bins = np.arange(gap.min() - 0.5, gap.max() + 1)
            _stacked(axis, [gap[~accepted], gap[accepted]], bins)
        axis.set_title("Gap")
        axis.set_xlabel("generated states per bridge")
    return to_svg(figure, "Histogram of gaps")


def _stacked(axis: Axes, groups: Sequence[Array], bins: Array) -> None:
    colours = [INK["bad"], INK["good"]]
    axis.hist(
        groups[::-1], bins=bins.tolist(), stacked=True, color=colours[::-1], label=["accepted", "rejected"], rwidth=0.92
    )
    axis.set_ylabel("candidates")
    axis.grid(axis="y")
    axis.legend(loc="lower right", bbox_to_anchor=(1.0, 0.99), ncols=2, borderaxespad=0.2, columnspacing=1.2)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A picture in the plane of the axes.

    Attributes:
        walls: [W, 4] x, y of the lower left corner, width, height; empty outside mazes.
        marks: (text, x, y) of places with a name.
        real: polylines [T, 2] of the dataset; ``prefixes``, ``bridges``, ``suffixes``: polylines of accepted bridges.
    """

    xlabel: str
    ylabel: str
    walls: Array
    marks: Sequence[tuple[str, float, float]]
    real: Sequence[Array]
    prefixes: Sequence[Array]
    bridges: Sequence[Array]
    suffixes: Sequence[Array]


def trajectories(scene: Scene) -> str:
    """Real trajectories, and bridges with the real parts they join."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, _height(scene.walls)), layout="constrained")
        left, right = figure.subplots(1, 2, sharex=True, sharey=True)
        for axis in (left, right):
            _draw_walls(axis, scene.walls)
            axis.set_xlabel(scene.xlabel)
        left.add_collection(LineCollection(list(scene.real), colors=INK["real"], linewidths=0.7, alpha=0.45))
        left.set_title("Real trajectories")
        left.set_ylabel(scene.ylabel)
        right.add_collection(LineCollection(list(scene.prefixes), colors=INK["original"], linewidths=1.0, alpha=0.6))
        right.add_collection(LineCollection(list(scene.suffixes), colors=INK["joined"], linewidths=1.0, alpha=0.6))
        right.add_collection(LineCollection(list(scene.bridges), colors=INK["stitched"], linewidths=2.2, alpha=0.9))
        for ends, colour in ((0, "original"), (-1, "joined")):
            points = np.array([line[ends] for line in scene.bridges]).reshape(-1, 2)
            right.scatter(*points.T, s=12, color=INK[colour], edgecolors=INK["surface"], linewidths=0.5, zorder=3)
        right.set_title("Stitched: source, bridge, target")
        handles = [
            Patch(color=INK["original"], label="source (real)"),
            Patch(color=INK["stitched"], label="bridge (generated)"),
            Patch(color=INK["joined"], label="target (real)"),
        ]
        figure.legend(handles=handles, loc="outside lower right", ncols=3)
        for axis in (left, right):
            _draw_marks(axis, scene.marks)
            axis.autoscale_view()
            _frame(axis, scene.walls)
    return to_svg(figure, "Real and stitched trajectories")


@dataclass(frozen=True, kw_only=True)
class Way:
    """A long episode in the plane of the axes.

    Attributes:
        walls, marks: as of ``Scene``. states: [N, 2], recorded states.
        records, bridges: polylines [T, 2] of the episode's recorded and generated parts.
    """

    xlabel: str
    ylabel: str
    walls: Array
    marks: Sequence[tuple[str, float, float]]
    states: Array
    records: Sequence[Array]
    bridges: Sequence[Array]


def long_way(way: Way) -> str:
    """Draw an episode of recorded parts and bridges over recorded states, with where it starts and ends."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, _height(way.walls, 9.0)), layout="constrained")
        axis = figure.subplots()
        _draw_walls(axis, way.walls)
        # Dots as one path of lines without length: a tenth of the text of as many circles.
        dots = np.repeat(way.states, 2, axis=0)
        codes = np.tile(np.array([MplPath.MOVETO, MplPath.LINETO], np.uint8), len(way.states))
        path = MplPath(dots, codes)
        path.should_simplify = False
        axis.add_patch(PathPatch(path, fill=False, edgecolor=INK["real"], lw=1.8, alpha=0.55, capstyle="round"))
        for lines, colour, width in ((way.records, "joined", 1.8), (way.bridges, "stitched", 3.0)):
            axis.add_collection(LineCollection(list(lines), colors=INK[colour], linewidths=width, capstyle="round"))
        _draw_marks(axis, way.marks)
        axis.set_xlabel(way.xlabel)
        axis.set_ylabel(way.ylabel)
        axis.autoscale_view()
        _frame(axis, way.walls)
        handles = [
            Line2D([], [], color=INK["real"], marker="o", markersize=3, linestyle="", label="recorded states"),
            Patch(color=INK["joined"], label="recorded parts of the episode"),
            Patch(color=INK["stitched"], label="bridges (generated)"),
        ]
        figure.legend(handles=handles, loc="outside lower right", ncols=3)
    return re.sub(r"(\d\.\d\d)\d+", r"\1", to_svg(figure, "A stitched episode from the start"))


def _draw_walls(axis: Axes, walls: Array) -> None:
    for x, y, width, height in walls:
        axis.add_patch(Rectangle((x, y), width, height, facecolor=INK["wall"], edgecolor=INK["wall"], lw=0.5))


def _draw_marks(axis: Axes, marks: Sequence[tuple[str, float, float]]) -> None:
    for text, x, y in marks:
        axis.scatter([x], [y], marker="*" if text == "goal" else "o", s=70, color=INK["text"], zorder=4)
        axis.annotate(text, (x, y), xytext=(6, 6), textcoords="offset points", color=INK["text"], fontsize=9)


def _frame(axis: Axes, walls: Array) -> None:
    axis.spines[["left", "bottom"]].set_visible(not len(walls))
    if len(walls):
        axis.set_aspect("equal")
        axis.tick_params(length=0)


def _height(walls: Array, of_maze: float = 4.5) -> float:
    """Height in inches of a figure 10 inches wide in which the maze is ``of_maze`` inches wide."""
    if not len(walls):
        return 5.2
    width, height = ((walls[:, axis] + walls[:, axis + 2]).max() - walls[:, axis].min() for axis in (0, 1))
    return float(np.clip(of_maze * height / width + 1.1, 2.5, 8.0))
