"""Buffers out of here: Minari, the D4RL layout and Parquet. What is written loads and trains elsewhere."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raystitch.buffer.bridges import BridgeSet
from raystitch.buffer.episodes import StitchedEpisodes, bridge_episodes, concatenate, rebuild
from raystitch.buffer.reader import AtDelta, Buffer
from raystitch.data.d4rl import write_d4rl
from raystitch.data.episodes import EpisodeDataset, Floats, Ints
from raystitch.data.minari_io import write_minari
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


def mix(
    dataset: EpisodeDataset, bridges: BridgeSet, ratio: tuple[float, float], rows: Ints | None = None
) -> StitchedEpisodes:
    """The dataset, then as many whole stitched episodes as bring original : synthetic transitions to ``ratio``.

    Args:
        rows: the bridges whose episodes are taken, in this order; all by default. A chained one counts its parents'
            generated transitions too, for they are in its episode.

    Raises:
        UserError: for a ratio that is not one, or when there are too few bridges for it.
    """
    original, augmented = ratio
    if min(ratio) < 0 or max(ratio) == 0 or not np.isfinite(ratio).all():
        raise UserError(f"ratio {original:g}:{augmented:g}: both parts must be >= 0 and one of them positive")
    rows = np.arange(len(bridges)) if rows is None else rows
    stitched = rebuild(dataset, bridges, rows)
    if original == 0:
        return stitched
    wanted = dataset.num_transitions * augmented / original
    episode = np.repeat(np.arange(len(rows)), stitched.episodes.lengths)
    synthetic = np.cumsum(np.bincount(episode, weights=stitched.is_synthetic, minlength=len(rows)))
    available = synthetic[-1] if len(rows) else 0.0
    if wanted > available + 0.5:
        raise UserError(
            f"ratio {original:g}:{augmented:g} needs {wanted:.0f} synthetic transitions, but the {len(rows)} "
            f"bridges at this delta hold {available:.0f}; the most is 1:{available / dataset.num_transitions:.3g}"
        )
    count = int(np.abs(np.concatenate([[0.0], synthetic]) - wanted).argmin())
    real = StitchedEpisodes(episodes=dataset, is_synthetic=np.zeros(dataset.num_transitions, np.bool_))
    return concatenate(real, rebuild(dataset, bridges, rows[:count]))


def export(
    buffer: Buffer,
    dataset: EpisodeDataset,
    format: Format,
    out: str | os.PathLike[str],
    delta: AtDelta = "generation",
    what: What = "episodes",
    ratio: tuple[float, float] = (1.0, 1.0),
) -> Exported:
    """Writes the bridges accepted at ``delta`` for other tools, whole or not at all.

    Args:
        out: a Minari id for ``minari``, else a file.
        what: lone ``bridges`` (time-outs whose last observation is real), whole stitched ``episodes``, or ``mixed``:
            the dataset and stitched episodes.
        ratio: of ``mixed``, original : synthetic transitions.

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
    bridges = buffer.bridges(delta)
    if len(bridges) == 0:
        raise UserError(f"{buffer.uri} holds no bridge that passes delta={delta}; use a larger delta")
    limit = dataset.env.max_episode_steps if dataset.env is not None else None
    rows = np.arange(len(bridges))
    if what != "bridges" and limit is not None:
        # A source left at the time limit leaves no room for its bridge: the episode would be a copy of the source.
        rows = np.flatnonzero(bridges.source_step < limit)
        if len(rows) == 0:
            raise UserError(
                f"every bridge of {buffer.uri} starts at the time limit of {limit} steps, so no stitched episode holds "
                "one; export --what bridges, or augment with stitch.pairs.source_cut=any"
            )
    if what == "bridges":
        stitched = bridge_episodes(dataset, bridges)
    elif what == "episodes":
        stitched = rebuild(dataset, bridges, rows)
    else:
        stitched = mix(dataset, bridges, ratio, rows)
    _WRITERS[format](stitched, out)
    return Exported(
        num_episodes=stitched.episodes.num_episodes,
        num_transitions=stitched.episodes.num_transitions,
        num_synthetic=int(stitched.is_synthetic.sum()),
    )


def _minari(stitched: StitchedEpisodes, out: str | os.PathLike[str]) -> None:
    write_minari(stitched.episodes, os.fspath(out), description=stitched.episodes.name)


def _d4rl(stitched: StitchedEpisodes, out: str | os.PathLike[str]) -> None:
    """The D4RL arrays and one more, ``is_synthetic``."""
    with atomic_path(out) as temporary:
        write_d4rl(stitched.episodes, temporary)
        with h5py.File(temporary, "a") as file:
            file.create_dataset("is_synthetic", data=stitched.is_synthetic, compression="gzip")


def _nested(values: Floats, offsets: Ints) -> pa.Array:
    inner: pa.Array = pa.array(np.ascontiguousarray(values).reshape(-1))
    if values.ndim == 2:
        inner = pa.FixedSizeListArray.from_arrays(inner, values.shape[1])
    return pa.LargeListArray.from_arrays(pa.array(offsets), inner)


def _parquet(stitched: StitchedEpisodes, out: str | os.PathLike[str]) -> None:
    """One row per episode; ``observations`` is one longer than the other lists."""
    episodes = stitched.episodes
    table = pa.table(
        {
            "episode": pa.array(np.arange(episodes.num_episodes)),
            "observations": _nested(episodes.observations, episodes.obs_offsets),
            "actions": _nested(episodes.actions, episodes.offsets),
            "rewards": _nested(episodes.rewards, episodes.offsets),
            "is_synthetic": pa.LargeListArray.from_arrays(pa.array(episodes.offsets), pa.array(stitched.is_synthetic)),
            "terminated": pa.array(episodes.terminated),
            "truncated": pa.array(episodes.truncated),
        }
    )
    with atomic_path(out) as temporary:
        pq.write_table(table, temporary, compression="zstd")


_WRITERS: dict[str, Callable[[StitchedEpisodes, str | os.PathLike[str]], None]] = {
    "minari": _minari,
    "d4rl": _d4rl,
    "parquet": _parquet,
}
