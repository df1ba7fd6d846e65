"""Evaluations end, and what is trained outlives them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raystitch.cli import main
from raystitch.data.episodes import Episode, EpisodeDataset, from_episodes
from raystitch.data.minari_io import write_minari
from raystitch.envs.spec import EnvSpec
from raystitch.errors import RunError, UserError
from raystitch.io.files import read_json
from raystitch.pipeline.trials import train as pipeline
from raystitch.pipeline.trials.checks import check_evaluation, check_suitable
from raystitch.pipeline.trials.train import run_trial
from raystitch.pipeline.trials.trial import LoadedInputs, Trial
from raystitch.pipeline.trials.trial_folder import finished
from raystitch.trainers.config import BCConfig, DTConfig, EvalConfig

BC = BCConfig(train_steps=3, hidden=8)
ENDLESS = EnvSpec(env_id="Pendulum-v1", max_episode_steps=1_000_000)


@pytest.fixture(scope="module")
def pendulum() -> EpisodeDataset:
    """Made-up data of Pendulum's sizes, 8 steps each, recorded without a limit that anything reaches."""
    rng = np.random.default_rng(0)
    episodes = [
        Episode(
            rng.normal(size=(9, 3)).astype(np.float32),
            rng.uniform(-2, 2, (8, 1)).astype(np.float32),
            rng.normal(size=8).astype(np.float32),
            False,
            True,
        )
        for _ in range(6)
    ]
    bound = np.full(1, 2, np.float32)
    return from_episodes(episodes, name="pendulum", action_low=-bound, action_high=bound, env=ENDLESS)


def test_an_environment_without_an_end_is_refused_before_training(pendulum: EpisodeDataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1,000,000 steps .*--max-episode-steps N .* has 8 steps"):
        run_trial(Trial(folder=str(tmp_path / "t"), algo="bc", config=BC, device="cpu"), LoadedInputs(dataset=pendulum))
    assert not (tmp_path / "t").exists()
    ends = np.arange(6) == 3
    check_evaluation(replace(pendulum, terminated=ends, truncated=~ends), EvalConfig())  # it ends by itself
    check_evaluation(replace(pendulum, env=replace(ENDLESS, evaluation=EnvSpec(env_id="Pendulum-v1"))), EvalConfig())
    with pytest.raises(UserError, match="does not say which environment"):
        check_evaluation(replace(pendulum, env=None), EvalConfig())


def test_a_limit_of_the_evaluation_s_own(pendulum: EpisodeDataset, tmp_path: Path) -> None:
    evaluation = EvalConfig(num_episodes=2, max_episode_steps=5)
    result = run_trial(
        Trial(folder=str(tmp_path / "t"), algo="bc", config=BC, evaluation=evaluation, device="cpu"),
        LoadedInputs(dataset=pendulum),
    )
    assert result["evaluations"][0]["lengths"] == [5, 5]
    assert "max_episode_steps" not in EvalConfig().to_json()  # trials of before keep their identity


def test_the_commands_take_a_limit(
    pendulum: EpisodeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    write_minari(pendulum, "local/endless-v0")
    out = str(tmp_path / "t")
    argv = ["train", "local/endless-v0", "--algo", "dt", "--out", out, "--num-episodes", "1", "--device", "cpu"]
    argv += ["--set", "train_steps=1", "--set", "width=8", "--set", "num_layers=1"]
    assert main([*argv, "--max-episode-steps", "4"]) == 0
    assert read_json(Path(out) / "returns.json")["evaluations"][0]["lengths"] == [4]
    capsys.readouterr()
    argv = ["evaluate", out, "--num-episodes", "1", "--max-episode-steps", "3", "--json"]
    assert main(argv) == 0
    assert '"lengths": [\n    3\n  ]' in capsys.readouterr().out
    assert main([*argv, "--target-return", "1e30"]) == 2
    assert "out of all proportion" in capsys.readouterr().err
    for text in ("nan", "inf", "much"):
        with pytest.raises(SystemExit) as stopped:
            main([*argv, "--target-return", text])
        assert stopped.value.code == 2
        assert "must be a finite number" in capsys.readouterr().err


def test_a_policy_outlives_its_evaluation(
    pendulum: EpisodeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, settings = tmp_path / "t", {"algo": "bc", "config": BC, "device": "cpu"}
    evaluation = EvalConfig(num_episodes=2, max_episode_steps=5)
    evaluate: Any = pipeline.evaluate

    def fails(*args: Any, **kwargs: Any) -> None:
        raise RunError("the simulator broke down")

    monkeypatch.setattr(pipeline, "evaluate", fails)
    with pytest.raises(RunError, match=r"broke down; the policy is saved in .*policy"):
        run_trial(Trial(folder=str(out), evaluation=evaluation, **settings), LoadedInputs(dataset=pendulum))
    assert finished(out) is None
    weights = (out / "policy" / "policy.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(pipeline, "evaluate", evaluate)
    monkeypatch.setattr(pipeline, "train_policies", fails)  # nothing is trained again
    result = run_trial(Trial(folder=str(out), evaluation=evaluation, **settings), LoadedInputs(dataset=pendulum))
    assert result["status"] == "ok"
    assert finished(out) is not None
    assert (out / "policy" / "policy.safetensors").stat().st_mtime_ns == weights


def test_an_absurd_target_return_is_refused_before_training(pendulum: EpisodeDataset, tmp_path: Path) -> None:
    evaluation = EvalConfig(target_returns=(1e30,), max_episode_steps=5)
    config = DTConfig(train_steps=1, width=8, num_layers=1)
    with pytest.raises(UserError, match=r"target return 1e\+30 is out of all proportion"):
        run_trial(
            Trial(folder=str(tmp_path / "t"), algo="dt", config=config, evaluation=evaluation, device="cpu"),
            LoadedInputs(dataset=pendulum),
        )
    assert not (tmp_path / "t").exists()
    with pytest.raises(ValueError, match="must be finite"):
        EvalConfig(target_returns=(float("nan"),))


def test_episodes_over_the_limit_are_noted(pendulum: EpisodeDataset) -> None:
    short = replace(pendulum, env=replace(ENDLESS, max_episode_steps=5))
    (note,) = check_suitable(short)
    assert "6 episodes are longer than the environment's time limit of 5 steps (the longest has 8)" in note
    assert check_suitable(pendulum) == []
