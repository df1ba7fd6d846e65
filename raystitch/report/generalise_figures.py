"""The pictures of a study: scaling, recovery, copying against coverage, training against held-out error."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raystitch.plot.style import INK, STYLE
from raystitch.report.figures import to_svg
from raystitch.report.stats import interval, mean
from raystitch.report.table import algorithm_name, short_name

SIZE = (5, 4.0)
MARKERS = ("o", "s", "^", "D", "v", "P")
ARM_COLOURS = {"original": "original", "weighted": "weighted", "joined": "joined", "stitched": "stitched"}

MOST_POINTS = 50

Row = Mapping[str, Any]


def _legend(axis: Axes, ncols: int = 2) -> None:
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=ncols, fontsize=8, columnspacing=1.0)


def _above(num_lines: int) -> tuple[float, float]:
    """Return the size of a figure over a legend of so many lines, whose labels may be long."""
    return SIZE[0], SIZE[1] + 0.17 * max(0, num_lines - 3)


def _scale(measure: str) -> float:
    return 100.0 if measure == "success_rate" else 1.0


def measure_name(measure: str) -> str:
    """Return how axes and tables call a measure of ``policies``."""
    return "success %" if measure == "success_rate" else "return"


def recovery(cells: Sequence[Row], measure: str) -> str:
    """Usual start against recovery from held-out states, a point per cell (mean over seeds), with the diagonal.

    Args:
        cells: ``algo, data, label, usual, held_out``; lists of values over seeds.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=_above(len(cells)), layout="constrained")
        axis = figure.subplots()
        ends: list[float] = []
        seen: Counter[str] = Counter()  # colours say what data, markers tell their cells apart
        for cell in cells:
            usual, held_out = (_scale(measure) * np.array(cell[name], np.float64) for name in ("usual", "held_out"))
            colour = INK.get(cell["data"], INK["muted"])
            axis.errorbar(
                usual.mean(),
                held_out.mean(),
                xerr=usual.std() if len(usual) > 1 else None,
                yerr=held_out.std() if len(held_out) > 1 else None,
                fmt=MARKERS[seen[cell["data"]] % len(MARKERS)],
                color=colour,
                elinewidth=0.8,
                markersize=6,
                label=f"{short_name(cell['algo'])}, {cell['label']}",
            )
            seen[cell["data"]] += 1
            ends += [usual.mean(), held_out.mean()]
        line = [min(ends), max(ends)] if max(ends) > min(ends) else [0.0, max(1.0, *ends)]
        axis.plot(line, line, ":", color=INK["muted"], linewidth=1.2)
        axis.set_title("Recovery against the usual start")
        axis.set_xlabel(f"usual start, {measure_name(measure)}")
        axis.set_ylabel(f"held-out low-return states, {measure_name(measure)}")
        axis.grid()
        _legend(axis, ncols=1)
    return to_svg(figure, "Recovery against the usual start")


