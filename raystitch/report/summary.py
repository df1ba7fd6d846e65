"""What the results say: one line per cell of the grid with intervals over seeds, and a verdict in plain words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from raystitch.models.delta import Delta, check_delta
from raystitch.report.stats import Interval, interval, iqm, mean, paired_difference, probability_of_improvement

ALGORITHM_NAMES = {"td3bc": "TD3+BC", "dt": "Decision Transformer", "bc": "Behaviour cloning"}
DATA_ORDER = ("original", "weighted", "duplicated", "joined", "stitched")

Cell = tuple[str, str, str, str | None]
"""algo, data, ratio, delta as asked."""


def delta_text(delta: Delta) -> str:
    """The delta of a stitched cell as results.parquet has it: a number, ``q99`` or ``off``."""
    checked = check_delta(delta)
    return "off" if checked is None else checked if isinstance(checked, str) else f"{checked:g}"


@dataclass(frozen=True)
class Metric:
    """The measure that a run is judged by; ``scale`` turns stored values into shown ones."""

    column: str
    name: str
    unit: str
    scale: float

    def show(self, value: float) -> str:
        shown = value * self.scale
        return f"{shown:.0f}{self.unit}" if abs(shown) >= 100 or self.unit else f"{shown:.1f}"

    def show_interval(self, at: Interval) -> str:
        if at.num_seeds < 2:
            return f"{self.show(at.value)} (one seed)"
        return f"{self.show(at.value)} [{self.show(at.low)}, {self.show(at.high)}]"


SUCCESS = Metric("success_rate", "success rate", " %", 100.0)
SCORE = Metric("score", "normalised score", "", 1.0)
RETURN = Metric("return_mean", "return", "", 1.0)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One cell of the grid over its seeds, at the target return chosen before running.

    Attributes:
        values: of the metric, by seed; empty when every trial failed.
        mean, iqm, success: with 95 % bootstrap intervals over seeds; None where undefined.
        over_original, over_joined: paired difference of IQMs to the same algorithm's baselines.
        improvement: probability that a seed of this beats a seed on the original data.
    """

    algo: str
    data: str
    ratio: str
    delta: str | None
    values: Mapping[int, float]
    mean: Interval | None
    iqm: Interval | None
    success: Interval | None
    num_failed: int
    over_original: Interval | None = None
    over_joined: Interval | None = None
    improvement: float | None = None

    @property
    def label(self) -> str:
        if self.data == "original":
            return "original data"
        return f"{self.data} {self.ratio}" + (f", delta {self.delta}" if self.data == "stitched" else "")


@dataclass(frozen=True)
class Summary:
    metric: Metric
    lines: list[Line]
    verdicts: list[str] = field(default_factory=list[str])

    def find(self, algo: str, data: str) -> list[Line]:
        return [line for line in self.lines if (line.algo, line.data) == (algo, data)]

    @property
    def algorithms(self) -> list[str]:
        return list(dict.fromkeys(line.algo for line in self.lines))


def choose_metric(rows: Sequence[Mapping[str, Any]]) -> Metric:
    """Success where the task defines it, else the normalised score, else the return."""
    for metric in (SUCCESS, SCORE):
        if any(row[metric.column] is not None for row in rows):
            return metric
    return RETURN


