"""Environments as Minari datasets record them: wrappers, evaluation environments, limits, references, old versions."""

import json
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer

from raystitch.data.episodes import EpisodeDataset
from raystitch.data.load import load_dataset
from raystitch.data.minari_io import write_minari
from raystitch.envs.make import make_env, spec_from_id
from raystitch.envs.simulator import Unavailable, open_simulator
from raystitch.envs.spec import EnvSpec, WrapperRecord
from raystitch.envs.task import normalised_score
from raystitch.errors import UserError
from raystitch.io.files import read_json, write_json

STEPS = 12
wrappers: Any = gym.wrappers
"""Typed for NumPy's numbers, which no file keeps."""


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def _high(env: gym.Env[Any, Any]) -> float:
    assert isinstance(env.action_space, spaces.Box)
    return float(env.action_space.high[0])


def push(env: gym.Env[Any, Any], seed: int, steps: int = STEPS) -> tuple[list[Any], list[Any], list[float]]:
    """An episode of one push: 0.5 of the largest action."""
    observation, _ = env.reset(seed=seed)
    observations, actions, rewards = [observation], [], []
    for _ in range(steps):
        actions.append(np.full(1, 0.5 * min(_high(env), 2.0), np.float32))
        observation, reward, _, truncated, _ = env.step(actions[-1])
        observations.append(observation)
        rewards.append(float(reward))
        if truncated:
            break
    return observations, actions, rewards


def record(env: gym.Env[Any, Any], dataset_id: str = "local/x-v0", **options: Any) -> EpisodeDataset:
    """Two episodes with Minari's own writer."""
    buffers: list[EpisodeBuffer] = []
    for seed in range(2):
        observations, actions, rewards = push(env, seed)
        ends = np.arange(len(rewards)) == len(rewards) - 1
        columns: dict[str, Any] = {"observations": np.array(observations), "actions": np.array(actions)}
        columns |= {"rewards": rewards, "terminations": ends & False, "truncations": ends}
        buffers.append(EpisodeBuffer(**columns))
    minari.create_dataset_from_buffers(dataset_id, buffers, env=env, author="x", algorithm_name="x", **options)
    return load_dataset(dataset_id)


def edit(root: Path, **changes: Any) -> None:
    path = root / "local" / "x-v0" / "data" / "metadata.json"
    write_json(path, read_json(path) | changes)


