"""Writing a shard where there is no room: one clear line, nothing half, and success once there is room."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raystitch.bench.synthetic_buffer import shard_table
from raystitch.buffer.meta import create_buffer, write_meta
from raystitch.buffer.schema import BufferMeta
from raystitch.buffer.shard_file import SHARDS, write_shard
from raystitch.buffer.survey import survey
from raystitch.data.episodes import EpisodeDataset
from raystitch.errors import StorageError
from raystitch.io.storage import Storage


@pytest.fixture
def large(dataset: EpisodeDataset) -> pa.Table:
    """A shard of more than a mebibyte."""
    table = shard_table(dataset, 1, 2800, np.random.default_rng(0))
    assert 1.2 * 2**20 < table.nbytes < 1.8 * 2**20
    return table


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_leaves_nothing(
    small_disk: Path, make_meta: Callable[..., BufferMeta], large: pa.Table
) -> None:
    path = small_disk / "buffer"
    meta = create_buffer(path, make_meta())
    filler = small_disk / "filler"
    filler.write_bytes(bytes(2**20))
    before = survey(path)
    for _ in range(2):
        with pytest.raises(StorageError) as caught:
            write_shard(path, 1, large)
        assert str(caught.value) == (
            f"cannot write {path}/shards/part-000001.arrow: No space left on device; "
            "make room, or choose another place, and run again"
        )
        assert list((path / SHARDS).iterdir()) == []
    assert survey(path) == before
    # What describes the buffer outlives a disk without a single byte left.
    with contextlib.suppress(OSError):
        (small_disk / "more").write_bytes(bytes(2**21))
    assert shutil.disk_usage(small_disk).free == 0
    whole = (path / "buffer.json").read_bytes()
    with pytest.raises(StorageError, match=r"cannot write .*buffer\.json: No space left"):
        write_meta(Storage(path), meta)
    assert (path / "buffer.json").read_bytes() == whole
    assert sorted(p.name for p in path.iterdir() if p.suffix == ".tmp") == []
    filler.unlink()
    (small_disk / "more").unlink()
    stats = write_shard(path, 1, large)
    assert survey(path).stats == {1: stats}


def test_an_older_file_outlives_a_full_disk(small_disk: Path, large: pa.Table) -> None:
    stats = write_shard(small_disk, 1, large.slice(0, 1500))
    (small_disk / "filler").write_bytes(bytes(2**20))
    with pytest.raises(StorageError, match="No space left"):
        write_shard(small_disk, 1, large)
    assert survey(small_disk).stats == {1: stats}
    assert survey(small_disk).damaged == {}


def test_a_limit_of_file_sizes_is_one_line_and_leaves_nothing(tmp_path: Path, large: pa.Table) -> None:
    with pa.OSFile(str(tmp_path / "table"), "wb") as sink, pa.ipc.new_file(sink, large.schema) as writer:
        writer.write_table(large)
    program = (
        "import os, resource, signal, sys, pyarrow as pa\n"
        "from raystitch.buffer.shard_file import write_shard\n"
        "from raystitch.errors import StorageError\n"
        "table = pa.ipc.open_file(pa.memory_map(sys.argv[1])).read_all()\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))\n"
        "try:\n"
        "    write_shard(sys.argv[2], 1, table)\n"
        "except StorageError as error:\n"
        "    print(error)\n"
        "print(sorted(os.listdir(sys.argv[2] + '/shards')))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))\n"
        "print(write_shard(sys.argv[2], 1, table).rows)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "table"), str(tmp_path / "b")],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.stdout.splitlines() == [
        f"cannot write {tmp_path}/b/shards/part-000001.arrow: File too large; files may not be that large here: "
        "raise the limit (ulimit -f), or choose another place",
        "[]",
        str(large.num_rows),
    ]
    assert list(survey(tmp_path / "b").stats) == [1]
