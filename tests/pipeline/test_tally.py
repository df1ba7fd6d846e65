import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystitch.buffer.config import AugmentConfig
from raystitch.buffer.shard_file import ShardStats
from raystitch.commands.augment import AugmentConsole
from raystitch.errors import RunError
from raystitch.pipeline.generate.ledger import Ledger
from raystitch.pipeline.generate.progress import AugmentProgress
from raystitch.pipeline.generate.tally import Tally


def stats(shard: int, accepted: int) -> ShardStats:
    return ShardStats(shard=shard, rows=10, accepted=accepted, residual_min=None, reasons={"ok": accepted})


@given(
    order=st.permutations(list(range(8))),
    accepted=st.lists(st.integers(0, 5), min_size=8, max_size=8),
    failed=st.sets(st.integers(0, 7)),
    wanted=st.integers(1, 30),
)
def test_the_prefix_is_the_smallest_whatever_the_order(
    order: list[int], accepted: list[int], failed: set[int], wanted: int
) -> None:
    tally = Tally(3)
    for shard in order:
        if shard not in failed:
            assert tally.add(stats(3 + shard, accepted[shard]))
            assert not tally.add(stats(3 + shard, 99))

    def smallest(without: set[int]) -> int | None:
        total = 0
        for shard in range(8):
            if shard in failed and shard not in without:
                return None
            total += 0 if shard in failed else accepted[shard]
            if total >= wanted:
                return 3 + shard + 1
        return None

    assert tally.prefix_end(wanted) == smallest(set())
    assert tally.enough(wanted) == (smallest(set()) is not None)
    assert tally.prefix_end(wanted, {3 + shard for shard in failed}) == smallest(failed)
    assert tally.candidates == 10 * (8 - len(failed))


def test_failed_shards_wait_until_the_others_are_there(tmp_path: Path) -> None:
    notes = list[str]()
    config = AugmentConfig(num_bridges=20, pairs_per_shard=10, max_retries=1)
    ledger = Ledger(path="b", config=config, progress=lambda at: notes.append(at.message))
    ledger.add(stats(0, 6))
    ledger.fail(1, "ValueError: no")
    assert ledger.next_shards(3) == [2, 3, 4]
    for shard in (2, 3):
        ledger.add(stats(shard, 6))
    assert not ledger.only_failures_missing
    ledger.add(stats(4, 6))
    assert ledger.only_failures_missing
    assert ledger.next_shards(9) == [1]
    ledger.fail(1, "ValueError: no")
    with pytest.raises(RunError, match=r"shard 1 failed 2 times \(ValueError: no\); the other 4 are there"):
        ledger.next_shards(9)
    ledger.add(stats(1, 0))
    assert ledger.round_done
    assert "tried again" in notes[1]


def test_nothing_but_failures_ends_the_run() -> None:
    ledger = Ledger(path="b", config=AugmentConfig(patience=2))
    ledger.fail(0, "OSError: gone")
    with pytest.raises(RunError, match=r"the first 2 shards all failed: OSError: gone"):
        ledger.fail(1, "OSError: gone")


def test_progress_elsewhere_than_on_a_terminal_is_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    def state(accepted: int, event: str = "progress", message: str = "") -> AugmentProgress:
        reasons = {"ok": accepted, "residual": accepted}
        return AugmentProgress(
            event=event,
            message=message,
            accepted=accepted,
            wanted=9,
            shards=1,
            candidates=2 * accepted,
            reasons=reasons,
        )

    with AugmentConsole() as console:
        console.show(state(1))
        console.show(state(2))
        console.show(state(3, "note", "shard 4 failed"))
        console.show(state(8))
        console.show(state(9))
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["event"], line["accepted"]) for line in lines] == [("progress", 1), ("note", 3), ("progress", 9)]
    assert lines[1]["message"] == "shard 4 failed"
    assert lines[-1]["accepted_share"] == 0.5
    assert "message" not in lines[-1]


def test_a_shard_that_failed_is_tried_again_before_shards_run_out(tmp_path: Path) -> None:
    config = AugmentConfig(num_bridges=10, pairs_per_shard=10, chain_rounds=0, max_shards=2, max_retries=1)
    ledger = Ledger(path="b", config=config)
    assert ledger.next_shards(2) == [0, 1]
    ledger.fail(0, "worker died")
    ledger.add(stats(1, 6))
    assert ledger.next_shards(1) == [0]
    ledger.fail(0, "worker died")
    with pytest.raises(RunError, match="shard 0 failed 2 times"):
        ledger.next_shards(1)
    ledger.add(stats(0, 3))
    with pytest.raises(RunError, match=r"2 shards of 10 pairs hold 9 accepted bridges, not the 10"):
        ledger.next_shards(1)
