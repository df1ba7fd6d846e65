"""The speed of writing a buffer, next to Arrow's bare writer, and of reading one, next to arrays in memory."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from raystitch.bench.buffer_memory import Use, dataset, measure
from raystitch.bench.machine import Limits, Row, interleaved_seconds
from raystitch.bench.synthetic_buffer import make_buffer, shard_table
from raystitch.buffer.maintain import compact
from raystitch.buffer.opening import open_buffer
from raystitch.buffer.reader import Buffer
from raystitch.buffer.shard_file import as_batch, write_shard
from raystitch.io.digest import checksum

GAPS = (4, 24)
WRITE_ROUNDS, READ_ROUNDS = 15, 7
NUM_BRIDGES, ROWS_PER_SHARD = 30_000, 1_000
BATCH_SIZE, NUM_BATCHES = 256, 512
GROWTH = (1_000, 30_000, 300_000, 1_000_000)
T = TypeVar("T")


def write_rows(limits: Limits, num_rows: int = 10_000) -> list[Row]:
    """Rows about a shard and its checksum: Arrow and raystitch write the same table in turn, into an empty folder."""
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

        # The folder is cleared before each write, so that both find memory for their files in the same state.
        works = {
            "clear": clear,
            "arrow": arrow,
            "clear again": clear,
            "raystitch": lambda: write_shard(name, 0, table),
            "checksum": lambda: checksum(batch),
        }
        seconds = interleaved_seconds(works, rounds=WRITE_ROUNDS)
    arrow_rate, rate, checksum_rate = (
        table.nbytes / seconds[name] / 1e9 for name in ("arrow", "raystitch", "checksum")
    )
    reference = f"Arrow's bare writer, {num_rows:,} rows, {table.nbytes / 2**20:.1f} MiB"
    return [
        Row(reference, arrow_rate, "GB/s"),
        Row("a shard with statistics and checksums", rate, "GB/s", reference, rate / arrow_rate),
        Row("checksum of a shard", checksum_rate, "GB/s", "memcpy", checksum_rate / limits.memcpy_gbytes_per_s),
    ]


def read_rows(limits: Limits, growth: tuple[int, ...] = GROWTH) -> list[Row]:
    """Rows about random batches and scans, from about forty files and from merged ones, and about large buffers."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_buffer(folder / "buffer", dataset(), NUM_BRIDGES, ROWS_PER_SHARD)
        parts = open_buffer(folder / "buffer")
        found = _random(parts, f"{parts.num_files} files")
        compact(folder / "buffer")
        merged = open_buffer(folder / "buffer")
        found += _random(merged, "merged")
        found.append(_scan(merged, limits))
        return found + _growth(folder, growth)


def _random(buffer: Buffer, files: str) -> list[Row]:
    """Compare random batches by ``array[index]`` on five columns with ``batches``; each draws its own indices."""
    transitions = buffer.transitions()
    columns: Any = transitions.at(np.arange(len(transitions)))
    columns = {name: column.copy() for name, column in columns.items()}

    def in_memory() -> None:
        rng = np.random.default_rng(0)
        for _ in range(NUM_BATCHES):
            index = rng.integers(0, len(transitions), BATCH_SIZE)
            for column in columns.values():
                column[index]

    def mapped() -> None:
        for _ in transitions.batches(BATCH_SIZE, seed=0, num_batches=NUM_BATCHES):
            pass

    seconds = interleaved_seconds({"memory": in_memory, "mapped": mapped}, rounds=READ_ROUNDS)
    memory, mapped_rate = (NUM_BATCHES / seconds[name] for name in ("memory", "mapped"))
    reference = f"random batches of {BATCH_SIZE} from arrays in memory, beside {files}"
    return [
        Row(reference, memory, "batches/s"),
        Row(f"random batches from the map, {files}", mapped_rate, "batches/s", reference, mapped_rate / memory),
    ]


def _scan(buffer: Buffer, limits: Limits) -> Row:
    """Copy all steps out of the files."""
    num_bytes = sum(column.nbytes for number in range(buffer.num_files) for column in buffer.steps(number))

    def scan() -> None:
        for number in range(buffer.num_files):
            for column in buffer.steps(number):
                column.copy()

    seconds = interleaved_seconds({"scan": scan}, rounds=READ_ROUNDS)["scan"]
    rate = num_bytes / seconds / 1e9
    return Row("all steps copied out of the map", rate, "GB/s", "memcpy", rate / limits.memcpy_gbytes_per_s)


def _growth(folder: Path, growth: tuple[int, ...]) -> list[Row]:
    """Measure the time to open and to filter at another delta, and the memory while filtering and while training."""
    make_buffer(folder / "tiny", dataset(), 200)
    found: list[Row] = []
    for count in growth:
        path = folder / str(count)
        make_buffer(path, dataset(), count)
        what = f"{count:,} bridges"
        buffer, seconds = _timed(lambda path=path: open_buffer(path))
        found.append(Row(f"open, {what}", seconds, "s"))
        found.append(
            Row(f"filter at a delta, {what}", _timed(lambda buffer=buffer: buffer.num_accepted("q70"))[1], "s")
        )
        for user in ("open and filter", "train on transitions"):
            used: Use = measure(user, folder / "tiny", path)
            found.append(Row(f"memory to {user}, {what}", used.peak_bytes / 2**20, "MiB"))
        for file in sorted(path.rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
    return found


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started
