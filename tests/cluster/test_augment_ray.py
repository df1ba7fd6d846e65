from collections import deque
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raystitch.buffer.opening import open_buffer
from raystitch.cluster.actors import pack, unpack
from raystitch.cluster.augment import RoundPace, augment
from raystitch.errors import RunError, UserError
from raystitch.models.bundle import Bundle
from raystitch.pipeline.generate.augment import make_shard
from raystitch.stitching.config import QualifyConfig
from raystitch.stitching.pairs import SourceIndex
from raystitch.stitching.stitcher import Stitcher

Walks = Any
"""See conftest.py, which cannot be imported from here."""


def test_two_actors_make_the_same_buffer(walks: Walks, undisturbed: Path, tmp_path: Path, ray_session: None) -> None:
    out, seen = tmp_path / "buffer", list[Any]()
    summary = walks.augment(out, num_actors=2, progress=seen.append)
    walks.assert_same(out, undisturbed)
    assert summary.num_accepted >= 60
    assert (seen[0].accepted, seen[-1].accepted, seen[-1].wanted) == (0, 60, 60)
    assert [at.event for at in seen].count("progress") == summary.new_shards + 1
    assert seen[-1].reasons["ok"] >= 60
    assert sum(seen[-1].reasons.values()) == seen[-1].candidates
    # A second call finds it finished; more bridges continue it.
    assert walks.augment(out).new_shards == 0
    assert walks.augment_local(out, num_bridges=90).new_shards
    assert set(open_buffer(undisturbed).table["bridge_id"].to_pylist()) < set(
        open_buffer(out).table["bridge_id"].to_pylist()
    )


@pytest.mark.parametrize(
    "here", [pytest.param(True, id="in this process"), pytest.param(False, id="by actors", marks=pytest.mark.slow)]
)
def test_chain_rounds_are_the_same_whoever_makes_them(
    here: bool, walks: Walks, tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds after the first are made in this process where starting actors takes longer."""
    starts: list[float] = []

    def is_slower(pace: RoundPace, num_shards: int, num_proposers: int) -> bool:
        assert num_shards > 0 and num_proposers == 1
        if pace.shards:
            starts.append(pace.start)
        return here and len(starts) > 0

    monkeypatch.setattr(RoundPace, "is_slower", is_slower)
    settings = {"num_bridges": 50, "chain_rounds": 1, "chain_pool": 20}
    walks.augment_local(tmp_path / "alone", **settings)
    walks.augment(tmp_path / "ray", **settings)
    walks.assert_same(tmp_path / "ray", tmp_path / "alone")
    alone = open_buffer(tmp_path / "alone")
    assert open_buffer(tmp_path / "ray").meta.rounds == alone.meta.rounds
    rounds = alone.rounds()
    assert [counts.accepted >= 25 for counts in rounds] == [True, True]
    assert rounds[1].chained > 0
    assert min(starts) > 0
    assert (len(starts) > 1) == here  # asked before every shard that is made here


def test_few_shards_are_made_sooner_where_nothing_has_to_start() -> None:
    assert not RoundPace().is_slower(10, 2)  # nothing is known yet
    pace = RoundPace(start=15.0, shards=deque([2.0]))
    assert pace.is_slower(5, 2)  # 20 s with actors, 10 s without
    assert not pace.is_slower(20, 2)  # 35 and 40 s
    assert pace.is_slower(20, 1)
    assert not RoundPace(start=15.0, shards=deque([0.01, 4.0, 4.0])).is_slower(20, 2)  # one was empty


def test_nothing_to_stitch_is_one_line(walks: Walks, tmp_path: Path) -> None:
    hopeless = replace(walks, stitch=replace(walks.stitch, qualify=QualifyConfig(delta=0.0)))
    message = r"none of the first 8 candidates was accepted \(smallest residual .*residual 8"
    for _ in range(2):  # the second call finds the shards of the first
        with pytest.raises(RunError, match=message):
            hopeless.augment_local(tmp_path / "a", patience=2, pairs_per_shard=4)
    with pytest.raises(RunError, match=message):
        hopeless.augment(tmp_path / "a", patience=2, pairs_per_shard=4)
    with pytest.raises(RunError, match=r"2 shards of 16 pairs hold .* not the 1000 asked for in chain round 0"):
        walks.augment_local(tmp_path / "b", num_bridges=5000, max_shards=2)


def test_an_error_in_an_actor_reaches_the_user_as_it_is(walks: Walks, tmp_path: Path, ray_session: None) -> None:
    with pytest.raises(UserError, match=r"^device='warp' is not a torch device"):
        walks.augment(tmp_path / "a", device="warp")


def test_wrong_input_is_refused_before_anything_starts(walks: Walks, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="other trajectories"):
        augment(walks.dataset.subset(np.arange(5)), walks.stitcher, out=tmp_path / "a", config=walks.config)
    assert not (tmp_path / "a").exists()


def test_a_shard_depends_on_its_number_and_the_root_seed_alone(walks: Walks) -> None:
    bundle = Bundle.load(walks.stitcher, "cpu")
    made = [
        make_shard(Stitcher(bundle, walks.stitch), SourceIndex(walks.dataset, bundle, walks.stitch), seed, shard, 8)
        for seed, shard in ((0, 5), (0, 5), (0, 6), (1, 5))
    ]
    np.testing.assert_array_equal(made[0].observations, made[1].observations)
    assert all((made[0].seed != other.seed).all() for other in made[2:])
    made[0].source_bridge = np.array(["000001-0002-0", ""] * (len(made[0]) // 2))
    copy = unpack(pack(made[0]))
    for field in fields(made[0]):
        np.testing.assert_array_equal(getattr(copy, field.name), getattr(made[0], field.name))
