"""The results as a table in the terminal."""

from pathlib import Path

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from raystitch.report.files import read_run
from raystitch.report.stats import Interval
from raystitch.report.summary import RETURN, Line, Metric, summarise
from raystitch.report.table import PartialResults, algorithm_name, short_name
from raystitch.report.verdict import verdicts

WIDTH = 110
"""Width of the table where the output is not a terminal."""


def print_summary(run_dir: str | Path, console: Console | None = None, partial: PartialResults | None = None) -> None:
    """Print the metric and the other known measures per cell of the grid, and the verdict.

    Args:
        partial: what is there of a run that is not finished; what is missing is printed first.

    Raises:
        UserError: when the folder is not a run with results.
    """
    run = read_run(run_dir, partial)
    summary = summarise(run.final_rows, run.headline, run.metrics)
    metric = summary.metric
    table = Table(
        title=f"{run.config.get('name', run.folder.name)}: {metric.name}", box=box.SIMPLE_HEAD, title_justify="left"
    )
    table.collapse_padding, table.pad_edge = True, False
    others = [measure for measure in summary.measures if measure is not metric]
    for head in ("algo", "trained on"):
        table.add_column(head, no_wrap=True)
    heads = [f"IQM{metric.unit}", "95 % interval", "mean"]
    heads += ["raw return" if measure is RETURN else f"{measure.name}{measure.unit}" for measure in others]
    for head in [*heads, "over original", "seeds"]:
        table.add_column(head, justify="right", no_wrap=True)
    before = ""
    for line in summary.lines:
        last = line is [other for other in summary.lines if other.algo == line.algo][-1]
        algo = short_name(line.algo)
        label = f"{line.label} *" if summary.is_headline(line) else line.label
        table.add_row("" if algo == before else algo, label, *_cells(line, metric, others), end_section=last)
        before = algo
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=WIDTH)
    if run.missing:
        console.print("This run is not finished.", style="bold yellow")
        for text in run.missing:
            console.print(Padding(text, (0, 0, 0, 2)), highlight=False)
    console.print(table)
    if run.other_rows:
        count = len({row["trial_id"] for row in run.other_rows})
        console.print(f"{count} trial{'s' * (count > 1)} of other grids in the folder: not counted here", style="dim")
    for note in run.notes:
        console.print(f"note: {note}", highlight=False)
    for found in verdicts(summary):
        console.print(f"{algorithm_name(found.algo)} (*): {found.answer}.", highlight=False, style="bold")
        for text in [*found.facts, *found.budget]:
            console.print(Padding(text, (0, 0, 0, 2)), highlight=False)


def _cells(line: Line, metric: Metric, others: list[Metric]) -> list[str]:
    cells = [_number(line.iqm, metric), _range(line.iqm, metric), _number(line.means.get(metric.column), metric)]
    cells += [_number(line.means.get(measure.column), measure) for measure in others]
    over = line.over_original
    sign = "+" if over is not None and over.difference.value > 0 else ""
    cells.append("-" if over is None else f"{sign}{metric.number(over.difference.value)}")
    kinds = ((line.num_failed, "failed"), (line.num_stopped, "stopped"), (line.num_unfinished, "unfinished"))
    marks = [f"{count} {word}" for count, word in kinds if count]
    return [*cells, f"{len(line.values)}" + (f" ({', '.join(marks)})" if marks else "")]


def _number(at: Interval | None, metric: Metric) -> str:
    return "-" if at is None else metric.number(at.value)


def _range(at: Interval | None, metric: Metric) -> str:
    return "-" if at is None or at.num_seeds < 2 else f"{metric.number(at.low)} .. {metric.number(at.high)}"