def copying_against_coverage(by_delta: Sequence[Row], reference: float) -> str:
    """G1 against the gain of G2, a point per delta; ``reference``: G1 of real states."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axis = figure.subplots()
        places: dict[tuple[float, float], list[str]] = {}
        for row in by_delta:
            places.setdefault((row["copying"], 100 * row["gain"]), []).append(row["level"])
        x, y = np.array(list(places), np.float64).reshape(-1, 2).T
        axis.plot(x, y, "-", color=INK["grid"], linewidth=1.0)
        for number, ((at_x, at_y), levels) in enumerate(places.items()):
            marker, label = MARKERS[number % len(MARKERS)], f"delta {', '.join(levels)}"
            axis.scatter([at_x], [at_y], s=40, marker=marker, color=INK["stitched"], alpha=0.75, zorder=3, label=label)
        axis.axvline(reference, linestyle=":", color=INK["joined"], linewidth=1.4, label="real states")
        axis.axvline(0.8, linestyle="--", color=INK["bad"], linewidth=1.0, label="copied above")
        axis.set_xlim(min(0.4, x.min() - 0.03), max(1.0, x.max() + 0.03))
        axis.set_ylim(min(0.0, y.min()) - 0.1, max(1.0, 1.25 * y.max()))
        axis.set_title("Copying against coverage, by delta")
        axis.set_xlabel("G1: 0.5 new but alike, 1 copied")
        axis.set_ylabel("G2: held-out states gained, points")
        axis.grid()
        _legend(axis, ncols=3)
    return to_svg(figure, "Copying against coverage")


def action_errors(cells: Sequence[Row]) -> str:
    """Training against held-out action error, with the diagonal: a point per policy, of at most ``MOST_POINTS`` a cell.

    Args:
        cells: ``algo, data, label``, and lists ``train_error, held_out_error`` over seeds.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=_above(len(cells)), layout="constrained")
        axis = figure.subplots()
        algorithms = list(dict.fromkeys(cell["algo"] for cell in cells))
        ends: list[float] = []
        for cell in cells:
            axis.scatter(
                cell["train_error"][:MOST_POINTS],
                cell["held_out_error"][:MOST_POINTS],
                s=30,
                marker=MARKERS[algorithms.index(cell["algo"]) % len(MARKERS)],
                color=INK.get(cell["data"], INK["muted"]),
                alpha=0.8,
                linewidths=0,
                label=f"{short_name(cell['algo'])}, {cell['label']}",
            )
            ends += [*cell["train_error"][:MOST_POINTS], *cell["held_out_error"][:MOST_POINTS]]
        axis.plot([min(ends), max(ends)], [min(ends), max(ends)], ":", color=INK["muted"], linewidth=1.2)
        many = any(len(cell["train_error"]) > MOST_POINTS for cell in cells)
        axis.set_title("Action error of the trained policies" + f" ({MOST_POINTS} seeds a cell)" * many)
        axis.set_xlabel("training part, squared")
        axis.set_ylabel("held-out part, squared")
        axis.grid()
        _legend(axis, ncols=1)
    return to_svg(figure, "Action errors")


def error_curves(arms: Mapping[str, Sequence[Row]], title: str) -> str:
    """Held-out (full) and training (dotted) action error by gradient step, mean over seeds.

    Args:
        arms: name -> rows of ``step, train, held_out``, of all seeds.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axis = figure.subplots()
        for name, rows in arms.items():
            steps = sorted({row["step"] for row in rows})
            for part, style in (("held_out", "-"), ("train", ":")):
                means = [np.mean([row[part] for row in rows if row["step"] == step]) for step in steps]
                label = name if part == "held_out" else None
                marker = "o" if len(steps) == 1 else None
                axis.plot(steps, means, style, marker=marker, color=INK[ARM_COLOURS[name]], label=label)
        axis.set_title(title)
        axis.set_xlabel("gradient steps")
        axis.set_ylabel("action error (dotted: training)")
        axis.grid()
        _legend(axis)
    return to_svg(figure, title)


def scaling_curves(rows: Sequence[Row], measure: str) -> str:
    """Usual start and recovery against the share of the training episodes; bands are 95 % intervals over seeds.

    Args:
        rows: ``algo, arm, fraction, usual, held_out`` per policy.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        panels = figure.subplots(1, 2, sharex=True)
        for axis, name, title in zip(
            panels, ("usual", "held_out"), ("Usual start", "Recovery from held-out low-return states"), strict=True
        ):
            for arm in dict.fromkeys(row["arm"] for row in rows):
                _band(axis, [row for row in rows if row["arm"] == arm and row[name] is not None], name, arm, measure)
            axis.set_xscale("log")
            ticks = sorted({100 * row["fraction"] for row in rows})
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.minorticks_off()
            axis.set_title(title)
            axis.set_xlabel("training episodes %")
            axis.set_ylabel(measure_name(measure))
            axis.grid()
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        figure.suptitle(algorithm_name(rows[0]["algo"]), x=0.01, ha="left", fontsize=11)
    return to_svg(figure, "Scaling with the number of episodes")


def _band(axis: Axes, rows: Sequence[Row], name: str, arm: str, measure: str) -> None:
    fractions = sorted({row["fraction"] for row in rows})
    if not fractions:
        return
    found = [
        interval(_scale(measure) * np.array([row[name] for row in rows if row["fraction"] == fraction]), mean)
        for fraction in fractions
    ]
    x, colour = 100 * np.array(fractions), INK[ARM_COLOURS[arm]]
    axis.plot(x, [at.value for at in found], "-", marker="o", markersize=4, color=colour, label=arm)
    axis.fill_between(x, [at.low for at in found], [at.high for at in found], color=colour, alpha=0.13, linewidth=0)
