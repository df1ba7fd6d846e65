"""Simulator truth of a buffer whose bridges are known to be true or false."""

import json
from dataclasses import replace

import numpy as np
import pytest

from raystitch.buffer.config import AugmentConfig
from raystitch.buffer.reader import Buffer, open_buffer
from raystitch.buffer.rounds import finish
from raystitch.buffer.schema import BufferMeta, candidates_to_table
from raystitch.buffer.writer import create_buffer, write_shard
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.normalise import Normalizer
from raystitch.envs.simulator import SimResult
from raystitch.envs.spec import EnvSpec
from raystitch.errors import UserError
from raystitch.models.calibration import Calibration
from raystitch.models.config import FitConfig
from raystitch.models.fit import fit_bundle
from raystitch.pipeline.validate import _only, validate
from raystitch.pipeline.windows import perturbed, real_windows
from raystitch.stitching.candidates import Candidates
from raystitch.stitching.config import QualifyConfig, StitchConfig



def test_true_bridges_are_found_true_and_false_ones_false(buffer: Buffer, maze: EpisodeDataset) -> None:
    found = validate(buffer, maze)
    json.dumps(found, allow_nan=False)
    assert found["unavailable"] is None
    assert (found["num_accepted"], found["num_candidates"]) == (NUM_TRUE, NUM_TRUE + NUM_FALSE)
    sets = found["sets"]
    assert list(sets) == ["accepted", "rejected", "real", "real_noise"]
    assert (sets["accepted"]["num_windows"], sets["rejected"]["num_windows"]) == (NUM_TRUE, NUM_FALSE)
    median = {name: described["step_error"]["median"] for name, described in sets.items()}
    assert median["real"] < 1e-10
    assert median["accepted"] < 1e-4 < median["real_noise"] < median["rejected"]
    assert found["below_noise"] is True
    assert found["rank_correlation"] > 0.8
    assert sets["accepted"]["reward_error"]["median"] == 0.0
    assert sets["accepted"]["usable_share"] == 1.0
    assert sets["accepted"]["largest_below"]["share"] == 1.0
    for described in sets.values():
        steps = described["num_steps"]
        assert sum(group["count"] for group in described["by_gap"]) == steps
        assert sum(group["count"] for group in described["by_step"]) == steps
        assert described["cdf"]["step_error"] == sorted(described["cdf"]["step_error"])


def test_bundle_adds_inverse_actions(buffer: Buffer, maze: EpisodeDataset, tiny_fit: FitConfig) -> None:
    bundle = fit_bundle(maze, replace(tiny_fit, holdout_fraction=0.3), None)
    found = validate(buffer, maze, bundle)
    assert found["sets"]["real_inverse"]["num_windows"] == found["sets"]["real"]["num_windows"] > 0
    assert found["sets"]["real_inverse"]["step_error"]["median"] > found["sets"]["real"]["step_error"]["median"]
    assert 0 <= found["real_accepted_share"] <= 1
    with pytest.raises(UserError, match="dataset"):
        validate(buffer, maze.subset(np.arange(20)), bundle)


def test_number_of_bridges_is_bounded_and_the_sample_repeatable(buffer: Buffer, maze: EpisodeDataset) -> None:
    found = validate(buffer, maze, max_bridges=5)
    assert {described["num_windows"] for described in found["sets"].values()} == {5}
    assert validate(buffer, maze, max_bridges=5) == found


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        (EnvSpec(env_id="AdroitHandPen-v1"), "it lacks the hand's joint velocities"),
        (EnvSpec(env_id="Pendulum-v1"), "cannot set the state of Pendulum-v1"),
        (None, "does not say which environment"),
    ],
)
def test_unavailable_says_why(buffer: Buffer, maze: EpisodeDataset, env: EnvSpec | None, reason: str) -> None:
    found = validate(buffer, replace(maze, env=env))
    assert reason in found["unavailable"]
    assert found["sets"] == {}
    assert found["num_accepted"] == NUM_TRUE


def test_environment_of_another_size(buffer: Buffer, maze: EpisodeDataset) -> None:
    with pytest.raises(UserError, match="4 observation dimensions but Hopper-v5 gives 11"):
        validate(buffer, replace(maze, env=EnvSpec(env_id="Hopper-v5")))


def test_real_windows_are_consecutive_and_from_the_episodes_asked_for(drift: EpisodeDataset) -> None:
    episodes = np.array([3, 5, 8, 21])
    unobserved = replace(drift, final_observed=np.zeros(drift.num_episodes, np.bool_))
    gaps = np.repeat([2, 6, 11, 500], 50)
    windows = real_windows(unobserved, episodes, gaps, np.random.default_rng(0))
    assert len(windows) == 150
    np.testing.assert_array_equal(np.bincount(windows.window), windows.gap + 1)
    inner = np.flatnonzero(windows.step[1:] > 0)
    np.testing.assert_array_equal(windows.next_observations[inner], windows.observations[inner + 1])
    allowed = np.isin(drift.episode_of, episodes) & unobserved.next_observed
    rows = {row.tobytes() for row in drift.observations[drift.obs_index[allowed]]}
    assert all(row.tobytes() in rows for row in windows.observations)


def test_noise_moves_a_state_once(drift: EpisodeDataset) -> None:
    normalizer = Normalizer.fit(drift.observations)
    windows = real_windows(drift, np.arange(40), np.full(300, 5), np.random.default_rng(0))
    noisy = perturbed(windows, normalizer, 0.05, np.random.default_rng(1))
    inner = np.flatnonzero(windows.step[1:] > 0)
    difference = noisy.next_observations[inner] - noisy.observations[inner + 1]
    assert np.abs(difference).max() < 1e-6
    moved = (noisy.observations - windows.observations) / normalizer.std
    np.testing.assert_allclose(moved.std(0), 0.05, rtol=0.1)
    last = np.flatnonzero(windows.step == 5)
    np.testing.assert_allclose(
        ((noisy.next_observations - windows.next_observations)[last] / normalizer.std).std(0), 0.05, rtol=0.2
    )


def test_rows_left_out_count_as_not_usable() -> None:
    answer = SimResult(
        next_observations=np.ones((3, 2), np.float32),
        rewards=np.ones(3, np.float32),
        terminated=np.ones(3, np.bool_),
        usable=np.array([True, True, False]),
    )
    left = _only(answer, np.array([True, False, True]))
    np.testing.assert_array_equal(left.usable, [True, False, False])
    np.testing.assert_array_equal(left.terminated, [True, False, True])
    np.testing.assert_array_equal(np.isnan(left.next_observations).any(1), [False, True, False])
    np.testing.assert_array_equal(np.isnan(left.rewards), [False, True, False])
