"""Buffers of any size with random content, written about as fast as the disk allows."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raystitch.buffer.config import AugmentConfig
from raystitch.buffer.meta import create_buffer, write_meta
from raystitch.buffer.schema import (
    INTEGERS,
    JUDGED_STEPS,
    NUMBERS,
    PARENTS,
    BufferMeta,
    Complete,
    flat_lists,
    make_schema,
)
from raystitch.buffer.shard_file import write_shard
from raystitch.data.episodes import EpisodeDataset, Ints
from raystitch.io.storage import Storage
from raystitch.models.calibration import Calibration
from raystitch.stitching.config import PairConfig, QualifyConfig, StitchConfig

LARGEST_GAP = 25
"""Bridges have 2 to 26 transitions, 14 on average."""
DELTA = 0.8
"""Residuals are uniform in 0..1."""


def make_buffer(
    folder: Path, dataset: EpisodeDataset, num_bridges: int, rows_per_shard: int = 8000, seed: int = 0
) -> int:
    """Write a finished buffer with at least ``num_bridges`` accepted at ``DELTA``; return its number of shards.

    One candidate in nine is the second attempt of a pair.
    """
    gaps = np.arange(1, LARGEST_GAP + 1)
    levels = np.linspace(0, 1, 11)
    tables = {name: np.tile(levels, (len(gaps), 1)) for name in ("residual", "spread", "rollout")}
    meta = BufferMeta(
        gamma=0.99,
        bundle_hash="sha256:0",
        dataset_name=dataset.name,
        dataset_fingerprint=dataset.fingerprint,
        obs_dim=dataset.obs_dim,
        act_dim=dataset.act_dim,
        action_low=tuple(dataset.action_low.tolist()),
        action_high=tuple(dataset.action_high.tolist()),
        env=dataset.env,
        calibration=Calibration(gaps, levels, tables).to_json(),
        stitch=StitchConfig(
            pairs=PairConfig(split="return"),
            qualify=QualifyConfig(delta=DELTA, termination_max=None, value_check=False),
        ),
        augment=AugmentConfig(num_bridges=num_bridges, pairs_per_shard=rows_per_shard),
        seed=seed,
    )
    create_buffer(folder, meta)
    accepted = shard = rows = 0
    while accepted < num_bridges:
        left = int((num_bridges - accepted) / DELTA) + 10
        table = shard_table(dataset, shard, min(rows_per_shard, left), np.random.default_rng([seed, shard]))
        accepted += write_shard(folder, shard, table).accepted
        rows += table.num_rows
        shard += 1
    complete = Complete(num_bridges=num_bridges, num_shards=shard, num_accepted=accepted, num_candidates=rows)
    write_meta(Storage(folder), replace(meta, complete=complete))
    return shard


def shard_table(
    dataset: EpisodeDataset,
    shard: int,
    count: int,
    rng: np.random.Generator,
    gaps: tuple[int, int] = (1, LARGEST_GAP),
) -> pa.Table:
    """Make the rows of one shard: ``count`` candidates, at most 10,000, with gaps from ``gaps[0]`` to ``gaps[1]``."""
    num_pairs = count - count // 9
    first = np.concatenate([np.arange(num_pairs), rng.permutation(num_pairs)[: count // 9]])
    attempt = (np.arange(count) >= num_pairs).astype(np.int64)
    source, target = rng.integers(0, dataset.num_episodes, (2, num_pairs))[:, first]
    gap = rng.integers(gaps[0], gaps[1] + 1, count)
    steps = int((gap + 1).sum())
    numbers = {name: np.zeros(count, np.float32) for name in NUMBERS}
    numbers["residual_max"] = rng.random(count, np.float32)
    numbers["return_stitched"] += 1
    accepted = numbers["residual_max"] < np.float32(DELTA)
    integers = {
        "source_episode": source,
        "source_step": rng.integers(0, dataset.lengths[source]),
        "target_episode": target,
        "target_step": rng.integers(0, dataset.lengths[target]),
        "gap": gap,
        "seed": rng.integers(0, 2**62, num_pairs)[first],
    }
    columns: dict[str, pa.Array] = {
        "bridge_id": _ids(shard, first, attempt),
        "first_id": _ids(shard, first, np.zeros(count, np.int64)),
        "attempt": pa.array(attempt),
        "chain_round": pa.array(np.zeros(count, np.int64)),
        **{name: pa.nulls(count, pa.string()) for name in PARENTS},
        **{name: pa.array(integers[name]) for name in INTEGERS},
        **{name: pa.array(numbers[name]) for name in NUMBERS},
        "accepted": pa.array(accepted),
        "reason": pa.DictionaryArray.from_arrays(
            pa.array(np.where(accepted, 0, 1).astype(np.int32)), pa.array(["ok", "residual"])
        ).cast(pa.string()),
        "observations": flat_lists(rng.random((steps + count, dataset.obs_dim), np.float32), gap + 2),
        "actions": flat_lists(rng.random((steps, dataset.act_dim), np.float32), gap + 1),
        "rewards": flat_lists(rng.random(steps, np.float32), gap + 1),
        **{name: flat_lists(rng.random(steps, np.float32), gap + 1) for name in JUDGED_STEPS},
    }
    schema = make_schema(dataset.obs_dim, dataset.act_dim)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _ids(shard: int, row: Ints, attempt: Ints) -> pa.Array:
    """Return the ``bridge_id`` of many rows below 10,000 at once."""
    text = np.empty((len(row), 13), np.uint8)
    text[:] = np.frombuffer(f"{shard:06d}-0000-0".encode(), np.uint8)
    text[:, 7:11] += (row[:, None] // 10 ** np.arange(3, -1, -1) % 10).astype(np.uint8)
    text[:, 12] += attempt.astype(np.uint8)
    offsets: NDArray[np.int32] = np.arange(0, text.size + 1, 13, dtype=np.int32)
    return pa.StringArray.from_buffers(len(row), pa.py_buffer(offsets), pa.py_buffer(text))
