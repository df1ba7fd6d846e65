"""Buffers out of here: Minari, the D4RL layout and Parquet. What is written loads and trains elsewhere.

Episodes are put together and written piece by piece, so memory does not grow with their steps.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raystitch.buffer.reader import AtDelta, Buffer
from raystitch.buffer.streams import CHUNK_TRANSITIONS, lone_stream, stitched_stream
from raystitch.data.d4rl import write_d4rl
from raystitch.data.episodes import EpisodeDataset, Floats, Ints
from raystitch.data.minari_io import write_minari
from raystitch.data.stream import EpisodeStream
from raystitch.errors import UserError
from raystitch.files import atomic_path

Format = Literal["minari", "d4rl", "parquet"]
What = Literal["bridges", "episodes", "mixed"]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written."""

    num_episodes: int
    num_transitions: int
    num_synthetic: int


def check_dataset(buffer: Buffer, dataset: EpisodeDataset) -> None:
    """Refuses a dataset that the buffer does not refer to.

    Raises:
        UserError: other sizes or other trajectories.
    """
    meta = buffer.meta
    if dataset.fingerprint != meta.dataset_fingerprint:
        raise UserError(
            f"{buffer.uri} was generated from {meta.dataset_name} ({meta.dataset_fingerprint[:19]}..), but "
            f"{dataset.name} holds other trajectories ({dataset.fingerprint[:19]}..); give that dataset"
        )


def export(
    buffer: Buffer,
    dataset: EpisodeDataset,
    format: Format,
    out: str | os.PathLike[str],
    delta: AtDelta = "generation",
    what: What = "episodes",
    ratio: tuple[float, float] = (1.0, 1.0),
    max_transitions: int = CHUNK_TRANSITIONS,
) -> Exported:
    """Writes the bridges accepted at ``delta`` for other tools, whole or not at all.

    Args:
        out: a Minari id for ``minari``, else a file.
        what: lone ``bridges`` (time-outs whose last observation is real), whole stitched ``episodes``, or ``mixed``:
            the dataset and stitched episodes.
        ratio: of ``mixed``, original : synthetic transitions.
        max_transitions: in memory at a time; one row group of a Parquet file.

    Raises:
        UserError: an unknown choice, another dataset, nothing accepted at this delta, ``out`` exists.
        RunError: when it cannot be written.
    """
    for name, value, choices in (("format", format, get_args(Format)), ("what", what, get_args(What))):
        if value not in choices:
            raise UserError(f"{name}={value!r} is not one of {', '.join(choices)}")
    if format != "minari" and Path(out).exists():
        raise UserError(f"{out} exists already; give another --out")
    check_dataset(buffer, dataset)
    bridges = buffer.mapped(delta)
    if len(bridges) == 0:
        raise UserError(f"{buffer.uri} holds no bridge that passes delta={delta}; use a larger delta")
    if what == "bridges":
        stream, num_synthetic = lone_stream(dataset, bridges, max_transitions)
    else:
        stream, num_synthetic = stitched_stream(dataset, bridges, ratio if what == "mixed" else None, max_transitions)
    _WRITERS[format](stream, out)
    return Exported(
        num_episodes=stream.num_episodes, num_transitions=stream.num_transitions, num_synthetic=num_synthetic
    )


def _minari(stream: EpisodeStream, out: str | os.PathLike[str]) -> None:
    write_minari(stream, os.fspath(out), description=stream.name)


def _nested(values: Floats, offsets: Ints) -> pa.Array:
    inner: pa.Array = pa.array(np.ascontiguousarray(values).reshape(-1))
    if values.ndim == 2:
        inner = pa.FixedSizeListArray.from_arrays(inner, values.shape[1])
    return pa.LargeListArray.from_arrays(pa.array(offsets), inner)


def _parquet(stream: EpisodeStream, out: str | os.PathLike[str]) -> None:
    """One row per episode; ``observations`` is one longer than the other lists. A row group per piece."""
    floats = pa.large_list(pa.float32())
    schema = pa.schema(
        {
            "episode": pa.int64(),
            "observations": pa.large_list(pa.list_(pa.float32(), stream.obs_dim)),
            "actions": pa.large_list(pa.list_(pa.float32(), stream.act_dim)),
            "rewards": floats,
            "is_synthetic": pa.large_list(pa.bool_()),
            "terminated": pa.bool_(),
            "truncated": pa.bool_(),
        }
    )
    first = 0
    with atomic_path(out) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for episodes, is_synthetic in stream.pieces():
            marks = pa.LargeListArray.from_arrays(pa.array(episodes.offsets), pa.array(is_synthetic))
            columns = {
                "episode": pa.array(np.arange(first, first + episodes.num_episodes)),
                "observations": _nested(episodes.observations, episodes.obs_offsets),
                "actions": _nested(episodes.actions, episodes.offsets),
                "rewards": _nested(episodes.rewards, episodes.offsets),
                "is_synthetic": marks,
                "terminated": pa.array(episodes.terminated),
                "truncated": pa.array(episodes.truncated),
            }
            writer.write_table(pa.table(columns, schema=schema))
            first += episodes.num_episodes


_WRITERS: dict[str, Callable[[EpisodeStream, str | os.PathLike[str]], None]] = {
    "minari": _minari,
    "d4rl": write_d4rl,
    "parquet": _parquet,
}
