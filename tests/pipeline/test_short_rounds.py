"""Rounds that end short: where every step costs the same, a state is worth the fewest steps to an end, and soon nothing
is left to gain."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raystitch.buffer.config import AugmentConfig
from raystitch.buffer.opening import open_buffer
from raystitch.buffer.schema import candidates_to_table
from raystitch.buffer.shard_file import write_shard
from raystitch.data.episodes import EpisodeDataset
from raystitch.models.bundle import Bundle
from raystitch.models.config import FitConfig
from raystitch.models.fit import fit_bundle
from raystitch.pipeline.generate.augment import augment_local, make_shard, source_index
from raystitch.pipeline.generate.opening import open_ledger
from raystitch.pipeline.generate.progress import AugmentProgress
from raystitch.stitching.config import PairConfig, QualifyConfig, StitchConfig
from raystitch.stitching.stitcher import Stitcher
from tests.conftest import make_drift

STITCH = StitchConfig(
    pairs=PairConfig(terminal_margin=2, max_target_reuse=0), qualify=QualifyConfig(delta="off", termination_max=None)
)


@pytest.fixture(scope="module")
def even() -> EpisodeDataset:
    drift = make_drift(num_episodes=8)
    return replace(drift, rewards=np.full_like(drift.rewards, -1))


@pytest.fixture(scope="module")
def fitted(even: EpisodeDataset, tiny_fit: FitConfig) -> Bundle:
    return fit_bundle(even, replace(tiny_fit, calibration_windows=20), None, device="cpu")


def test_rounds_end_where_gains_run_out(even: EpisodeDataset, fitted: Bundle, tmp_path: Path) -> None:
    config = AugmentConfig(num_bridges=600, pairs_per_shard=16, bridges_per_round=100)
    out, notes = tmp_path / "buffer", list[str]()
    made = augment_local(even, fitted, STITCH, config, out=out, seed=1, progress=lambda at: notes.append(at.message))
    assert made.num_accepted >= 600
    rounds = open_buffer(out).meta.rounds
    short = [closed for closed in rounds if closed.num_accepted < 100]
    assert short[0].num_accepted > 0 and short[-1].num_accepted == 0, "not both kinds of short rounds"
    assert f"round {short[0].chain_round + 1} ends after 70 shards with {short[0].num_accepted} of 100 bridges" in notes
    assert f"round {short[-1].chain_round + 1} ends after 6 shards with 0 of 100 bridges" in notes
    assert augment_local(even, fitted, STITCH, config, out=out, seed=1).new_shards == 0

    # Interrupted in the middle of a short round, it goes on to the same.
    again = tmp_path / "again"
    with pytest.raises(KeyboardInterrupt):
        augment_local(even, fitted, STITCH, config, out=again, seed=1, progress=_Stop(short[0].first_shard + 3))
    augment_local(even, fitted, STITCH, config, out=again, seed=1)
    assert open_buffer(again).meta.rounds == rounds
    assert open_buffer(again).hash == open_buffer(out).hash


@pytest.mark.slow
def test_short_rounds_do_not_depend_on_the_order_of_shards(
    even: EpisodeDataset, fitted: Bundle, tmp_path: Path
) -> None:
    config = AugmentConfig(num_bridges=400, pairs_per_shard=16, bridges_per_round=60)
    augment_local(even, fitted, STITCH, config, out=tmp_path / "in order", seed=1)
    # As with many actors: a dozen shards at a time, the first ones last.
    ledger = open_ledger(even, fitted, STITCH, config, tmp_path / "backwards", 1, None)
    for chain_round in ledger.open_rounds():
        index = source_index(even, fitted, STITCH, ledger.known)
        while not ledger.round_done:
            for shard in reversed(ledger.next_shards(12)):
                made = make_shard(Stitcher(fitted, STITCH), index, 1, shard, 16)
                table = candidates_to_table(made, shard, chain_round, ledger.schema_version)
                ledger.add(write_shard(ledger.path, shard, table, ledger.manifest))
    ledger.finish()
    one, other = open_buffer(tmp_path / "in order"), open_buffer(tmp_path / "backwards")
    assert one.meta.rounds == other.meta.rounds
    assert any(closed.num_accepted < 60 for closed in one.meta.rounds)
    assert one.hash == other.hash


class _Stop:
    """Interrupts a generation after so many shards."""

    def __init__(self, after: int) -> None:
        self.after, self.seen = after, 0

    def __call__(self, at: AugmentProgress) -> None:
        if at.event == "progress" and at.shards:
            self.seen += 1
        if self.seen > self.after:
            raise KeyboardInterrupt
