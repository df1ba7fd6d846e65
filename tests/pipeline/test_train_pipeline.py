"""A trial's folder, from data to returns."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raystitch.buffer.config import AugmentConfig
from raystitch.data.episodes import EpisodeDataset
from raystitch.errors import UserError
from raystitch.models.config import FitConfig
from raystitch.models.fit import fit_bundle
from raystitch.pipeline.generate.augment import augment_local
from raystitch.pipeline.trials.train import run_trial, run_trials, train
from raystitch.pipeline.trials.trial import LoadedInputs, Trial
from raystitch.shaping.config import ShapingConfig, WeightConfig
from raystitch.stitching.config import QualifyConfig, StitchConfig
from raystitch.trainers.config import BCConfig, DTConfig, EvalConfig
from raystitch.trainers.loop import CHECKPOINT_SECONDS
from raystitch.trainers.ratio import Ratio
from raystitch.trainers.registry import load_policy

DT = DTConfig(train_steps=120, batch_size=8, context=4, width=16, num_layers=1)
EVALUATION = EvalConfig(num_episodes=2, num_envs=2, target_returns=(1.0, 0.5), every=60, every_episodes=1)


def _rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_trial_folder(drift: EpisodeDataset, tmp_path: Path) -> None:
    out = tmp_path / "trial"
    logged: list[dict[str, Any]] = []
    settings: dict[str, Any] = {
        "algo": "dt",
        "config": DT,
        "evaluation": EVALUATION,
        "data": "weighted",
        "ratio": "1:1",
        "trial_id": "0123",
        "delta": "q99",
        "device": "cpu",
    }
    returns = run_trial(Trial(folder=str(out), **settings), LoadedInputs(dataset=drift), logged.append)
    assert returns == json.loads((out / "returns.json").read_text())
    assert [entry["target_return"] for entry in returns["evaluations"]] == [1.0, 0.5]
    assert [entry["headline"] for entry in returns["evaluations"]] == [True, False]
    assert len(returns["evaluations"][0]["returns"]) == 2
    assert returns["train_steps"] == 120
    assert returns["train_seconds"] > 0
    assert CHECKPOINT_SECONDS > 0
    rows = _rows(out)
    assert rows == logged
    assert [(row["kind"], row["step"]) for row in rows] == [
        ("eval", 60),
        ("eval", 60),
        ("train", 100),
        ("train", 120),
        ("eval", 120),
        ("eval", 120),
    ]
    assert json.loads((out / "config.json").read_text())["record"] == {"trial_id": "0123", "delta": "q99"}
    assert load_policy(out / "policy", "cpu").meta.record["data"] == "weighted"
    assert not (out / "checkpoint").exists()

    stamp = (out / "returns.json").stat().st_mtime_ns
    assert run_trial(Trial(folder=str(out), **settings), LoadedInputs(dataset=drift)) == returns
    assert (out / "returns.json").stat().st_mtime_ns == stamp
    settings |= {"seed": 1, "ratio": "1:0"}
    with pytest.raises(UserError, match=r"other settings: ratio .*seed"):
        run_trial(Trial(folder=str(out), **settings), LoadedInputs(dataset=drift))


def test_unfinished_trial_goes_on(drift: EpisodeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raystitch.pipeline.trials.trial_folder.CHECKPOINT_SECONDS", 0.0)
    settings: dict[str, Any] = {"algo": "dt", "config": DT, "evaluation": EVALUATION, "device": "cpu"}
    whole = run_trial(Trial(folder=str(tmp_path / "whole"), **settings), LoadedInputs(dataset=drift))

    def interrupt(row: dict[str, Any]) -> None:
        if row["step"] == 120:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trial(Trial(folder=str(tmp_path / "cut"), **settings), LoadedInputs(dataset=drift), interrupt)
    assert not (tmp_path / "cut" / "returns.json").exists()
    assert (tmp_path / "cut" / "checkpoint").exists()
    resumed = run_trial(Trial(folder=str(tmp_path / "cut"), **settings), LoadedInputs(dataset=drift))
    assert resumed["evaluations"] == whole["evaluations"]
    rows = [[{**row, "seconds": 0} for row in _rows(tmp_path / name)] for name in ("whole", "cut")]
    assert rows[0] == rows[1]


def test_seeds_trained_together_have_the_folders_they_have_alone(drift: EpisodeDataset, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"algo": "dt", "config": DT, "evaluation": EVALUATION, "device": "cpu"}
    run_trial(
        Trial(folder=str(tmp_path / "1"), seed=1, **settings), LoadedInputs(dataset=drift)
    )  # finished before: read, not repeated
    stamp = (tmp_path / "1" / "returns.json").stat().st_mtime_ns
    seen: list[tuple[int, list[int]]] = []
    together = run_trials(
        [Trial(folder=str(tmp_path / str(seed)), seed=seed, **settings) for seed in range(3)],
        LoadedInputs(dataset=drift),
        on_eval=lambda step, results: seen.append((step, sorted(results))),
    )
    assert seen == [(60, [0, 2])]
    assert (tmp_path / "1" / "returns.json").stat().st_mtime_ns == stamp
    alone = run_trial(Trial(folder=str(tmp_path / "alone"), seed=2, **settings), LoadedInputs(dataset=drift))
    assert isinstance(together[2], dict)
    assert (together[2]["num_stacked"], alone["num_stacked"]) == (2, 1)
    rows = [_rows(tmp_path / name) for name in ("2", "alone")]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    assert [row["loss"] for row in rows[0] if "loss" in row] == pytest.approx(
        [row["loss"] for row in rows[1] if "loss" in row], rel=1e-3
    )
    assert {path.name for path in (tmp_path / "2").iterdir()} == {path.name for path in (tmp_path / "alone").iterdir()}


def test_seeds_interrupted_at_different_steps_go_on(
    drift: EpisodeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raystitch.pipeline.trials.trial_folder.CHECKPOINT_SECONDS", 0.0)
    settings: dict[str, Any] = {"algo": "dt", "config": DT, "evaluation": EVALUATION, "device": "cpu"}

    def interrupt(row: dict[str, Any]) -> None:
        if row["step"] == 120:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trial(Trial(folder=str(tmp_path / "0"), seed=0, **settings), LoadedInputs(dataset=drift), interrupt)
    trials = [Trial(folder=str(tmp_path / str(seed)), seed=seed, **settings) for seed in (0, 1)]
    results = run_trials(trials, LoadedInputs(dataset=drift))
    assert [result["status"] for result in results if isinstance(result, dict)] == ["ok", "ok"]
    assert [row["step"] for row in _rows(tmp_path / "0")] == [row["step"] for row in _rows(tmp_path / "1")]


def test_a_missing_environment_is_no_reason_not_to_train(drift: EpisodeDataset, tmp_path: Path) -> None:
    out = tmp_path / "trial"
    settings: dict[str, Any] = {"algo": "bc", "config": BCConfig(train_steps=3, hidden=8), "device": "cpu"}
    absent = run_trial(
        Trial(folder=str(out), **settings, evaluate=False, evaluation=EVALUATION), LoadedInputs(dataset=drift)
    )
    assert (absent["status"], absent["evaluations"]) == ("not evaluated", [])
    weights = (out / "policy" / "policy.safetensors").stat().st_mtime_ns
    later = run_trial(Trial(folder=str(out), **settings, evaluation=EVALUATION), LoadedInputs(dataset=drift))
    assert (later["status"], len(later["evaluations"])) == ("ok", 1)
    assert (out / "policy" / "policy.safetensors").stat().st_mtime_ns == weights
    assert [row["kind"] for row in _rows(out)] == ["train", "eval"]


def test_data_shaped_in_another_way_are_another_trial(drift: EpisodeDataset, tmp_path: Path) -> None:
    config = BCConfig(train_steps=3, hidden=8)
    settings: dict[str, Any] = {"algo": "bc", "config": config, "data": "weighted", "ratio": "1:1", "device": "cpu"}
    plain = Trial(folder=str(tmp_path / "plain"), **settings, evaluate=False)
    shaped = dataclasses.replace(plain, shaping=ShapingConfig(weights=WeightConfig(name="rw", temperature=1.0)))
    run_trial(plain, LoadedInputs(dataset=drift))
    assert "shaping" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    with pytest.raises(UserError, match=r"other settings: shaping"):
        run_trial(shaped, LoadedInputs(dataset=drift))

    run_trial(dataclasses.replace(shaped, folder=str(tmp_path / "shaped")), LoadedInputs(dataset=drift))
    recorded = json.loads((tmp_path / "shaped" / "config.json").read_text())["shaping"]
    assert recorded["weights"] == {"name": "rw", "temperature": 1.0}
    weights = [(tmp_path / name / "policy" / "policy.safetensors").read_bytes() for name in ("plain", "shaped")]
    assert weights[0] != weights[1]


def test_train_writes_nothing_and_returns_a_policy(drift: EpisodeDataset) -> None:
    policy = train(drift, "bc", config=BCConfig(train_steps=3, hidden=8), device="cpu")
    assert policy.act(np.zeros((5, 4))).shape == (5, 2)


def test_user_errors(drift: EpisodeDataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="algo='dqn' is not one of"):
        train(drift, "dqn")
    with pytest.raises(UserError, match="algo='dqn' is not one of"):
        train(drift, "dqn", config=BCConfig())
    with pytest.raises(UserError, match="takes a DTConfig, got a BCConfig"):
        train(drift, "dt", config=BCConfig())
    with pytest.raises(UserError, match="0:0"):
        train(drift, "bc", ratio="0:0")
    with pytest.raises(UserError, match="there is none"):
        train(drift, "bc", ratio="1:1")
    with pytest.raises(UserError, match="needs bridges"):
        run_trial(
            Trial(folder=str(tmp_path / "a"), algo="bc", data="stitched", ratio="1:1"), LoadedInputs(dataset=drift)
        )
    with pytest.raises(UserError, match="does not say which environment"):
        run_trial(
            Trial(folder=str(tmp_path / "b"), algo="bc"), LoadedInputs(dataset=dataclasses.replace(drift, env=None))
        )
    assert list(tmp_path.iterdir()) == []


def test_training_on_a_buffer(drift: EpisodeDataset, tiny_fit: FitConfig, tmp_path: Path) -> None:
    bundle = fit_bundle(drift, tiny_fit, tmp_path / "stitcher", "cpu")
    everything = QualifyConfig(delta="off", termination_max=None, value_check=False)
    stitch, augment = StitchConfig(qualify=everything), AugmentConfig(num_bridges=16, pairs_per_shard=16)
    augment_local(drift, bundle, stitch, augment, out=tmp_path / "buffer", seed=0)
    for algo, config in (("dt", dataclasses.replace(DT, train_steps=3)), ("bc", BCConfig(train_steps=3, hidden=8))):
        share = Ratio(np.float64(1), np.float64(1))
        policy = train(drift, algo, tmp_path / "buffer", share, config=config, device="cpu")
        assert policy.meta.record["ratio"] == "1:1"
    with pytest.raises(UserError, match="there is none"):
        train(drift, "bc", tmp_path / "buffer", "1:1", delta=0.0)
    with pytest.raises(UserError, match=r"holds other trajectories .*give that dataset"):
        train(drift.subset(np.arange(5)), "bc", tmp_path / "buffer", "1:1")
