"""Simulator truth: transitions recorded in an environment must come out of the simulator again."""

from typing import Any

import numpy as np
import pytest

from raystitch.envs.make import make_env, spec_from_id
from raystitch.envs.simulator import Simulator, Unavailable, make_resettable, open_simulator
from raystitch.envs.spec import EnvSpec

Columns = dict[str, np.ndarray]


def roll_out(spec: EnvSpec, num_steps: int) -> Columns:
    """Random actions; columns ``observations, actions, rewards, terminated, next_observations``, one row per step."""
    env = make_env(spec)
    env.action_space.seed(0)
    rows: list[tuple[np.ndarray, np.ndarray, float, bool, np.ndarray]] = []
    observation, _ = env.reset(seed=0)
    for _ in range(num_steps):
        action = env.action_space.sample()
        following, reward, terminated, truncated, _ = env.step(action)
        rows.append((observation, action, float(reward), terminated, following))
        observation = env.reset()[0] if terminated or truncated else following
    env.close()
    names = ("observations", "actions", "rewards", "terminated", "next_observations")
    return {name: np.array(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)}


def standardised_error(simulator: Simulator, data: Columns) -> tuple[np.ndarray, np.ndarray]:
    """Largest error in units of the data's standard deviation per usable row, and the usable rows."""
    result = simulator.step_from(data["observations"], data["actions"])
    error = np.abs(result.next_observations - data["next_observations"]) / data["next_observations"].std(0)
    assert np.isnan(result.next_observations[~result.usable]).all()
    assert np.isnan(result.rewards[~result.usable]).all()
    return error[result.usable].max(1), result.usable


@pytest.mark.parametrize("env_id", ["Hopper-v5", "Walker2d-v5", "HalfCheetah-v5"])
def test_recorded_locomotion_steps_come_out_again(env_id: str) -> None:
    spec = spec_from_id(env_id)
    data = roll_out(spec, 300)
    simulator = open_simulator(spec)
    error, usable = standardised_error(simulator, data)
    result = simulator.step_from(data["observations"], data["actions"])
    assert usable.mean() > 0.1
    assert error.max() < 1e-4
    np.testing.assert_allclose(result.rewards[usable], data["rewards"][usable], atol=1e-4)
    np.testing.assert_array_equal(result.terminated[usable], data["terminated"][usable])


def test_root_position_in_the_observation_is_used() -> None:
    kwargs = {"exclude_current_positions_from_observation": False}
    spec = spec_from_id("Hopper-v5", kwargs)
    data = roll_out(spec, 50)
    data["observations"][:, 0] += 7.0
    data["next_observations"][:, 0] += 7.0
    error, _ = standardised_error(open_simulator(spec), data)
    assert error.max() < 1e-3


@pytest.mark.parametrize("kwargs", [{}, {"action_repeat": 2}])
def test_recorded_maze_steps_come_out_again(kwargs: dict[str, int]) -> None:
    spec = spec_from_id("raystitch/PointMaze-v0", kwargs)
    data = roll_out(spec, 200)
    simulator = open_simulator(spec)
    error, usable = standardised_error(simulator, data)
    assert usable.all()
    assert error.max() < 1e-4


def test_maze_goal_ends_the_episode_with_a_reward() -> None:
    spec = spec_from_id("raystitch/PointMaze-v0")
    env = make_env(spec)
    start, _ = env.reset(seed=0)
    maze: Any = env.unwrapped
    at_goal = np.array([*maze.goal, 0.0, 0.0], np.float32)
    result = open_simulator(spec).step_from(np.stack([at_goal, start]), np.zeros((2, 2), np.float32))
    np.testing.assert_array_equal(result.rewards, [1.0, 0.0])
    np.testing.assert_array_equal(result.terminated, [True, False])


def test_reward_is_unknown_where_the_goal_is() -> None:
    spec = spec_from_id("PointMaze_UMaze-v3")
    data = roll_out(spec, 100)
    simulator = open_simulator(spec)
    error, usable = standardised_error(simulator, data)
    assert usable.all()
    assert error.max() < 1e-4
    assert np.isnan(simulator.step_from(data["observations"], data["actions"]).rewards).all()


def test_goal_in_the_observation_is_used() -> None:
    spec = EnvSpec(
        env_id="PointMaze_UMaze-v3", kwargs={"reward_type": "dense"}, observation_keys=("desired_goal", "observation")
    )
    data = roll_out(spec, 60)
    result = open_simulator(spec).step_from(data["observations"], data["actions"])
    np.testing.assert_allclose(result.rewards, data["rewards"], atol=1e-5)


def test_rows_that_do_not_determine_the_state_are_not_usable() -> None:
    spec = spec_from_id("Hopper-v5")
    data = roll_out(spec, 4)
    observations = data["observations"].copy()
    observations[0, 7] = 10.0
    observations[1, 2] = np.nan
    result = open_simulator(spec).step_from(observations, data["actions"])
    np.testing.assert_array_equal(result.usable, [False, False, True, True])


def test_answers_do_not_depend_on_the_rows_before() -> None:
    spec = spec_from_id("Walker2d-v5")
    data = roll_out(spec, 60)
    simulator = open_simulator(spec)
    forwards = simulator.step_from(data["observations"], data["actions"])
    backwards = simulator.step_from(data["observations"][::-1], data["actions"][::-1])
    np.testing.assert_array_equal(forwards.next_observations, backwards.next_observations[::-1])


def test_adroit_pen_is_unavailable_with_the_reason() -> None:
    with pytest.raises(Unavailable, match="it lacks the hand's joint velocities"):
        open_simulator(EnvSpec(env_id="AdroitHandPen-v1"))


def test_unknown_families_are_unavailable() -> None:
    with pytest.raises(Unavailable, match="cannot set the state of Pendulum-v1"):
        open_simulator(EnvSpec(env_id="Pendulum-v1"))


@pytest.mark.parametrize(
    "spec", [spec_from_id("Hopper-v5"), EnvSpec(env_id="raystitch/PointMaze-v0", max_episode_steps=60)]
)
def test_an_episode_begins_in_any_state_and_goes_on_as_recorded(spec: EnvSpec) -> None:
    data = roll_out(spec, 40)
    env = make_resettable(spec)
    first = env.reset(seed=3)[0]
    for row in (5, 17):
        begun, _ = env.reset(seed=3, options={"state": data["observations"][row]})
        np.testing.assert_array_equal(begun, data["observations"][row])
        following, reward, *_ = env.step(data["actions"][row])
        np.testing.assert_allclose(following, data["next_observations"][row], atol=1e-4)
        assert reward == pytest.approx(data["rewards"][row], abs=1e-4)
    np.testing.assert_array_equal(env.reset(seed=3)[0], first)
    env.close()


def test_an_environment_without_a_setter_says_so() -> None:
    with pytest.raises(Unavailable, match="cannot set the state of Pendulum-v1"):
        make_resettable(EnvSpec(env_id="Pendulum-v1"))
