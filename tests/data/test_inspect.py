"""What is wrong with a dataset is found and named."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from raystitch.data.checks import check_magnitudes
from raystitch.data.d4rl import read_d4rl
from raystitch.data.episodes import Episode, EpisodeDataset, from_episodes
from raystitch.data.inspect import inspect
from raystitch.envs.spec import EnvSpec
from raystitch.errors import UserError


def problems(dataset: EpisodeDataset) -> dict[str, dict[str, object]]:
    return {problem["kind"]: problem for problem in inspect(dataset)["problems"]}


def test_clean_dataset(drift: EpisodeDataset) -> None:
    found = inspect(drift)
    assert found["problems"] == []
    assert found["num_episodes"] == drift.num_episodes
    assert found["num_transitions"] == drift.num_transitions
    assert (found["obs_dim"], found["act_dim"]) == (4, 2)
    assert found["lengths"]["max"] == drift.lengths.max()
    assert found["returns"]["mean"] == drift.returns.mean()
    assert (found["terminated"], found["truncated"]) == (10, 30)
    assert 0 < found["action_saturated_share"] < 1
    assert found["env"]["env_id"] == "raystitch/PointMaze-v0"
    json.dumps(found, allow_nan=False)


def test_nan_is_located(drift: EpisodeDataset) -> None:
    observations, rewards = drift.observations.copy(), drift.rewards.copy()
    observations[drift.obs_offsets[3] + 5, 2] = np.nan
    observations[-1] = np.inf
    rewards[drift.offsets[7] + 1] = np.nan
    damaged = replace(drift, observations=observations, rewards=rewards)
    messages = [problem["message"] for problem in inspect(damaged)["problems"]]
    assert messages == [
        "observations: NaN or infinity in 2 rows, the first in episode 3, step 5",
        "rewards: NaN or infinity in 1 rows, the first in episode 7, step 1",
    ]
    json.dumps(inspect(damaged), allow_nan=False)


def test_constant_and_context_dimensions(drift: EpisodeDataset) -> None:
    observations = drift.observations.copy()
    observations[:, 1] = 5.0
    observations[:, 3] = np.repeat(np.arange(drift.num_episodes), drift.lengths + 1)
    found = problems(replace(drift, observations=observations))
    assert set(found) == {"constant_dimension", "context_dimension"}
    assert "dimensions 1 never change" in str(found["constant_dimension"]["message"])
    assert "dimensions 3 are constant within episodes" in str(found["context_dimension"]["message"])


def test_actions_out_of_bounds(drift: EpisodeDataset) -> None:
    actions = drift.actions.copy()
    actions[[12, 20], 0] = 1.5
    found = problems(replace(drift, actions=actions))
    assert found["action_out_of_bounds"]["count"] == 2
    assert "by up to 0.5), the first in row 12" in str(found["action_out_of_bounds"]["message"])


def test_episode_ends(drift: EpisodeDataset) -> None:
    nothing_ends = np.zeros(drift.num_episodes, np.bool_)
    found = problems(replace(drift, terminated=nothing_ends, final_observed=nothing_ends))
    assert found["no_terminal_flag"]["count"] == drift.num_episodes
    assert found["missing_final_observation"]["count"] == drift.num_episodes


def test_lengths(drift: EpisodeDataset) -> None:
    offsets = np.sort(np.append(drift.offsets[:-2], [drift.offsets[-3] + 1, drift.offsets[-1]]))
    env = EnvSpec(env_id="raystitch/PointMaze-v0", max_episode_steps=30)
    found = problems(replace(drift, offsets=offsets, env=env))
    assert found["one_step_episode"]["count"] == 1
    assert f": {drift.num_episodes - 2}" in str(found["one_step_episode"]["message"])
    assert found["over_time_limit"]["count"] == (np.diff(offsets) > 30).sum()


def _episodes_that_walk(num_episodes: int, steps: int, noise: float = 0.05) -> EpisodeDataset:
    """Random walks that start anywhere in a box of 20; O = 3."""
    rng = np.random.default_rng(4)
    starts = rng.uniform(-10, 10, (num_episodes, 1, 3))
    states = (starts + np.cumsum(rng.normal(0, noise, (num_episodes, steps + 1, 3)), 1)).astype(np.float32)
    episodes = [
        Episode(
            state,
            rng.uniform(-1, 1, (steps, 2)).astype(np.float32),
            rng.normal(size=steps).astype(np.float32),
            False,
            True,
        )
        for state in states
    ]
    return from_episodes(episodes, name="walks", action_low=-1, action_high=1)


def _joined(dataset: EpisodeDataset, every: int) -> EpisodeDataset:
    """The same transitions, of which only every so many episodes' end is marked, and no final observation is known."""
    observations = dataset.observations[dataset.obs_index]
    offsets = dataset.offsets[::every]
    ended = np.zeros(len(offsets) - 1, np.bool_)
    return replace(
        dataset,
        observations=np.insert(observations, offsets[1:], observations[offsets[1:] - 1], axis=0),
        offsets=offsets,
        terminated=ended,
        truncated=~ended,
        final_observed=ended,
    )


