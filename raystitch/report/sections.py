"""The report's sections about policies: HTML from the summary of the results."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from raystitch.report.figures import Curve, learning_curves
from raystitch.report.stats import Interval, interval, mean
from raystitch.report.summary import ALGORITHM_NAMES, SUCCESS, Line, Metric, Summary


def section(title: str, body: str, note: str = "") -> str:
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{note}{body}</section>"


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, wide: bool = False) -> str:
    """A table whose columns after the first are right-aligned; cells are escaped here."""
    top = "".join(f'<th class="{"num" if at else ""}">{escape(text)}</th>' for at, text in enumerate(head))
    body = "".join(
        "<tr>"
        + "".join(f'<td class="{"num" if at else ""}">{escape(cell)}</td>' for at, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table class="{"wide" if wide else ""}"><tr>{top}</tr>{body}</table></div>'


def verdict(summary: Summary) -> str:
    lines = "".join(f"<p>{escape(text)}</p>" for text in summary.verdicts)
    return f'<section class="verdict"><h2>Did stitching help?</h2>{lines}</section>'


def _limits(summary: Summary) -> tuple[float, float]:
    values = [value for line in summary.lines for value in line.values.values()]
    if summary.metric is SUCCESS or not values:
        return 0.0, 1.0
    low, high = min(0.0, *values), max(values)
    return low, high if high > low else low + 1.0


def _forest(line: Line, limits: tuple[float, float]) -> str:
    """Seeds as dots, the interval as a bar, the mean as a tick, on an axis that all lines share."""
    low, high = limits

    def x(value: float) -> float:
        return 6 + 228 * (min(max(value, low), high) - low) / (high - low)

    parts = ['<line x1="6" x2="234" y1="10" y2="10" stroke="var(--line)"/>']
    colour = f"var(--{line.data})"
    if line.mean is not None:
        left, right = x(line.mean.low), x(line.mean.high)
        parts.append(
            f'<rect x="{left:.1f}" y="6" width="{max(right - left, 2):.1f}" height="8" rx="4" '
            f'fill="{colour}" opacity=".28"/>'
        )
        at = x(line.mean.value)
        parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="2" y2="18" stroke="{colour}" stroke-width="2.5"/>')
    parts += [
        f'<circle cx="{x(value):.1f}" cy="10" r="3.2" fill="{colour}" stroke="var(--surface)">'
        f"<title>seed {seed}</title></circle>"
        for seed, value in line.values.items()
    ]
    return f'<svg class="forest" viewBox="0 0 240 20" aria-hidden="true">{"".join(parts)}</svg>'


def _difference(at: Interval | None, metric: Metric) -> str:
    if at is None:
        return '<span class="dim">–</span>'
    sign = "+" if at.value > 0 else ""
    scale, digits = metric.scale, 0 if metric is SUCCESS else 1
    text = f"{sign}{at.value * scale:.{digits}f}"
    if at.num_seeds < 2:
        return f'<span class="dim">{text}</span>'
    kind = {1: "up", -1: "down", 0: "dim"}[at.sign]
    return f'<span class="{kind}">{text} [{at.low * scale:.{digits}f}, {at.high * scale:.{digits}f}]</span>'


def results(summary: Summary, headline: tuple[str, str | None]) -> str:
    metric, limits = summary.metric, _limits(summary)
    low, high = (metric.show(limit) for limit in limits)
    heads = [
        "training data",
        f"{metric.name}: {low} to {high}",
        "mean [95 %]",
        "IQM",
        "over original",
        "P(better)",
        "over joined",
    ]
    heads += ["success"] * (metric is not SUCCESS) + ["seeds"]
    rows: list[str] = []
    for algo in summary.algorithms:
        rows.append(f'<tr class="group"><td colspan="{len(heads)}">{escape(ALGORITHM_NAMES.get(algo, algo))}</td></tr>')
        for line in (line for line in summary.lines if line.algo == algo):
            cells = [
                f'<span class="dot" style="background:var(--{line.data})"></span>{escape(line.label)}',
                _forest(line, limits),
                metric.show_interval(line.mean) if line.mean else "–",
                metric.show(line.iqm.value) if line.iqm else "–",
                _difference(line.over_original, metric),
                '<span class="dim">–</span>' if line.improvement is None else f"{100 * line.improvement:.0f} %",
                _difference(line.over_joined, metric),
            ]
            if metric is not SUCCESS:
                cells.append(SUCCESS.show_interval(line.success) if line.success else "–")
            failed = f' <span class="down">{line.num_failed} failed</span>' if line.num_failed else ""
            cells.append(f"{len(line.values)}{failed}")
            chosen = line.data == "stitched" and (line.ratio, line.delta) == headline
            rows.append(f"<tr{' class=chosen' if chosen else ''}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    seeds = max((len(line.values) for line in summary.lines), default=0)
    note = (
        "Each dot is one seed (its last checkpoint), the bar a 95 % bootstrap interval of the mean over seeds. "
        "Differences are paired by seed, of inter-quartile means; P(better) is the share of pairs of seeds that beat "
        "the original data. The marked row was chosen before running."
    )
    if seeds < 5:
        note += f" With {seeds} seeds an interval says little more than the dots do."
    return section(
        "Results", f'<div class="scroll"><table class="wide"><tr>{top}</tr>{"".join(rows)}</table></div>', note
    )


def heat_maps(summary: Summary, headline: tuple[str, str | None]) -> str:
    """One r x delta table per algorithm that has more than one stitched cell, shaded by the metric."""
    low, high = _limits(summary)
    maps: list[str] = []
    for algo in summary.algorithms:
        lines = {(line.ratio, line.delta): line for line in summary.find(algo, "stitched")}
        if not lines:
            continue
        ratios, deltas = list(dict.fromkeys(r for r, _ in lines)), list(dict.fromkeys(d for _, d in lines))
        rows = ["<tr><th></th>" + "".join(f"<th>r = {escape(ratio)}</th>" for ratio in ratios) + "</tr>"]
        for delta in deltas:
            cells = ""
            for ratio in ratios:
                line = lines.get((ratio, delta))
                if line is None or line.mean is None:
                    cells += '<td class="cell dim">–</td>'
                    continue
                share = 6 + 52 * (line.mean.value - low) / (high - low)
                pick = " pick" if (ratio, delta) == headline else ""
                shade = f"color-mix(in srgb, var(--stitched) {share:.0f}%, var(--surface))"
                spread = f"{summary.metric.show(line.mean.low)} – {summary.metric.show(line.mean.high)}"
                cells += (
                    f'<td class="cell{pick}" style="background:{shade}"><b>{summary.metric.show(line.mean.value)}</b>'
                    f"<small>{spread if line.mean.num_seeds > 1 else 'one seed'}</small></td>"
                )
            rows.append(f"<tr><th>delta = {escape(str(delta))}</th>{cells}</tr>")
        base = [line for line in summary.lines if line.algo == algo and line.data != "stitched" and line.mean]
        beside = ", ".join(f"{line.label} {summary.metric.show(line.mean.value)}" for line in base if line.mean)
        title = escape(ALGORITHM_NAMES.get(algo, algo))
        maps.append(
            f'<div><h3>{title}</h3><table class="heat">{"".join(rows)}</table>'
            f'<p class="note">Baselines: {escape(beside) or "none"}.</p></div>'
        )
    if not maps:
        return ""
    note = (
        f"Mean {summary.metric.name} over seeds. Columns: original : augmented in every batch. "
        "Rows: the largest residual a bridge may have."
    )
    return section("Ratio and delta", f'<div class="heats">{"".join(maps)}</div>', note)


def target_returns(rows: Sequence[Mapping[str, Any]], metric: Metric) -> str:
    """All returns the Decision Transformer was asked for; empty when there is only one."""
    asked = sorted({row["target_return"] for row in rows if row["target_return"] is not None}, reverse=True)
    if len(asked) < 2:
        return ""
    cells: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        if row["target_return"] is not None and row["status"] == "ok" and row[metric.column] is not None:
            label = " ".join(str(row[name]) for name in ("algo", "data", "ratio", "delta") if row[name] is not None)
            cells.setdefault(label, {}).setdefault(row["target_return"], []).append(row[metric.column])

    def show(values: Sequence[float]) -> str:
        return metric.show_interval(interval(np.array(values), mean)) if values else "–"

    body = [[label, *(show(by_target.get(target, [])) for target in asked)] for label, by_target in cells.items()]
    headline = next(
        (row["target_return"] for row in rows if row["headline"] and row["target_return"] is not None), None
    )
    note = f"Every return asked for, {metric.name}. The one reported above, {headline:g}, was chosen before running."
    return section("Returns asked for", html_table(["trained on", *(f"{target:g}" for target in asked)], body), note)


def curves(
    summary: Summary, rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any], headline: tuple[str, str | None]
) -> str:
    """Evaluations during training, mean over seeds."""
    column = summary.metric.column
    panels: dict[str, list[Curve]] = {}
    for line in summary.lines:
        ids = {
            row["trial_id"]
            for row in rows
            if (row["algo"], row["data"], row["ratio"], row["delta"]) == (line.algo, line.data, line.ratio, line.delta)
        }
        series = [points for trial in sorted(ids) if (points := _evaluations(metrics[trial], column))]
        steps = sorted(set.intersection(*(set(points) for points in series))) if series else []
        if not steps:
            continue
        values = np.array([[points[step] for step in steps] for points in series]) * summary.metric.scale
        chosen = line.data != "stitched" or (line.ratio, line.delta) == headline
        panel = panels.setdefault(ALGORITHM_NAMES.get(line.algo, line.algo), [])
        panel.append(Curve(line.label, line.data, chosen, np.array(steps, np.float64), values))
    if not panels:
        return ""
    ylim = (-3.0, 103.0) if summary.metric is SUCCESS else None
    svg = learning_curves(panels, f"{summary.metric.name}{summary.metric.unit}", ylim)
    note = (
        "Evaluations during training, on fewer episodes than the final one and with other seeds; "
        "the line is the mean over seeds, the band their range."
    )
    return section("Learning curves", f"<figure>{svg}</figure>", note)


def _evaluations(entries: Sequence[Mapping[str, Any]], column: str) -> dict[int, float]:
    """Step -> measure; of several target returns the first, which is the headline's."""
    points: dict[int, float] = {}
    for entry in entries:
        if entry.get("kind") == "eval" and entry.get(column) is not None:
            points.setdefault(int(entry["step"]), float(entry[column]))
    return points
