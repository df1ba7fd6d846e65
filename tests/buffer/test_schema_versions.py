"""Schema 3 stores the residual and spread of every step; a buffer of schema 2 opens, goes on and says what it lacks.

``data/schema2`` was written by the last raystitch that wrote schema 2, from the fixtures of this folder.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raystitch.buffer.bridges import BridgeSet
from raystitch.buffer.config import AugmentConfig
from raystitch.buffer.export import export
from raystitch.buffer.maintain import compact, describe, verify
from raystitch.buffer.meta import create_buffer, read_meta, write_meta
from raystitch.buffer.opening import open_buffer
from raystitch.buffer.reader import Buffer
from raystitch.buffer.rounds import finish
from raystitch.buffer.schema import BufferMeta, candidates_to_table
from raystitch.buffer.shaped import shape_bridges
from raystitch.buffer.shard_file import write_shard
from raystitch.cli import main
from raystitch.config import GridCell, RunConfig
from raystitch.data.episodes import EpisodeDataset
from raystitch.errors import UserError
from raystitch.io.storage import Storage
from raystitch.models.config import FitConfig
from raystitch.models.fit import fit_bundle
from raystitch.pipeline.generate.augment import augment_local, make_shard, source_index
from raystitch.pipeline.generate.knowledge import recorded_values
from raystitch.pipeline.generate.opening import planned_meta
from raystitch.pipeline.trials.preflight import check_judged
from raystitch.shaping.config import RewardConfig
from raystitch.stitching.candidates import Candidates
from raystitch.stitching.config import PairConfig, QualifyConfig, StitchConfig
from raystitch.stitching.stitcher import Stitcher

NEW = ("residuals", "spreads")
HASH = "sha256:6e6098be3d2db2c51eb35cbcc90fe9d53edfb85db65400b1633a78fc86ea3c97"
CONTENT = "40b9ae82eb1d7a905a84f92d1031d10107bab3873658fb0cd6a2d2ba4c62015e"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A buffer of schema 2."""
    return Path(shutil.copytree(Path(__file__).parent / "data" / "schema2", tmp_path / "schema2"))


def test_steps_of_a_new_buffer_carry_their_residual_and_spread(
    tmp_path: Path, make_meta: Callable[..., BufferMeta], make_candidates: Callable[..., Candidates]
) -> None:
    rng = np.random.default_rng(0)
    made = [make_candidates(shard) for shard in range(5)]
    made = [
        replace(c, residuals=rng.random(c.rewards.shape, np.float32), spreads=rng.random(c.rewards.shape, np.float32))
        for c in made
    ]
    create_buffer(tmp_path / "b", make_meta())
    for shard, candidates in enumerate(made):
        write_shard(tmp_path / "b", shard, candidates_to_table(candidates, shard))
    finish(tmp_path / "b", 20)
    buffer = open_buffer(tmp_path / "b")
    bridges = buffer.take(np.arange(buffer.num_candidates))
    rows = [(c, row) for c in made[: len(buffer.stats)] for row in range(len(c))]
    for name, column in (("residual", "residuals"), ("spread", "spreads")):
        wanted = np.concatenate([getattr(c, column)[row, : c.gap[row] + 1] for c, row in rows])
        np.testing.assert_array_equal(getattr(bridges, name), wanted)
    few = bridges.take(np.array([7, 2]))
    assert few.residual is not None and few.spread is not None
    np.testing.assert_array_equal(few.residual[: few.gap[0] + 1], made[0].residuals[7, : few.gap[0] + 1])
    assert replace(few, spread=few.spread + 1).content != few.content
    residual, spread = buffer.judged_steps(0) or (np.zeros(0), np.zeros(0))
    assert len(residual) == len(spread) == len(buffer.steps(0)[2])
    assert verify(tmp_path / "b") == []
    compact(tmp_path / "b")
    np.testing.assert_array_equal(open_buffer(tmp_path / "b").bridges().residual, buffer.bridges().residual)
    assert describe(tmp_path / "b")["schema_version"] == 3


def test_old_buffer_opens_with_the_same_identity_and_content(old: Path, dataset: EpisodeDataset) -> None:
    buffer = open_buffer(old)
    assert (buffer.hash, buffer.content) == (HASH, CONTENT)  # trials that were trained on it count as before
    assert buffer.meta.augment == AugmentConfig(num_bridges=10, pairs_per_shard=8, chain_rounds=0)
    bridges = buffer.bridges()
    assert len(bridges) == 12 and bridges.observations.sum() == np.float32(-2.45358943939209)
    assert buffer.judged_steps(0) is None
    assert all(chunk.residual is None and chunk.spread is None for chunk in buffer.iter_bridges(max_transitions=9))
    assert bridges.take(np.array([1])).residual is None
    assert buffer.to_pyarrow().count_rows() == 26
    assert len(next(iter(buffer.batches(8, seed=0)))["reward"]) == 8
    assert export(buffer, dataset, "parquet", old / "out.parquet").num_episodes == 12


