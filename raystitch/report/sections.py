"""The page's sections about policies beside the tables of scores: verdict, curves, target returns, diagnostics."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from raystitch.buffer.schema import PilotResult
from raystitch.data.potential import POTENTIALS, promise_text
from raystitch.report.figures import Curve, learning_curves
from raystitch.report.html import html_table, section
from raystitch.report.stats import interval
from raystitch.report.summary import SUCCESS, Line, Metric, Summary, cell_label
from raystitch.report.table import PROMPT, algorithm_name, asked_for, asked_text, short_name
from raystitch.report.verdict import Verdict


def verdict(found: Sequence[Verdict]) -> str:
    blocks: list[str] = []
    for one in found:
        block = f"<h3>{escape(algorithm_name(one.algo))}: {escape(one.answer)}</h3>"
        block += "".join(f"<p>{escape(text)}</p>" for text in one.facts)
        if one.budget:
            block += f"<p><b>A better budget.</b> {escape(' '.join(one.budget))}</p>"
        blocks.append(f"<div>{block}</div>")
    return f'<section class="verdict"><h2>Did stitching help?</h2>{"".join(blocks)}</section>'


def before_training(potential: Mapping[str, Any] | None) -> str:
    """Show what each tool promises on the data; empty where the run did not compute it."""
    if potential is None:
        return ""
    values = [(label, potential.get(key)) for label, key in POTENTIALS]
    rows = [[label, promise_text(value)] for label, value in values if isinstance(value, int | float)]
    head, *rest = [str(line) for line in potential.get("text", [])] or [""]
    spread = [potential.get(key) for key in ("rpsv", "return_mean", "return_best")]
    if all(isinstance(value, int | float) for value in spread):
        rest.append("room for weighting: RPSV {:,.4g}; undiscounted returns {:,.1f}, the best {:,.1f}".format(*spread))
    starts = "where the task starts" if potential.get("task_starts") else "the recorded starts"
    body = html_table([f"mean discounted return from {starts}", "at most"], rows)
    body += "".join(f"<p>{escape(line[:1].upper() + line[1:])}.</p>" for line in rest)
    return section("Before training", body, f"{head[:1].upper()}{head[1:]}." if head else "")


def pilot(found: Sequence[PilotResult]) -> str:
    """Show what the ways of choosing pairs brought in the pilot; empty where none was needed."""
    if not found:
        return ""
    note = (
        "Each way stitched as many pairs before the generation, which took the first: of the ways with nearly the "
        "largest share of accepted pairs held true, the one whose bridges add most to the discounted return, per pair "
        "tried. Held true: no stranger to the judges than real windows with noise. No simulator was asked."
    )
    return section("How pairs were chosen", html_table(PilotResult.COLUMNS, [one.cells for one in found]), note)


def target_returns(rows: Sequence[Mapping[str, Any]], metric: Metric) -> str:
    """Results at every return that the Decision Transformer was asked for; empty when there is only one."""
    targets = sorted({row["target_return"] for row in rows if row["target_return"] is not None}, reverse=True)
    asked = [*targets, *sorted({row[PROMPT] for row in rows if row.get(PROMPT) is not None})]
    if len(asked) < 2:
        return ""
    cells: dict[str, dict[float | str, list[float]]] = {}
    for row in rows:
        target = asked_for(row)
        if target is not None and row["status"] == "ok" and row[metric.column] is not None:
            label = f"{short_name(row['algo'])}, {cell_label(row)}"
            cells.setdefault(label, {}).setdefault(target, []).append(row[metric.column])

    def show(values: Sequence[float]) -> str:
        return metric.show_interval(interval(np.array(values))) if values else "–"

    body = [[label, *(show(by_target.get(target, [])) for target in asked)] for label, by_target in cells.items()]
    headlines = list(dict.fromkeys(asked_text(row) for row in rows if row["headline"] and asked_for(row) is not None))
    note = (
        f"IQM [95 %] of the {metric.name} for every return asked for. "
        f"The one reported above, {' or '.join(headlines)}, was chosen before running."
    )
    if len(asked) > len(targets):
        note += " max: at every step the largest return-to-go that the training data promise in this state."
    heads = [*(f"{target:g}" for target in targets), *asked[len(targets) :]]
    return section("Returns asked for", html_table(["trained on", *map(str, heads)], body), note)


def curves(summary: Summary) -> str:
    """Evaluations during training, mean over seeds; empty where there is only the one at the end."""
    panels: dict[str, list[Curve]] = {}
    for line in summary.lines:
        series = [points for points in line.curves.values() if points]
        steps = sorted(set.intersection(*(set(points) for points in series))) if series else []
        if len(steps) < 2:
            continue
        values = np.array([[points[step] for step in steps] for points in series]) * summary.metric.scale
        chosen = line.data == "original" or summary.is_headline(line)
        panel = panels.setdefault(algorithm_name(line.algo), [])
        panel.append(Curve(line.label, line.data, chosen, np.array(steps, np.float64), values))
    if not panels:
        return ""
    ylim = (-3.0, 103.0) if summary.metric is SUCCESS else None
    svg = learning_curves(panels, f"{summary.metric.name}{summary.metric.unit}", ylim)
    note = (
        "Evaluations during training, on fewer episodes than the final one and with other seeds; "
        "lines are means over seeds, bands their range (original data and the headline's cell)."
    )
    return section("Learning curves", f"<figure>{svg}</figure>", note)


def best_checkpoints(summary: Summary) -> str:
    """The gain that a report of best checkpoints would claim; empty without evaluations during training."""
    rows: list[list[str]] = []
    claims: list[str] = []
    for line in summary.lines:
        selection = line.selection
        if selection is None:
            continue
        last, best = (np.array([values[seed] for seed in line.best]) * 1.0 for values in (line.values, line.best))
        rows.append(
            [
                f"{short_name(line.algo)}, {line.label}",
                summary.metric.show(last.mean()),
                summary.metric.show(best.mean()),
                summary.metric.show_difference(selection),
            ]
        )
        if summary.is_headline(line):
            claims += _claim(line, summary)
    if not rows:
        return ""
    note = (
        "A diagnostic only: the largest of all evaluations of a seed is biased upwards, the more so the fewer episodes "
        "each has. No score on this page uses it."
    )
    body = html_table(["mean over seeds", "last checkpoint", "best checkpoint", "best - last [95 %]"], rows)
    return section("Best checkpoint instead of last", body + "".join(f"<p>{escape(text)}</p>" for text in claims), note)


def _claim(line: Line, summary: Summary) -> list[str]:
    original = next((base for base in summary.find(line.algo, "original") if base.best and not base.shaping), None)
    if original is None:
        return []
    gains = [
        float(np.mean([*ours.values()]) - np.mean([*theirs.values()]))
        for ours, theirs in ((line.best, original.best), (line.values, original.values))
    ]
    best, last = (f"{'+' if gain > 0 else ''}{summary.metric.number(gain)}" for gain in gains)
    return [
        f"{algorithm_name(line.algo)}: best checkpoints would claim {best} over the original data for the headline's "
        f"cell; last checkpoints give {last} (means over seeds)."
    ]
