"""Progress on stderr: a bar on a terminal, elsewhere a plain line now and then."""

import sys
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any

PLAIN_INTERVAL_SECONDS = 10.0


def say(line: str) -> None:
    """One line of progress on stderr; stdout is kept for results."""
    print(line, file=sys.stderr, flush=True)


def number(value: float | int | str | None) -> str:
    """A number as people read it; ``-`` where there is none."""
    if value is None:
        return "-"
    if isinstance(value, str | bool):
        return str(value)
    if isinstance(value, int) or (abs(value) >= 1000 and float(value).is_integer()):
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"


def table(headers: Sequence[str], rows: Iterable[Sequence[float | int | str | None]]) -> str:
    """Columns aligned with spaces, numbers to the right; readable in a terminal and in a log."""
    cells = [[number(cell) for cell in row] for row in rows]
    widths = [max(len(text) for text in column) for column in zip(headers, *cells, strict=True)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(headers, widths, strict=True))]
    for row in cells:
        padded = (
            text.rjust(width) if text[:1].isdigit() or text[:1] in "-+" else text.ljust(width)
            for text, width in zip(row, widths, strict=True)
        )
        lines.append("  ".join(padded))
    return "\n".join(line.rstrip() for line in lines)


class Progress:
    """Steps of one or several tasks: ``update("diffusion", 10, 100, "loss 0.1")``.

    Used as a context manager. On a terminal each task is a bar with the time left; elsewhere a task prints a line at
    its start and end and every ten seconds between.
    """

    def __init__(self) -> None:
        self._bars = None
        self._tasks: dict[str, Any] = {}
        self._last: dict[str, tuple[float, int]] = {}

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self._bars = progress.Progress(
                progress.TextColumn("{task.description:<12}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeRemainingColumn(compact=True),
                progress.TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def note(self, message: str) -> None:
        """A line that stays, above the bars where there are any."""
        if self._bars is not None:
            self._bars.console.print(message, highlight=False)
        else:
            say(message)

    def update(self, task: str, step: int, total: int | None, note: str = "") -> None:
        """Says that ``task`` has done ``step`` of ``total`` (None: unknown) steps."""
        if self._bars is not None:
            if task not in self._tasks:
                self._tasks[task] = self._bars.add_task(task, total=total, note=note)
            self._bars.update(self._tasks[task], completed=step, total=total, note=note)
            return
        now, (last, last_step) = time.monotonic(), self._last.get(task, (float("-inf"), -1))
        finished = total is not None and step >= total
        if now - last >= PLAIN_INTERVAL_SECONDS or (finished and last_step != step):
            self._last[task] = (now, step)
            say(f"{task} {step:,}{f'/{total:,}' if total is not None else ''}{f'  {note}' if note else ''}")


def duration(seconds: float) -> str:
    """``75.2`` becomes ``1 min 15 s``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
