"""The numbers behind the report's pictures, as small Parquet files: the report never reads the data or the buffer.

Legend: O observation size, D polylines.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raystitch.buffer.bridges import Bridges
from raystitch.buffer.episodes import rebuild
from raystitch.buffer.parts import parts_of
from raystitch.buffer.reach_file import read_reach
from raystitch.buffer.reader import Buffer
from raystitch.data.episodes import EpisodeDataset, Floats
from raystitch.data.plane import plane_of
from raystitch.io.files import atomic_path
from raystitch.seeding import numpy_rng

MAX_CANDIDATES = 20_000
NUM_REAL = 250
NUM_BRIDGES = 40
NUM_STATES = 3000
"""Recorded states behind the longest way that is shown."""

Piece = tuple[str, int, NDArray[np.float64]]
"""Part, number of the line, points [T, 2]."""
Project = Callable[[Floats], NDArray[np.float64]]


def write_figures(dataset: EpisodeDataset, buffer: Buffer, folder: str | Path) -> None:
    """Writes ``acceptance``, ``candidates``, ``lines``, ``states``, ``episode``, ``walls`` and ``marks.parquet`` below
    ``folder``: all of them, or none when one fails."""
    plane = plane_of(dataset)
    project, walls, marks = plane.project, plane.ground.walls, plane.ground.marks
    labels = {"x": plane.ground.xlabel, "y": plane.ground.ylabel}
    tables = {
        "acceptance": _table(_acceptance(buffer)),
        "candidates": _table(_candidates(buffer)),
        "lines": _table(_lines(dataset, buffer.mapped(), project), labels),
        "states": _table(_states(dataset, project)),
        "episode": _table(_polylines(best_episode(dataset, buffer, project)), labels),
        "walls": _table({name: walls[:, column] for column, name in enumerate(("x", "y", "width", "height"))}),
        "marks": _table({"text": [m[0] for m in marks], "x": [m[1] for m in marks], "y": [m[2] for m in marks]}),
    }
    with ExitStack() as stack:  # files are renamed into place when the block ends, once all are written
        for name, table in tables.items():
            pq.write_table(table, stack.enter_context(atomic_path(Path(folder) / f"{name}.parquet")))


def _table(columns: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> pa.Table:
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    return table.replace_schema_metadata(dict(metadata or {}))


def _acceptance(buffer: Buffer) -> dict[str, Any]:
    repaired = buffer.column("attempt") > 0
    table = pa.table({"reason": buffer.table["reason"], "repaired": repaired})
    counts = table.group_by(["reason", "repaired"]).aggregate([([], "count_all")])
    return (
        counts.rename_columns(["reason", "repaired", "count"])
        .sort_by([("reason", "ascending"), ("repaired", "ascending")])
        .to_pydict()
    )


def _candidates(buffer: Buffer) -> dict[str, Any]:
    count = buffer.num_candidates
    rows = np.arange(count)
    if count > MAX_CANDIDATES:
        rows = np.sort(numpy_rng(0, "figures", "candidates").choice(count, MAX_CANDIDATES, replace=False))
    names = ("gap", "residual_max", "accepted", "return_source", "return_stitched")
    return {name: buffer.column(name)[rows] for name in names}


def _lines(dataset: EpisodeDataset, mapped: Bridges, project: Project) -> dict[str, NDArray[Any]]:
    """Polylines as (part, line, x, y) rows: real episodes, and bridges with their real neighbourhood."""
    rng = numpy_rng(0, "figures", "lines")
    parts: list[Piece] = []
    episodes = rng.permutation(dataset.num_episodes)[:NUM_REAL]
    parts += [("real", int(e), project(dataset.episode(int(e)).observations)) for e in episodes]
    drawn = np.sort(rng.permutation(len(mapped))[:NUM_BRIDGES])
    for row, found in enumerate(parts_of(dataset, mapped, drawn)):
        named = (("prefix", found.before), ("bridge", found.bridge), ("suffix", found.after))
        parts += [(part, row, project(states)) for part, states in named]
    return _polylines(parts)


def _polylines(pieces: Sequence[Piece]) -> dict[str, NDArray[Any]]:
    lengths = [len(points) for _, _, points in pieces]
    points = np.concatenate([np.zeros((0, 2)), *(points for _, _, points in pieces)]).astype(np.float32)
    return {
        "part": np.repeat(np.array([part for part, _, _ in pieces], np.str_), lengths),
        "line": np.repeat(np.array([line for _, line, _ in pieces], np.int64), lengths),
        "x": points[:, 0],
        "y": points[:, 1],
    }


def _states(dataset: EpisodeDataset, project: Project) -> dict[str, NDArray[Any]]:
    """Return recorded states drawn at random."""
    count = min(NUM_STATES, len(dataset.observations))
    rows = np.sort(numpy_rng(0, "figures", "states").choice(len(dataset.observations), count, replace=False))
    points = project(dataset.observations[rows]).astype(np.float32)
    return {"x": points[:, 0], "y": points[:, 1]}


def best_episode(dataset: EpisodeDataset, buffer: Buffer, project: Project) -> list[Piece]:
    """Return the most promising stitched episode from a state in which the task starts, its recorded parts and bridges
    in their order; nothing where ``reach.json`` names none.

    Args:
        buffer: its episodes are rows of ``dataset``.

    Raises:
        UserError: when ``reach.json`` is damaged.
    """
    found = read_reach(buffer.uri)[-1:]
    if not found or found[0].best_bridge is None:
        return []
    row = pc.index(buffer.table["bridge_id"], found[0].best_bridge).as_py()
    accepted = buffer.mapped()
    position = np.flatnonzero(buffer.accepted_rows() == row)
    if not len(position):
        return []
    needed = accepted.all_references.with_ancestors(position)
    stitched = rebuild(dataset, accepted.take_positions(needed), np.searchsorted(needed, position), None)
    states, generated = (
        stitched.episodes.observations[found[0].best_step :],
        stitched.is_synthetic[found[0].best_step :],
    )
    ends = np.flatnonzero(np.diff(generated)) + 1
    return [
        ("bridge" if generated[begin] else "record", line, project(states[begin : end + 1]))
        for line, (begin, end) in enumerate(pairwise([0, *ends.tolist(), len(generated)]))
        if end > begin
    ]
