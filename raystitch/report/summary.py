"""The results in lines: one per cell of the grid, with intervals over seeds, compared with every baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from raystitch.report.stats import (
    CONFIDENCE,
    Comparison,
    Curve,
    Interval,
    best_checkpoints,
    compare,
    evaluations,
    holm,
    interval,
    mean,
)
from raystitch.report.table import DATA_ORDER, UNFINISHED, UNQUALIFIED, UNSHAPED

Cell = tuple[str, str, str, str | None, str]
"""The key of a cell: algo, data, ratio, delta as asked, shaping."""

Headline = tuple[str, str | None] | tuple[str, str | None, str]
"""The cell that the verdict is about: ratio and delta, and the shaping where its data are shaped."""


def cell_label(row: Mapping[str, Any]) -> str:
    """Return the name of a grid cell, from its ``data``, ``ratio``, ``delta`` and ``shaping``."""
    shaping = f", {row['shaping']}" if row.get("shaping") else ""
    if row["data"] == "original":
        return f"original data{shaping}"
    delta = f", delta {row['delta']}" if row["data"] == "stitched" else ""
    return f"{row['data']} {row['ratio']}{delta}{shaping}"


@dataclass(frozen=True)
class Metric:
    """A measure of policies; ``scale`` turns stored values into shown ones, ``digits`` follow the point (None: three
    significant ones)."""

    column: str
    name: str
    unit: str
    scale: float
    digits: int | None

    def number(self, value: float) -> str:
        """The value without the unit."""
        shown = value * self.scale
        if self.digits is None:
            return f"{shown:,.0f}" if abs(shown) >= 100 else f"{shown:.3g}"
        text = f"{shown:.{self.digits}f}"
        return text.removeprefix("-") if float(text) == 0 else text

    def show(self, value: float) -> str:
        return self.number(value) + self.unit

    def show_interval(self, at: Interval) -> str:
        if at.num_seeds < 2:
            return f"{self.show(at.value)} (one seed)"
        return f"{self.show(at.value)} [{self.show(at.low)}, {self.show(at.high)}]"

    def show_difference(self, at: Interval) -> str:
        """A difference with its sign and without the unit; differences of percentages are percentage points."""
        text = f"{'+' if at.value > 0 else ''}{self.number(at.value)}"
        return text if at.num_seeds < 2 else f"{text} [{self.number(at.low)}, {self.number(at.high)}]"

    def show_size(self, difference: float) -> str:
        return self.number(abs(difference)) + (" points" if self.unit else "")


SCORE = Metric("score", "normalised score", "", 1.0, 1)
SUCCESS = Metric("success_rate", "success rate", " %", 100.0, 0)
RETURN = Metric("return_mean", "return", "", 1.0, None)
METRICS = (SCORE, SUCCESS, RETURN)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One cell of the grid over its finished seeds, at the target return chosen before running.

    Attributes:
        values: of the metric at the last checkpoint, by seed; empty when no trial finished.
        means: of every measure that is known, by its column, with 95 % bootstrap intervals over seeds.
        iqm: of the metric; None without values.
        curves: of the metric during training, by seed.
        best: of all evaluations of a seed the largest, by seed; empty when there are none during training.
        noise: share of the variance over seeds of the return that the finite number of episodes explains; None below
            3 seeds.
        num_failed, num_stopped, num_unfinished: trials without a final result; the last ones may still get one.
        over: comparison with each baseline of the same algorithm, by its name.
        shaping: what was done to its data, as in results.parquet; empty for nothing.
    """

    algo: str
    data: str
    ratio: str
    delta: str | None
    values: Mapping[int, float]
    means: Mapping[str, Interval]
    iqm: Interval | None
    curves: Mapping[int, Curve]
    best: Mapping[int, float]
    noise: float | None
    num_failed: int
    num_stopped: int
    num_unfinished: int = 0
    over: Mapping[str, Comparison] = field(default_factory=dict[str, Comparison])
    shaping: str = ""

    @property
    def label(self) -> str:
        return cell_label(vars(self))

    @property
    def over_original(self) -> Comparison | None:
        return self.over.get("original data")

    @property
    def selection(self) -> Interval | None:
        """Best minus last checkpoint, mean over seeds: the gain from choosing checkpoints by their evaluation."""
        if not self.best:
            return None
        return interval(np.array([self.best[seed] - self.values[seed] for seed in self.best]), mean)


@dataclass(frozen=True)
class Summary:
    """The lines of a run. ``num_adjusted`` counts the comparisons besides the headline's, whose p-values are adjusted
    together."""

    metric: Metric
    lines: list[Line]
    headline: Headline
    num_adjusted: int

    def find(self, algo: str, data: str) -> list[Line]:
        return [line for line in self.lines if (line.algo, line.data) == (algo, data)]

    def is_headline(self, line: Line) -> bool:
        return _is_headline(line, self.headline)

    def chosen(self, algo: str) -> Line | None:
        """The cell that the verdict is about, when it has a result."""
        return next((line for line in self.find(algo, "stitched") if self.is_headline(line) and line.values), None)

    def baseline(self, line: Line, name: str) -> Line:
        """The baseline that ``line.over`` calls by this name."""
        return next(other for other in self.lines if _baseline_name(other, line) == name)

    def undecided(self, line: Line) -> list[Line]:
        """The line and its baselines, as far as some of their trials have no result yet."""
        return [
            other
            for other in self.lines
            if other.num_unfinished and (other is line or _baseline_name(other, line) is not None)
        ]

    @property
    def algorithms(self) -> list[str]:
        return list(dict.fromkeys(line.algo for line in self.lines))

    @property
    def measures(self) -> list[Metric]:
        """The metric, then the other measures that are known."""
        known = [metric for metric in METRICS if any(metric.column in line.means for line in self.lines)]
        return [self.metric, *(metric for metric in known if metric is not self.metric)]


