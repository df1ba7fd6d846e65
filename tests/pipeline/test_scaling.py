"""Scaling: every arm on shares of the training part, kept when done and not repeated."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from raystitch.buffer.config import AugmentConfig
from raystitch.config import GridCell, RunConfig
from raystitch.data.episodes import EpisodeDataset
from raystitch.errors import UserError
from raystitch.models.config import FitConfig
from raystitch.pipeline.study.parts import StudyParts
from raystitch.pipeline.study.recovery import RecoveryConfig
from raystitch.pipeline.study.scaling import ARMS, measure_scaling, scaling_config
from raystitch.stitching.config import PairConfig, QualifyConfig, SamplerConfig, StitchConfig
from raystitch.trainers.config import AlgorithmConfigs, EvalConfig, TD3BCConfig

RECOVERY = RecoveryConfig(num_starts=2, max_episode_steps=2)


@pytest.fixture
def config(tiny_fit: FitConfig) -> RunConfig:
    return RunConfig(
        dataset="demo:pointmaze",
        grid=(GridCell(algo="td3bc", data="stitched", ratio=("1:1",), delta=("off",)),),
        seeds=(4,),
        fit=tiny_fit,
        stitch=StitchConfig(
            sampler=SamplerConfig(num_steps=1),
            pairs=PairConfig(split="return"),
            qualify=QualifyConfig(delta="off", termination_max=None, value_check=False),
        ),
        augment=AugmentConfig(num_bridges=8, pairs_per_shard=16, chain_rounds=0),
        algorithms=AlgorithmConfigs(td3bc=TD3BCConfig(train_steps=4, batch_size=8, hidden=8)),
        evaluation=EvalConfig(num_episodes=2, num_envs=2),
    )


def test_every_arm_is_trained_once_on_its_share(drift: EpisodeDataset, config: RunConfig, tmp_path: Path) -> None:
    parts = StudyParts.of(drift, None, 0)
    asked = scaling_config(config, RECOVERY, fractions=[0.8], fit_steps=5)
    found = measure_scaling(config, parts, asked, tmp_path, 0)
    json.dumps(found, allow_nan=False)
    assert [note for note in found["notes"] if "weights" not in note] == []
    assert [(row["arm"], row["data"], row["ratio"], row["seed"]) for row in found["rows"]] == [
        ("original", "original", "1:0", 4),
        ("weighted", "weighted", "0:1", 4),
        ("joined", "joined", "1:1", 4),
        ("stitched", "stitched", "1:1", 4),
    ]
    assert {row["num_episodes"] for row in found["rows"]} == {round(0.8 * len(parts.train))}
    assert found["rows"][-1]["num_bridges"] >= 8 > found["rows"][0]["num_bridges"] == 0
    for row in found["rows"]:
        assert [at["step"] for at in row["curve"]] == [1, 2, 3, 4]
        assert row["action_error"] == {name: row["curve"][-1][name] for name in ("train", "held_out", "ratio")}
        assert None not in (row["usual"], row["held_out"], row["train"])
    assert found["comparisons"][0]["held_out"]["num_seeds"] == 1
    (kept,) = (tmp_path / "study" / "scaling").iterdir()
    (kept / "80" / "stitcher" / "stitcher.json").unlink()  # nothing is made again
    assert measure_scaling(config, parts, asked, tmp_path, 0) == found


def test_what_cannot_be_made_is_named_and_left_out(drift: EpisodeDataset, config: RunConfig, tmp_path: Path) -> None:
    nowhere = StudyParts.of(replace(drift, env=None), None, 0)
    asked = scaling_config(config, RECOVERY, fractions=[1.0], fit_steps=5, num_seeds=2)
    assert asked.seeds == (4, 0)
    impossible = replace(asked, fit=replace(asked.fit, diffusion=replace(asked.fit.diffusion, horizon=64, gap_max=60)))
    found = measure_scaling(config, nowhere, impossible, tmp_path, 0)
    assert found["rows"] == []
    notes = " ".join(found["notes"])
    assert "recovery was not measured" in notes
    for arm in ARMS:
        assert f"100 % {arm}: " in notes


def test_settings_come_from_the_run(config: RunConfig, tiny_fit: FitConfig) -> None:
    asked = scaling_config(config, RECOVERY)
    assert (asked.algo, asked.settings.train_steps, asked.num_bridges, asked.seeds) == ("td3bc", 4, 8, (4,))
    assert asked.fit == tiny_fit
    shorter = scaling_config(config, RECOVERY, algo="bc", train_steps=7, fit_steps=20, num_bridges=3)
    assert (shorter.algo, shorter.settings.train_steps, shorter.num_bridges) == ("bc", 7, 3)
    assert {head.train_steps for head in shorter.fit.heads.values()} == {20}
    with pytest.raises(UserError, match="algo"):
        scaling_config(config, RECOVERY, algo="sarsa")
    with pytest.raises(ValueError, match="fractions"):
        replace(asked, fractions=(0.0, 1.0))
