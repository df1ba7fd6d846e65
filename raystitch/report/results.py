"""The page's tables of scores: every cell of the grid, and each stitched cell against every baseline."""

from collections.abc import Sequence
from html import escape

from raystitch.report.html import section
from raystitch.report.stats import Comparison
from raystitch.report.summary import RETURN, SUCCESS, Line, Metric, Summary
from raystitch.report.table import UNQUALIFIED, algorithm_name

MOST_DOTS = 50
DASH = '<span class="dim">–</span>'


def limits(summary: Summary) -> tuple[float, float]:
    """Return the limits of an axis that shows all values, in stored units."""
    values = [value for line in summary.lines for value in line.values.values()]
    if summary.metric is SUCCESS or not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _forest(line: Line, summary: Summary) -> str:
    """Seeds as dots, the interval as a bar, the inter-quartile mean as a tick, on an axis that all lines share.

    Of more than ``MOST_DOTS`` seeds, those at even ranks from the least to the largest.
    """
    low, high = limits(summary)

    def x(value: float) -> float:
        return 6 + 148 * (min(max(value, low), high) - low) / (high - low)

    parts = ['<line x1="6" x2="154" y1="10" y2="10" stroke="var(--line)"/>']
    colour = f"var(--{line.data})"
    if line.iqm is not None:
        left, right = x(line.iqm.low), x(line.iqm.high)
        parts.append(
            f'<rect x="{left:.1f}" y="6" width="{max(right - left, 2):.1f}" height="8" rx="4" '
            f'fill="{colour}" opacity=".28"/>'
        )
        at = x(line.iqm.value)
        parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="2" y2="18" stroke="{colour}" stroke-width="2.5"/>')
    parts += [
        f'<circle cx="{x(value):.1f}" cy="10" r="3.2" fill="{colour}" stroke="var(--surface)">'
        f"<title>seed {seed}: {escape(summary.metric.show(value))}</title></circle>"
        for seed, value in _dots(line)
    ]
    return f'<svg class="forest" viewBox="0 0 160 20" aria-hidden="true">{"".join(parts)}</svg>'


def _dots(line: Line) -> Sequence[tuple[int, float]]:
    seeds = [*line.values.items()]
    if len(seeds) <= MOST_DOTS:
        return seeds
    ranked = sorted(seeds, key=lambda seed: seed[1])
    return [ranked[round(place * (len(ranked) - 1) / (MOST_DOTS - 1))] for place in range(MOST_DOTS)]


def _difference(at: Comparison | None, metric: Metric) -> str:
    if at is None:
        return DASH
    kind = {1: "up", -1: "down", 0: "dim"}[at.difference.sign]
    return f'<span class="{kind}">{metric.show_difference(at.difference)}</span>'


