"""The demo dataset keeps its promises: fragments, a real gap, the same bits for a seed."""

from pathlib import Path

import numpy as np
import pytest

from raystitch.data import demo
from raystitch.data.demo import load_or_make_pointmaze, make_pointmaze
from raystitch.data.episodes import EpisodeDataset
from raystitch.envs import pointmaze
from raystitch.errors import UserError


@pytest.fixture(scope="module")
def dataset() -> EpisodeDataset:
    return make_pointmaze(num_steps=4000, seed=3)


def test_same_seed_same_bits(dataset: EpisodeDataset) -> None:
    assert make_pointmaze(num_steps=4000, seed=3).fingerprint == dataset.fingerprint
    assert make_pointmaze(num_steps=4000, seed=4).fingerprint != dataset.fingerprint


def test_only_fragments_and_only_arrivals_are_rewarded(dataset: EpisodeDataset) -> None:
    starts = dataset.observations[dataset.obs_offsets[:-1], :2]
    rewarded = dataset.returns > 0
    assert 0.1 < rewarded.mean() < 0.5
    assert np.array_equal(rewarded, dataset.terminated)
    assert set(np.unique(dataset.returns)) == {0.0, 1.0}
    # Every rewarded episode starts beyond the gap; none starts on the start's side of it.
    assert starts[rewarded, 0].min() >= demo.ARRIVE_START_X[0]
    in_start_corridor = starts[:, 0] < -1.05
    assert in_start_corridor.sum() > 20
    assert not rewarded[in_start_corridor].any()


def test_the_sides_do_not_touch(dataset: EpisodeDataset) -> None:
    approaches = [e.observations for e in dataset if e.observations[0, 0] < -1.05]
    arrivals = [e.observations for e in dataset if e.rewards.sum() > 0]
    left, right = np.concatenate(approaches), np.concatenate(arrivals)
    distance = np.linalg.norm(left[:, None, :2] - right[None, :, :2], axis=-1).min()
    assert distance > 2.0, "in metres; at most 0.2 are covered in a step"
    traffic = [e.observations for e in dataset if e.rewards.sum() == 0 and abs(e.observations[0, 0]) < 1.0]
    crossed = np.concatenate(traffic)[:, :2]
    for point in ((-0.6, -0.7), (0.0, 0.0), (0.6, 0.6)):
        assert np.linalg.norm(crossed - np.array(point), axis=1).min() < 0.15, "traffic crosses the way"


def test_the_maze_is_solvable_and_the_goal_is_fixed() -> None:
    import gymnasium as gym

    pointmaze.register()
    env = gym.make(pointmaze.ENV_ID)
    goals = set()
    for seed in range(3):
        observation, _ = env.reset(seed=seed)
        goals.add(tuple(observation["desired_goal"]))
        waypoints = [np.array(w) for w in [(-1.1, -1.0), (1.1, 1.0), (demo.ARRIVE_CORNER_X, demo.ARRIVE_Y), demo.GOAL]]
        steps, reward, terminated, truncated = 0, 0.0, False, False
        while not (terminated or truncated):
            state = observation["observation"]
            while len(waypoints) > 1 and np.linalg.norm(waypoints[0] - state[:2]) < demo.REACHED:
                waypoints.pop(0)
            towards = waypoints[0] - state[:2]
            wanted = 3.0 * towards / max(np.linalg.norm(towards), 0.3)
            action = np.clip(demo.GAIN * (wanted - state[2:]), -1, 1).astype(np.float32)
            observation, reward, terminated, truncated, _ = env.step(action)
            steps += 1
        assert terminated and reward == 1.0
        assert 30 < steps < pointmaze.MAX_EPISODE_STEPS / 2
    env.close()
    assert goals == {demo.GOAL}


def test_cache_is_the_same_dataset_and_heals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSTITCH_CACHE", str(tmp_path))
    made = load_or_make_pointmaze(num_steps=1000, seed=5)
    (stored,) = tmp_path.glob("*.npz")
    assert load_or_make_pointmaze(num_steps=1000, seed=5).fingerprint == made.fingerprint
    stored.write_bytes(stored.read_bytes()[:500])
    assert load_or_make_pointmaze(num_steps=1000, seed=5).fingerprint == made.fingerprint


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(UserError, match="num_steps must be at least 1000, got 10"):
        make_pointmaze(num_steps=10)
