"""Three standard Minari datasets under their own ids, of any size, in the Minari root of the test session.

Ids, spaces, environments, metadata and how one episode follows another are the originals': see minari.farama.org and
the scripts in Farama-Foundation/minari-dataset-generation-scripts. The numbers are simulated or made up, as are the
reference scores. ``tests/data/families.py`` has small ones of every family.
"""

import warnings
from collections.abc import Iterable, Iterator
from copy import deepcopy
from itertools import cycle
from typing import Any

import gymnasium as gym
import minari
import numpy as np
from minari.data_collector import EpisodeBuffer
from numpy.typing import NDArray

from raystitch.envs.make import register_environments
from tests.data.families import edit_env_spec, metadata_path

HOPPER, PEN, UMAZE = "mujoco/hopper/medium-v0", "D4RL/pen/human-v2", "D4RL/pointmaze/umaze-v2"
# The free cells of the U, from one end to the other.
CHAIN = [(1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)]
EVALUATION_MAZE = [[1, 1, 1, 1, 1], [1, "g", 0, 0, 1], [1, 1, 1, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]]

Columns = dict[str, Any]
"""The arrays of one episode, as ``EpisodeBuffer`` takes them."""


def make_named(dataset_id: str, num_steps: int) -> str:
    """Make one of the three with about that many steps, unless it is there; return its id."""
    if metadata_path(dataset_id).exists():
        return dataset_id
    register_environments()
    {HOPPER: _hopper, PEN: _pen, UMAZE: _umaze}[dataset_id](num_steps)
    return dataset_id


def _create(dataset_id: str, episodes: Iterable[Columns], env: gym.Env[Any, Any], **about: Any) -> None:
    with warnings.catch_warnings(action="ignore"):
        buffers = [EpisodeBuffer(**columns) for columns in episodes]
        minari.create_dataset_from_buffers(dataset_id, buffers, env=env, **about)
    env.close()


def _ends(steps: int, terminated: bool = False) -> Columns:
    last = np.arange(steps) == steps - 1
    return {"terminations": last & terminated, "truncations": last & (not terminated)}


def _walk(rng: np.random.Generator, rows: int, size: int) -> NDArray[np.float64]:
    """Waves of a few frequencies with a little noise, [rows, size]: smooth, bounded, different in every episode."""
    time = np.arange(rows)[:, None]
    waves = np.sin(rng.uniform(0.02, 0.3, size) * time + rng.uniform(0, 2 * np.pi, size))
    return rng.normal(0, 0.2, size) + rng.uniform(0.3, 1, size) * waves + rng.normal(0, 0.01, (rows, size))


def _hopper(num_steps: int) -> None:
    """Some falls, some episodes of 1,000 steps; the last one is a whole episode, as the collecting script saw to it."""
    rng = np.random.default_rng(0)
    lengths: list[int] = []
    while sum(lengths) < num_steps - 1000:
        lengths.append(1000 if rng.random() < 0.4 else int(rng.integers(150, 900)))
    episodes = []
    for length in lengths:
        speed = rng.uniform(0.5, 2.5)
        columns = {
            "observations": _walk(rng, length + 1, 11),
            "actions": np.clip(_walk(rng, length, 3), -1, 1).astype(np.float32),
            "rewards": 1.0 + speed + rng.normal(0, 0.1, length),
        }
        episodes.append(columns | _ends(length, terminated=length < 1000))
    _create(
        HOPPER,
        episodes,
        gym.make("Hopper-v5"),
        algorithm_name="sb3/SAC",
        author="Kallinteris Andreas",
        author_email="kallinteris@protonmail.com",
        code_permalink="https://github.com/farama-foundation/minari-dataset-generation-scripts",
        requirements=["mujoco==3.2.3", "gymnasium>=1.0.0"],
        ref_min_score=20.0,
        ref_max_score=3800.0,
    )