def _p_value(p: float) -> str:
    return "p &lt; 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def results(summary: Summary) -> str:
    """One line per cell of the grid: the metric, the other known measures, and the difference to the original data."""
    metric = summary.metric
    low, high = (metric.show(limit) for limit in limits(summary))
    others = [measure for measure in summary.measures if measure is not metric]
    heads = ["training data", f"{metric.name} {low}\u00a0–\u00a0{high}", "IQM [95 %]", "mean"]
    heads += [f"raw {measure.name}" if measure is RETURN else measure.name for measure in others]
    heads += ["over original", "P(better)", "seeds"]
    rows: list[str] = []
    for algo in summary.algorithms:
        rows.append(f'<tr class="group"><td colspan="{len(heads)}">{escape(algorithm_name(algo))}</td></tr>')
        for line in (line for line in summary.lines if line.algo == algo):
            over = line.over_original
            cells = [
                f'<span class="dot" style="background:var(--{line.data})"></span>{escape(line.label)}',
                _forest(line, summary),
                metric.show_interval(line.iqm) if line.iqm else DASH,
                metric.show(line.means[metric.column].value) if line.iqm else DASH,
                *(_mean(line, measure) for measure in others),
                _difference(over, metric),
                DASH if over is None else f"{100 * over.improvement.value:.0f} %",
                _seeds(line),
            ]
            chosen = " class=chosen" if summary.is_headline(line) else ""
            rows.append(f"<tr{chosen}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    seeds = max((len(line.values) for line in summary.lines), default=0)
    note = (
        "Each dot is one seed (its last checkpoint, never its best), the bar a 95 % bootstrap interval of the "
        "inter-quartile mean (IQM) over seeds. Differences are of IQMs, paired by seed where seeds are shared, and "
        "coloured where they are clear. P(better) is the share of pairs of seeds that beat the original data. The "
        "marked row is the one that the verdict is about."
    )
    if seeds > MOST_DOTS:
        note += f" Of more than {MOST_DOTS} seeds only {MOST_DOTS} are drawn, at even ranks from least to largest."
    if any(line.num_unfinished for line in summary.lines):
        note += " Where trials are unfinished nothing is called clear."
    if seeds < 5:
        note += f" With {seeds} seeds an interval says little more than the dots do."
    return section(
        "Results", f'<div class="scroll"><table class="wide"><tr>{top}</tr>{"".join(rows)}</table></div>', note
    )


def _mean(line: Line, measure: Metric) -> str:
    at = line.means.get(measure.column)
    return DASH if at is None else measure.show_interval(at)


def _seeds(line: Line) -> str:
    marks = [
        (line.num_failed, "failed", "down"),
        (line.num_stopped, "stopped", "dim"),
        (line.num_unfinished, "unfinished", "dim"),
    ]
    return f"{len(line.values)}" + "".join(
        f' <span class="{kind}">{count} {word}</span>' for count, word, kind in marks if count
    )


def comparisons(summary: Summary, chosen_before: bool) -> str:
    """Each stitched cell against every baseline; empty when there is none to compare with.

    Args:
        chosen_before: the headline was chosen before running, not by a search.
    """
    blocks: list[str] = []
    for algo in summary.algorithms:
        lines = [line for line in summary.find(algo, "stitched") if line.over]
        names = list(dict.fromkeys(name for line in lines for name in line.over))
        if not lines:
            continue
        names.sort(key=lambda name: name == UNQUALIFIED)
        head = "".join(f"<th>over {escape(name)}</th>" for name in names)
        body = ""
        for line in lines:
            cells = "".join(f"<td>{_cell(line.over.get(name), summary.metric)}</td>" for name in names)
            chosen = " class=chosen" if summary.is_headline(line) else ""
            body += f"<tr{chosen}><td>{escape(line.label)}</td>{cells}</tr>"
        blocks.append(
            f"<h3>{escape(algorithm_name(algo))}</h3>"
            f'<div class="scroll"><table><tr><th></th>{head}</tr>{body}</table></div>'
        )
    if not blocks:
        return ""
    how = "before running" if chosen_before else "by the search, on other seeds"
    unit = " in points" if summary.metric.unit else ""
    note = (
        f"Differences of IQMs of the {summary.metric.name}{unit} with 95 % bootstrap intervals over "
        "seeds; below each P, the probability of improvement, and p of a t test. A difference is coloured where the "
        f"interval and the test agree that it is not zero. The marked cell was chosen {how}."
    )
    if summary.num_adjusted:
        many = summary.num_adjusted > 1
        note += (
            f" This page makes {summary.num_adjusted} other comparison{'s' * many}: their p-values are adjusted "
            "together (Holm), as one in twenty pairs of equals looks clear by chance."
        )
    return section("Against every baseline", "".join(blocks), note)


def _cell(at: Comparison | None, metric: Metric) -> str:
    if at is None:
        return DASH
    small = f"P {100 * at.improvement.value:.0f} %"
    p = at.p_value if at.adjusted is None else at.adjusted
    # Without any spread a t test is meaningless, however small its p.
    small += ", same at every seed" if at.spread == 0 else "" if p is None else f", {_p_value(p)}"
    small += "" if at.paired else ", not paired"
    return f"{_difference(at, metric)}<small>{small}</small>"


def heat_maps(summary: Summary) -> str:
    """One r x delta table per algorithm with stitched cells and per shaping with several, shaded by the metric."""
    maps: list[str] = []
    for algo in summary.algorithms:
        stitched = summary.find(algo, "stitched")
        for shaping in dict.fromkeys(line.shaping for line in stitched):
            lines = [line for line in stitched if line.shaping == shaping]
            if not shaping or len(lines) > 1:
                maps.append(_heat_map(algo, shaping, lines, summary))
    if not maps:
        return ""
    note = (
        f"IQM of the {summary.metric.name} over seeds, below it the 95 % interval. Columns: original : augmented in "
        "every batch. Rows: the largest residual a bridge may have."
    )
    return section("Ratio and delta", f'<div class="heats">{"".join(maps)}</div>', note)


def _heat_map(algo: str, shaping: str, of_shaping: Sequence[Line], summary: Summary) -> str:
    lines = {(line.ratio, line.delta): line for line in of_shaping}
    ratios, deltas = list(dict.fromkeys(r for r, _ in lines)), list(dict.fromkeys(d for _, d in lines))
    rows = ["<tr><th></th>" + "".join(f"<th>r = {escape(ratio)}</th>" for ratio in ratios) + "</tr>"]
    for delta in deltas:
        cells = "".join(_heat_cell(lines.get((ratio, delta)), summary) for ratio in ratios)
        rows.append(f"<tr><th>delta = {escape(str(delta))}</th>{cells}</tr>")
    base = {line.label: line.iqm for line in summary.lines if line.algo == algo and line.data != "stitched"}
    beside = ", ".join(f"{label} {summary.metric.show(at.value)}" for label, at in base.items() if at)
    title = algorithm_name(algo) + (f", {shaping}" if shaping else "")
    return (
        f'<div><h3>{escape(title)}</h3><div class="scroll"><table class="heat">{"".join(rows)}'
        f'</table></div><p class="note">Baselines: {escape(beside) or "none"}.</p></div>'
    )


def _heat_cell(line: Line | None, summary: Summary) -> str:
    iqm = None if line is None else line.iqm
    if line is None or iqm is None:
        return '<td class="cell dim">–</td>'
    (low, high), metric = limits(summary), summary.metric
    share = 6 + 52 * (iqm.value - low) / (high - low)
    pick = " pick" if summary.is_headline(line) else ""
    shade = f"color-mix(in srgb, var(--stitched) {share:.0f}%, var(--surface))"
    spread = f"{metric.show(iqm.low)} – {metric.show(iqm.high)}" if iqm.num_seeds > 1 else "one seed"
    return (
        f'<td class="cell{pick}" style="background:{shade}"><b>{metric.show(iqm.value)}</b><small>{spread}</small></td>'
    )
