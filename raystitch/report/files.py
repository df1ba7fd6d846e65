"""A run's folder as plain values; missing optional files are None."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from raystitch.errors import UserError
from raystitch.files import read_json
from raystitch.report.summary import delta_text
from raystitch.trainers.ratio import parse_ratio


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """What a report is made of.

    Attributes:
        rows: of results.parquet.
        figures: tables of figures/, by name.
        metrics: lines of metrics.jsonl, by trial.
        search: search.json of a hyper-parameter search.
    """

    folder: Path
    config: dict[str, Any]
    config_text: str
    environment: dict[str, Any] | None
    rows: list[dict[str, Any]]
    validation: dict[str, Any] | None
    figures: dict[str, pa.Table]
    metrics: dict[str, list[dict[str, Any]]]
    search: dict[str, Any] | None

    @property
    def headline(self) -> tuple[str, str | None]:
        """(ratio, delta) that the verdict is about, as results.parquet has them; a search chooses it."""
        chosen = (self.search or {}).get("chosen") or self.config.get("headline")
        return (str(parse_ratio(chosen["ratio"])), delta_text(chosen["delta"])) if chosen else ("", None)

    @property
    def final_rows(self) -> list[dict[str, Any]]:
        """Rows that scores are reported from: without the trials that a search chose by, which would flatter it."""
        seeds = set((self.search or {}).get("seeds", ()))
        return [row for row in self.rows if row["data"] != "stitched" or row["seed"] not in seeds]


def read_run(folder: str | Path) -> RunFiles:
    """Reads the files of one run.

    Raises:
        UserError: when the folder is not a run, or a file in it is damaged.
    """
    folder = Path(folder)
    for name in ("config.yaml", "results.parquet"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not a run with results: it has no {name}; finish it with `raystitch sweep`")
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    try:
        config = yaml.safe_load(text)
        rows = _rows(_table(folder / "results.parquet"))
        figures = {path.stem: _table(path) for path in sorted((folder / "figures").glob("*.parquet"))}
    except (yaml.YAMLError, pa.ArrowException) as error:
        raise UserError(f"{folder} holds a damaged file: {str(error).splitlines()[0]}") from error
    return RunFiles(
        folder=folder,
        config=config,
        config_text=text,
        environment=_optional_json(folder / "environment.json"),
        rows=rows,
        validation=_optional_json(folder / "validate.json"),
        figures=figures,
        metrics={row["trial_id"]: _json_lines(folder / "trials" / row["trial_id"] / "metrics.jsonl") for row in rows},
        search=_search(folder, config),
    )


def _table(path: Path) -> pa.Table:
    """A table of plain types: those that others register with Arrow, Ray's pickled objects, run code when read."""

    def is_plain(kind: pa.DataType) -> bool:
        inner = (kind.field(index).type for index in range(kind.num_fields))
        return not isinstance(kind, pa.BaseExtensionType) and all(is_plain(item) for item in inner)

    table = pq.read_table(path)
    odd = [field.name for field in table.schema if not is_plain(field.type)]
    if odd:
        raise UserError(f"{path}: the column {odd[0][:60]} has an extension type; a run holds none")
    return table


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    """Rows whose trials' ids are names of folders and lead nowhere else."""
    rows = table.to_pylist()
    if not all(re.fullmatch(r"[\w-]+", str(row.get("trial_id"))) for row in rows):
        raise UserError("results.parquet holds a trial_id that is not one")
    return rows


def _optional_json(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.is_file() else None


def _search(folder: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """None where the run's settings ask for no search: what an earlier one left does not concern its results."""
    asked = (config.get("search") or {}).get("algorithm")
    return None if asked == "none" else _optional_json(folder / "search.json")


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """Complete lines only: a killed trial may leave half a line at the end."""
    if not path.is_file():
        return []
    lines: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines
