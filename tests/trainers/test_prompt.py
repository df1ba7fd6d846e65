"""A Decision Transformer that learns what to ask for: ``algorithms.dt.prompt``."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raystitch.data.episodes import EpisodeDataset
from raystitch.errors import UserError
from raystitch.trainers.config import BCConfig, DataSpec, DTConfig, EvalConfig, settings_json
from raystitch.trainers.data import build_data
from raystitch.trainers.dt import DTPolicy
from raystitch.trainers.evaluate import evaluate
from raystitch.trainers.loop import Checkpoints, train_policies, train_policy
from raystitch.trainers.policy import Policy
from raystitch.trainers.prompt import ReturnPrompt, prompt_loss
from raystitch.trainers.registry import load_policy
from raystitch.trainers.shaped import check_asked

TINY = DTConfig(train_steps=20, batch_size=8, context=4, width=16, num_layers=1, prompt="both")


def actions(policy: Policy, asked: Any) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(0)
    policy.reset(3, asked)
    out = []
    for _ in range(6):
        out.append(policy.act(rng.normal(size=(3, policy.obs_dim))))
        policy.observe(rng.normal(size=3))
    return np.stack(out)


@pytest.fixture
def data(drift: EpisodeDataset) -> Any:
    return build_data(drift, DataSpec(kind="sequences", device="cpu"))


def test_the_transformer_stays_as_it_is(data: Any) -> None:
    plain = train_policy(data, "dt", dataclasses.replace(TINY, prompt="target"))
    both = train_policy(data, "dt", TINY)
    np.testing.assert_array_equal(actions(plain, 5.0), actions(both, 5.0))
    assert np.abs(actions(both, "max") - actions(both, 5.0)).max() > 1e-6
    assert (plain.default_target, plain.asked_beside) == (data.return_max, ())
    assert (both.default_target, both.asked_beside) == (data.return_max, ("max",))
    alone = train_policy(data, "dt", dataclasses.replace(TINY, prompt="max"))
    assert (alone.default_target, alone.asked_beside) == ("max", ())
    np.testing.assert_array_equal(actions(alone, None), actions(both, "max"))


def test_a_saved_policy_asks_for_the_same(data: Any, tmp_path: Path) -> None:
    policy = train_policy(data, "dt", TINY)
    policy.save(tmp_path)
    loaded = load_policy(tmp_path, "cpu")
    for asked in (None, 2.0, "max"):
        np.testing.assert_array_equal(actions(loaded, asked), actions(policy, asked))
    without = train_policy(data, "dt", dataclasses.replace(TINY, prompt="target"))
    with pytest.raises(UserError, match=r"trained without algorithms\.dt\.prompt: max"):
        without.reset(1, "max")


def test_seeds_learn_it_side_by_side(data: Any) -> None:
    alone = train_policy(data, "dt", TINY, seed=4)
    together = train_policies(data, "dt", TINY, "1:0", (3, 4))
    assert isinstance(together[1], Policy)
    np.testing.assert_allclose(actions(together[1], "max"), actions(alone, "max"), atol=1e-3)


def test_resumed_equals_uninterrupted(data: Any, tmp_path: Path) -> None:
    config, rows = dataclasses.replace(TINY, train_steps=160, batch_size=2), list[dict[str, Any]]()
    whole = train_policy(data, "dt", config, log=rows.append)
    assert all(row["prompt_loss"] > 0 for row in rows)

    class Stop(Exception):
        pass

    def stop(step: int, policy: Policy) -> None:
        raise Stop

    checkpoints = Checkpoints(path=tmp_path / "state.pt", seconds=0)
    with pytest.raises(Stop):
        train_policy(data, "dt", config, checkpoints=checkpoints, every=120, on_every=stop)
    assert checkpoints.step() == 100
    resumed = train_policy(data, "dt", config, checkpoints=checkpoints)
    np.testing.assert_array_equal(actions(resumed, "max"), actions(whole, "max"))


def test_what_is_asked_is_the_expectile_of_the_returns(drift: EpisodeDataset) -> None:
    """Of returns that do not depend on the state, V_tau is the expectile; it follows u = (R - V) / mean |R|."""
    torch.manual_seed(0)
    data = build_data(drift, DataSpec(kind="sequences", device="cpu"))
    generator = torch.Generator().manual_seed(0)
    episode, step = data.original.draw(64, [generator])
    window = data.windows(episode, step, data.original.length[episode], 4)
    window = dataclasses.replace(window, obs=torch.zeros_like(window.obs))
    prompt = ReturnPrompt(data.obs_dim)
    optimizer = torch.optim.Adam(prompt.parameters(), lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        prompt_loss(prompt, window, 0.9).sum().backward()
        optimizer.step()
    at = float(prompt(torch.zeros(1, 1, 1, data.obs_dim)).detach())
    returns = window.rtg[window.valid]
    above, below = (returns - at).clamp(min=0).sum(), (at - returns).clamp(min=0).sum()
    assert float(0.9 * above) == pytest.approx(float(0.1 * below), rel=0.05)


def test_evaluations_say_what_was_asked(line: EpisodeDataset, drift: EpisodeDataset) -> None:
    assert line.env is not None
    data = build_data(line, DataSpec(kind="sequences", device="cpu"))
    policy = train_policy(data, "dt", TINY)
    assert isinstance(policy, DTPolicy)
    fixed, largest, asked = (evaluate(policy, line.env, 2, 2, target_return=target) for target in (3.0, None, "max"))
    assert (fixed.target_return, fixed.prompt) == (3.0, None)
    assert largest.target_return == data.return_max
    assert (asked.target_return, asked.prompt) == (None, "max")
    assert asked.to_json()["prompt"] == "max"
    assert "prompt" not in fixed.to_json()


def test_settings_of_older_trials_are_the_same() -> None:
    assert "prompt" not in settings_json(DTConfig())
    assert settings_json(DTConfig(prompt="max"))["prompt"] == "max"
    assert settings_json(DTConfig(prompt_expectile=0.9))["prompt_expectile"] == 0.9
    assert settings_json(BCConfig()) == dataclasses.asdict(BCConfig())


def test_returns_that_would_not_be_asked_for_are_refused() -> None:
    named = EvalConfig(target_returns=(3.0,))
    with pytest.raises(UserError, match=r"prompt: max .* evaluation.target_returns=\(3.0,\) would not be used"):
        check_asked(DTConfig(prompt="max"), named)
    check_asked(DTConfig(prompt="both"), named)
    check_asked(DTConfig(prompt="max"), EvalConfig())
    with pytest.raises(ValueError, match="prompt_expectile=1"):
        DTConfig(prompt_expectile=1)