def _pen(num_steps: int) -> None:
    """25 demonstrations of 200 steps each, every one with a target of its own in dimensions 36 to 38."""
    rng = np.random.default_rng(1)
    episodes = []
    for _ in range(num_steps // 200):
        observations = _walk(rng, 201, 45)
        target = rng.uniform(-1, 1, 3)
        observations[:, 36:39] = target / np.linalg.norm(target)
        columns = {
            "observations": observations,
            "actions": np.clip(_walk(rng, 200, 24), -1, 1).astype(np.float32),
            "rewards": np.cumsum(rng.normal(0.1, 1, 200)),
            "infos": {"success": rng.random(201) > 0.9},
        }
        episodes.append(columns | _ends(200))
    _create(
        PEN,
        episodes,
        gym.make("AdroitHandPen-v1", max_episode_steps=200),
        author="Rodrigo de Lazcano",
        author_email="rperezvicente@farama.org",
        code_permalink="https://github.com/Farama-Foundation/minari-dataset-generation-scripts",
        ref_min_score=95.0,
        ref_max_score=3000.0,
    )


def _umaze(num_steps: int) -> None:
    """One walk without an end, in the simulator up to 20,000 steps; longer ones repeat it, slightly moved."""
    options: dict[str, Any] = {"continuing_task": True, "reset_target": True, "max_episode_steps": 1_000_000}
    env = gym.make("PointMaze_UMaze-v3", **options)
    assert env.spec is not None
    evaluation = deepcopy(env.spec)
    evaluation.kwargs |= {"maze_map": EVALUATION_MAZE, "reset_target": False}
    evaluation.max_episode_steps = 300
    episodes = list(_one_walk(env, min(num_steps, 20_000)))
    _create(
        UMAZE,
        _repeated(episodes, num_steps),
        env,
        eval_env=evaluation,
        algorithm_name="QIteration",
        author="Rodrigo Perez-Vicente",
        author_email="rperezvicente@farama.org",
        code_permalink="https://github.com/rodrigodelazcano/d4rl-minari-dataset-generation",
        ref_min_score=23.85,
        ref_max_score=161.86,
    )
    edit_env_spec(UMAZE, "env_spec", max_episode_steps=1e6)


def _one_walk(env: gym.Env[Any, Any], num_steps: int) -> Iterator[Columns]:
    """Cut where a goal is reached. The new goal is drawn after the observation was returned, so the first state of the
    next episode is this observation, with the goal that was reached."""
    rng = np.random.default_rng(2)
    maze: Any = env.unwrapped.maze  # pyright: ignore[reportAttributeAccessIssue]
    observation, _ = env.reset(seed=123)
    rows, actions, rewards, reached = [observation], [], [], [False]
    for step in range(num_steps):
        force = 10 * (_waypoint(maze, observation) - observation["achieved_goal"]) - observation["observation"][2:]
        action = np.clip(force + 0.5 * rng.normal(size=2), -1, 1).astype(np.float32)
        observation, reward, _, _, info = env.step(action)
        rows.append(observation)
        actions.append(action)
        rewards.append(reward)
        reached.append(info["success"])
        if info["success"] or step == num_steps - 1:
            columns = {
                "observations": {key: np.array([row[key] for row in rows]) for key in observation},
                "actions": np.array(actions),
                "rewards": np.array(rewards),
                "infos": {"success": np.array(reached), "goal": np.array([row["desired_goal"] for row in rows])},
            }
            yield columns | _ends(len(actions))
            rows, actions, rewards, reached = [observation], [], [], [True]


def _waypoint(maze: Any, observation: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """The goal if it is in this cell of the U, else the middle of the next cell towards it."""
    here, there = (
        CHAIN.index((int(row), int(column)))
        for row, column in (maze.cell_xy_to_rowcol(observation[key]) for key in ("achieved_goal", "desired_goal"))
    )
    if here == there:
        return observation["desired_goal"]
    return maze.cell_rowcol_to_xy(np.array(CHAIN[here + (1 if there > here else -1)]))


def _repeated(episodes: list[Columns], num_steps: int) -> Iterator[Columns]:
    """Those episodes again and again up to exactly that many steps; the last one is cut."""
    rng = np.random.default_rng(3)
    for number, episode in enumerate(cycle(episodes)):
        steps = min(len(episode["actions"]), num_steps)
        states = {key: values[: steps + 1].copy() for key, values in episode["observations"].items()}
        if number >= len(episodes):
            shift = rng.normal(0, 1e-3, 2)
            states["observation"][:, :2] += shift
            states["achieved_goal"] += shift
        yield {
            "observations": states,
            "actions": episode["actions"][:steps],
            "rewards": episode["rewards"][:steps],
            "infos": {key: values[: steps + 1] for key, values in episode["infos"].items()},
        } | _ends(steps)
        num_steps -= steps
        if num_steps <= 0:
            return
