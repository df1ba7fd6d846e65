"""Look-alikes of the standard Minari datasets: small, rolled out in the real environments, written by Minari itself.

What a family's spaces, infos, environments and limits are is taken from the scripts that generated the originals.
"""

import json
import os
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
from gymnasium import spaces
from minari import DataCollector, StepDataCallback
from minari.data_collector import EpisodeBuffer

from raystitch.envs.make import register_environments

NUM_EPISODES, NUM_STEPS = 8, 40
UMAZE = [[1, 1, 1, 1, 1], [1, "r", 0, 0, 1], [1, 1, 1, 0, 1], [1, "g", 0, 0, 1], [1, 1, 1, 1, 1]]
KITCHEN_TASKS = {"microwave": 1, "kettle": 7, "light switch": 2}

Make = Callable[[str, str], None]
"""Takes the dataset's id and Minari's storage format."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of datasets.

    Attributes:
        sizes: observation and action size as raystitch has to read them.
        runs: False where the simulator cannot be made here, so that nothing can be evaluated.
        settings: what a run on it has to be told.
    """

    name: str
    make: Make
    sizes: tuple[int, int]
    runs: bool = True
    settings: tuple[str, ...] = ()


class _Infos(StepDataCallback):
    """Records what the originals keep of a step, and cuts an episode where the goal is reached."""

    def __call__(
        self,
        env: gym.Env[Any, Any],
        obs: Any,
        info: dict[str, Any],
        action: Any = None,
        rew: Any = None,
        terminated: bool | None = None,
        truncated: bool | None = None,
    ) -> Any:
        recorded = super().__call__(env, obs, info, action, rew, terminated, truncated)
        success = bool(info.get("success", False))
        recorded["info"] = {"success": success}
        if isinstance(obs, dict):
            recorded["info"] |= {"goal": obs["desired_goal"], "qpos": obs["observation"][:2]}
            if success and action is not None:
                recorded["truncated"] = True
        return recorded


def _collect(
    env: gym.Env[Any, Any],
    dataset_id: str,
    data_format: str,
    *,
    steps: int = NUM_STEPS,
    infos: bool = True,
    eval_env: Any = None,
    **about: Any,
) -> None:
    """Random actions, each held for a few steps, so that the fragments differ."""
    rng = np.random.default_rng(0)
    with warnings.catch_warnings(action="ignore"):
        collector = DataCollector(
            env,
            step_data_callback=_Infos if infos else StepDataCallback,
            record_infos=infos,
            data_format=data_format,
        )
        assert isinstance(env.action_space, spaces.Box)
        low, high = env.action_space.low, env.action_space.high
        for episode in range(NUM_EPISODES):
            collector.reset(seed=episode)
            action = rng.uniform(low, high).astype(env.action_space.dtype)
            for step in range(steps):
                if step % 5 == 4:
                    action = rng.uniform(low, high).astype(env.action_space.dtype)
                _, _, terminated, truncated, _ = collector.step(action)
                if terminated or truncated:
                    break
        collector.create_dataset(dataset_id, algorithm_name="random", author="tests", eval_env=eval_env, **about)
    collector.close()


def metadata_path(dataset_id: str) -> Path:
    """The file that says what a dataset of the test session is."""
    return Path(os.environ["MINARI_DATASETS_PATH"]) / dataset_id / "data" / "metadata.json"


def edit_env_spec(dataset_id: str, name: str, **changes: Any) -> None:
    """What an older Gymnasium wrote and this one would not."""
    path = metadata_path(dataset_id)
    metadata = json.loads(path.read_text())
    metadata[name] = json.dumps(json.loads(metadata[name]) | changes)
    path.write_text(json.dumps(metadata))


def _hopper(dataset_id: str, data_format: str) -> None:
    """``mujoco/hopper/*``: float64, no infos, falls end episodes, reference scores."""
    _collect(gym.make("Hopper-v5"), dataset_id, data_format, infos=False, ref_min_score=-20.0, ref_max_score=3000.0)


def _half_cheetah(dataset_id: str, data_format: str) -> None:
    """``mujoco/halfcheetah/*``: no episode terminates."""
    _collect(gym.make("HalfCheetah-v5"), dataset_id, data_format, infos=False)


def _combined(dataset_id: str, data_format: str) -> None:
    """``mujoco/*/medium-expert``: two datasets that Minari combined."""
    for part in ("medium", "expert"):
        _hopper(f"families/part-{data_format}-{part}-v0", data_format)
    with warnings.catch_warnings(action="ignore"):
        parts = [minari.load_dataset(f"families/part-{data_format}-{part}-v0") for part in ("medium", "expert")]
        minari.combine_datasets(parts, dataset_id)


def _point_maze(dataset_id: str, data_format: str) -> None:
    """``D4RL/pointmaze/*``: a Dict with goals, an environment that never ends, and another one to evaluate in."""
    options: dict[str, Any] = {"continuing_task": True, "reset_target": True, "max_episode_steps": 1_000_000}
    env = gym.make("PointMaze_UMazeDense-v3", **options)  # random actions hardly ever earn a sparse reward
    assert env.spec is not None
    evaluation = deepcopy(env.spec)
    evaluation.kwargs |= {"maze_map": UMAZE, "reset_target": False}
    evaluation.max_episode_steps = 30
    _collect(env, dataset_id, data_format, eval_env=evaluation, ref_min_score=0.0, ref_max_score=20.0)
    edit_env_spec(dataset_id, "env_spec", max_episode_steps=1e6)


