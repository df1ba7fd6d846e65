"""The page's section about what stitched episodes lead to, before anything was trained on them."""

from collections.abc import Mapping
from html import escape

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raystitch.buffer.reach_file import COLUMNS, Reach
from raystitch.data.plane import Ground
from raystitch.report import figures
from raystitch.report.files import RunFiles
from raystitch.report.html import html_table, section

SHOWN = 8
"""Rounds that are shown unfolded."""


def reach(run: RunFiles) -> str:
    """Every round's share of start states from which a stitched episode reaches the goal, and the best such episode;
    empty where the buffer does not say."""
    if not run.reach:
        return ""
    last = run.reach[-1]
    kind = "" if last.share else ' class="down"'
    body = f"<p{kind}>{escape(_sentences(last))}</p>"
    rows = [found.cells for found in run.reach]
    if len(rows) > SHOWN:
        some = [found.cells for found in run.reach if not found.num_rounds & (found.num_rounds - 1) or found is last]
        body += html_table(COLUMNS, some)
        body += f"<details><summary>All {len(rows)} rounds</summary>{html_table(COLUMNS, rows)}</details>"
    else:
        body += html_table(COLUMNS, rows)
    note = (
        "Counted on the buffer before anything was trained, at the settings of generation. Returns and steps are "
        "undiscounted medians over the start states, of the best episode known from each."
    )
    return section("What stitched episodes reach", body + _picture(run.figures), note)


def _sentences(last: Reach) -> str:
    advice = last.advice.removeprefix("warning: ")
    advice = advice and f"{advice[0].upper()}{advice[1:]}."
    if not last.share:
        return advice
    return (
        f"From {100 * last.share:.0f} % of {last.num_starts} start states a stitched episode reaches the {last.goal} "
        f"(a recorded one from {100 * last.own_share:.0f} %); it promises a return of {last.promised:.4g} in "
        f"{last.steps:.0f} steps, where their own records have {last.own:.4g}. {advice}"
    ).rstrip()


def _picture(tables: Mapping[str, pa.Table]) -> str:
    """The most promising stitched episode from a start state."""
    way = best_way(tables)
    if way is None:
        return ""
    count = len(way.bridges)
    text = (
        f"The most promising stitched episode from a start state: {count} bridge{'s' * (count > 1)} between recorded "
        "parts, over recorded states drawn at random."
    )
    return f"<figure>{figures.long_way(way)}<figcaption>{escape(text)}</figcaption></figure>"


def best_way(tables: Mapping[str, pa.Table]) -> figures.Way | None:
    """Return the most promising stitched episode from a start state, from the tables of a run's ``figures``; None where
    they have none."""
    episode, states = tables.get("episode"), tables.get("states")
    if episode is None or states is None or not len(episode):
        return None
    parts = polylines(episode)
    return figures.Way(
        ground=ground(episode, tables),
        states=np.stack([states["x"].to_numpy(), states["y"].to_numpy()], 1).astype(np.float64),
        records=parts.get("record", []),
        bridges=parts.get("bridge", []),
    )


def polylines(table: pa.Table) -> dict[str, list[NDArray[np.float64]]]:
    """Return the lines [T, 2] of each part of a table of rows (part, line, x, y)."""
    part, line = np.array(table["part"].to_pylist()), table["line"].to_numpy()
    points = np.stack([table["x"].to_numpy(), table["y"].to_numpy()], axis=1).astype(np.float64)
    starts = np.flatnonzero(np.r_[True, (part[1:] != part[:-1]) | (line[1:] != line[:-1])]) if len(part) else []
    found: dict[str, list[NDArray[np.float64]]] = {}
    for start, stop in zip(starts, [*starts[1:], len(part)], strict=bool(len(part))):
        found.setdefault(str(part[start]), []).append(points[start:stop])
    return found


def ground(lines: pa.Table, tables: Mapping[str, pa.Table]) -> Ground:
    """Return what pictures of states stand on, from the tables of a run's ``figures``."""
    walls, marks = tables.get("walls"), tables.get("marks")
    labels = {key.decode(): value.decode() for key, value in (lines.schema.metadata or {}).items()}
    columns = ("x", "y", "width", "height")
    return Ground(
        xlabel=labels.get("x", ""),
        ylabel=labels.get("y", ""),
        walls=np.stack([walls[name].to_numpy() for name in columns], 1) if walls is not None else np.zeros((0, 4)),
        marks=[(row["text"], row["x"], row["y"]) for row in marks.to_pylist()] if marks is not None else [],
    )