def test_old_buffer_is_verified_and_compacted_as_before(old: Path) -> None:
    assert verify(old) == []
    before = open_buffer(old).content
    assert compact(old) == (3, 1)
    assert verify(old) == []
    assert (open_buffer(old).content, read_meta(Storage(old)).schema_version) == (before, 2)


def test_info_says_what_an_old_buffer_lacks(old: Path, buffer: Buffer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["buffer", "info", str(old)]) == 0
    assert "schema 2: no per-step residuals" in capsys.readouterr().out
    assert main(["buffer", "show", str(old)]) == 0
    assert "residual: largest" in capsys.readouterr().out
    assert main(["buffer", "info", buffer.uri]) == 0
    assert "schema" not in capsys.readouterr().out


def test_shards_of_both_schemas_in_one_buffer_are_refused(
    old: Path, make_candidates: Callable[..., Candidates]
) -> None:
    write_shard(old, 1, candidates_to_table(make_candidates(1, 8), 1))
    with pytest.raises(UserError, match=r"part-000001\.arrow does not have the columns that buffer\.json describes"):
        open_buffer(old)
    assert [line for line in verify(old) if "its columns are not those that buffer.json describes" in line]


def test_generation_goes_on_in_the_schema_that_it_began_with(
    drift: EpisodeDataset, tiny_fit: FitConfig, tmp_path: Path
) -> None:
    """What is there stays; the new shards are those of a buffer that was schema 2 throughout."""
    bundle = fit_bundle(drift, tiny_fit, device="cpu")
    stitch = StitchConfig(
        pairs=PairConfig(split="value"), qualify=QualifyConfig(delta="off", termination_max=None, value_check=False)
    )
    few, many = (AugmentConfig(num_bridges=number, pairs_per_shard=8) for number in (10, 30))
    meta = planned_meta(drift, bundle, stitch, few, 0)
    create_buffer(tmp_path / "old", replace(meta, schema_version=2))
    said: list[str] = []
    augment_local(drift, bundle, stitch, few, out=tmp_path / "old")
    first = {path.name: path.read_bytes() for path in (tmp_path / "old" / "shards").iterdir()}
    augment_local(drift, bundle, stitch, many, out=tmp_path / "old", progress=lambda at: said.append(at.message or ""))
    augment_local(drift, bundle, stitch, many, out=tmp_path / "new")
    assert any("schema 2: no per-step residuals" in line for line in said)
    assert all((tmp_path / "old" / "shards" / name).read_bytes() == content for name, content in first.items())
    went_on, new = open_buffer(tmp_path / "old"), open_buffer(tmp_path / "new")
    assert went_on.table.equals(new.table.drop_columns(list(NEW))) and verify(tmp_path / "old") == []
    assert went_on.num_files == new.num_files > len(first)
    bridges: BridgeSet = new.take(np.arange(new.num_candidates))
    assert bridges.residual is not None and bridges.spread is not None
    at = bridges.offsets[:-1]
    np.testing.assert_array_equal(np.maximum.reduceat(bridges.residual, at), new.column("residual_max"))
    np.testing.assert_array_equal(np.maximum.reduceat(bridges.spread, at), new.column("spread_max"))
    known = recorded_values(drift, bundle, meta.starts_array)
    made = make_shard(Stitcher(bundle, stitch), source_index(drift, bundle, stitch, known), 0, 0, 8)
    np.testing.assert_array_equal(bridges.spread[: made.gap[0] + 1], made.spreads[0, : made.gap[0] + 1])


def test_unknown_key_of_a_description_is_named(old: Path, make_meta: Callable[..., BufferMeta]) -> None:
    value = json.loads((old / "buffer.json").read_text())
    value["stitch"]["gap"]["mod"] = "given"
    (old / "buffer.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match=r"buffer\.json is not a buffer description: stitch\.gap\.mod: unknown key"):
        open_buffer(old)
    storage = Storage(old)
    write_meta(storage, make_meta())
    again = read_meta(storage)
    assert again == make_meta() and again.augment.proposer == make_meta().augment.proposer


@pytest.mark.parametrize("version", [1, 4])
def test_other_versions_are_refused(make_meta: Callable[..., BufferMeta], version: int) -> None:
    with pytest.raises(UserError, match=f"schema_version={version}, this raystitch reads 2 and 3"):
        BufferMeta.from_json(make_meta().to_json() | {"schema_version": version}, "x")


def test_a_penalty_on_what_is_not_stored_is_refused(old: Path, dataset: EpisodeDataset) -> None:
    bridges = open_buffer(old).mapped()
    shaped = shape_bridges(bridges, RewardConfig(name="penalty"), dataset)
    with pytest.raises(UserError, match=r"needs the judges' residual of every generated step.*schema 2"):
        list(shaped.chunks())
    assert len(list(shape_bridges(bridges, RewardConfig(name="zero"), dataset).chunks())) > 0
    for rewards in ("zero", "penalty"):
        line = GridCell(algo="dt", data="stitched", rewards=rewards)
        run = RunConfig(dataset="demo:pointmaze", grid=(line,))
        if rewards == "zero":
            check_judged(run, old)
            continue
        with pytest.raises(UserError, match=r"penalty needs the judges' numbers .*schema2 does not keep"):
            check_judged(run, old)
