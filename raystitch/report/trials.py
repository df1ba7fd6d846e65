"""The page's sections about single trials: every seed with its numbers, failures, stopped ones, the search."""

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from statistics import median
from typing import Any

from raystitch.report.files import RunFiles
from raystitch.report.html import html_table, section
from raystitch.report.summary import RETURN, SCORE, SUCCESS, Metric, cell_label
from raystitch.report.table import UNFINISHED, algorithm_name, asked_for, asked_text, short_name

Row = Mapping[str, Any]


MOST_ROWS = 200
"""Rows of a table of single trials. Where there are more, the page sums up, and results.parquet has each."""


def every_seed(run: RunFiles) -> str:
    """A folded table per algorithm: all numbers of every trial and the command that runs it again; of more trials than
    a page can show, a line per cell."""
    every = len(run.rows) <= MOST_ROWS
    blocks: list[str] = []
    for algo, rows in _by_algorithm(run.rows).items():
        rows = _by_cell(rows)
        count = len({row["trial_id"] for row in rows})
        title = f"{algorithm_name(algo)}: {count:,} trial{'s' * (count > 1)}"
        body = _seed_table(rows, run) if every else _cell_table(rows)
        blocks.append(f"<details><summary>{escape(title)}</summary>{body}</details>")
    if every:
        note = (
            "One line per trial, and per return asked for where there are several: each is reported, none is picked. "
            "The command trains that trial alone once more, into reruns/ of the run, and compares; click it to select "
            "it."
        )
        return section("Every seed", "".join(blocks), note)
    note = (
        f"{len(run.rows):,} results are too many for a page: a line per cell, and per return asked for where there are "
        "several. results.parquet has a row for each; "
        f"raystitch sweep --rerun TRIAL_ID --out {shlex.quote(str(run.folder))} trains one alone once more, and "
        "compares."
    )
    return section("Every cell", "".join(blocks), note)


def _by_algorithm(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["algo"], []).append(row)
    return found


def _cell_table(rows: Sequence[Row]) -> str:
    """A line per cell and return asked for: how many seeds, and the least, the median and the largest of them."""
    cells: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        cells.setdefault((cell_label(row), asked_text(row)), []).append(row)
    known = [measure for measure in (RETURN, SCORE, SUCCESS) if any(row[measure.column] is not None for row in rows)]
    words = ["failed", "stopped", *[UNFINISHED] * any(row["status"] == UNFINISHED for row in rows)]
    heads = ["training data", "asked for", "seeds", *words]
    heads += [f"{'raw return' if m is RETURN else m.name}: least, median, largest" for m in known]
    body: list[list[str]] = []
    for (label, asked), of_cell in cells.items():
        statuses = Counter(row["status"] for row in of_cell)
        line = [label, asked, *(f"{statuses[name]:,}" for name in ("ok", *words))]
        for measure in known:
            values = [row[measure.column] for row in of_cell if row["status"] == "ok"]
            values = [value for value in values if value is not None]
            shown = (min(values), median(values), max(values)) if values else ()
            line.append(", ".join(map(measure.show, shown)) or "–")
        body.append(line)
    return html_table(heads, body, wide=True)


def _part_of(count: int, what: str) -> str:
    """Say that a table has only ``MOST_ROWS`` of ``count`` rows; nothing where it has all."""
    return "" if count <= MOST_ROWS else f" {what} {MOST_ROWS} of {count:,}; results.parquet has all."


def _by_cell(rows: Sequence[Row]) -> list[Row]:
    """Sort by cell in the order of the grid, then by seed; a run itself goes seed by seed."""
    place: dict[str, int] = {}
    for row in rows:
        place.setdefault(cell_label(row), len(place))
    return sorted(rows, key=lambda row: (place[cell_label(row)], row["seed"]))