def choose_metric(rows: Sequence[Mapping[str, Any]]) -> Metric:
    """The normalised score where references are known, else success where it is defined, else the return."""
    return next((metric for metric in METRICS if any(row[metric.column] is not None for row in rows)), RETURN)


def summarise(
    rows: Sequence[Mapping[str, Any]],
    headline: Headline,
    metrics: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> Summary:
    """Turn rows of results.parquet into lines in a fixed order.

    Args:
        headline: the cell that the verdict is about.
        metrics: lines of metrics.jsonl, by trial.
    """
    metric = choose_metric(rows)
    cells: dict[Cell, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["headline"] or row["status"] == "failed":
            cell = (row["algo"], row["data"], row["ratio"], row["delta"], row.get("shaping") or "")
            cells.setdefault(cell, []).append(row)
    # Cells that a search gave up have no result; the page lists their trials separately.
    cells = {cell: group for cell, group in cells.items() if any(row["status"] != "stopped" for row in group)}
    lines = [_line(cell, group, metric, metrics or {}) for cell, group in cells.items()]
    algorithms = list(dict.fromkeys(line.algo for line in lines))
    # A stable sort: ratios, deltas and shapings stay in the order of the grid, the data as they are before the rest.
    lines.sort(key=lambda line: (algorithms.index(line.algo), DATA_ORDER.index(line.data), line.shaping != ""))
    return _adjust(metric, [replace(line, over=_over(line, lines)) for line in lines], headline)


def _line(
    cell: Cell, rows: Sequence[Mapping[str, Any]], metric: Metric, metrics: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Line:
    ok = [row for row in rows if row["status"] == "ok"]
    values = {row["seed"]: float(row[metric.column]) for row in ok if row[metric.column] is not None}
    curves = {row["seed"]: evaluations(metrics.get(row["trial_id"], ()), metric.column) for row in ok}
    means: dict[str, Interval] = {}
    for measure in METRICS:
        found = np.array([row[measure.column] for row in ok if row[measure.column] is not None], np.float64)
        if found.size:
            means[measure.column] = interval(found, mean)
    algo, data, ratio, delta, shaping = cell
    return Line(
        algo=algo,
        data=data,
        ratio=ratio,
        delta=delta,
        values=values,
        means=means,
        iqm=interval(np.array([*values.values()])) if values else None,
        curves=curves,
        best=best_checkpoints(values, curves),
        noise=_noise(ok),
        num_failed=sum(row["status"] == "failed" for row in rows),
        num_stopped=sum(row["status"] == "stopped" for row in rows),
        num_unfinished=sum(row["status"] == UNFINISHED for row in rows),
        shaping=shaping,
    )


def _noise(rows: Sequence[Mapping[str, Any]]) -> float | None:
    known = [row for row in rows if row.get("return_std") is not None and row.get("num_eval_episodes")]
    spread = np.var([row["return_mean"] for row in known], ddof=1) if len(known) >= 3 else 0.0
    if not spread > 0:
        return None
    return float(np.mean([row["return_std"] ** 2 / row["num_eval_episodes"] for row in known]) / spread)


def _is_headline(line: Line, headline: Headline) -> bool:
    ratio, delta, *shaping = headline
    return line.data == "stitched" and (line.ratio, line.delta, [line.shaping]) == (ratio, delta, shaping or [""])


def _baseline_name(base: Line, line: Line) -> str | None:
    """Return the name that ``line`` gives to ``base`` as a baseline; None when the two are not compared.

    Baselines are compared with the original data as they are; stitched data with all baselines, with the same bridges
    read without qualification, and, where something was done to them, with the same cell without it.
    """
    if base.algo != line.algo or base is line:
        return None
    if line.data != "stitched":
        is_plain = base.data == "original" and not base.shaping
        return base.label if is_plain and (line.data != "original" or line.shaping) else None
    if base.data != "stitched":
        return base.label
    if base.ratio != line.ratio:
        return None
    if base.delta == line.delta:
        return UNSHAPED if line.shaping and not base.shaping else None
    unqualified = base.delta == "off" and base.shaping == line.shaping
    return UNQUALIFIED if unqualified else None


def _over(line: Line, lines: Sequence[Line]) -> dict[str, Comparison]:
    found: dict[str, Comparison] = {}
    for base in lines:
        name = _baseline_name(base, line)
        result = compare(line.values, base.values) if name is not None else None
        if name is not None and result is not None:
            if line.num_unfinished or base.num_unfinished:  # more seeds may change it: nothing is clear yet
                result = replace(result, difference=replace(result.difference, sign=0))
            found[name] = result
    return found


def _adjust(metric: Metric, lines: list[Line], headline: Headline) -> Summary:
    """Holm's correction for every comparison but the headline's, which was chosen before running."""
    others = [line for line in lines if not _is_headline(line, headline)]
    tested = [(line, name, at) for line in others for name, at in line.over.items()]
    p_values = [at.p_value for _, _, at in tested if at.p_value is not None]
    adjusted = iter(holm(p_values))
    changed: dict[int, dict[str, Comparison]] = {}
    for line, name, at in tested:
        if at.p_value is not None:
            p = next(adjusted)
            difference = replace(at.difference, sign=at.difference.sign if p < 1 - CONFIDENCE else 0)
            at = replace(at, adjusted=p, difference=difference)
        changed.setdefault(id(line), {})[name] = at
    lines = [replace(line, over=changed.get(id(line), line.over)) for line in lines]
    return Summary(metric, lines, headline, len(p_values))
