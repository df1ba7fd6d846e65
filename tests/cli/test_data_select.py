"""``--select`` of the commands, ``data select`` and ``data inspect --potential``, as a user runs them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raystitch.buffer.config import AugmentConfig
from raystitch.buffer.opening import open_buffer
from raystitch.data.d4rl import write_d4rl
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.load import load_dataset
from raystitch.data.ref import DatasetRef
from raystitch.io.files import read_json
from raystitch.models.bundle import Bundle
from raystitch.models.config import FitConfig
from raystitch.models.fit import fit_bundle
from raystitch.pipeline.generate.augment import augment_local
from raystitch.pipeline.trimming import cut_steps, step_doubt
from raystitch.stitching.config import QualifyConfig, StitchConfig
from tests.conftest import Run

STITCH = StitchConfig(qualify=QualifyConfig(delta="off", termination_max=None, value_check=False))


RESET, STRANGE = 12, 21
"""Episodes: in one an unrecorded reset after step 5, in the other a velocity that no push explains, in step 6."""


def with_faults(drift: EpisodeDataset) -> EpisodeDataset:
    observations = drift.observations.copy()
    observations[drift.obs_offsets[RESET] + 6 : drift.obs_offsets[RESET + 1]] += [9, 9, 0, 0]
    observations[drift.obs_offsets[STRANGE] + 7 : drift.obs_offsets[STRANGE + 1], 3] += 1.5
    return replace(drift, observations=observations)


@pytest.fixture(scope="module")
def work(drift: EpisodeDataset, tiny_fit: FitConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``drift.hdf5`` with faults, and a stitcher and a buffer of its better half."""
    folder = tmp_path_factory.mktemp("select")
    write_d4rl(with_faults(drift), folder / "drift.hdf5")
    half = DatasetRef(f"d4rl:{folder}/drift.hdf5", select="best=0.5").load()
    bundle = fit_bundle(half, tiny_fit, folder / "stitcher", "cpu")
    config = AugmentConfig(num_bridges=24, pairs_per_shard=16)
    augment_local(half, bundle, STITCH, config, out=folder / "buffer", seed=0)
    return folder


def test_a_selection_becomes_a_dataset_and_the_source_stays(run: Run, work: Path, drift: EpisodeDataset) -> None:
    before = (work / "drift.hdf5").read_bytes()
    for out, ref in (("kept.hdf5", f"d4rl:{work}/kept.hdf5"), ("select/kept-v0", "minari:select/kept-v0")):
        argv = ["data", "select", work / "drift.hdf5", "--select", "best=0.25"]
        status, text, notes = run(*argv, "--out", work / out if "hdf5" in out else out)
        assert (status, text.strip()) == (0, ref)
        assert "keeps 10 of 40 episodes" in notes
        kept = load_dataset(ref)
        np.testing.assert_allclose(np.sort(kept.returns), np.sort(drift.returns)[-10:], rtol=1e-5)
        assert kept.env == drift.env
    assert (work / "drift.hdf5").read_bytes() == before
    status, text, _ = run(*argv, "--out", "select/kept-v0", "--overwrite", "--json")
    assert status == 0
    said = json.loads(text)
    assert said["selection"]["kept_episodes"] == 10
    assert said["selection"]["left_out"][0] | {"transitions": 0} == {
        "step": "best=0.25",
        "reason": "lower return",
        "episodes": 30,
        "transitions": 0,
    }


def test_inspect_shows_the_part(run: Run, work: Path) -> None:
    status, text, _ = run("data", "inspect", work / "drift.hdf5", "--select", "worst=0.2", "--json")
    assert status == 0
    assert json.loads(text)["num_episodes"] == 8
    status, text, _ = run("data", "inspect", work / "drift.hdf5", "--select", "worst=0.2")
    assert "keeps 8 of 40 episodes" in text


def test_a_buffer_remembers_its_selection(run: Run, work: Path, tmp_path: Path) -> None:
    assert open_buffer(work / "buffer").meta.select == "best=0.5"
    status, text, err = run("validate", work / "buffer", "--stitcher", work / "stitcher", "--max-bridges", 4, "--json")
    assert status == 0, err
    assert json.loads(text)["novelty"]["bridges"]["count"] > 0
    for select, status in (("best=0.5", 0), ("all", 2)):
        argv = ["validate", work / "buffer", "--stitcher", work / "stitcher", "--max-bridges", 4, "--select", select]
        found, _, err = run(*argv)
        assert found == status
    assert "another selection of the episodes" in err
    status, _, err = run(
        "export", work / "buffer", "--format", "d4rl", "--out", tmp_path / "x.hdf5", "--what", "mixed", "--ratio", "9:1"
    )
    assert status == 0, err


