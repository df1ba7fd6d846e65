"""The data of a trial that stay open in a process belong to the stitcher and buffer that the trial names."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raystitch.buffer.config import AugmentConfig
from raystitch.buffer.episodes import ChainedJoins
from raystitch.buffer.opening import open_buffer
from raystitch.buffer.reach_file import REACH_FILE, read_reach
from raystitch.config import RunConfig
from raystitch.data.d4rl import write_d4rl
from raystitch.data.episodes import EpisodeDataset
from raystitch.envs.starts import start_observations
from raystitch.errors import RunError, UserError
from raystitch.io.config_file import parse_config
from raystitch.models.bundle import Bundle
from raystitch.models.config import FitConfig
from raystitch.models.fit import fit_bundle
from raystitch.pipeline.generate.augment import augment_local, shard_seeds
from raystitch.pipeline.generate.knowledge import recorded_values
from raystitch.pipeline.trials.inputs import load_inputs
from raystitch.pipeline.trials.plan import plan
from raystitch.pipeline.trials.preflight import check_stages
from raystitch.pipeline.trials.rerun import rerun
from raystitch.pipeline.trials.run import run_planned
from raystitch.pipeline.trials.run_folder import write_config
from raystitch.pipeline.trials.targets import with_target
from raystitch.pipeline.trials.trial import InputHashes
from raystitch.stitching.config import PairConfig, QualifyConfig, StitchConfig
from raystitch.stitching.joining import chained_joins
from raystitch.stitching.pairs import nearest_pairs
from raystitch.trainers.config import EvalConfig

STITCH = StitchConfig(
    pairs=PairConfig(split="return"), qualify=QualifyConfig(delta="off", termination_max=None, value_check=False)
)
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


BY_VALUE = replace(STITCH, pairs=PairConfig(split="value"))
ROUNDS = AugmentConfig(num_bridges=16, pairs_per_shard=8, bridges_per_round=4)


@pytest.fixture
def by_value(config: RunConfig, tiny_fit: FitConfig) -> RunConfig:
    grid = parse_config(
        {"dataset": "x", "grid": [{"algo": "dt", "data": "original"}, {"algo": "dt", "data": "joined"}]}, RunConfig
    ).grid
    small = replace(config.algorithms.dt, train_steps=2, batch_size=8, context=3, width=8, num_layers=1)
    return replace(
        config,
        fit=tiny_fit,
        stitch=BY_VALUE,
        augment=ROUNDS,
        grid=grid,
        algorithms=replace(config.algorithms, dt=small),
        evaluation=EvalConfig(num_episodes=1, num_envs=1, max_episode_steps=5, target_returns="auto"),
    )


def test_what_a_run_promises_is_asked_for_and_asked_for_again(
    by_value: RunConfig, tiny_fit: FitConfig, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    inputs = make(by_value, tiny_fit, run)
    write_config(by_value, run)
    promised = round(read_reach(str(run / "buffer"))[-1].promised, 6)
    asked = with_target(by_value, run)
    assert asked.evaluation.target_returns == (promised,)
    assert with_target(asked, run) is asked
    trials = plan(asked, inputs, run)
    assert not {trial.trial_id for trial in trials} & {trial.trial_id for trial in plan(by_value, inputs, run)}
    results = run_planned(trials)
    for trial, result in zip(trials, results, strict=True):
        assert not isinstance(result, RunError)
        assert [evaluation["target_return"] for evaluation in result["evaluations"]] == [promised]
        if trial.data == "joined":
            assert rerun(run, trial.trial_id).equal
    with pytest.raises(UserError, match="target_returns: auto is read from the buffer of a run"):
        run_planned(plan(replace(by_value, grid=by_value.grid[:1]), inputs, run))
    (run / "buffer" / REACH_FILE).unlink()
    with pytest.raises(RunError, match=r"reach\.json is missing, which evaluation\.target_returns=auto is read from"):
        with_target(by_value, run)


def test_joined_pairs_are_chained_where_pairs_are_split_by_value(
    by_value: RunConfig, tiny_fit: FitConfig, tmp_path: Path
) -> None:
    run, dataset = tmp_path / "run", by_value.dataset_ref.load()
    trials = plan(by_value, make(by_value, tiny_fit, run), run)
    found = load_inputs(trials[1]).joined
    assert isinstance(found, ChainedJoins)
    bundle, env = Bundle.load(run / "stitcher", "cpu"), dataset.env
    assert env is not None
    links = chained_joins(
        dataset,
        bundle,
        BY_VALUE,
        recorded_values(dataset, bundle, start_observations(env, dataset.obs_dim)),
        lambda shard: shard_seeds(by_value.seed, shard, 8),
        count=16,
        per_round=4,
    )
    assert found.parent.tolist() == links.next.tolist()
    assert found.source_step.tolist() == links.source_step.tolist()
    assert found.target_episode.tolist() == links.last_episode.tolist()
    single = replace(by_value, augment=replace(ROUNDS, chain_rounds=0))
    assert plan(single)[1].trial_id != plan(by_value)[1].trial_id


def test_a_run_whose_stitcher_is_gone_goes_on_with_its_buffer(
    config: RunConfig, by_value: RunConfig, tiny_fit: FitConfig, tmp_path: Path
) -> None:
    """``chain_rounds: auto`` says no rounds where pairs are split by return, and the buffer says 0."""
    run, dataset = tmp_path / "run", config.dataset_ref.load()
    config = replace(config, fit=tiny_fit)
    make(config, tiny_fit, run)
    shutil.rmtree(run / "stitcher")
    check_stages(config, run, dataset)
    with pytest.raises(UserError, match=r"stitch\.pairs\.split"):
        check_stages(by_value, run, dataset)
