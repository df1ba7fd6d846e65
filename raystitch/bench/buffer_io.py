"""How fast a shard is written, next to Arrow's bare writer, and how fast its checksum is, next to copying memory."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from raystitch.bench.buffer_memory import dataset
from raystitch.bench.machine import Limits, Row, interleaved_seconds
from raystitch.bench.synthetic_buffer import shard_table
from raystitch.buffer.checksum import checksum
from raystitch.buffer.shard_file import as_batch
from raystitch.buffer.writer import write_shard

GAPS = (4, 24)
ROUNDS = 15


def rows(limits: Limits, num_rows: int = 10_000) -> list[Row]:
    """Both write the same table into new files of the same folder, in turn; what was written goes between."""
    table = shard_table(dataset(), 0, num_rows, np.random.default_rng(0), GAPS)
    batch = as_batch(table)
    with tempfile.TemporaryDirectory() as name:
        shards = Path(name) / "shards"
        shards.mkdir()

        def arrow() -> None:
            with pa.ipc.new_file(str(shards / "arrow"), table.schema) as writer:
                writer.write_table(table)

        def clear() -> None:
            for file in shards.iterdir():
                file.unlink()

        # Cleared before each, so that both get memory for their files in the same state.
        works = {
            "clear": clear,
            "arrow": arrow,
            "clear again": clear,
            "raystitch": lambda: write_shard(name, 0, table),
            "checksum": lambda: checksum(batch),
        }
        seconds = interleaved_seconds(works, rounds=ROUNDS)
    arrow_rate, rate, checksum_rate = (
        table.nbytes / seconds[name] / 1e9 for name in ("arrow", "raystitch", "checksum")
    )
    reference = f"Arrow's bare writer, {num_rows:,} rows, {table.nbytes / 2**20:.1f} MiB"
    return [
        Row(reference, arrow_rate, "GB/s"),
        Row("a shard with statistics and checksums", rate, "GB/s", reference, rate / arrow_rate),
        Row("checksum of a shard", checksum_rate, "GB/s", "memcpy", checksum_rate / limits.memcpy_gbytes_per_s),
    ]
