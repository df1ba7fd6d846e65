import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raystitch.buffer.config import AugmentConfig
from raystitch.buffer.maintain import compact, verify
from raystitch.buffer.meta import create_buffer
from raystitch.buffer.opening import open_buffer
from raystitch.buffer.reader import Buffer
from raystitch.buffer.rounds import finish, prefix_length
from raystitch.buffer.schema import BufferMeta, candidates_to_table, flat_steps, make_schema
from raystitch.buffer.shard_file import SHARDS, read_shard_file, write_shard
from raystitch.buffer.survey import list_shards, survey
from raystitch.errors import RunError, UserError
from raystitch.io.holders import temporary_name
from raystitch.io.storage import Storage
from raystitch.stitching.candidates import Candidates

MakeMeta = Callable[..., BufferMeta]
MakeCandidates = Callable[..., Candidates]


def part(buffer: Buffer, shard: int) -> Path:
    return Path(buffer.uri) / SHARDS / list_shards(buffer.uri)[shard]


def test_rows_hold_the_candidates_without_padding(make_candidates: MakeCandidates) -> None:
    candidates = make_candidates(3, 5, repaired=(1, 4))
    table = candidates_to_table(candidates, 42)
    assert table.schema.equals(make_schema(3, 2))
    assert table["bridge_id"].to_pylist()[4:] == ["000042-0004-0", "000042-0001-1", "000042-0004-1"]
    assert table["first_id"].to_pylist()[4:] == ["000042-0004-0", "000042-0001-0", "000042-0004-0"]
    for row in range(7):
        gap = int(candidates.gap[row])
        np.testing.assert_array_equal(table["observations"][row].as_py(), candidates.observations[row, : gap + 2])
        np.testing.assert_array_equal(table["actions"][row].as_py(), candidates.actions[row, : gap + 1])
        np.testing.assert_array_equal(table["rewards"][row].as_py(), candidates.rewards[row, : gap + 1])


def test_steps_of_a_shard_are_a_view_of_the_memory_map(buffer: Buffer) -> None:
    allocated = pa.total_allocated_bytes()
    file = read_shard_file(Storage(buffer.uri), part(buffer, 0).name)
    steps = flat_steps(file.batch["observations"])
    assert steps.shape == (int((file.batch["gap"].to_numpy() + 2).sum()), 3)
    assert not steps.flags.owndata
    assert not steps.flags.writeable
    assert pa.total_allocated_bytes() - allocated < steps.nbytes


def test_the_same_shard_gives_the_same_bytes(tmp_path: Path, make_candidates: MakeCandidates) -> None:
    for name in ("a", "b"):
        write_shard(tmp_path / name, 0, candidates_to_table(make_candidates(0), 0))
    files = [tmp_path / name / SHARDS / "part-000000.arrow" for name in ("a", "b")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_finish_keeps_the_smallest_prefix(tmp_path: Path, make_meta: MakeMeta, make_candidates: MakeCandidates) -> None:
    create_buffer(tmp_path / "b", make_meta())
    accepted = [
        write_shard(tmp_path / "b", shard, candidates_to_table(make_candidates(shard), shard)).accepted
        for shard in (4, 1, 0, 2, 3)
    ]
    in_order = [accepted[2], accepted[1], accepted[3], accepted[4], accepted[0]]
    wanted = int(np.searchsorted(np.cumsum(in_order), 20)) + 1
    # What a killed process left goes; what another process is writing stays.
    script = "from raystitch.io.holders import temporary_name; print(temporary_name('part-000009.arrow'))"
    dead = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    leftover = tmp_path / "b" / SHARDS / dead.stdout.strip()
    leftover.write_text("half a shard")
    foreign = leftover.with_name(".part-000009.arrow.elsewhere-12-00ff.tmp")
    foreign.write_text("half a shard")
    os.utime(foreign, (0, 0))
    with pytest.raises(UserError, match="unfinished"):
        open_buffer(tmp_path / "b")
    complete = finish(tmp_path / "b", 20)
    assert complete is not None
    assert wanted < 5
    assert complete.num_shards == wanted
    assert complete.num_accepted == sum(in_order[:wanted]) >= 20
    assert sorted(p.name for p in (tmp_path / "b" / SHARDS).iterdir()) == [f"part-{n:06d}.arrow" for n in range(wanted)]
    assert verify(tmp_path / "b") == []
    assert finish(tmp_path / "b", 1000) is None
    at_work = [temporary_name("part-000009.arrow"), foreign.name]
    for name in at_work:
        (tmp_path / "b" / SHARDS / name).write_text("half a shard")
    assert finish(tmp_path / "b", 20) == complete
    assert sorted(p.name for p in (tmp_path / "b" / SHARDS).glob(".*")) == sorted(at_work)


def test_a_hole_is_not_a_prefix(buffer: Buffer) -> None:
    stats = survey(buffer.uri).stats
    del stats[0]
    assert prefix_length(stats, 1) is None


def test_other_settings_are_refused(buffer: Buffer, make_meta: MakeMeta, tmp_path: Path) -> None:
    assert create_buffer(buffer.uri, make_meta(num_bridges=500)).complete is not None
    with pytest.raises(UserError, match=r"seed \(there 0, asked 3\), stitch.qualify.delta \(there 0.5, asked 'q90'\)"):
        create_buffer(buffer.uri, make_meta(delta="q90", seed=3))
    with pytest.raises(UserError, match="generated for 20 bridges"):
        create_buffer(buffer.uri, make_meta(num_bridges=5))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="not empty and not a buffer"):
        create_buffer(tmp_path / "other", make_meta())


