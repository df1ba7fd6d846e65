"""Readers of what loggers write, apart from the tools themselves."""

import csv
import importlib
import json
import struct
from pathlib import Path
from typing import Any

EVENTS: Any = importlib.import_module("tensorboardX.proto.event_pb2")
BLOCK, HEAD = 32768, 7
"""Bytes of a block of a LevelDB log, and of what is before a record or the file's first block."""


def lines(run: Path, name: str) -> list[list[str]]:
    """Return the rows of a CSV log, with its head."""
    with (run / "logs/csv" / f"{name}.csv").open(newline="") as file:
        return list(csv.reader(file))


def events(run: Path, name: str) -> list[Any]:
    """Read event files: records of a length, its checksum, the content and its checksum."""
    found: list[Any] = []
    for file in sorted((run / "logs/tensorboard" / name).glob("events*")):
        content, at = file.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            found.append(EVENTS.Event.FromString(content[at + 12 : at + 12 + length]))
            at += length + 16
    return found


def wandb_records(run: Path, key: str) -> list[Any]:
    """Read the offline files of a run of Weights & Biases, the oldest first: records in a LevelDB log."""
    record = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
    found: list[Any] = []
    for file in sorted((run / "logs/wandb").glob(f"offline-run-*-{key}/run-{key}.wandb")):
        content, at, parts = file.read_bytes(), HEAD, b""
        while at + HEAD <= len(content):
            if BLOCK - at % BLOCK < HEAD:
                at += BLOCK - at % BLOCK
                continue
            _, length, kind = struct.unpack_from("<IHB", content, at)
            at += HEAD
            parts += content[at : at + length]
            at += length
            if kind in (1, 4):  # whole, or the last part
                found.append(record.FromString(parts))
                parts = b""
    return found


def wandb_rows(run: Path, key: str) -> list[dict[str, Any]]:
    """Return the steps that were logged offline, each with its numbers."""
    rows: list[dict[str, Any]] = []
    for record in wandb_records(run, key):
        if record.HasField("history"):
            items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            rows.append({name: json.loads(value) for name, value in items.items()})
    return rows
