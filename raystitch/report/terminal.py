"""The results as a table in the terminal."""

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from raystitch.report.files import read_run
from raystitch.report.stats import Interval
from raystitch.report.summary import SUCCESS, Line, Metric, summarise

NAMES = {"dt": "DT", "td3bc": "TD3+BC", "bc": "BC"}
WIDTH = 110
"""Of the table where the output is not a terminal."""


def print_summary(run_dir: str | Path, console: Console | None = None) -> None:
    """Prints mean, interval, IQM and success per cell of the grid, and the verdict.

    Raises:
        UserError: when the folder is not a run with results.
    """
    run = read_run(run_dir)
    summary = summarise(run.rows, run.headline)
    metric = summary.metric
    table = Table(
        title=f"{run.config.get('name', run.folder.name)}: {metric.name}", box=box.SIMPLE_HEAD, title_justify="left"
    )
    for head in ("algo", "trained on"):
        table.add_column(head, no_wrap=True)
    heads = [
        f"mean{metric.unit}",
        "95 % interval",
        "IQM",
        *["success %"] * (metric is not SUCCESS),
        "over original",
        "seeds",
    ]
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    before = ""
    for line in summary.lines:
        last = line is [other for other in summary.lines if other.algo == line.algo][-1]
        algo = NAMES.get(line.algo, line.algo)
        table.add_row("" if algo == before else algo, line.label, *_cells(line, metric), end_section=last)
        before = algo
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=WIDTH)
    console.print(table)
    for verdict in summary.verdicts:
        console.print(verdict, highlight=False)


def _cells(line: Line, metric: Metric) -> list[str]:
    cells = [_number(line.mean, metric), _range(line.mean, metric), _number(line.iqm, metric)]
    if metric is not SUCCESS:
        cells.append(_number(line.success, SUCCESS))
    over = line.over_original
    difference = "-" if over is None else f"{over.value * metric.scale:+.1f}"
    seeds = f"{len(line.values)}" + (f" ({line.num_failed} failed)" if line.num_failed else "")
    return [*cells, difference, seeds]


def _number(at: Interval | None, metric: Metric) -> str:
    return "-" if at is None else f"{at.value * metric.scale:.1f}"


def _range(at: Interval | None, metric: Metric) -> str:
    return "-" if at is None or at.num_seeds < 2 else f"{at.low * metric.scale:.1f} .. {at.high * metric.scale:.1f}"
