"""Figures as inline SVG whose colours are CSS variables of the page, so that they follow light and dark."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path as MplPath
from numpy.typing import NDArray

from raystitch.data.plane import Ground
from raystitch.plot.drawing import (
    Array,
    BridgeLines,
    draw_bridges,
    draw_gaps,
    draw_outcomes,
    draw_recorded,
    draw_residuals,
    draw_walls,
    finish_ground,
)
from raystitch.plot.style import INK, STYLE


@contextmanager
def _figure(size: tuple[float, float]) -> Iterator[Figure]:
    """Yield a figure of ``size`` in inches to be drawn on in our style; pyplot has no part in it."""
    with mpl.rc_context(STYLE):
        yield Figure(figsize=size, layout="constrained")


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
    with _figure((10, 4.0 * ((len(panels) + 1) // 2))) as figure:
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
    with _figure((5, 0.75 + 0.42 * len(reasons))) as figure:
        draw_outcomes(figure.subplots(), reasons, counts)
    return to_svg(figure, "Candidates by outcome")


def residual_histogram(residual: Array, accepted: NDArray[np.bool_]) -> str:
    """Largest judge residual of each candidate on a log axis, accepted over rejected."""
    with _figure((5, 2.9)) as figure:
        draw_residuals(figure.subplots(), residual, accepted)
    return to_svg(figure, "Histogram of residuals")


def gap_histogram(gap: Array, accepted: NDArray[np.bool_]) -> str:
    """Generated states per candidate."""
    with _figure((5, 2.9)) as figure:
        draw_gaps(figure.subplots(), gap, accepted)
    return to_svg(figure, "Histogram of gaps")


def trajectories(ground: Ground, real: Sequence[Array], lines: Sequence[BridgeLines]) -> str:
    """Real trajectories, polylines [T, 2], and bridges with the real parts they join."""
    with _figure((10, _height(ground.walls))) as figure:
        left, right = figure.subplots(1, 2, sharex=True, sharey=True)
        draw_recorded(left, ground, real)
        handles = draw_bridges(right, ground, lines)
        figure.legend(handles=handles, loc="outside lower right", ncols=3)
        for axis in (left, right):
            finish_ground(axis, ground)
        right.set_ylabel("")
    return to_svg(figure, "Real and stitched trajectories")


@dataclass(frozen=True, kw_only=True)
class Way:
    """A long episode in the plane of the axes.

    Attributes:
        states: [N, 2], recorded states.
        records, bridges: polylines [T, 2] of the episode's recorded and generated parts.
    """

    ground: Ground
    states: Array
    records: Sequence[Array]
    bridges: Sequence[Array]


def long_way(way: Way) -> str:
    """Draw an episode of recorded parts and bridges over recorded states, with where it starts and ends."""
    with _figure((10, _height(way.ground.walls, 9.0))) as figure:
        axis = figure.subplots()
        draw_walls(axis, way.ground)
        # Dots as one path of lines without length: a tenth of the text of as many circles.
        dots = np.repeat(way.states, 2, axis=0)
        codes = np.tile(np.array([MplPath.MOVETO, MplPath.LINETO], np.uint8), len(way.states))
        path = MplPath(dots, codes)
        path.should_simplify = False
        axis.add_patch(PathPatch(path, fill=False, edgecolor=INK["real"], lw=1.8, alpha=0.55, capstyle="round"))
        for lines, colour, width in ((way.records, "joined", 1.8), (way.bridges, "stitched", 3.0)):
            axis.add_collection(LineCollection(list(lines), colors=INK[colour], linewidths=width, capstyle="round"))
        finish_ground(axis, way.ground)
        handles = [
            Line2D([], [], color=INK["real"], marker="o", markersize=3, linestyle="", label="recorded states"),
            Patch(color=INK["joined"], label="recorded parts of the episode"),
            Patch(color=INK["stitched"], label="bridges (generated)"),
        ]
        figure.legend(handles=handles, loc="outside lower right", ncols=3)
    return re.sub(r"(\d\.\d\d)\d+", r"\1", to_svg(figure, "A stitched episode from the start"))


def _height(walls: Array, of_maze: float = 4.5) -> float:
    """Height in inches of a figure 10 inches wide in which the maze is ``of_maze`` inches wide."""
    if not len(walls):
        return 5.2
    width, height = ((walls[:, axis] + walls[:, axis + 2]).max() - walls[:, axis].min() for axis in (0, 1))
    return float(np.clip(of_maze * height / width + 1.1, 2.5, 8.0))
