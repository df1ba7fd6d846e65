"""``results.parquet``: its columns, read and written; and the names that tables and sentences give to its values."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raystitch.data.arrow import UnsafeArrow, check_parquet
from raystitch.errors import UserError
from raystitch.io.files import atomic_path

AGAIN = "the same `raystitch sweep` command makes it again"
IN_GRID = "in_grid"
"""True where the trial belongs to the grid (or the search) of the run's ``config.yaml``,
False for one of an earlier grid. Tables of older versions lack the column: all of their rows belong to it."""

PROMPT = "prompt"
"""``max`` where a policy itself said what to ask it for (``algorithms.dt.prompt``), null otherwise, as in all rows of
tables of older versions, which lack the column."""

SHAPING = "shaping"
"""What was done to the data of the cell, such as ``weights aw 0.1; rewards penalty 0.5``; empty for nothing, as for all
rows of tables of older versions, which lack the column."""

_ADDED = {IN_GRID: True, SHAPING: "", PROMPT: None}
"""Columns that older versions did not write -> the value of their rows."""

RESULTS_SCHEMA = pa.schema(
    [
        ("trial_id", pa.string()),
        ("algo", pa.string()),
        ("data", pa.string()),
        ("ratio", pa.string()),
        ("delta", pa.string()),
        ("delta_value", pa.float64()),
        ("seed", pa.int64()),
        ("target_return", pa.float64()),
        ("headline", pa.bool_()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("train_steps", pa.int64()),
        ("train_seconds", pa.float64()),
        ("return_mean", pa.float64()),
        ("return_std", pa.float64()),
        ("success_rate", pa.float64()),
        ("score", pa.float64()),
        ("num_eval_episodes", pa.int64()),
        (IN_GRID, pa.bool_()),
        (SHAPING, pa.string()),
        (PROMPT, pa.string()),
    ],
    metadata={"schema_version": "1"},
)

ALGORITHMS: dict[str, tuple[str, str]] = {
    "td3bc": ("TD3+BC", "TD3+BC"),
    "iql": ("IQL", "IQL"),
    "dt": ("Decision Transformer", "DT"),
    "bc": ("Behaviour cloning", "BC"),
}
"""Algorithm -> (full name, name in narrow tables). An algorithm that is not listed goes by its key."""

DATA_ORDER = ("original", "weighted", "duplicated", "joined", "stitched")

UNSHAPED = "unshaped"
"""Name of the baseline of stitched data to which something was done: the same cell without it."""

UNQUALIFIED = "no qualification"
"""Name of the baseline of stitched data read at delta off."""

BASELINE_WORDS = {
    "original": "the original data",
    "weighted": "the original data weighted by return",
    "duplicated": "the original data duplicated",
    "joined": "real fragments joined without a bridge",
    "no": "bridges without qualification",
    "unshaped": "the same bridges as they are",
}
"""First word of a baseline's name -> its name in sentences."""

SET_NAMES = {
    "accepted": "accepted bridges",
    "first_attempts": "of first attempts",
    "repaired": "repaired",
    "rejected": "rejected candidates",
    "real": "real data",
    "real_noise": "real data + noise",
    "real_inverse": "real data, inverse-dynamics actions",
}
"""Set of windows in validate.json -> its name in tables."""


def promise(auto: Mapping[str, Any]) -> str:
    """Say what ``delta: auto`` is, from its entry in validate.json, and whether it holds; or why there is none."""
    if auto["unavailable"] is not None:
        return str(auto["unavailable"])
    if auto["delta"] is None:
        return "delta: auto: there are no candidates to read at it."
    says = (
        f"delta: auto is {auto['delta']:.3g} here and accepts {auto['num_bridges']:,} bridges of this buffer; it should"
    )
    says += f" keep {100 * auto['nominal']:.3g} % of them truer than real data with noise"
    below = auto["below_reference"]
    return says + ("." if below is None else f"; in the simulator {100 * below:.3g} % of a sample are.")


UNFINISHED = "unfinished"
"""Status of the row of a trial without a result yet; no row of results.parquet has it."""
MOST_CELLS = 12
"""Cells that a sentence names."""


@dataclass(frozen=True, kw_only=True)
class PartialResults:
    """The results of a run that is not finished, as far as they are there.

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


def write_results(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Write the table, whole or not at all."""
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=RESULTS_SCHEMA)
    with atomic_path(path, durable=True) as temporary:
        pq.write_table(table, temporary)


def evaluated_rows(blank: Mapping[str, Any], returns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a finished trial, one per return asked for.

    Args:
        blank: a row of it without results. returns: content of its ``returns.json``.
    """
    steps = {name: returns[name] for name in ("train_steps", "train_seconds")}
    return [
        {**blank, **steps, **{name: item for name, item in evaluation.items() if name in blank}, "status": "ok"}
        for evaluation in returns["evaluations"]
    ]


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Read the rows of the table.

    Raises:
        UserError: when it cannot be read or lacks a column.
    """
    table = read_table(path)
    missing = [name for name in RESULTS_SCHEMA.names if name not in table.column_names and name not in _ADDED]
    if missing:
        raise UserError(f"{path} is damaged: it has no column {missing[0]}; {AGAIN}")
    rows: list[dict[str, Any]] = [{**_ADDED, **row} for row in table.to_pylist()]
    if not all(re.fullmatch(r"[\w-]+", str(row["trial_id"])) for row in rows):
        raise UserError(f"{path} holds a trial_id that is not the name of a folder")
    return rows


def read_table(path: str | Path) -> pa.Table:
    """Read a table of plain types. Extension types are refused, because some of them (Ray's pickled objects) run code.

    Raises:
        UserError: when it cannot be read or has another type.
    """
    try:
        check_parquet(Path(path))
        return pq.read_table(path)
    except UnsafeArrow as error:
        raise UserError(f"{path} has an extension type; runs do not write any") from error
    except (OSError, pa.ArrowException) as error:
        why = str(error).splitlines()[0].removesuffix(".")
        raise UserError(f"{path} is damaged: {why}; {AGAIN}") from error


def asked_for(row: Mapping[str, Any]) -> float | str | None:
    """Return what the policy of a row was asked for: a return, ``max``, or None where it is not asked for any."""
    return row.get(PROMPT) or row["target_return"]


def asked_text(row: Mapping[str, Any]) -> str:
    """Return ``asked_for`` as tables show it."""
    asked = asked_for(row)
    return "–" if asked is None else asked if isinstance(asked, str) else f"{asked:g}"


def algorithm_name(algo: str) -> str:
    return ALGORITHMS.get(algo, (algo, algo))[0]


def short_name(algo: str) -> str:
    return ALGORITHMS.get(algo, (algo, algo))[1]
