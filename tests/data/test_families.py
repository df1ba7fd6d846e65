"""Datasets like the standard ones, written by Minari in two of its formats, read back."""

import numpy as np
import pytest

from raystitch.data.inspect import inspect
from raystitch.data.load import load_dataset
from raystitch.envs.make import make_env
from tests.data.families import FAMILIES, NUM_EPISODES, make_family

pytestmark = pytest.mark.filterwarnings("ignore::raystitch.data.load.DatasetWarning")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_read_alike_from_both_formats(name: str) -> None:
    family = FAMILIES[name]
    hdf5, arrow = (load_dataset(make_family(name, data_format)) for data_format in ("hdf5", "arrow"))
    assert hdf5.fingerprint == arrow.fingerprint
    assert (hdf5.obs_dim, hdf5.act_dim) == family.sizes
    assert hdf5.num_episodes % NUM_EPISODES == 0
    assert hdf5.env is not None and hdf5.env == arrow.env
    assert np.isfinite(hdf5.action_high - hdf5.action_low).all()


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.runs])
def test_its_environment_gives_the_recorded_observations(name: str) -> None:
    dataset = load_dataset(make_family(name, "hdf5"))
    assert dataset.env is not None
    env = make_env(dataset.env)
    observation, _ = env.reset(seed=0)
    env.close()
    assert observation.shape == (dataset.obs_dim,)
    np.testing.assert_allclose(observation, dataset.observations[0], atol=1e-6)


def test_a_position_that_lies_in_the_goal_alone_is_kept() -> None:
    """AntMaze's ``observation`` has no x and y: they are ``achieved_goal``."""
    dataset = load_dataset(make_family("antmaze", "hdf5"))
    assert dataset.env is not None and dataset.env.observation_keys == ("achieved_goal", "observation")
    assert np.ptp(dataset.observations[:, :2], axis=0).min() > 0
    maze = load_dataset(make_family("pointmaze", "hdf5"))
    assert maze.env is not None and maze.env.observation_keys == ("observation",)


def test_the_evaluation_environment_and_its_limit_are_read() -> None:
    dataset = load_dataset(make_family("pointmaze", "arrow"))
    assert dataset.env is not None and dataset.env.evaluation is not None
    assert dataset.env.max_episode_steps == 1_000_000
    assert dataset.env.for_evaluation().max_episode_steps == 30
    assert dataset.env.reference == (0.0, 20.0)


def test_several_goals_are_said() -> None:
    dataset = load_dataset(make_family("antmaze", "arrow"), allow_nan=True)
    found = {problem["kind"]: problem["message"] for problem in inspect(dataset)["problems"]}
    assert "#achieved_goal,observation,desired_goal" in found["goal_left_out"]
