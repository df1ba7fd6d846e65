"""The page's section about what the run cost: time and core-hours, by stage and by cell of the grid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raystitch.console import duration
from raystitch.report.html import html_table, section
from raystitch.report.summary import cell_label
from raystitch.report.table import short_name

STAGE_NAMES = {
    "fit": "fit",
    "augment": "augment",
    "search": "search, whose trials are below",
    "figures": "figures and potential",
    "validate": "validate",
    "generalise": "study of generalisation",
    "report": "report",
}
"""Stages of progress.json -> their names in the table. Trials count by their own files."""


@dataclass(frozen=True, kw_only=True)
class TrialCost:
    """Seconds of one trial: its share of the time of its group, as returns.json has it.

    ``evaluation`` is None in those of older versions. ``threads``: that its group computed with.
    """

    training: float
    evaluation: float | None
    threads: float

    @classmethod
    def of(cls, returns: Mapping[str, Any], threads: float) -> "TrialCost | None":
        """Read ``returns.json``; None where it does not say. ``threads``: where the file does not."""
        training, evaluation = returns.get("train_seconds"), returns.get("eval_seconds")
        if not isinstance(training, int | float):
            return None
        known = returns.get("threads")
        return cls(
            training=float(training),
            evaluation=float(evaluation) if isinstance(evaluation, int | float) else None,
            threads=float(known) if isinstance(known, int | float) else threads,
        )

    @property
    def core_hours(self) -> float:
        return (self.training + (self.evaluation or 0.0)) * self.threads / 3600


def cost_section(
    rows: Sequence[Mapping[str, Any]],
    costs: Mapping[str, TrialCost],
    progress: Mapping[str, Any] | None,
    gpus: float,
) -> str:
    """Return the section; empty where nothing is known.

    Args:
        rows: of results.parquet. costs: by trial. progress: content of progress.json.
        gpus: that each group of trials held.
    """
    stages = _stage_rows(progress or {})
    cells: dict[str, list[TrialCost]] = {}
    for row in {row["trial_id"]: row for row in rows}.values():
        if row["trial_id"] in costs:
            cells.setdefault(f"{short_name(row['algo'])}, {cell_label(row)}", []).append(costs[row["trial_id"]])
    trials = [one for cell in cells.values() for one in cell]
    if not stages and not trials:
        return ""
    spent = sum(one.core_hours for one in trials)
    on_gpu = sum((one.training + (one.evaluation or 0.0)) * gpus / 3600 for one in trials)
    if trials:
        wall = _times(progress or {}, "trials").get("seconds")
        stages.append(["trials", "–" if wall is None else duration(wall), _hours(spent), _hours(on_gpu)])
    total = sum(_number(_times(progress or {}, name).get("core_seconds")) for name in STAGE_NAMES) / 3600 + spent
    body = html_table(["stage", "time", "core-hours", "GPU-hours"], [*stages, ["together", "", _hours(total), ""]])
    if cells:
        heads = ["trained on", "trials", "core-hours", "per trial", "training s", "evaluation s"]
        body += html_table(heads, [[name, *_cell(costs)] for name, costs in cells.items()], wide=True)
    note = (
        "Over all commands that worked in this folder. Fit and augment count the CPUs that they held, trials the "
        "threads of their group by their share of its time, the rest the driver's own processor time. Starting "
        "processes and waiting for them is not counted, nor what an interruption lost, nor trials that failed, were "
        "stopped by a search, or belong to another grid, nor this page. Seconds are means over the "
        "trials of a cell; evaluation counts from the last interruption on."
    )
    return section("Cost", body, note)


def _times(progress: Mapping[str, Any], stage: str) -> Mapping[str, Any]:
    stages = progress.get("stages")
    times = stages.get(stage) if isinstance(stages, Mapping) else None
    return times if isinstance(times, Mapping) else {}


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _stage_rows(progress: Mapping[str, Any]) -> list[list[str]]:
    found: list[list[str]] = []
    for name, shown in STAGE_NAMES.items():
        times = _times(progress, name)
        if times:
            spent = [_number(times.get(key)) for key in ("seconds", "core_seconds", "gpu_seconds")]
            found.append([shown, duration(spent[0]), _hours(spent[1] / 3600), _hours(spent[2] / 3600)])
    return found


def _cell(costs: Sequence[TrialCost]) -> list[str]:
    spent = sum(one.core_hours for one in costs)
    evaluated = [one.evaluation for one in costs if one.evaluation is not None]
    return [
        str(len(costs)),
        _hours(spent),
        _hours(spent / len(costs)),
        f"{sum(one.training for one in costs) / len(costs):,.0f}",
        f"{sum(evaluated) / len(evaluated):,.0f}" if evaluated else "–",
    ]


def _hours(hours: float) -> str:
    return "–" if not hours else f"{hours:,.0f}" if hours >= 100 else f"{hours:.2g}" if hours >= 0.01 else "< 0.01"
