"""A buffer in pieces is the buffer: chunks, random batches from the map, streamed episodes, and bounded memory."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from raystitch.bench.buffer_memory import dataset as walks
from raystitch.bench.buffer_memory import measure
from raystitch.bench.synthetic_buffer import make_buffer
from raystitch.buffer.episodes import rebuild
from raystitch.buffer.export import export, lone_stream, stitched_stream
from raystitch.buffer.maintain import compact, describe
from raystitch.buffer.opening import open_buffer
from raystitch.buffer.reader import Buffer
from raystitch.buffer.rows import parse_ids
from raystitch.buffer.schema import bridge_id
from raystitch.data.episodes import EpisodeDataset


def test_chunks_are_the_bridges(buffer: Buffer) -> None:
    whole = buffer.bridges()
    for most in (1, 10, 10_000):
        chunks = list(buffer.iter_bridges(max_transitions=most))
        assert all(len(chunk) == 1 or chunk.num_transitions <= most for chunk in chunks)
        assert np.concatenate([chunk.ids for chunk in chunks]).tolist() == whole.ids.tolist()
        for name in ("observations", "actions", "rewards", "rows", "gap"):
            np.testing.assert_array_equal(
                np.concatenate([getattr(chunk, name) for chunk in chunks]), getattr(whole, name)
            )
    assert len(chunks) == 1


def test_taking_rows_looks_at_no_other_file(buffer: Buffer) -> None:
    last = buffer.num_candidates - 1
    name = f"part-{buffer.num_files - 1:06d}.arrow"
    path = Path(buffer.uri) / "shards" / name
    content = bytearray(path.read_bytes())
    content[content.index(buffer.take(np.array([last])).rewards[:1].tobytes())] ^= 1
    path.write_bytes(content)
    again = open_buffer(buffer.uri)
    assert len(again.take(np.arange(10))) == 10
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        again.take(np.array([last]))


def test_random_batches_are_transitions_and_uniform(buffer: Buffer) -> None:
    bridges = buffer.bridges()
    known = {row.tobytes(): number for number, row in enumerate(bridges.actions)}
    counts = np.zeros(len(known))
    for batch in buffer.batches(64, seed=1, num_batches=500):
        numbers = np.array([known[row.tobytes()] for row in batch["action"]])
        counts += np.bincount(numbers, minlength=len(known))
        np.testing.assert_array_equal(batch["observation"], bridges.observations[bridges.obs_index[numbers]])
        np.testing.assert_array_equal(batch["next_observation"], bridges.observations[bridges.obs_index[numbers] + 1])
        np.testing.assert_array_equal(batch["reward"], bridges.rewards[numbers])
        assert not batch["terminated"].any()
    expected = 64 * 500 / len(known)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < len(known) + 5 * np.sqrt(2 * len(known))


def test_random_batches_over_bridges_give_each_the_same_weight(buffer: Buffer) -> None:
    bridges = buffer.bridges()
    known = {row.tobytes(): number for number, row in enumerate(bridges.actions)}
    of_step = np.repeat(np.arange(len(bridges)), bridges.gap + 1)
    counts = np.zeros(len(bridges))
    for batch in buffer.batches(64, seed=1, num_batches=300, over="bridges"):
        numbers = [known[row.tobytes()] for row in batch["action"]]
        counts += np.bincount(of_step[numbers], minlength=len(bridges))
    expected = 64 * 300 / len(bridges)
    assert ((counts - expected) ** 2 / expected).sum() < len(bridges) + 5 * np.sqrt(2 * len(bridges))


def test_random_batches_resume_and_survive_compaction(buffer: Buffer) -> None:
    def actions(source: Buffer, num_batches: int, start: int = 0) -> list[bytes]:
        made = source.batches(8, seed=3, window=4, num_batches=num_batches, start=start)
        return [batch["action"].tobytes() for batch in made]

    first = actions(buffer, num_batches=11)
    assert actions(buffer, num_batches=11) == first
    assert actions(buffer, num_batches=5, start=6) == first[6:]
    assert len(set(first)) == 11
    compact(buffer.uri)
    merged = open_buffer(buffer.uri)
    assert merged.num_files == 1 < buffer.num_files
    assert actions(merged, num_batches=11) == first
    assert [b["action"].tobytes() for b in buffer.batches(8, seed=4, num_batches=2)] != first[:2]
    with pytest.raises(ValueError, match="batch_size must be at least 1, got batch_size=0"):
        buffer.batches(0, seed=0)
    with pytest.raises(ValueError, match="no transition"):
        buffer.batches(8, seed=0, delta=0.0)


def test_a_torch_loader_with_workers_reads_the_map(buffer: Buffer) -> None:
    data = buffer.to_torch()
    bridges = buffer.bridges()
    sampler = BatchSampler(SequentialSampler(data), batch_size=32, drop_last=False)
    loader = DataLoader(data, batch_size=None, sampler=sampler, num_workers=2, multiprocessing_context="fork")
    batches = list(loader)
    np.testing.assert_array_equal(np.concatenate([batch["action"].numpy() for batch in batches]), bridges.actions)
    plain = next(iter(DataLoader(data, batch_size=5)))
    np.testing.assert_array_equal(plain["reward"].numpy(), bridges.rewards[:5])
    np.testing.assert_array_equal(data[-1]["action"].numpy(), bridges.actions[-1])
    with pytest.raises(IndexError):
        data[len(data)]


@pytest.mark.parametrize("ratio", [None, (1.0, 0.2), (0.0, 1.0)])
def test_streamed_episodes_are_the_rebuilt_ones(
    dataset: EpisodeDataset, buffer: Buffer, ratio: tuple[float, float] | None
) -> None:
    whole = rebuild(dataset, buffer.bridges())
    stream, num_synthetic = stitched_stream(dataset, buffer.mapped(), ratio, max_transitions=40)
    pieces = list(stream.pieces())
    assert len(pieces) > 2
    episodes = np.concatenate([piece.observations for piece, _ in pieces])
    marks = np.concatenate([marks for _, marks in pieces if marks is not None])
    assert marks.sum() == num_synthetic
    assert np.concatenate([piece.lengths for piece, _ in pieces]).tolist() == stream.lengths.tolist()
    if ratio is not None and ratio[0]:
        np.testing.assert_array_equal(episodes[: len(dataset.observations)], dataset.observations)
        episodes = episodes[len(dataset.observations) :]
        assert abs(num_synthetic - 0.2 * dataset.num_transitions) <= 4
    np.testing.assert_array_equal(episodes, whole.episodes.observations[: len(episodes)])
    lone, _ = lone_stream(dataset, buffer.mapped(), max_transitions=3)
    np.testing.assert_array_equal(
        np.concatenate([piece.actions for piece, _ in lone.pieces()]), buffer.bridges().actions
    )


def test_a_parquet_export_in_row_groups(dataset: EpisodeDataset, buffer: Buffer, tmp_path: Path) -> None:
    export(buffer, dataset, "parquet", tmp_path / "whole.parquet")
    export(buffer, dataset, "parquet", tmp_path / "pieces.parquet", max_transitions=60)
    assert pq.ParquetFile(tmp_path / "pieces.parquet").num_row_groups > 3
    assert pq.read_table(tmp_path / "pieces.parquet").equals(pq.read_table(tmp_path / "whole.parquet"))


def test_ids_as_numbers() -> None:
    numbers = [(0, 3, 0), (41, 12, 1), (1_234_567, 9_999, 0), (7, 10_000, 2), (999_999, 0, 12)]
    ids = parse_ids(pa.chunked_array([[bridge_id(*n) for n in numbers], [None, bridge_id(5, 6, 7)]]))
    expected = [*numbers, (-1, -1, -1), (5, 6, 7)]
    assert list(zip(ids.shard.tolist(), ids.row.tolist(), ids.attempt.tolist(), strict=True)) == expected
    for wrong in ("000000-0003", "a00000-0003-0", "000000-0003-0-1"):
        with pytest.raises(ValueError, match="ids look like"):
            parse_ids(pa.array([wrong]))


def test_info_of_a_damaged_buffer_says_what_is_wrong(buffer: Buffer) -> None:
    shards, last = Path(buffer.uri) / "shards", buffer.num_files - 1
    accepted = buffer.column("accepted")
    path = shards / "part-000001.arrow"
    path.write_bytes(path.read_bytes()[:-100])
    (shards / f"part-{last:06d}.arrow").unlink()
    found = describe(buffer.uri)
    assert list(found["damaged"]) == ["part-000001.arrow"]
    assert found["missing"] == [1, last]
    assert found["shards"] == found["files"] == last - 1
    assert found["accepted"] == accepted[~np.isin(np.arange(len(accepted)) // 16, [1, last])].sum()


@pytest.mark.parametrize("user", ["random batches", "train on transitions", "export to Parquet"])
def test_memory_does_not_grow_with_the_steps(user: str, large: Path, tiny: Path) -> None:
    candidates = open_buffer(large).num_candidates
    steps = sum(file.stat().st_size for file in (large / "shards").iterdir())
    allowed = 64 * 2**20 + 150 * candidates
    assert steps > 1.5 * allowed  # who loads them is found out
    assert measure(user, tiny, large).peak_bytes < allowed


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "buffer"
    make_buffer(folder, walks(), 200)
    return folder


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large") / "buffer"
    make_buffer(folder, walks(), 120_000)
    return folder