def _ant_maze(dataset_id: str, data_format: str) -> None:
    """``D4RL/antmaze/*``: the position lies in ``achieved_goal`` alone."""
    options: dict[str, Any] = {"continuing_task": True, "reset_target": False, "max_episode_steps": 1_000_000}
    env = gym.make("AntMaze_UMazeDense-v4", maze_map=UMAZE, **options)
    assert env.spec is not None
    evaluation = deepcopy(env.spec)
    evaluation.kwargs |= {"maze_map": [row[::-1] for row in UMAZE]}
    evaluation.max_episode_steps = 30
    _collect(env, dataset_id, data_format, eval_env=evaluation)


def _pen(dataset_id: str, data_format: str) -> None:
    """``D4RL/pen/human``: the recorded limit is shorter than the episodes."""
    env = gym.make("AdroitHandPen-v1", max_episode_steps=60)
    _collect(env, dataset_id, data_format)
    edit_env_spec(dataset_id, "env_spec", max_episode_steps=30)


def _door(dataset_id: str, data_format: str) -> None:
    """``D4RL/door/*``."""
    _collect(gym.make("AdroitHandDoor-v1", max_episode_steps=30), dataset_id, data_format)


def _unbounded(size: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, (size,), np.float64)


def _kitchen(dataset_id: str, data_format: str) -> None:
    """``D4RL/kitchen/*``: goals in Dicts of their own. The simulator fails with today's MuJoCo: made-up numbers."""
    rng = np.random.default_rng(0)
    goals = spaces.Dict({task: _unbounded(size) for task, size in KITCHEN_TASKS.items()})
    space = spaces.Dict({"observation": _unbounded(59), "achieved_goal": goals, "desired_goal": goals})
    desired = {task: np.tile(rng.normal(size=size), (NUM_STEPS + 1, 1)) for task, size in KITCHEN_TASKS.items()}
    columns: list[dict[str, Any]] = [
        {
            "observations": {
                "observation": np.cumsum(rng.normal(0, 0.1, (NUM_STEPS + 1, 59)), 0),
                "achieved_goal": {
                    task: np.cumsum(rng.normal(0, 0.1, (NUM_STEPS + 1, size)), 0)
                    for task, size in KITCHEN_TASKS.items()
                },
                "desired_goal": desired,
            },
            "actions": rng.uniform(-1, 1, (NUM_STEPS, 9)),
            "rewards": (rng.random(NUM_STEPS) > 0.9).astype(float),
            "terminations": np.zeros(NUM_STEPS, bool),
            "truncations": np.arange(NUM_STEPS) == NUM_STEPS - 1,
            "infos": {"ctrl": rng.normal(size=(NUM_STEPS + 1, 9))},
        }
        for _ in range(NUM_EPISODES)
    ]
    episodes = [EpisodeBuffer(**column) for column in columns]
    register_environments()
    spec = gym.spec("FrankaKitchen-v1")
    kwargs = {
        "tasks_to_complete": list(KITCHEN_TASKS),
        "remove_task_when_completed": False,
        "terminate_on_tasks_completed": False,
    }
    with warnings.catch_warnings(action="ignore"):
        minari.create_dataset_from_buffers(
            dataset_id,
            episodes,
            observation_space=space,
            action_space=spaces.Box(-1.0, 1.0, (9,), np.float64),
            algorithm_name="demonstrations",
            author="tests",
            data_format=data_format,
        )
    metadata = json.loads(metadata_path(dataset_id).read_text())
    recorded = json.loads(spec.to_json()) | {"kwargs": kwargs, "max_episode_steps": 280}
    metadata_path(dataset_id).write_text(json.dumps(metadata | {"env_spec": json.dumps(recorded)}))


FAMILIES = {
    family.name: family
    for family in (
        Family(name="mujoco-hopper", make=_hopper, sizes=(11, 3)),
        Family(name="mujoco-halfcheetah", make=_half_cheetah, sizes=(17, 6)),
        Family(name="mujoco-combined", make=_combined, sizes=(11, 3)),
        Family(name="pointmaze", make=_point_maze, sizes=(4, 2)),
        Family(name="antmaze", make=_ant_maze, sizes=(29, 8)),
        # Every episode has another target; with so few none has a partner.
        Family(name="pen", make=_pen, sizes=(45, 24), settings=("stitch.pairs.context=ignore",)),
        Family(name="door", make=_door, sizes=(39, 28)),
        Family(name="kitchen", make=_kitchen, sizes=(59, 9), runs=False),
    )
}


def make_family(name: str, data_format: str) -> str:
    """Makes a look-alike, unless it is there, and returns its id."""
    dataset_id = f"families/{name}-{data_format}-v0"
    if not metadata_path(dataset_id).exists():
        register_environments()
        FAMILIES[name].make(dataset_id, data_format)
    return dataset_id
