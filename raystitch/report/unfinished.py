"""What is said, and what is not claimed, about a run that is not finished."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from raystitch.report.html import section

UNFINISHED = "unfinished"
"""Status of the row of a trial without a result yet; no row of results.parquet has it."""
MOST_CELLS = 12
"""Cells that a sentence names."""


@dataclass(frozen=True, kw_only=True)
class PartialResults:
    """What is there of a run that is not finished, as the report takes it.

    Attributes:
        rows: in place of those of results.parquet; a trial without a result has one with status ``unfinished``.
        missing: what the run lacks, a sentence each; never empty.
    """

    rows: Sequence[dict[str, Any]]
    missing: Sequence[str]


def listed(cells: Sequence[str]) -> str:
    """Name cells in a sentence, not all of them where there are many."""
    more = f"; and {len(cells) - MOST_CELLS} more" if len(cells) > MOST_CELLS else ""
    return "; ".join(cells[:MOST_CELLS]) + more


def unfinished(missing: Sequence[str]) -> str:
    """Return the section at the top of the page; empty for a run that is finished."""
    if not missing:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in missing)
    note = "What follows is what is there so far. No verdict is given that the missing trials could change."
    return f'<div class="unfinished">{section("This run is not finished", f"<ul>{items}</ul>", note)}</div>'
