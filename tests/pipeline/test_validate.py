"""Simulator truth of a buffer whose bridges are known to be true or false."""

import json
from copy import copy
from dataclasses import replace

import numpy as np
import pytest

from raystitch.buffer.reader import Buffer
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.normalise import Normalizer
from raystitch.envs.simulator import SimResult
from raystitch.envs.spec import EnvSpec
from raystitch.errors import UserError
from raystitch.models.config import FitConfig
from raystitch.models.fit import fit_bundle
from raystitch.pipeline.validate.simulated import only
from raystitch.pipeline.validate.truth import validate
from raystitch.pipeline.validate.windows import perturbed, real_windows

# What the buffer of conftest.py holds: accepted bridges, some of them repairs of the first rejected ones.
NUM_TRUE, NUM_FALSE, NUM_RESCUED = 20, 15, 5
NUM_PAIRS = NUM_TRUE + NUM_FALSE - NUM_RESCUED


def test_true_bridges_are_found_true_and_false_ones_false(truth_buffer: Buffer, maze: EpisodeDataset) -> None:
    found = validate(truth_buffer, maze)
    json.dumps(found, allow_nan=False)
    assert found["unavailable"] is None
    assert (found["num_accepted"], found["num_candidates"]) == (NUM_TRUE, NUM_TRUE + NUM_FALSE)
    assert found["attempts"] == {
        "num_pairs": NUM_PAIRS,
        "first_accepted": NUM_TRUE - NUM_RESCUED,
        "first_accepted_share": (NUM_TRUE - NUM_RESCUED) / NUM_PAIRS,
        "num_repairs": NUM_RESCUED,
        "rescued": NUM_RESCUED,
    }
    sets = found["sets"]
    counts = {name: described["num_windows"] for name, described in sets.items()}
    assert counts == {
        "accepted": NUM_TRUE,
        "rejected": NUM_FALSE,
        "first_attempts": NUM_TRUE - NUM_RESCUED,
        "repaired": NUM_RESCUED,
        "real": NUM_TRUE,
        "real_noise": NUM_TRUE,
    }
    median = {name: described["step_error"]["median"] for name, described in sets.items()}
    assert median["real"] < 1e-10
    assert median["accepted"] < 1e-4 < median["real_noise"] < median["rejected"]
    assert max(median["first_attempts"], median["repaired"]) < 1e-4
    assert found["below_noise"] is True
    assert sets["accepted"]["reward_error"]["median"] == 0.0
    assert sets["accepted"]["usable_share"] == 1.0
    assert sets["accepted"]["largest_below"]["share"] == 1.0
    for described in sets.values():
        steps = described["num_steps"]
        assert sum(group["count"] for group in described["by_gap"]) == steps
        assert sum(group["count"] for group in described["by_step"]) == steps
        assert described["cdf"]["step_error"] == sorted(described["cdf"]["step_error"])


def test_ranks_are_of_first_attempts_as_they_come(truth_buffer: Buffer, maze: EpisodeDataset) -> None:
    found = validate(truth_buffer, maze)
    ranks, points = found["rank_correlation"], found["points"]
    assert 0.8 < ranks["low"] < ranks["value"] < ranks["high"]
    assert ranks["count"] == NUM_PAIRS == sum(bucket["count"] for bucket in ranks["by_gap"])
    assert {name: len(values) for name, values in points.items()} == dict.fromkeys(
        ("residual", "error", "gap", "accepted"), NUM_PAIRS
    )
    assert sum(points["accepted"]) == NUM_TRUE - NUM_RESCUED
    np.testing.assert_array_equal(np.array(points["residual"]) < 0.5, points["accepted"])
    few = validate(truth_buffer, maze, max_bridges=6)
    assert few["rank_correlation"]["count"] == 6


def test_a_larger_delta_lets_false_bridges_in(truth_buffer: Buffer, maze: EpisodeDataset) -> None:
    found = validate(truth_buffer, maze)
    curve = {row["level"]: row for row in found["calibration"]}
    # q50 is delta = 0.5 here: all true ones. At q99.9 some first attempts that are false pass, and replace repairs.
    assert curve["q50"]["simulator"]["num_windows"] == curve["q50"]["num_bridges"] == NUM_TRUE
    assert curve["q50"]["simulator"]["largest_below"]["share"] == 1.0
    assert curve["q50"]["first_accepted"] == found["attempts"]["first_accepted_share"]
    last = curve["q99.9"]
    assert last["num_bridges"] == last["simulator"]["num_windows"] > NUM_TRUE
    assert last["simulator"]["step_error"]["p90"] > 100 * curve["q50"]["simulator"]["step_error"]["p90"]
    assert last["simulator"]["largest_below"]["share"] < 1.0
    assert last["real_accepted"] is None  # no bundle, no judges


