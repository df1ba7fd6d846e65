"""A loss of power while a buffer is finished, merged or exported; see ``tests/files/powercut.py``."""

from collections.abc import Callable
from pathlib import Path

import pytest

from raystitch.buffer.export import export
from raystitch.buffer.maintain import compact, verify
from raystitch.buffer.meta import create_buffer
from raystitch.buffer.opening import open_buffer
from raystitch.buffer.rounds import finish
from raystitch.buffer.schema import BufferMeta, candidates_to_table
from raystitch.buffer.shard_file import write_shard
from raystitch.buffer.survey import remove_damaged, survey
from raystitch.data.episodes import EpisodeDataset
from raystitch.errors import UserError
from raystitch.stitching.candidates import Candidates
from tests.files.powercut import PowerCut

NUM_SHARDS = 5


@pytest.fixture
def generate(
    make_meta: Callable[..., BufferMeta], make_candidates: Callable[..., Candidates]
) -> Callable[[Path], list[int]]:
    """What ``augment`` does with a buffer, new or interrupted; returns the shards that it made."""

    def run(path: Path) -> list[int]:
        meta = make_meta()
        create_buffer(path, meta)
        found = survey(path)
        remove_damaged(path, found)
        made = [shard for shard in range(NUM_SHARDS) if shard not in survey(path).stats]
        for shard in made:
            table = candidates_to_table(make_candidates(shard), shard)
            write_shard(path, shard, table)
        assert finish(path, meta.augment.num_bridges) is not None
        return made

    return run


def content(path: Path) -> list[object]:
    buffer = open_buffer(path)
    rows = buffer.accepted_rows("generation")
    return [buffer.meta.complete, rows.tolist(), buffer.column("residual_max")[rows].tolist()]


def test_generation_ends_the_same_after_a_cut(generate: Callable[[Path], list[int]], tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    with PowerCut(tmp_path / "root") as cut:
        generate(tmp_path / "root" / "buffer")
        cut.promise("finished")
    expected = content(tmp_path / "root" / "buffer")
    assert len(cut.remains) > 20
    for number, remains in enumerate(cut.remains):
        if number % 2 and not remains.promised:
            continue  # half of them, to be quick
        path = remains.put(tmp_path / str(number)) / "buffer"
        if remains.promised:
            assert verify(path) == [], remains.when
            assert content(path) == expected, remains.when
        generate(path)
        assert verify(path) == [], remains.when
        assert content(path) == expected, remains.when


def test_merging_loses_no_shard_in_a_cut(generate: Callable[[Path], list[int]], tmp_path: Path) -> None:
    root = tmp_path / "root"
    generate(root / "buffer")
    expected = content(root / "buffer")
    with PowerCut(root) as cut:
        before, after = compact(root / "buffer")
    assert (before > 1, after) == (True, 1)
    assert len(cut.remains) > 3
    for number, remains in enumerate(cut.remains):
        path = remains.put(tmp_path / str(number)) / "buffer"
        assert content(path) == expected, remains.when
        assert compact(path)[1] == 1
        assert verify(path) == [], remains.when
        assert content(path) == expected, remains.when


def test_an_exported_file_is_whole_or_not_there(
    generate: Callable[[Path], list[int]], dataset: EpisodeDataset, tmp_path: Path
) -> None:
    generate(tmp_path / "buffer")
    (tmp_path / "root").mkdir()
    out = tmp_path / "root" / "bridges.parquet"
    try:
        with PowerCut(tmp_path / "root") as cut:
            export(open_buffer(tmp_path / "buffer"), dataset, "parquet", out, what="bridges")
            cut.promise("exported")
    except UserError as error:
        pytest.fail(str(error))
    for remains in cut.remains:
        found = remains.tree.get("bridges.parquet")
        assert found in (None, out.read_bytes()), remains.when
        assert found is not None or not remains.promised, remains.when