WRAPPED = {
    "rescaled actions": lambda env: wrappers.RescaleAction(env, -1.0, 1.0),
    "a shorter limit": lambda env: wrappers.TimeLimit(env, 7),
    "clipped rewards": lambda env: wrappers.ClipReward(env, -1.0, 0.0),
    "several": lambda env: wrappers.ClipAction(
        wrappers.RescaleAction(wrappers.RecordEpisodeStatistics(wrappers.FlattenObservation(env)), -0.5, 0.5)
    ),
    "time in the observation": lambda env: wrappers.TimeAwareObservation(env),
    "stacked frames": lambda env: wrappers.FrameStackObservation(env, 3),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_recorded_wrappers_are_rebuilt_to_the_bit(kind: str) -> None:
    raw = WRAPPED[kind](gym.make("Pendulum-v1"))
    dataset = record(raw)
    assert dataset.env is not None
    again = EnvSpec.from_json(json.loads(json.dumps(dataset.env.to_json())))
    assert again == dataset.env
    made = make_env(again)
    for seed in range(2):
        observations, actions, rewards = push(made, seed)
        np.testing.assert_array_equal(observations, dataset.episode(seed).observations)
        np.testing.assert_array_equal(actions, dataset.episode(seed).actions)
        np.testing.assert_array_equal(np.array(rewards, np.float32), dataset.episode(seed).rewards)
    write_minari(dataset, "local/again-v0")
    assert load_dataset("local/again-v0").env == dataset.env
    assert minari.load_dataset("local/again-v0").recover_environment().action_space == raw.action_space


@pytest.mark.parametrize(
    ("wrap", "name"),
    [
        (wrappers.NormalizeObservation, "NormalizeObservation"),
        (lambda env: _Shift(env), "test_recorded_env:_Shift"),
    ],
)
def test_other_wrappers_are_refused_by_name(wrap: Any, name: str) -> None:
    dataset = record(wrap(gym.make("Pendulum-v1")))
    assert dataset.env is not None
    with pytest.raises(UserError, match=rf"recorded in the wrapper \S*{name}, .*--env package:ID") as error:
        make_env(dataset.env)
    assert "\n" not in str(error.value)
    named = load_dataset("local/x-v0", env_id="Pendulum-v1")
    assert named.env is not None
    make_env(named.env).close()


class _Shift(gym.RewardWrapper[Any, Any]):
    def reward(self, reward: Any) -> float:
        return float(reward) + 1


def test_arguments_that_a_wrapper_does_not_take() -> None:
    for kwargs, says in (({"min_action": "a"}, "cannot be put into"), ({"entry_point": 1}, "with the arguments")):
        spec = EnvSpec(env_id="Pendulum-v1", wrappers=(WrapperRecord(name="RescaleAction", kwargs=kwargs),))
        with pytest.raises(UserError, match=says):
            make_env(spec)


def test_the_simulator_acts_through_wrappers_and_not_on_changed_observations() -> None:
    rescale = WrapperRecord(name="RescaleAction", kwargs={"min_action": -0.5, "max_action": 0.5})
    plain = open_simulator(EnvSpec(env_id="Hopper-v5"))
    scaled = open_simulator(EnvSpec(env_id="Hopper-v5", wrappers=(rescale,)))
    obs, _ = plain.env.reset(seed=0)
    actions = np.full((1, 3), 0.8, np.float32)
    expected = plain.step_from(obs[None], actions)
    found = scaled.step_from(obs[None], np.full((1, 3), 0.4, np.float32))
    np.testing.assert_allclose(found.next_observations, expected.next_observations, rtol=1e-6)
    np.testing.assert_allclose(found.rewards, expected.rewards, rtol=1e-6)
    stack = WrapperRecord(name="FrameStackObservation", kwargs={"stack_size": 2})
    with pytest.raises(Unavailable, match="FrameStackObservation"):
        open_simulator(EnvSpec(env_id="Hopper-v5", wrappers=(stack,)))


def test_the_evaluation_environment_is_read_and_its_limit_is_whole(root: Path) -> None:
    evaluation = deepcopy(gym.spec("Pendulum-v1"))
    evaluation.kwargs, evaluation.max_episode_steps = {"g": 9.0}, 50
    dataset = record(gym.make("Pendulum-v1", max_episode_steps=1_000_000), eval_env=evaluation)
    assert dataset.env is not None
    assert dataset.env.max_episode_steps == 1_000_000
    judged = dataset.env.for_evaluation()
    assert (judged.max_episode_steps, judged.kwargs) == (50, {"g": 9.0})
    assert dataset.env.for_evaluation(7).max_episode_steps == 7
    text = json.loads(evaluation.to_json())
    edit(root, eval_env_spec=json.dumps(text | {"max_episode_steps": 50.0}))
    floating = load_dataset("local/x-v0")
    assert floating.env == dataset.env
    write_minari(floating, "local/again-v0")
    assert load_dataset("local/again-v0").env == dataset.env
    recovered = minari.load_dataset("local/again-v0").recover_environment(eval_env=True)
    assert recovered.spec is not None
    assert recovered.spec.max_episode_steps == 50
    for limit in (2.5, "many", True, 0):
        edit(root, eval_env_spec=json.dumps(text | {"max_episode_steps": limit}))
        with pytest.raises(UserError, match="max_episode_steps must be a whole number"):
            load_dataset("local/x-v0")
    edit(root, eval_env_spec=json.dumps(text | {"max_episode_steps": -1}))
    endless = load_dataset("local/x-v0").env
    assert endless is not None
    assert endless.for_evaluation().max_episode_steps is None


def test_reference_returns_of_the_metadata_give_a_score(root: Path) -> None:
    record(gym.make("Pendulum-v1"))
    edit(root, ref_min_score=-1500.0, ref_max_score=-500.0)
    for env_id in (None, "Pendulum-v1"):
        env = load_dataset("local/x-v0", env_id=env_id).env
        assert env is not None
        assert env.reference == (-1500.0, -500.0)
        assert normalised_score(env.env_id, -1000.0, env.reference) == pytest.approx(50.0)
    assert normalised_score("Hopper-v5", 3234.3, (0.0, 1.0)) == pytest.approx(100.0)  # D4RL's come first
    edit(root, ref_min_score=3.0, ref_max_score=3.0)
    env = load_dataset("local/x-v0").env
    assert env is not None
    assert env.reference is None


def test_spaces_left_out_are_those_of_the_environment(root: Path) -> None:
    before = record(wrappers.RescaleAction(gym.make("Pendulum-v1"), -1.0, 1.0))
    path = root / "local" / "x-v0" / "data" / "metadata.json"
    metadata = read_json(path)
    write_json(path, {name: item for name, item in metadata.items() if not name.endswith("_space")})
    found = load_dataset("local/x-v0")
    assert found.fingerprint == before.fingerprint
    assert found.action_high == before.action_high == 1.0
    assert load_dataset("local/x-v0", env_id="Pendulum-v1").action_high == 2.0
    write_json(path, {name: item for name, item in metadata.items() if not name.endswith(("_space", "_spec"))})
    with pytest.raises(UserError, match="neither its observation_space and action_space nor its environment"):
        load_dataset("local/x-v0")


def test_an_environment_of_a_module_is_named_by_the_user(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "raystitch_lab.py").write_text(
        "import gymnasium as gym\n"
        "from gymnasium.envs.classic_control.pendulum import PendulumEnv\n"
        "gym.register('LabPendulum-v0', entry_point='raystitch_lab:PendulumEnv', max_episode_steps=9)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    record(gym.make("Pendulum-v1"))
    text = json.loads(read_json(root / "local" / "x-v0" / "data" / "metadata.json")["env_spec"])
    edit(root, env_spec=json.dumps(text | {"id": "LabPendulum-v0", "entry_point": "raystitch_lab:PendulumEnv"}))
    recorded = load_dataset("local/x-v0").env
    assert recorded is not None
    with pytest.raises(UserError, match=r"not run because a file names it.*--env raystitch_lab:LabPendulum-v0"):
        make_env(recorded)
    assert "raystitch_lab" not in sys.modules
    named = load_dataset("local/x-v0", env_id="raystitch_lab:LabPendulum-v0").env
    assert named is not None
    assert named.max_episode_steps == 9
    make_env(named).close()
    again = EnvSpec.from_json(named.to_json())  # of a bundle, a buffer or a policy
    assert again == named
    with pytest.raises(UserError, match="name it yourself: --env raystitch_lab:LabPendulum-v0"):
        make_env(again)
    with pytest.raises(UserError, match="raystitch_lab was imported and does not register it"):
        spec_from_id("raystitch_lab:Other-v0")
    del gym.registry["LabPendulum-v0"]
    del sys.modules["raystitch_lab"]


@pytest.mark.parametrize("env_id", ["Hopper-v2", "Hopper-v3", "Hopper-v1", "Hopper-v99"])
def test_an_old_version_leads_to_one_that_works(env_id: str) -> None:
    with pytest.raises(UserError, match=r"--env Hopper-v5 \(observation \(11,\), action \(3,\)\)") as error:
        make_env(EnvSpec(env_id=env_id))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"xml_file": "/etc/passwd"},
        {"xml_file": "../x.xml"},
        {"xml_file": "~/x.xml"},
        {"cls": "os.system"},
        {"a": [{"b": "os:system"}]},
        {"os:system": 1},
        {"a": [[[[[[[[[1]]]]]]]]]},
    ],
)
def test_arguments_of_a_file_name_neither_files_nor_code(kwargs: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="may name a file or code"):
        make_env(EnvSpec(env_id="Hopper-v5", kwargs=kwargs))


