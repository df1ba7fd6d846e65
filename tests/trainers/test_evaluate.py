"""Evaluation in real environments."""

import dataclasses

import numpy as np
import pytest

from raystitch.data.episodes import Episode, EpisodeDataset, from_episodes
from raystitch.envs.make import make_env, spec_from_id
from raystitch.errors import RunError, UserError
from raystitch.seeding import derive_seed
from raystitch.trainers.config import BCConfig, DataSpec, DTConfig
from raystitch.trainers.data import build_data
from raystitch.trainers.evaluate import SharedEnvs, check_ends, evaluate
from raystitch.trainers.loop import train_policy
from raystitch.trainers.policy import Policy


@pytest.fixture(scope="module")
def cloned(line: EpisodeDataset) -> Policy:
    return train_policy(
        build_data(line, DataSpec(kind="transitions", device="cpu")), "bc", BCConfig(train_steps=5, hidden=16)
    )


def test_returns_are_those_of_single_episodes(line: EpisodeDataset, cloned: Policy) -> None:
    assert line.env is not None
    result = evaluate(cloned, line.env, num_episodes=7, num_envs=3, seed=11)
    env = make_env(line.env)
    for index in range(7):
        obs, _ = env.reset(seed=derive_seed(11, "episode", index) % 2**31)
        total, ended = 0.0, False
        cloned.reset(1)
        while not ended:
            obs, reward, terminated, truncated, _ = env.step(cloned.act(obs[None])[0])
            total, ended = total + float(reward), terminated or truncated
        assert result.returns[index] == pytest.approx(total, abs=1e-5)
    assert len(set(result.returns)) == 7
    assert result.lengths.tolist() == [20] * 7
    assert result.successes is None
    assert result.success_rate is None
    assert result.score is None
    again = evaluate(cloned, line.env, num_episodes=7, num_envs=3, seed=11)
    np.testing.assert_array_equal(result.returns, again.returns)


def test_an_episode_may_be_as_long_as_what_counts_as_endless(
    line: EpisodeDataset, cloned: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert line.env is not None
    monkeypatch.setattr("raystitch.trainers.evaluate.SAFETY_LIMIT", 20)
    check_ends(line.env, 20)
    assert evaluate(cloned, line.env, num_episodes=2, num_envs=2, seed=0).lengths.tolist() == [20, 20]
    monkeypatch.setattr("raystitch.trainers.evaluate.SAFETY_LIMIT", 19)
    with pytest.raises(RunError, match="did not end after 19 steps"):
        evaluate(cloned, line.env, num_episodes=2, num_envs=2, seed=0)


def test_maze_reports_success(drift: EpisodeDataset) -> None:
    assert drift.env is not None
    config = DTConfig(train_steps=2, batch_size=8, context=4, width=16, num_layers=1)
    policy = train_policy(build_data(drift, DataSpec(kind="sequences", device="cpu")), "dt", config)
    result = evaluate(policy, drift.env, num_episodes=3, num_envs=2, seed=0)
    assert result.successes is not None
    assert result.success_rate == result.successes.mean()
    assert result.target_return == pytest.approx(drift.returns.max())
    assert result.lengths.max() <= 60
    assert result.to_json()["num_eval_episodes"] == 3


@pytest.mark.parametrize("name", ["PointMaze_UMaze-v3", "Hopper-v5", "ogbench:pointmaze-medium-singletask-task1-v0"])
def test_shared_environments_change_nothing_and_are_made_once(name: str) -> None:
    spec = dataclasses.replace(spec_from_id(name), max_episode_steps=12)
    with SharedEnvs(spec) as envs:
        one = envs.take(1)[0]
        (observation, _), action = one.reset(seed=0), one.action_space.sample()
        rng = np.random.default_rng(0)
        observations, actions = rng.normal(size=(9, len(observation))), rng.uniform(-1, 1, (8, len(action)))
        low = -np.ones(actions.shape[1])
        episode = Episode.recorded(list(observations), list(actions), [0.0] * 8, terminated=False)
        dataset = from_episodes([episode], name="noise", action_low=low, action_high=-low)
        data = build_data(dataset, DataSpec(kind="transitions", device="cpu"))
        policies = [train_policy(data, "bc", BCConfig(train_steps=2, hidden=8), seed=seed) for seed in (0, 1)]
        before = [evaluate(policy, spec, 5, 3, seed=at) for at, policy in enumerate(policies)]
        after = [evaluate(policies[at], envs, 5, 3, seed=at) for at in (1, 0, 1)]
        made = envs.take(3)
        assert envs.take(3) == made
    for alone, shared in zip((before[1], before[0], before[1]), after, strict=True):
        np.testing.assert_array_equal(shared.returns, alone.returns)
        np.testing.assert_array_equal(shared.lengths, alone.lengths)


def test_environment_of_another_size(line: EpisodeDataset, drift: EpisodeDataset, cloned: Policy) -> None:
    assert drift.env is not None
    with pytest.raises(UserError, match="4 observations and 2 actions, the policy has 1 and 1"):
        evaluate(cloned, drift.env)
    with pytest.raises(UserError, match="unknown environment"):
        evaluate(cloned, dataclasses.replace(drift.env, env_id="Nothing-v0"))
