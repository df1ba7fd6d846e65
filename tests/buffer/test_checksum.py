"""Checksums of shards: the same wherever the rows lie; what is damaged is found, named and what is whole is kept."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raystitch.buffer.maintain import compact, failed_shards, verify
from raystitch.buffer.meta import create_buffer
from raystitch.buffer.opening import open_buffer
from raystitch.buffer.reader import Buffer
from raystitch.buffer.rounds import finish
from raystitch.buffer.schema import BufferMeta, candidates_to_table
from raystitch.buffer.shard_file import SHARDS, as_batch, read_shard_file, write_failed, write_shard
from raystitch.buffer.survey import list_shards, remove_damaged, survey
from raystitch.cli import main
from raystitch.io.digest import checksum
from raystitch.io.storage import Storage
from raystitch.stitching.candidates import Candidates

MakeMeta = Callable[..., BufferMeta]
MakeCandidates = Callable[..., Candidates]


def flip(path: Path, bits: bytes) -> None:
    """Changes one bit of the last ``bits`` in a file, which is replaced: maps of the old one stay as they are."""
    whole = bytearray(path.read_bytes())
    whole[whole.rindex(bits)] ^= 1
    path.unlink()
    path.write_bytes(bytes(whole))


def test_rows_have_one_checksum_wherever_they_lie(buffer: Buffer, make_candidates: MakeCandidates) -> None:
    fresh = [as_batch(candidates_to_table(make_candidates(shard), shard)) for shard in (0, 1, 2)]
    expected = [checksum(batch) for batch in fresh]
    assert len(set(expected)) == 3
    assert [stats.checksum for stats in buffer.stats.values()] == expected
    storage = Storage(buffer.uri)
    assert [checksum(read_shard_file(storage, f"part-00000{n}.arrow").batch) for n in (0, 1, 2)] == expected
    compact(buffer.uri)
    merged = read_shard_file(storage, "merged-000000-000002.arrow")
    assert [checksum(rows) for _, rows in merged.shards()] == expected
    assert [stats.checksum for stats in merged.stats] == expected


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1, None, 3, 4, 5]),
        pa.array([True, None, False, True, True]),
        pa.array(["a", None, "", "bc", "d"]),
        pa.array([[1.0], None, [], [2.0, 3.0], [4.0]]),
        pa.array([[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]], pa.list_(pa.int32(), 2)),
    ],
)
def test_a_slice_has_the_checksum_of_its_copy(column: pa.Array) -> None:
    batch = pa.RecordBatch.from_arrays([column], ["x"])
    copy = pa.RecordBatch.from_arrays([pa.array(column.to_pylist()[1:4], column.type)], ["x"])
    assert checksum(batch.slice(1, 3)) == checksum(copy)
    others = [batch.slice(2, 3), batch.slice(1, 2), batch.slice(1, 3).rename_columns(["y"])]
    assert checksum(copy) not in [checksum(other) for other in others]


def test_one_bit_is_found_and_named(buffer: Buffer, make_candidates: MakeCandidates) -> None:
    before = survey(buffer.uri)
    flip(Path(buffer.uri, SHARDS, "part-000001.arrow"), np.asarray(make_candidates(1).actions[1, 1]).tobytes())
    found = survey(buffer.uri)
    assert found.damaged == {"part-000001.arrow": "the checksum differs"}
    assert found.stats == {n: stats for n, stats in before.stats.items() if n != 1}


def test_statistics_cannot_be_changed_unnoticed(buffer: Buffer) -> None:
    digit = str(buffer.stats[1].accepted)[-1]
    flip(Path(buffer.uri, SHARDS, "part-000001.arrow"), f'{digit}, "residual_min"'.encode())
    assert survey(buffer.uri).damaged == {"part-000001.arrow": "the checksum of its statistics differs"}


def test_what_is_whole_in_a_damaged_merged_file_is_kept(buffer: Buffer, make_candidates: MakeCandidates) -> None:
    before = survey(buffer.uri)
    compact(buffer.uri)
    flip(Path(buffer.uri, SHARDS, "merged-000000-000002.arrow"), np.asarray(make_candidates(1).actions[1, 1]).tobytes())
    found = survey(buffer.uri)
    assert found.damaged == {"merged-000000-000002.arrow": "the checksum of shard 1 differs"}
    assert list(found.stats) == [0, 2]
    remove_damaged(buffer.uri, found)
    assert list_shards(buffer.uri) == {0: "part-000000.arrow", 2: "part-000002.arrow"}
    assert verify(buffer.uri) == ["shard 1 is missing"]
    write_shard(buffer.uri, 1, candidates_to_table(make_candidates(1), 1))
    assert survey(buffer.uri) == before
    assert verify(buffer.uri) == []


def test_a_buffer_does_without_a_failed_shard(
    tmp_path: Path, make_meta: MakeMeta, make_candidates: MakeCandidates, capsys: pytest.CaptureFixture[str]
) -> None:
    create_buffer(tmp_path, make_meta())
    for shard in (0, 2, 3):
        write_shard(tmp_path, shard, candidates_to_table(make_candidates(shard), shard))
    stats = write_failed(tmp_path, 1, 3, 2, "", "Traceback\nValueError: no")
    assert (stats.rows, stats.accepted) == (0, 0)
    complete = finish(tmp_path, 20)
    assert complete is not None
    assert verify(tmp_path) == []
    assert failed_shards(tmp_path) == {1: "Traceback\nValueError: no"}
    assert open_buffer(tmp_path).num_accepted() == complete.num_accepted
    assert main(["buffer", "verify", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path}: all shards are whole",
        "note: failed: shard 1: ValueError: no",
    ]
    compact(tmp_path)
    assert failed_shards(tmp_path) == {1: "Traceback\nValueError: no"}
    assert verify(tmp_path) == []


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_compaction_killed_at_any_step_leaves_a_sound_buffer(buffer: Buffer, kept: int) -> None:
    """Killed by SIGKILL before the merged file gets its name (0), or when 0 or 1 of its parts are removed (1, 2)."""
    before = buffer.bridges("q80")
    program = (
        "import os, signal, sys\n"
        "def hook(event, args):\n"
        "    names = [str(a) for a in args if 'merged-' in str(a)]\n"
        "    if event == 'os.rename' and names:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "from raystitch.buffer import maintain as compaction\n"
        "from raystitch.io.storage import Storage\n"
        "left = int(sys.argv[2])\n"
        "class Dying(Storage):\n"
        "    def delete(self, name):\n"
        "        global left\n"
        "        left -= 1\n"
        "        if left == 0:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        super().delete(name)\n"
        "compaction.Storage = Dying\n"
        "if left == 0:\n"
        "    sys.addaudithook(hook)\n"
        "compaction.compact(sys.argv[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, buffer.uri, str(kept)], env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert len(list(Path(buffer.uri, SHARDS).iterdir())) == (4, 4, 3)[kept]
    assert verify(buffer.uri) == []
    np.testing.assert_array_equal(open_buffer(buffer.uri).bridges("q80").observations, before.observations)
    compact(buffer.uri)
    assert set(list_shards(buffer.uri).values()) == {"merged-000000-000002.arrow"}
    assert survey(buffer.uri).stats == buffer.stats
    finish(buffer.uri, 20)
    assert [p.name for p in Path(buffer.uri, SHARDS).iterdir()] == ["merged-000000-000002.arrow"]