def _seed_table(rows: Sequence[Row], run: RunFiles) -> str:
    asked = {asked_for(row) for row in rows} - {None}
    known = [measure for measure in (SCORE, SUCCESS) if any(row[measure.column] is not None for row in rows)]
    heads = ["training data", "seed", *["asked for"] * bool(asked), "raw return ± std", *(m.name for m in known)]
    heads += ["episodes", "steps", "training s", "run again"]
    final = {row["trial_id"] for row in run.final_rows}
    body, before = "", ""
    for row in rows:
        first = row["trial_id"] != before
        before = row["trial_id"]
        seed = f"{row['seed']}{' (search)' if row['trial_id'] not in final else ''}"
        cells = [escape(cell_label(row)) if first else "", seed if first else ""]
        if asked:
            mark = " (headline)" if row["headline"] and len(asked) > 1 else ""
            cells.append(asked_text(row) + mark * (asked_for(row) is not None))
        if row["status"] == "ok":
            cells.append(_with_std(row))
            cells += ["–" if row[m.column] is None else m.show(row[m.column]) for m in known]
            cells.append(_text(row["num_eval_episodes"]))
        else:
            kind = "down" if row["status"] == "failed" else "dim"
            cells.append(f'<span class="{kind}">{escape(row["status"])}</span>')
            cells += ["–"] * (len(known) + 1)
        seconds = row["train_seconds"]
        cells += [_text(row["train_steps"]), "–" if seconds is None else f"{seconds:,.0f}"]
        command = f"raystitch sweep --rerun {shlex.quote(row['trial_id'])} --out {shlex.quote(str(run.folder))}"
        has_command = first and row["status"] != UNFINISHED  # the sweep itself goes on with those
        cells.append(f'<code class="copy" title="{escape(command)}">{escape(command)}</code>' if has_command else "")
        body += f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    return f'<div class="scroll"><table class="wide seeds"><tr>{top}</tr>{body}</table></div>'


def _with_std(row: Row) -> str:
    if row["return_mean"] is None:
        return "–"
    std = row["return_std"]
    return RETURN.show(row["return_mean"]) + ("" if std is None else f" ± {RETURN.show(std)}")


def _text(value: object) -> str:
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def failures(run: RunFiles) -> str:
    """Trials without a result, and why; empty when there are none."""
    failed = [row for row in run.rows if row["status"] == "failed"]
    if not failed:
        return ""
    if len(failed) > MOST_ROWS:
        return section("Failed trials", _reasons(failed), _FAILED)
    body = html_table(
        ["trial", "trained on", "reason", "seed"],
        [
            [
                row["trial_id"],
                f"{short_name(row['algo'])}, {cell_label(row)}",
                str(row["error"]),
                str(row["seed"]),
            ]
            for row in failed
        ],
        words=3,
    )
    return section("Failed trials", f'<div class="reasons">{body}</div>', _FAILED)


_FAILED = (
    "They have no score and are missing from every mean on this page, which may flatter a cell: what fails "
    "is not drawn at random. trials/ID/error.txt has the whole trace; the next run of the same command tries them "
    "again."
)