def test_plain_arguments_of_a_file_are_taken() -> None:
    ant = EnvSpec(
        env_id="Ant-v5", kwargs={"xml_file": "ant.xml", "healthy_z_range": [0.2, 1.0], "render_mode": "human"}
    )
    make_env(ant).close()
    maze = [[1, 1, 1, 1], [1, "r", "g", 1], [1, 1, 1, 1]]
    make_env(EnvSpec(env_id="PointMaze_UMaze-v3", kwargs={"maze_map": maze, "reward_type": "dense"})).close()


@pytest.mark.parametrize(
    "value",
    [
        [],
        {"env_id": 3},
        {"env_id": "X-v0", "kwargs": [1]},
        {"env_id": "X-v0", "wrappers": {"name": "ClipAction"}},
        {"env_id": "X-v0", "wrappers": [{"name": 1}]},
        {"env_id": "X-v0", "observation_keys": [1]},
        {"env_id": "X-v0", "reference": [2, 1]},
        {"env_id": "X-v0", "evaluation": {"env_id": "X-v0", "evaluation": {"env_id": "X-v0"}}},
    ],
)
def test_what_is_not_an_environment(value: Any) -> None:
    with pytest.raises(UserError):
        EnvSpec.from_json(value)


def test_a_file_cannot_say_that_a_user_named_it() -> None:
    spec = spec_from_id("Pendulum-v1")
    assert spec.named
    assert "named" not in spec.to_json()
    assert not EnvSpec.from_json(spec.to_json() | {"named": True}).named
