"""Environments from plain data."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from raystitch.cli import main
from raystitch.envs.make import flat_size, make_env, spec_from_id
from raystitch.envs.spec import EnvSpec
from raystitch.envs.task import normalised_score
from raystitch.errors import UserError

MAZE = "raystitch/PointMaze-v0"


@pytest.mark.parametrize(
    ("env_id", "obs_dim", "limit", "keys"),
    [
        ("Hopper-v5", 11, 1000, None),
        ("Pendulum-v1", 3, 200, None),
        ("PointMaze_UMaze-v3", 4, 300, ("observation",)),
        (MAZE, 4, 150, ("observation",)),
    ],
)
def test_observations_are_flat_float32(env_id: str, obs_dim: int, limit: int, keys: tuple[str, ...] | None) -> None:
    spec = spec_from_id(env_id)
    assert (spec.max_episode_steps, spec.observation_keys) == (limit, keys)
    assert EnvSpec.from_json(spec.to_json()) == spec
    env = make_env(spec)
    observation, _ = env.reset(seed=0)
    next_observation, *_ = env.step(env.action_space.sample())
    for value in (observation, next_observation):
        assert value.shape == (obs_dim,)
        assert value.dtype == np.float32
    env.close()


def test_a_package_registers_its_environment_when_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = "gymnasium.envs.classic_control:PendulumEnv"
    code = f"import gymnasium\ngymnasium.register(id='Swing-v0', entry_point={entry!r}, max_episode_steps=77)\n"
    (tmp_path / "own_envs.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    spec = spec_from_id("own_envs:Swing-v0")
    assert (spec.env_id, spec.max_episode_steps) == ("own_envs:Swing-v0", 77)
    make_env(spec).close()
    with pytest.raises(UserError, match="no_such_package"):
        spec_from_id("no_such_package:Swing-v0")
    with pytest.raises(UserError, match="Spin"):
        spec_from_id("own_envs:Spin-v0")


def test_dict_observation_is_concatenated_in_the_order_of_the_keys() -> None:
    spec = EnvSpec(env_id="PointMaze_UMaze-v3", observation_keys=("desired_goal", "observation"))
    env = make_env(spec)
    observation, _ = env.reset(seed=3)
    unwrapped: Any = env.unwrapped
    raw, _ = unwrapped.reset(seed=3)
    np.testing.assert_allclose(observation, np.concatenate([raw["desired_goal"], raw["observation"]]), rtol=1e-6)


def test_time_limit_and_arguments_are_those_of_the_spec() -> None:
    env = make_env(EnvSpec(env_id="Hopper-v5", kwargs={"terminate_when_unhealthy": False}, max_episode_steps=5))
    env.reset(seed=0)
    ends = [env.step(env.action_space.sample())[2:4] for _ in range(5)]
    assert ends == [(False, False)] * 4 + [(False, True)]


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("Hoper-v5", "Did you mean: `Hopper`"),
        ("Hopper-v99", "unknown environment 'Hopper-v99'"),
        ("nowhere/Maze-v0", "name the package that registers it when it is imported: --env package:nowhere/Maze-v0"),
        ("nopackage:Maze-v0", "environment 'nopackage:Maze-v0': importing nopackage failed"),
    ],
)
def test_unknown_environment(env_id: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        spec_from_id(env_id)
    assert "\n" not in str(error.value)


def test_without_ogbench_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ogbench", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"importing ogbench failed: .*; pip install 'raystitch\[ogbench\]'") as error:
        spec_from_id("ogbench:pointmaze-medium-singletask-task1-v0")
    assert "\n" not in str(error.value)
    assert main(["data", "make", "ogbench-pointmaze-medium-stitch", "--out", str(tmp_path / "x.npz")]) == 2
    assert "pip install 'raystitch[ogbench]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_discrete_actions_are_refused() -> None:
    with pytest.raises(UserError, match=r"CartPole-v1: the action space must be a Box .* got Discrete\(2\)"):
        make_env(spec_from_id("CartPole-v1"))


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(UserError, match=r"Hopper-v5 cannot be made .*no_such"):
        make_env(EnvSpec(env_id="Hopper-v5", kwargs={"no_such": 1}))


def test_missing_observation_entry_is_named() -> None:
    with pytest.raises(UserError, match=r"no entries \['state'\]"):
        make_env(EnvSpec(env_id="PointMaze_UMaze-v3", observation_keys=("state",)))


def test_tuple_observations_are_refused() -> None:
    with pytest.raises(UserError, match="here: the observation space must be a Box or a Dict of Boxes"):
        flat_size(spaces.Tuple([spaces.Discrete(2)]), None, "here")


def test_normalised_scores() -> None:
    assert normalised_score("Hopper-v5", 3234.3) == pytest.approx(100.0)
    assert normalised_score("Walker2d-v4", 1.629008) == pytest.approx(0.0)
    assert normalised_score("AdroitHandPen-v1", 3076.8331) == pytest.approx(100.0)
    assert normalised_score(MAZE, 1.0) is None
    assert normalised_score("AdroitHandDoor-v1", 1.0) is None