def test_fit_and_train_take_a_selection(run: Run, work: Path, tmp_path: Path) -> None:
    argv = ["--algo", "bc", "--out", tmp_path / "trial", "--set", "train_steps=2", "--num-episodes", 1]
    status, _, err = run("train", work / "drift.hdf5", *argv, "--select", "best=0.5,clean", "--device", "cpu")
    assert status == 0, err
    assert "keeps 20 of 40 episodes" in err


def test_potential_with_and_without_bridges(run: Run, work: Path) -> None:
    status, text, _ = run("data", "inspect", work / "drift.hdf5", "--potential")
    assert status == 0
    assert "room for weighting: RPSV" in text
    assert "never that it will" in text
    assert "unknown without a buffer" in text
    argv = ["data", "inspect", work / "drift.hdf5", "--select", "best=0.5", "--potential", "--json"]
    status, text, err = run(*argv, "--buffer", work / "buffer", "--stitcher", work / "stitcher")
    assert status == 0, err
    found = json.loads(text)["potential"]
    assert found["gamma"] == read_json(work / "stitcher" / "stitcher.json")["config"]["gamma"]
    assert found["num_bridges"] == open_buffer(work / "buffer").num_accepted()
    assert found["recorded"] <= found["join_one"] <= found["join_any"]
    assert found["recorded"] <= found["bridge_one"] + 1e-9 <= found["bridge_any"] + 2e-9 <= found["both_any"] + 3e-9


def test_an_unrecorded_reset_is_cut_without_a_stitcher(run: Run, work: Path, tmp_path: Path) -> None:
    whole = load_dataset(str(work / "drift.hdf5"))
    argv = ["data", "select", work / "drift.hdf5", "--clean-steps", "jumps", "--out", tmp_path / "x.hdf5", "--json"]
    status, text, err = run(*argv)
    assert status == 0, err
    cut = json.loads(text)["cut"]
    assert (cut["pieces"], cut["removed"], cut["spared"]) == (41, {"that jump": 1}, 0)
    left = load_dataset(str(tmp_path / "x.hdf5"))
    jumped = int(whole.offsets[RESET]) + 5
    np.testing.assert_array_equal(left.actions, np.delete(whole.actions, jumped, axis=0))
    assert left.lengths[RESET] == 5
    assert left.truncated[RESET]


def test_strange_steps_and_doubtful_tails_are_cut(run: Run, work: Path, tmp_path: Path) -> None:
    whole, bundle = load_dataset(str(work / "drift.hdf5")), Bundle.load(work / "stitcher", "cpu")
    doubt = step_doubt(bundle, whole)
    strange = int(whole.offsets[STRANGE]) + 6
    jumped = int(whole.offsets[RESET]) + 5
    assert np.argsort(doubt)[-2:].tolist() == [strange, jumped]
    argv = ["data", "select", work / "drift.hdf5", "--stitcher", work / "stitcher", "--out", tmp_path / "x.hdf5"]
    status, _, err = run(*argv, "--clean-steps", float(doubt[strange]) * 0.99, "--device", "cpu", "--cut-connections")
    assert status == 0, err
    assert "1 that jump; 1 stranger than the limit" in err
    np.testing.assert_array_equal(
        load_dataset(str(tmp_path / "x.hdf5")).actions, np.delete(whole.actions, [strange, jumped], axis=0)
    )
    share = cut_steps(whole, bundle, clean="q99", spare_connections=False)
    assert share.num_steps - share.dataset.num_transitions == (doubt > np.quantile(doubt, 0.99, method="higher")).sum()
    trimmed = cut_steps(whole, bundle, trim="q90", spare_connections=False).dataset
    totals = np.add.reduceat(doubt.astype(np.float64), whole.offsets[:-1])
    limit = np.quantile(totals, 0.9, method="higher")
    of_episodes = np.split(doubt.astype(np.float64), whole.offsets[1:-1])
    expected = [int((np.cumsum(own) <= limit).sum()) for own in of_episodes]
    assert trimmed.lengths.tolist() == [length for length in expected if length]
    spared = cut_steps(whole, bundle, trim="q90")
    assert spared.num_spared == spared.dataset.num_transitions - trimmed.num_transitions


def test_diverse_compares_in_the_embedding_of_a_stitcher(run: Run, work: Path, tmp_path: Path) -> None:
    argv = ["data", "select", work / "drift.hdf5", "--select", "diverse=10", "--overwrite"]
    argv += ["--out", tmp_path / "x.hdf5"]
    kept = list[list[float]]()
    for more in ([], ["--stitcher", work / "stitcher", "--device", "cpu"]):
        status, _, err = run(*argv, *more)
        assert status == 0, err
        assert "within" in err
        kept.append(load_dataset(str(tmp_path / "x.hdf5")).returns.tolist())
        assert len(kept[-1]) == 10
    assert kept[0] != kept[1]
