"""The data of a trial that stay open in a process belong to the stitcher and buffer that the trial names."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raystitch.buffer.config import AugmentConfig
from raystitch.buffer.reader import open_buffer
from raystitch.config import RunConfig
from raystitch.data.d4rl import write_d4rl
from raystitch.data.episodes import EpisodeDataset
from raystitch.io.config_file import parse_config
from raystitch.models.bundle import Bundle
from raystitch.models.config import FitConfig
from raystitch.models.fit import fit_bundle
from raystitch.pipeline.generate.augment import augment_local, shard_seeds
from raystitch.pipeline.trials.inputs import load_inputs
from raystitch.pipeline.trials.plan import plan
from raystitch.pipeline.trials.trial import InputHashes
from raystitch.stitching.config import QualifyConfig, StitchConfig
from raystitch.stitching.pairs import nearest_pairs

STITCH = StitchConfig(qualify=QualifyConfig(delta="off", termination_max=None, value_check=False))
AUGMENT = AugmentConfig(num_bridges=16, pairs_per_shard=16)


@pytest.fixture
def config(drift: EpisodeDataset, tmp_path: Path) -> RunConfig:
    write_d4rl(drift, tmp_path / "drift.hdf5")
    grid = [{"algo": "bc", "data": "joined"}, {"algo": "bc", "data": "stitched", "delta": ["off"]}]
    run = {"dataset": f"d4rl:{tmp_path / 'drift.hdf5'}", "grid": grid, "seeds": [0]}
    return replace(parse_config(run, RunConfig), stitch=STITCH, augment=AUGMENT)


def make(config: RunConfig, fit: FitConfig, run: Path) -> InputHashes:
    """Fit and generate a run anew, in the same folders."""
    shutil.rmtree(run, ignore_errors=True)
    dataset = config.dataset_ref.load()
    bundle = fit_bundle(dataset, fit, run / "stitcher", "cpu")
    augment_local(dataset, bundle, config.stitch, config.augment, out=run / "buffer", seed=config.seed)
    return InputHashes(dataset=dataset.fingerprint, bundle=bundle.hash, buffer=open_buffer(run / "buffer").hash)


def test_a_run_made_anew_in_its_folder_is_trained_on_what_is_there_now(
    config: RunConfig, tiny_fit: FitConfig, tmp_path: Path
) -> None:
    run, dataset = tmp_path / "run", config.dataset_ref.load()
    seeds = shard_seeds(config.seed, 0, AUGMENT.pairs_per_shard)
    seen: list[list[int]] = []
    for shortest in (1, 8):  # what a pair promises depends on the shortest bridge
        fit = replace(tiny_fit, diffusion=replace(tiny_fit.diffusion, gap_min=shortest))
        joined, stitched = plan(config, make(config, fit, run), run)
        pairs, bridges = load_inputs(joined).joined, load_inputs(stitched).bridges
        assert pairs is not None and bridges is not None
        fresh = nearest_pairs(dataset, Bundle.load(run / "stitcher", "cpu"), config.stitch, seeds)
        np.testing.assert_array_equal(pairs.target_step, fresh.target_step)
        now = open_buffer(run / "buffer").mapped("off")
        np.testing.assert_array_equal(bridges.all_references.target_step, now.all_references.target_step)
        assert load_inputs(joined).joined is pairs  # it stays open as long as nothing changes
        seen += [pairs.target_step.tolist(), now.all_references.target_step.tolist()]
    assert seen[0] != seen[2] and seen[1] != seen[3]
