"""A run's status for people: a few lines for a terminal."""

import time
from datetime import datetime
from io import StringIO

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from raystitch.console import duration
from raystitch.pipeline.status.status import RunStatus, StageState
from raystitch.pipeline.status.trials import EVALUATING, TrialState

MOST_LINES = 12
"""Running, and failed, trials that are listed one by one."""
_STYLES = {"done": "green", "running": "bold cyan", "waiting": "dim", "stale": "yellow"}
WIDTH = 240
"""Of the output where it is no terminal."""
DRIVER_LATE = 15.0
"""Seconds after which a living driver that has not renewed its lease is worth a word."""


def print_status(status: RunStatus) -> None:
    """Print the status; where that is no terminal in lines of any length, without colours."""
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(status_text(status))
        return
    text = StringIO()
    Console(file=text, width=WIDTH, highlight=False).print(status_text(status))
    print("\n".join(line.rstrip() for line in text.getvalue().splitlines()))


def status_text(status: RunStatus) -> RenderableType:
    """Return what ``raystitch status`` prints."""
    parts: list[RenderableType] = [Text(f"{status.name}: {_headline(status)}", style="bold"), Text(_driver(status))]
    parts += [Text(""), _stages(status)]
    running = status.trials.of("running")
    if running:
        parts += [Text(""), _running(running)]
    failed = status.trials.of("failed")
    if failed:
        parts += [Text(""), *_failed(failed)]
    parts += [Text(f"note: {note}", style="yellow") for note in status.notes]
    return Group(*parts)


def _headline(status: RunStatus) -> str:
    trials = status.trials
    counts = [f"{len(trials.of('finished'))} of {len(trials.trials)} trials are finished"]
    counts += [f"{count} {word}" for word in ("running", "interrupted", "failed") if (count := len(trials.of(word)))]
    if trials.num_others:
        counts.append(f"{trials.num_others} of a search or another grid")
    return f"{status.state}; {', '.join(counts)}{_left(status)}"


def _left(status: RunStatus) -> str:
    if status.state == "finished" or not status.trials.of("running", "interrupted", "waiting"):
        return ""
    if status.left.seconds is not None:
        return f"; about {duration(status.left.seconds)} of training left"
    begun = status.trials.of("running", "finished", "interrupted")
    return f"; time left not known yet ({status.left.unknown})" if begun else ""


def _driver(status: RunStatus) -> str:
    driver = status.driver
    if driver is None:
        return "no driver is at work"
    ago = f"{duration(driver.seconds)} ago"
    if not driver.alive:
        return (
            f"no driver is at work: {driver.name} renewed its lease last {ago} and is gone; the same `raystitch sweep` "
            "command goes on"
        )
    late = " (late: it, its machine or the storage stands still)" if driver.seconds > DRIVER_LATE else ""
    return f"driver: {driver.name}, lease renewed {ago}{late}"


def _stages(status: RunStatus) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in ("stage", "state", "since", "took", ""):
        table.add_column(head)
    for stage in status.stages:
        took = "" if stage.seconds is None else duration(stage.seconds)
        style = _STYLES[stage.state]
        table.add_row(stage.name, Text(stage.state, style=style), _since(stage), took, stage.about)
    return table


def _since(stage: StageState) -> str:
    at = stage.ended if stage.ended is not None else stage.began
    if at is None or stage.state == "waiting":
        return ""
    moment = datetime.fromtimestamp(at)
    return moment.strftime("%H:%M:%S" if time.time() - at < 20 * 3600 else "%d %b %H:%M")


def _running(running: list[TrialState]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in ("running", "seeds", "at"):
        table.add_column(head)
    for head in ("steps/s", "left"):
        table.add_column(head, justify="right")
    table.add_column("process")
    groups: dict[tuple[str, str, str], list[TrialState]] = {}
    for trial in running:
        groups.setdefault((trial.holder, trial.cell, trial.doing), []).append(trial)
    for (holder, cell, doing), group in [*groups.items()][:MOST_LINES]:
        first = min(group, key=lambda one: one.step)
        seeds = ", ".join(str(one.trial.seed) for one in group)
        pace = first.steps_per_second
        left = "" if not pace else duration((first.steps - first.step) / pace)
        at = f"{first.step:,}/{first.steps:,}" if doing != EVALUATING else "being evaluated"
        table.add_row(cell, seeds, at if first.step or doing == EVALUATING else doing, _rate(pace), left, holder)
    if len(groups) > MOST_LINES:
        table.add_row(f"and {len(groups) - MOST_LINES} more")
    return table


def _rate(pace: float | None) -> str:
    return "" if pace is None else f"{pace:,.0f}" if pace >= 10 else f"{pace:.2g}"


def _failed(failed: list[TrialState]) -> list[Text]:
    lines = [
        Text(f"failed: {one.cell} seed {one.trial.seed} ({one.trial.trial_id}): {one.reason}", style="red")
        for one in failed[:MOST_LINES]
    ]
    if len(failed) > MOST_LINES:
        lines.append(Text(f"and {len(failed) - MOST_LINES} more", style="red"))
    return lines
