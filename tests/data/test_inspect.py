"""What is wrong with a dataset is found and named."""

import json
from dataclasses import replace

import numpy as np

from raystitch.data.episodes import EpisodeDataset
from raystitch.data.inspect import inspect
from raystitch.envs.spec import EnvSpec


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
