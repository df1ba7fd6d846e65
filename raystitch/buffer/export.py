"""Exports of a buffer that load and train elsewhere: Minari, the D4RL layout and Parquet.

Episodes are put together and written piece by piece, so memory does not grow with their steps.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raystitch.buffer.bridges import CHUNK_TRANSITIONS, Bridges, References, chunk_bounds
from raystitch.buffer.episodes import BLOCK, bridge_episodes, on_dataset, rebuild, stitched_runs
from raystitch.buffer.reader import AtDelta, Buffer
from raystitch.buffer.shaped import shape_bridges
from raystitch.data.d4rl import write_d4rl
from raystitch.data.episodes import Bools, EpisodeDataset, Floats, Ints
from raystitch.data.minari_io import write_minari
from raystitch.data.stream import EpisodeStream, Piece
from raystitch.errors import UserError, check_choice
from raystitch.io.files import atomic_path
from raystitch.shaping.config import RECORDED, RewardConfig
from raystitch.shaping.rewards import shape_dataset

Format = Literal["minari", "d4rl", "parquet"]
What = Literal["bridges", "episodes", "mixed"]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The number of episodes and transitions that were written."""

    num_episodes: int
    num_transitions: int
    num_synthetic: int


def export(
    buffer: Buffer,
    dataset: EpisodeDataset,
    format: Format,
    out: str | os.PathLike[str],
    delta: AtDelta = "generation",
    what: What = "episodes",
    ratio: tuple[float, float] = (1.0, 1.0),
    max_transitions: int = CHUNK_TRANSITIONS,
    rewards: RewardConfig = RECORDED,
) -> Exported:
    """Writes the bridges accepted at ``delta`` for other tools, whole or not at all.

    Args:
        out: a Minari id for ``minari``, else a file.
        what: lone ``bridges`` (time-outs whose last observation is real), whole stitched ``episodes``, or ``mixed``:
            the dataset and stitched episodes.
        ratio: of ``mixed``, original : synthetic transitions.
        max_transitions: in memory at a time; one row group of a Parquet file.
        rewards: what real and generated steps are rewarded with.

    Raises:
        UserError: an unknown choice, another dataset, nothing accepted at this delta, ``out`` exists.
        RunError: when it cannot be written.
    """
    for name, value, choices in (("format", format, get_args(Format)), ("what", what, get_args(What))):
        check_choice(name, value, choices)
    if format != "minari" and Path(out).exists():
        raise UserError(f"{out} exists already; give another --out")
    if rewards.name == "cut":
        raise UserError("rewards: cut ends episodes where trainers read them; an export keeps them whole")
    bridges = shape_bridges(on_dataset(buffer, dataset).mapped(delta), rewards, dataset)
    dataset = shape_dataset(dataset, rewards)
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


def _common(dataset: EpisodeDataset) -> dict[str, Any]:
    names = ("obs_dim", "act_dim", "action_low", "action_high", "env")
    return {"marks": True, **{name: getattr(dataset, name) for name in names}}


def lone_stream(
    dataset: EpisodeDataset, bridges: Bridges, max_transitions: int = CHUNK_TRANSITIONS
) -> tuple[EpisodeStream, int]:
    """Every bridge as an episode of its own (see ``bridge_episodes``), and how many transitions were generated: all."""

    def pieces() -> Iterator[Piece]:
        for chunk in bridges.chunks(max_transitions):
            lone = bridge_episodes(dataset, chunk)
            yield lone.episodes, lone.is_synthetic

    stream = EpisodeStream(
        name=f"bridges of {dataset.name}",
        lengths=bridges.all_references.gap + 1,
        final_observed=np.ones(len(bridges), np.bool_),
        pieces=pieces,
        **_common(dataset),
    )
    return stream, stream.num_transitions