def _reasons(failed: Sequence[Row]) -> str:
    """A line per cell and reason, the commonest first, with one of the trials."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in failed:
        label = f"{short_name(row['algo'])}, {cell_label(row)}"
        found.setdefault((label, str(row["error"])), []).append(row["trial_id"])
    order = sorted(found.items(), key=lambda item: -len(item[1]))
    body = [[trials[0], label, reason, f"{len(trials):,}"] for (label, reason), trials in order[:MOST_ROWS]]
    shown = html_table(["one of them", "trained on", "reason", "trials"], body, words=3)
    more = f"<p>And {len(order) - MOST_ROWS:,} other reasons.</p>" if len(order) > MOST_ROWS else ""
    return f'<div class="reasons">{shown}</div>{more}'


def stopped(run: RunFiles) -> str:
    """Trials that a search gave up early, with their last evaluation; empty when there are none."""
    rows = [row for row in run.rows if row["status"] == "stopped"]
    if not rows:
        return ""
    shown = [row for row in rows if row["headline"]]
    known = [m for m in (SCORE, SUCCESS, RETURN) if any(row[m.column] is not None for row in rows)]
    body = html_table(
        ["trained on", "seed", "stopped at step", *(f"{m.name} so far" for m in known)],
        [
            [
                f"{short_name(row['algo'])}, {cell_label(row)}",
                str(row["seed"]),
                _text(row["train_steps"]),
                *("–" if row[m.column] is None else m.show(row[m.column]) for m in known),
            ]
            for row in shown[:MOST_ROWS]
        ],
    )
    note = "Given up before the end because others were ahead. Their numbers are not final and are in no other table."
    return section("Stopped trials", body, note + _part_of(len(shown), "The first"))


def other_trials(run: RunFiles) -> str:
    """Trials that an earlier grid left in the folder; empty when there are none."""
    if not run.other_rows:
        return ""
    known = [m for m in (SCORE, SUCCESS, RETURN) if any(row[m.column] is not None for row in run.other_rows)]
    body = html_table(
        ["trial", "trained on", "seed", "status", *(m.name for m in known), "steps"],
        [
            [
                row["trial_id"],
                f"{short_name(row['algo'])}, {cell_label(row)}",
                str(row["seed"]),
                str(row["status"]),
                *("–" if row[m.column] is None else m.show(row[m.column]) for m in known),
                _text(row["train_steps"]),
            ]
            for row in _by_cell(run.other_rows)[:MOST_ROWS]
        ],
    )
    note = (
        "They are in the folder but not in this run's grid: another grid was run here before, or the same one with "
        "other settings or on another buffer. No other table and no verdict uses them. "
        "trials/ID/config.json has the settings of each, earlier/ the configurations of those grids."
    )
    return section("Trials of other grids", body, note + _part_of(len(run.other_rows), "The first"))


def unfinished(missing: Sequence[str]) -> str:
    """The sentences at the top of the page about what the run lacks; empty for one that is finished."""
    if not missing:
        return ""
    items = "".join(f"<li>{_with_code(text)}</li>" for text in missing)
    note = "What follows is what is there so far. No verdict is given that the missing trials could change."
    return f'<div class="unfinished">{section("This run is not finished", f"<ul>{items}</ul>", note)}</div>'


def _with_code(text: str) -> str:
    """Return a sentence as HTML, commands in it as code."""
    return re.sub("`(.*?)`", r"<code>\1</code>", escape(text))


def unreadable(run: RunFiles) -> str:
    """Damaged files of the run, which leave gaps on the page; empty when there are none."""
    if not run.notes:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in run.notes)
    return section("Files that could not be read", f"<ul>{items}</ul>", "What they hold is missing on this page.")


def search(run: RunFiles, metric: Metric) -> str:
    """Trials of a hyper-parameter search, with their values in units of the metric; empty when the run had none."""
    found = run.search
    if not found:
        return ""
    trials = found.get("trials", [])
    order = sorted(trials, key=lambda trial: (trial["value"] is None, -(trial["value"] or 0.0)))
    chosen = found.get("chosen")
    rows = [
        [
            f"r = {trial['ratio']}, delta = {trial['delta']}" + (" (chosen)" if _is(trial, chosen) else ""),
            "–" if trial["value"] is None else metric.show(trial["value"]),
            _text(trial.get("num_seeds")),
            str(trial.get("status", "")),
            _text(trial.get("step")),
        ]
        for trial in order[:MOST_ROWS]
    ]
    seeds = ", ".join(str(seed) for seed in found.get("seeds", []))
    note = (
        f"{len(trials)} cells tried: {found.get('algorithm')} search with {found.get('scheduler')}, seeds {seeds}. "
        "The best of many is flattered by chance, so these values are not reported as scores"
    )
    note += (
        ": the chosen cell was trained again on fresh seeds, and the tables above have only those." if chosen else "."
    )
    note += "" if len(order) <= MOST_ROWS else f" The best {MOST_ROWS} are shown; search.json has all."
    return section("Search", html_table(["cell", f"mean {metric.name}", "seeds", "status", "step"], rows), note)


def _is(trial: Mapping[str, Any], chosen: Mapping[str, Any] | None) -> bool:
    return chosen is not None and all(str(trial[name]) == str(chosen[name]) for name in ("ratio", "delta"))
