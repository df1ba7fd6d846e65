"""Building blocks of the page's sections; they escape text."""

from collections.abc import Sequence
from html import escape


def section(title: str, body: str, note: str = "") -> str:
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{note}{body}</section>"


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, wide: bool = False, words: int = 1) -> str:
    """Return a table whose columns after the first ``words`` are right-aligned; cells are escaped here."""
    top = "".join(f'<th class="{"num" if at >= words else ""}">{escape(text)}</th>' for at, text in enumerate(head))
    body = "".join(
        "<tr>"
        + "".join(f'<td class="{"num" if at >= words else ""}">{escape(cell)}</td>' for at, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table class="{"wide" if wide else ""}"><tr>{top}</tr>{body}</table></div>'
