"""What every algorithm must pass."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raystitch.data.episodes import Episode, EpisodeDataset, from_episodes
from raystitch.errors import RunError, UserError
from raystitch.trainers import ALGORITHMS
from raystitch.trainers.batches import TrainData
from raystitch.trainers.config import (
    ALGORITHM_CONFIGS,
    AlgorithmConfig,
    BCConfig,
    DataSpec,
    DTConfig,
    IQLConfig,
    TD3BCConfig,
)
from raystitch.trainers.data import build_data
from raystitch.trainers.loop import Checkpoints, train_policies, train_policy
from raystitch.trainers.policy import Policy
from raystitch.trainers.registry import load_policy

CONFIGS: dict[str, AlgorithmConfig] = {
    "td3bc": TD3BCConfig(train_steps=250, batch_size=16, hidden=16),
    "iql": IQLConfig(train_steps=250, batch_size=16, hidden=16),
    "dt": DTConfig(train_steps=250, batch_size=8, context=4, width=16, num_layers=2),
    "bc": BCConfig(train_steps=250, batch_size=16, hidden=16),
}


@pytest.fixture(params=sorted(ALGORITHMS))
def algo(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def data(algo: str, drift: EpisodeDataset) -> TrainData:
    wide = dataclasses.replace(drift, action_low=np.array([-3, -1], np.float32))
    return build_data(wide, DataSpec(kind=ALGORITHMS[algo].kind, data="duplicated", device="cpu"))


def _short(algo: str, steps: int = 5) -> AlgorithmConfig:
    return dataclasses.replace(CONFIGS[algo], train_steps=steps)


def _actions(policy: Policy) -> np.ndarray[Any, Any]:
    """Actions over a few steps of two environments."""
    rng = np.random.default_rng(0)
    policy.reset(2, 3.0)
    out = []
    for _ in range(7):
        out.append(policy.act(5 * rng.normal(size=(2, policy.obs_dim))))
        policy.observe(rng.normal(size=2))
    return np.stack(out)


def test_names_have_settings() -> None:
    assert set(ALGORITHMS) == set(ALGORITHM_CONFIGS) == set(CONFIGS)


def test_same_seed_same_policy(algo: str, data: TrainData) -> None:
    first, again, other = (train_policy(data, algo, _short(algo), "1:1", seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(_actions(first), _actions(again))
    assert np.abs(_actions(first) - _actions(other)).max() > 1e-4


def test_global_generator_is_left_alone(algo: str, data: TrainData) -> None:
    before = torch.get_rng_state()
    train_policy(data, algo, _short(algo))
    assert torch.equal(before, torch.get_rng_state())


def test_actions_stay_within_bounds(algo: str, data: TrainData) -> None:
    policy = train_policy(data, algo, _short(algo))
    actions = _actions(policy)
    assert actions.dtype == np.float32
    assert actions.shape == (7, 2, 2)
    assert (actions >= data.action_low).all()
    assert (actions <= data.action_high).all()


def test_saved_policy_acts_the_same(algo: str, data: TrainData, tmp_path: Path) -> None:
    policy = train_policy(data, algo, _short(algo), record={"note": "here"})
    policy.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy", "cpu")
    np.testing.assert_array_equal(_actions(policy), _actions(loaded))
    assert loaded.meta.env == data.env
    assert loaded.meta.record["note"] == "here"
    (tmp_path / "policy" / "policy.safetensors").write_bytes(b"something else")
    with pytest.raises(UserError, match="damaged"):
        load_policy(tmp_path / "policy")
    with pytest.raises(UserError, match="is not a policy"):
        load_policy(tmp_path)


def test_resumed_equals_uninterrupted(
    algo: str, data: TrainData, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, Any]] = []
    whole = train_policy(data, algo, CONFIGS[algo], "1:1", log=rows.append)
    checkpoints = Checkpoints(path=tmp_path / "state.pt", seconds=0)

    class Stop(Exception):
        pass

    def stop(row: dict[str, Any]) -> None:
        if row["step"] == 200:
            raise Stop

    with pytest.raises(Stop):
        train_policy(data, algo, CONFIGS[algo], "1:1", log=stop, checkpoints=checkpoints)
    assert checkpoints.step() == 100
    more: list[dict[str, Any]] = []
    resumed = train_policy(data, algo, CONFIGS[algo], "1:1", log=more.append, checkpoints=checkpoints)
    np.testing.assert_array_equal(_actions(whole), _actions(resumed))
    assert [row["step"] for row in rows] == [100, 200, 250]
    assert [{**row, "seconds": 0} for row in rows[1:]] == [{**row, "seconds": 0} for row in more]
    assert checkpoints.step() == 200
    (tmp_path / "state.pt").write_bytes(b"half")
    again: list[dict[str, Any]] = []
    stepped_back = train_policy(data, algo, CONFIGS[algo], "1:1", log=again.append, checkpoints=checkpoints)
    assert "state.pt cannot be resumed from: it is damaged" in capfd.readouterr().err
    np.testing.assert_array_equal(_actions(whole), _actions(stepped_back))
    assert [row["step"] for row in again] == [200, 250]


def test_loss_that_is_not_finite_is_an_error_with_its_step(algo: str, data: TrainData) -> None:
    broken = dataclasses.replace(data, actions=torch.full_like(data.actions, torch.nan))
    with pytest.raises(RunError, match=f"loss of {algo} became nan at step 1;"):
        train_policy(broken, algo, _short(algo))


def test_one_short_episode_without_reward_is_enough_to_train_on(algo: str, drift: EpisodeDataset) -> None:
    zero = Episode(drift.observations[:3], drift.actions[:2], np.zeros(2, np.float32), False, True)
    dataset = from_episodes([zero], name="zero", action_low=drift.action_low, action_high=drift.action_high)
    data = build_data(dataset, DataSpec(kind=ALGORITHMS[algo].kind, device="cpu"))
    policy = train_policy(data, algo, _short(algo))
    policy.reset(2)
    assert np.isfinite(policy.act(np.zeros((2, policy.obs_dim)))).all()


def test_a_seed_is_the_same_alone_and_among_others(algo: str, data: TrainData) -> None:
    config = _short(algo, 20)
    alone = [train_policy(data, algo, config, "1:1", seed) for seed in (3, 4, 5)]
    rows: dict[int, list[float]] = {}

    def log(index: int, row: dict[str, Any]) -> None:
        rows.setdefault(index, []).append(row["loss"])

    together = train_policies(data, algo, config, "1:1", (3, 4, 5), log=log)
    for one, other in zip(alone, together, strict=True):
        assert isinstance(other, Policy)
        np.testing.assert_allclose(_actions(one), _actions(other), atol=1e-4)
    assert [policy.meta.record["seed"] for policy in together if isinstance(policy, Policy)] == [3, 4, 5]
    assert len({tuple(losses) for losses in rows.values()}) == 3


def test_interrupted_seeds_go_on_alone(algo: str, data: TrainData, tmp_path: Path) -> None:
    """What is saved of a seed does not depend on the company it was trained in."""
    checkpoints = [Checkpoints(path=tmp_path / f"{seed}.pt", seconds=0) for seed in (3, 4)]

    class Stop(Exception):
        pass

    def stop(index: int, row: dict[str, Any]) -> None:
        if row["step"] == 200:
            raise Stop

    whole = train_policy(data, algo, CONFIGS[algo], "1:1", 4)
    with pytest.raises(Stop):
        train_policies(data, algo, CONFIGS[algo], "1:1", (3, 4), log=stop, checkpoints=checkpoints)
    resumed = train_policy(data, algo, CONFIGS[algo], "1:1", 4, checkpoints=checkpoints[1])
    np.testing.assert_allclose(_actions(whole), _actions(resumed), atol=2e-3)


def test_a_seed_that_fails_leaves_the_others_alone(algo: str, data: TrainData, monkeypatch: pytest.MonkeyPatch) -> None:
    good = train_policy(data, algo, _short(algo), "1:1", 4)
    algorithm = ALGORITHMS[algo]

    def poisoned(*args: Any) -> Any:
        metrics = algorithm.update(*args)
        if args[0].step == 2:
            for parameter in algorithm.actor(args[0]).parameters():
                parameter.data[0] = torch.nan
        return metrics

    monkeypatch.setitem(ALGORITHMS, algo, dataclasses.replace(algorithm, update=poisoned))
    bad, fine = train_policies(data, algo, _short(algo), "1:1", (3, 4))
    assert isinstance(bad, RunError)
    assert f"loss of {algo} became nan at step" in str(bad)
    assert isinstance(fine, Policy)
    np.testing.assert_allclose(_actions(fine), _actions(good), atol=1e-4)


def test_evaluation_during_training_changes_nothing(algo: str, data: TrainData) -> None:
    seen: list[int] = []

    def look(step: int, policy: Policy) -> None:
        seen.append(step)
        _actions(policy)

    watched = train_policy(data, algo, _short(algo, 6), every=2, on_every=look)
    np.testing.assert_array_equal(_actions(watched), _actions(train_policy(data, algo, _short(algo, 6))))
    assert seen == [2, 4]


def test_configs_quote_wrong_values(algo: str) -> None:
    with pytest.raises(ValueError, match="train_steps=0"):
        ALGORITHM_CONFIGS[algo](train_steps=0)
    with pytest.raises(ValueError, match="learning_rate=-1"):
        ALGORITHM_CONFIGS[algo](learning_rate=-1)
