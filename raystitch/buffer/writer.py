"""Writing shards, which exist whole or not at all."""

from dataclasses import replace

import pyarrow as pa

from raystitch.buffer.schema import make_schema
from raystitch.buffer.shard_file import (
    ShardStats,
    as_batch,
    part_name,
    shard_stats,
    write_file,
)
from raystitch.buffer.storage import Storage
from raystitch.buffer.survey import Path


def write_shard(path: Path, shard: int, table: pa.Table, manifest: str = "") -> ShardStats:
    """Writes one shard whole or not at all, over an older file of the same number.

    It does not wait until the data is on the disk: should the machine lose power, the checksum shows a torn file and
    the shard is made again.

    Args:
        manifest: hash of the closed round that this one builds on.

    Raises:
        StorageError: when it cannot be written.
    """
    batch = as_batch(table)
    stats = shard_stats(pa.Table.from_batches([batch]), shard, manifest)
    write_file(Storage(path), part_name(shard), batch, [stats], durable=False)
    return stats


def write_failed(path: Path, shard: int, obs_dim: int, act_dim: int, manifest: str, error: str) -> ShardStats:
    """Writes an empty shard in the place of one that cannot be made, so that the buffer can do without it.

    Args:
        error: why it cannot be made.

    Raises:
        StorageError: when it cannot be written.
    """
    empty = make_schema(obs_dim, act_dim).empty_table()
    stats = replace(shard_stats(empty, shard, manifest), error=error)
    write_file(Storage(path), part_name(shard), as_batch(empty), [stats], durable=False)
    return stats
