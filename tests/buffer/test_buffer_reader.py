from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from raystitch.buffer.meta import create_buffer
from raystitch.buffer.opening import open_buffer
from raystitch.buffer.reader import Buffer
from raystitch.buffer.rounds import finish
from raystitch.buffer.schema import BufferMeta, candidates_to_table
from raystitch.buffer.shard_file import write_shard
from raystitch.errors import UserError
from raystitch.stitching.candidates import Candidates

MakeMeta = Callable[..., BufferMeta]
MakeCandidates = Callable[..., Candidates]


def test_delta_is_a_filter_at_reading(buffer: Buffer) -> None:
    residual = buffer.column("residual_max")
    assert buffer.num_accepted() == buffer.column("accepted").sum() == (residual < 0.5).sum()
    assert buffer.num_accepted(0.2) == (residual < 0.2).sum()
    assert buffer.num_accepted("q80") == (residual < np.float32(0.8)).sum()
    assert buffer.num_accepted("off") == buffer.num_accepted(None) == buffer.num_candidates
    assert buffer.reasons(0.2)["residual"] == (residual >= 0.2).sum()
    with pytest.raises(UserError, match="-1"):
        buffer.bridges(-1.0)


def test_bridges_are_the_candidates(buffer: Buffer, make_candidates: MakeCandidates) -> None:
    bridges = buffer.bridges()
    assert len(bridges) == buffer.num_accepted()
    assert bridges.num_transitions == (bridges.gap + 1).sum()
    for number in range(len(bridges)):
        shard, row, attempt = (int(part) for part in bridges.ids[number].split("-"))
        made = make_candidates(shard)
        gap = int(bridges.gap[number])
        assert attempt == 0
        assert made.gap[row] == gap
        assert made.source_step[row] == bridges.source_step[number]
        states = slice(bridges.obs_offsets[number], bridges.obs_offsets[number + 1])
        steps = slice(bridges.offsets[number], bridges.offsets[number + 1])
        np.testing.assert_array_equal(bridges.observations[states], made.observations[row, : gap + 2])
        np.testing.assert_array_equal(bridges.actions[steps], made.actions[row, : gap + 1])
        np.testing.assert_array_equal(bridges.rewards[steps], made.rewards[row, : gap + 1])


def test_take_keeps_bridges_whole(buffer: Buffer) -> None:
    bridges = buffer.bridges("off")
    order = np.array([7, 2, 30])
    taken = bridges.take(order)
    assert taken.ids.tolist() == bridges.ids[order].tolist()
    states = slice(taken.obs_offsets[1], taken.obs_offsets[2])
    expected = slice(bridges.obs_offsets[2], bridges.obs_offsets[3])
    np.testing.assert_array_equal(taken.observations[states], bridges.observations[expected])
    assert len(bridges.take(bridges.gap > 100)) == 0
    np.testing.assert_array_equal(buffer.take(order).ids, bridges.ids[np.sort(order)])


def test_the_first_passing_attempt_counts(tmp_path: Path, make_meta: MakeMeta, make_candidates: MakeCandidates) -> None:
    path = tmp_path / "b"
    create_buffer(path, make_meta(num_bridges=1))
    made = [make_candidates(shard, 16, repaired=tuple(range(16))) for shard in range(2)]
    for shard, candidates in enumerate(made):
        write_shard(path, shard, candidates_to_table(candidates, shard))
    finish(path, 12)
    buffer = open_buffer(path)
    for delta in (0.3, 0.9):
        expected = []
        for shard in buffer.stats:
            passed = made[shard].residual_max < delta
            expected += [f"{shard:06d}-{row:04d}-0" for row in range(16) if passed[row]]
            expected += [f"{shard:06d}-{row:04d}-1" for row in range(16) if passed[16 + row] and not passed[row]]
        assert sorted(buffer.bridges(delta).ids.tolist()) == sorted(expected)
    assert sum(stats.accepted for stats in buffer.stats.values()) == buffer.num_accepted()


def test_candidates_that_are_not_finite_never_pass(
    tmp_path: Path, make_meta: MakeMeta, make_candidates: MakeCandidates
) -> None:
    candidates = make_candidates(0)
    candidates.residual_max[0] = np.nan
    candidates.accepted[0], candidates.reason[0] = False, 4
    create_buffer(tmp_path / "b", make_meta(num_bridges=1))
    write_shard(tmp_path / "b", 0, candidates_to_table(candidates, 0))
    finish(tmp_path / "b", 1)
    assert open_buffer(tmp_path / "b").num_accepted("off") == 15


def test_opens_as_pyarrow_and_torch_datasets(buffer: Buffer) -> None:
    arrow = buffer.to_pyarrow()
    assert arrow.count_rows() == buffer.num_candidates
    assert arrow.to_table(columns=["bridge_id"])["bridge_id"].to_pylist() == buffer.table["bridge_id"].to_pylist()
    torch_dataset, bridges = buffer.to_torch(), buffer.bridges()
    assert len(torch_dataset) == bridges.num_transitions
    batch = torch_dataset[[0, 1, len(torch_dataset) - 1]]
    np.testing.assert_array_equal(batch["next_observation"][-1].numpy(), bridges.observations[-1])
    np.testing.assert_array_equal(batch["observation"][0].numpy(), bridges.observations[0])
    assert not batch["terminated"].any()


def test_an_empty_buffer_is_an_error(tmp_path: Path, make_meta: MakeMeta) -> None:
    create_buffer(tmp_path / "b", make_meta())
    with pytest.raises(UserError, match="unfinished"):
        open_buffer(tmp_path / "b")
    assert open_buffer(tmp_path / "b", allow_partial=True).num_accepted() == 0