def test_what_auto_promises_is_compared_with_the_simulator(truth_buffer: Buffer, maze: EpisodeDataset) -> None:
    assert "an earlier version" in validate(truth_buffer, maze)["auto"]["unavailable"]
    calibration = truth_buffer.meta.calibration
    table = np.ones_like(calibration["tables"]["residual"])
    for noise, share in ((1.25, 1.0), (5.0, None)):
        # The judges' own error is 1: delta is 0.25, which keeps true ones only; or 4.
        tables = {**calibration["tables"], "recorded": table.tolist(), "noise": (noise * table).tolist()}
        other = copy(truth_buffer)
        other.meta = replace(truth_buffer.meta, calibration={**calibration, "tables": tables})
        vars(other).pop("_calibration", None)
        auto = validate(other, maze)["auto"]
        assert auto["unavailable"] is None and auto["nominal"] == 0.95
        assert auto["delta"] == pytest.approx(noise - 1)
        kept = auto["simulator"]["num_windows"]
        assert auto["num_bridges"] == kept > 0 and auto["reference"] > 0
        if share is not None:
            assert auto["below_reference"] == share and kept < NUM_TRUE
        else:
            assert auto["below_reference"] == pytest.approx((NUM_TRUE - NUM_RESCUED) / kept, abs=0.1)


def test_criteria_remove_what_is_false(truth_buffer: Buffer, maze: EpisodeDataset) -> None:
    table = {row["name"]: row for row in validate(truth_buffer, maze)["criteria"]}
    residual = table["residual"]
    assert (residual["alone"], residual["first"], residual["only"]) == (NUM_FALSE, NUM_FALSE, NUM_FALSE)
    assert (residual["removed"]["count"], residual["kept"]["count"]) == (NUM_FALSE, NUM_TRUE)
    assert residual["removed"]["largest_median"] > 1000 * residual["kept"]["largest_median"]
    assert not table["spread"]["on"]
    assert table["spread"]["alone"] == 0
    assert table["spread"]["removed"] == {"count": 0, "step_median": None, "largest_median": None}


def test_pieces_of_real_episodes_are_no_news(truth_buffer: Buffer, maze: EpisodeDataset) -> None:
    found = validate(truth_buffer, maze)["novelty"]
    assert found["bridges"]["count"] == NUM_TRUE
    assert found["bridges"]["median"] < 1e-4 < found["bridges_other_episodes"]["median"]
    assert found["copied_share"] > 0.5


def test_bundle_adds_inverse_actions(truth_buffer: Buffer, maze: EpisodeDataset, tiny_fit: FitConfig) -> None:
    bundle = fit_bundle(maze, replace(tiny_fit, holdout_fraction=0.3), None)
    found = validate(truth_buffer, maze, bundle)
    assert found["sets"]["real_inverse"]["num_windows"] == found["sets"]["real"]["num_windows"] > 0
    assert found["sets"]["real_inverse"]["step_error"]["median"] > found["sets"]["real"]["step_error"]["median"]
    assert 0 <= found["real_accepted_share"] <= 1
    shares = [row["real_accepted"] for row in found["calibration"]]
    assert shares == sorted(shares)
    assert found["novelty"]["real"]["count"] == found["sets"]["real"]["num_windows"]
    stored = validate(truth_buffer, maze)["points"]["residual"]
    assert found["points"]["residual"] != stored  # judged again, on the steps that the simulator knows
    with pytest.raises(UserError, match="dataset"):
        validate(truth_buffer, maze.subset(np.arange(20)), bundle)


def test_number_of_bridges_is_bounded_and_the_sample_repeatable(truth_buffer: Buffer, maze: EpisodeDataset) -> None:
    found = validate(truth_buffer, maze, max_bridges=5)
    assert {described["num_windows"] for described in found["sets"].values()} == {5}
    assert found["novelty"]["bridges"]["count"] == 5
    assert validate(truth_buffer, maze, max_bridges=5) == found


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        (EnvSpec(env_id="AdroitHandPen-v1"), "it lacks the hand's joint velocities"),
        (EnvSpec(env_id="Pendulum-v1"), "cannot set the state of Pendulum-v1"),
        (None, "does not say which environment"),
    ],
)
def test_unavailable_says_why(truth_buffer: Buffer, maze: EpisodeDataset, env: EnvSpec | None, reason: str) -> None:
    found = validate(truth_buffer, replace(maze, env=env))
    assert reason in found["unavailable"]
    assert found["sets"] == {}
    assert found["num_accepted"] == NUM_TRUE
    assert (found["rank_correlation"], found["points"], found["below_noise"]) == (None, None, None)
    assert all(row["simulator"] is None and row["num_bridges"] >= NUM_TRUE for row in found["calibration"])
    assert [row["alone"] for row in found["criteria"]] == [0, NUM_FALSE, 0, 0, 0, 0]
    assert all(row["removed"] is None for row in found["criteria"])
    assert found["novelty"]["bridges"]["count"] == NUM_TRUE
    json.dumps(found, allow_nan=False)


def test_environment_of_another_size(truth_buffer: Buffer, maze: EpisodeDataset) -> None:
    with pytest.raises(UserError, match="4 observation dimensions but Hopper-v5 gives 11"):
        validate(truth_buffer, replace(maze, env=EnvSpec(env_id="Hopper-v5")))


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
    left = only(answer, np.array([True, False, True]))
    np.testing.assert_array_equal(left.usable, [True, False, False])
    np.testing.assert_array_equal(left.terminated, [True, False, True])
    np.testing.assert_array_equal(np.isnan(left.next_observations).any(1), [False, True, False])
    np.testing.assert_array_equal(np.isnan(left.rewards), [False, True, False])