def test_episodes_that_the_flags_do_not_separate() -> None:
    dataset = _episodes_that_walk(30, 50)
    assert "jump_inside_episode" not in problems(dataset)
    found = problems(_joined(dataset, every=2))["jump_inside_episode"]
    assert found["count"] == 15
    message = str(found["message"])
    assert message.startswith("15 steps inside 15 episodes jump (by up to 2")
    assert "the first in episode 0, step 49: episodes end there, but no timeouts or terminals say so" in message
    assert problems(_joined(dataset, every=30))["jump_inside_episode"]["count"] == 29


def test_jumps_that_are_motion(drift: EpisodeDataset) -> None:
    """A contact, an angle that goes round and a goal that is moved are no ends of episodes."""
    dataset = _episodes_that_walk(20, 60)
    rng = np.random.default_rng(0)
    more = rng.normal(0, 0.1, (len(dataset.observations), 4)).cumsum(0).astype(np.float32)
    more[:, 0] = (dataset.observations[:, 0] * 3 + np.pi) % (2 * np.pi) - np.pi
    more[30:, 1] += 40
    more[:, 2] = np.repeat(rng.uniform(-9, 9, len(more) // 200 + 1), 200)[: len(more)]
    wide = replace(dataset, observations=np.concatenate([dataset.observations, more], 1))
    assert "jump_inside_episode" not in problems(wide)
    assert "jump_inside_episode" not in problems(drift)


def test_a_value_that_cannot_be_meant(drift: EpisodeDataset) -> None:
    observations, rewards = drift.observations.copy(), drift.rewards.copy()
    observations[drift.obs_offsets[2] + 3, 1] = 1e30
    rewards[5] = 1e7
    damaged = replace(drift, observations=observations, rewards=rewards)
    found = problems(damaged)["absurd_value"]
    assert found["count"] == 1
    assert "up to 1e+30), the first in episode 2, step 3" in str(found["message"])
    with pytest.raises(
        UserError, match=r"it: observations has a value of size 1e\+30 in row \d+ \(1 such rows in all\)"
    ):
        check_magnitudes({"observations": observations}, "it")
    check_magnitudes({"rewards": rewards}, "it")
    with pytest.raises(UserError, match="rewards has a value of size 1e"):
        check_magnitudes({"rewards": np.where(rewards > 1e6, np.float32(1e20), rewards)}, "it")


@pytest.mark.parametrize("change", [np.s_[:, 1], np.s_[:10, 1]])
def test_large_values_that_may_be_meant(drift: EpisodeDataset, change: Any) -> None:
    observations = drift.observations.copy()
    observations[change] = 5e5 if change[0] != slice(None) else 1e9
    check_magnitudes({"observations": observations}, "it")


def test_steps_that_float32_loses(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = 200
    observations = np.stack([1e9 + 0.1 * np.arange(rows), rng.normal(size=rows), np.full(rows, 3e9)], 1)
    observations[:, 1] += 20
    path = tmp_path / "time.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"] = observations, rng.uniform(-1, 1, (rows, 1))
        file["rewards"], file["timeouts"] = rng.normal(size=rows), np.arange(rows) % 50 == 49
    found = problems(read_d4rl(path))
    assert found["float32_resolution"]["count"] == 1
    message = str(found["float32_resolution"]["message"])
    assert message.startswith(
        "observation dimensions 0 move in steps that float32 cannot hold (dimension 0: 0.1 a step"
    )
    assert "around 1e+09, where float32 is 64 apart" in message
    assert "subtract an offset" in message
    with h5py.File(path, "a") as file:
        del file["observations"]
        file["observations"] = observations - [1e9, 0, 0]
    assert "float32_resolution" not in problems(read_d4rl(path))


def test_returns_that_are_all_equal(drift: EpisodeDataset) -> None:
    step = replace(drift.subset(np.flatnonzero(drift.lengths > 20)[:1].repeat(3)), name="three")
    found = problems(replace(step, rewards=np.full_like(step.rewards, -1.0)))["equal_returns"]
    assert f"all 3 episodes have the return {-step.lengths[0]:g}, so none is better" in str(found["message"])
    assert "equal_returns" not in problems(drift)
    assert "equal_returns" not in problems(drift.subset(np.arange(1)))