def stitched_stream(
    dataset: EpisodeDataset,
    bridges: Bridges,
    ratio: tuple[float, float] | None = None,
    max_transitions: int = CHUNK_TRANSITIONS,
) -> tuple[EpisodeStream, int]:
    """Whole stitched episodes, cut at the environment's time limit, and how many of their transitions were generated.

    A source that is left at the time limit gives no episode: there is no room for its bridge. A chained bridge counts
    its parents' generated transitions too, for they are in its episode.

    Args:
        ratio: original : synthetic transitions. The dataset comes first, then as many stitched episodes, in the
            buffer's order, as come nearest to it. None: all stitched episodes and no dataset.

    Raises:
        UserError: for a ratio that is not one, or when there are too few bridges for it.
    """
    if ratio is not None and (min(ratio) < 0 or max(ratio) == 0 or not np.isfinite(ratio).all()):
        raise UserError(f"ratio {ratio[0]:g}:{ratio[1]:g}: both parts must be >= 0 and one of them positive")
    references = bridges.all_references
    limit = dataset.env.max_episode_steps if dataset.env is not None else None
    lengths, synthetic, final_observed = _outcome(dataset, references, limit)
    rows = np.arange(len(references))
    if limit is not None:
        rows = np.flatnonzero(references.source_step < limit)
        if len(rows) == 0:
            raise UserError(
                f"every bridge starts at the time limit of {limit} steps, so no stitched episode holds one; export "
                "--what bridges, or augment with stitch.pairs.source_cut=any"
            )
    with_dataset = ratio is not None and ratio[0] > 0
    if ratio is not None and with_dataset:
        rows = rows[: _count(dataset, synthetic[rows], ratio)]

    def pieces() -> Iterator[Piece]:
        if with_dataset:
            yield dataset, np.zeros(dataset.num_transitions, np.bool_)
        for begin, end in pairwise(chunk_bounds(lengths[rows], max_transitions).tolist()):
            needed = references.with_ancestors(rows[begin:end])
            chunk = bridges.take_positions(needed)
            stitched = rebuild(dataset, chunk, np.searchsorted(needed, rows[begin:end]), limit)
            yield stitched.episodes, stitched.is_synthetic

    ahead = dataset.num_episodes if with_dataset else 0
    stream = EpisodeStream(
        name=dataset.name if with_dataset else f"stitched from {dataset.name}",
        lengths=np.concatenate([dataset.lengths[:ahead], lengths[rows]]),
        final_observed=np.concatenate([dataset.final_observed[:ahead], final_observed[rows]]),
        pieces=pieces,
        **_common(dataset),
    )
    return stream, int(synthetic[rows].sum())


def _outcome(dataset: EpisodeDataset, references: References, limit: int | None) -> tuple[Ints, Ints, Bools]:
    """Return for every bridge's stitched episode its transitions, the generated ones, and if its end was recorded."""
    runs = stitched_runs(dataset, references)[0]
    count = len(references)
    lengths, synthetic, cut = np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros(count, np.bool_)
    for first in range(0, count, BLOCK):
        here = slice(first, first + BLOCK)
        block = runs.take(np.arange(first, min(first + BLOCK, count)))
        kept = block if limit is None else block.head(limit)
        lengths[here] = kept.total
        synthetic[here] = (kept.length * (kept.start >= dataset.num_transitions)).sum(1)
        cut[here] = block.total > lengths[here]
    return lengths, synthetic, dataset.final_observed[references.target_episode] | cut


def _count(dataset: EpisodeDataset, synthetic: Ints, ratio: tuple[float, float]) -> int:
    """Return the number of episodes, with so many generated transitions each, that comes nearest to ``ratio``."""
    original, augmented = ratio
    wanted = dataset.num_transitions * augmented / original
    so_far = np.concatenate([[0], np.cumsum(synthetic)])
    available = int(so_far[-1])
    if wanted > available + 0.5:
        raise UserError(
            f"ratio {original:g}:{augmented:g} needs {wanted:.0f} synthetic transitions, but the {len(synthetic)} "
            f"bridges at this delta hold {available:.0f}; the most is 1:{available / dataset.num_transitions:.3g}"
        )
    return int(np.abs(so_far - wanted).argmin())