def summarise(rows: Sequence[Mapping[str, Any]], headline: tuple[str, str | None]) -> Summary:
    """Rows of results.parquet as lines in a fixed order, and the verdict on the headline (ratio, delta)."""
    metric = choose_metric(rows)
    cells: dict[Cell, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["headline"] or row["status"] == "failed":
            cells.setdefault((row["algo"], row["data"], row["ratio"], row["delta"]), []).append(row)
    lines = [_line(cell, group, metric) for cell, group in cells.items()]
    algorithms = list(dict.fromkeys(line.algo for line in lines))
    # A stable sort: ratios and deltas stay in the order of the grid.
    lines.sort(key=lambda line: (algorithms.index(line.algo), DATA_ORDER.index(line.data)))
    baselines = {(line.algo, line.data): line for line in reversed(lines) if line.data != "stitched"}
    compared = [_compare(line, baselines) for line in lines]
    verdicts = [_verdict(algo, compared, headline, metric) for algo in algorithms]
    return Summary(metric, compared, verdicts)


def _line(cell: Cell, rows: Sequence[Mapping[str, Any]], metric: Metric) -> Line:
    ok = [row for row in rows if row["status"] == "ok"]
    values = {row["seed"]: float(row[metric.column]) for row in ok if row[metric.column] is not None}
    successes = np.array([row["success_rate"] for row in ok if row["success_rate"] is not None], np.float64)
    array = np.array(list(values.values()), np.float64)
    algo, data, ratio, delta = cell
    return Line(
        algo=algo,
        data=data,
        ratio=ratio,
        delta=delta,
        values=values,
        mean=interval(array, mean) if array.size else None,
        iqm=interval(array, iqm) if array.size else None,
        success=interval(successes, mean) if successes.size else None,
        num_failed=len(rows) - len(ok),
    )


def _compare(line: Line, baselines: Mapping[tuple[str, str], Line]) -> Line:
    def over(data: str) -> Interval | None:
        base = baselines.get((line.algo, data))
        return None if base is None or base.data == line.data else paired_difference(line.values, base.values)

    base = baselines.get((line.algo, "original"))
    chance = None
    if base is not None and base.data != line.data and base.values and line.values:
        chance = probability_of_improvement(np.array([*line.values.values()]), np.array([*base.values.values()]))
    joined = over("joined") if line.data == "stitched" else None
    return replace(line, over_original=over("original"), over_joined=joined, improvement=chance)


def _difference(at: Interval, metric: Metric, than: str) -> str:
    size = metric.show(abs(at.value)).removesuffix(metric.unit) + (" points" if metric is SUCCESS else "")
    if at.sign:
        return f"{'better' if at.sign > 0 else 'worse'} than {than} by {size}"
    if at.low > 0 or at.high < 0:
        direction = "above" if at.value > 0 else "below"
        return f"{direction} {than} by {size}, which {at.num_seeds} seed{'s' * (at.num_seeds > 1)} cannot settle"
    return f"not clearly different from {than}"


def _verdict(algo: str, lines: Sequence[Line], headline: tuple[str, str | None], metric: Metric) -> str:
    name = ALGORITHM_NAMES.get(algo, algo)
    mine = [line for line in lines if line.algo == algo]
    original = next((line for line in mine if line.data == "original" and line.iqm), None)
    joined = next((line for line in mine if line.data == "joined" and line.iqm), None)
    chosen = [line for line in mine if line.data == "stitched" and (line.ratio, line.delta) == headline and line.iqm]
    if not chosen:
        if not any(line.data == "stitched" for line in mine):
            return f"{name}: not trained on stitched data in this run."
        return f"{name}: no finished trial at ratio {headline[0]} and delta {headline[1]}, so no verdict."
    line = chosen[0]
    assert line.iqm is not None
    text = f"{name}: {metric.name} {metric.show(line.iqm.value)} with stitched data"
    against = [
        f"{metric.show(base.iqm.value)} on the {base.data} data" for base in (original, joined) if base and base.iqm
    ]
    if against:
        text += f", {' and '.join(against).replace('the joined data', 'real fragments joined without a bridge')}"
    parts = [
        _difference(at, metric, than)
        for at, than in ((line.over_original, "the original data"), (line.over_joined, "joined fragments"))
        if at is not None
    ]
    text += f". Stitching is {' and '.join(parts)}" if parts else ". There is no baseline to compare with"
    seeds = min((at.num_seeds for at in (line.over_original, line.over_joined) if at), default=line.iqm.num_seeds)
    helped = [at for at in (line.over_original, line.over_joined) if at]
    if seeds < 2 or not helped:
        return text + "; one seed decides nothing."
    if all(at.sign > 0 for at in helped):
        close = "stitching helped" if len(helped) == 2 else "stitching helped (joined fragments were not tried)"
    elif line.over_original and line.over_original.sign > 0:
        close = "more data of this kind helped, but the generated bridges are not shown to be what helped"
    elif line.over_original and line.over_original.sign < 0:
        close = "stitching did harm"
    else:
        close = "no clear gain"
    return f"{text}: {close} ({seeds} seeds)."