def test_settings_survive_json(make_meta: MakeMeta) -> None:
    meta = make_meta()
    assert BufferMeta.from_json(meta.to_json(), "x").to_json() == meta.to_json()
    with pytest.raises(UserError, match="schema_version=9"):
        BufferMeta.from_json(meta.to_json() | {"schema_version": 9}, "x")
    with pytest.raises(UserError, match="not a buffer description"):
        BufferMeta.from_json(meta.to_json() | {"augment": {"num_bridge": 1}}, "x")
    with pytest.raises(ValueError, match="num_actors=0"):
        AugmentConfig(num_actors=0)


def test_damage_is_found(buffer: Buffer) -> None:
    file = part(buffer, 1)
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(np.float32(buffer.take(np.array([16])).actions[1, 1]).tobytes())] ^= 1
    file.unlink()  # the open buffer keeps the mapping of the old file
    file.write_bytes(bytes(flipped))
    assert any("checksum differs" in problem for problem in verify(buffer.uri))
    assert 1 not in survey(buffer.uri).stats
    with pytest.raises(UserError, match="checksum differs"):
        open_buffer(buffer.uri).bridges()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"part-000001\.arrow is damaged"):
        open_buffer(buffer.uri)
    file.unlink()
    with pytest.raises(UserError, match="shard 1 is missing"):
        open_buffer(buffer.uri)
    assert "shard 1 is missing" in verify(buffer.uri)


def test_not_a_buffer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a buffer"):
        open_buffer(tmp_path)
    (tmp_path / "buffer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        open_buffer(tmp_path)


def test_compaction_changes_nothing_that_is_read(buffer: Buffer, make_candidates: MakeCandidates) -> None:
    before = buffer.bridges("q80")
    shards = list(buffer.stats)
    assert compact(buffer.uri) == (len(shards), 1)
    merged = open_buffer(buffer.uri)
    assert len(list((Path(buffer.uri) / SHARDS).iterdir())) == 1
    after = merged.bridges("q80")
    for name in ("ids", "observations", "actions", "rewards", "offsets"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
    assert merged.hash == buffer.hash
    assert merged.stats == buffer.stats
    assert verify(buffer.uri) == []
    # A crash between writing the merged file and removing the parts leaves both; the buffer grows after compaction.
    write_shard(buffer.uri, 0, candidates_to_table(make_candidates(0), 0))
    assert set(list_shards(buffer.uri).values()) == {"merged-000000-000002.arrow"}
    assert shards == [0, 1, 2]
    for shard in (3, 4):
        write_shard(buffer.uri, shard, candidates_to_table(make_candidates(shard), shard))
    finish(buffer.uri, 30)
    grown = open_buffer(buffer.uri)
    assert verify(buffer.uri) == []
    assert grown.num_accepted() >= 30
    assert len(set(grown.table["bridge_id"].to_pylist())) == grown.num_candidates


def test_an_unwritable_folder_is_a_run_error(tmp_path: Path, make_meta: MakeMeta) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="cannot write"):
        create_buffer(tmp_path / "file" / "buffer", make_meta())


def test_a_file_uri_is_a_path(tmp_path: Path, make_meta: MakeMeta, make_candidates: MakeCandidates) -> None:
    uri = f"file://{tmp_path}/remote"
    create_buffer(uri, make_meta(num_bridges=1))
    write_shard(uri, 0, candidates_to_table(make_candidates(0), 0))
    complete = finish(uri, 1)
    assert complete is not None
    assert open_buffer(tmp_path / "remote").num_accepted() == complete.num_accepted
    with pytest.raises(UserError, match="gopher"):
        open_buffer("gopher://somewhere/buffer")


def test_object_store_requests(tmp_path: Path) -> None:
    # What s3:// does, on a local folder: whole requests through pyarrow's file system, no rename, no memory map.
    storage = Storage(tmp_path)
    storage.local = None
    storage.write("a.json", b"{}")
    assert storage.names() == ["a.json"]
    assert storage.exists("a.json")
    assert storage.size("a.json") == 2
    assert storage.read("a.json").to_pybytes() == b"{}"
    storage.delete("a.json")
    storage.delete("a.json")
    assert storage.names() == []
    with pytest.raises(RunError, match="cannot write"):
        storage.write("no/such/folder.json", b"")
