"""The demo dataset: fragments of a point maze that only a bridge connects.

Four kinds of fragments, collected in MuJoCo by a noisy waypoint controller:

* ``approach``: from the start along the western corridor, cut at the street. No reward.
* ``arrive``: from the mouth of the eastern corridor, two blocks further north, to the goal. Reward 1 at the end.
* ``pass``: traffic through the street from north to south. No reward.
* ``wander``: to and fro at the street's two ends. No reward.

No fragment leads from the start to the goal, and no ``approach`` comes within two metres of an ``arrive``. Between them
lies the street, where all traffic goes south; the way through is north-east, the goal lies south, and straight on is a
blind alley. So neither imitating the traffic nor heading for the reward nor joining the nearest real fragments shows
the way, while the traffic does show how the point moves.
"""

import hashlib
import os
import zipfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raystitch import envs
from raystitch.data.episodes import Episode, EpisodeDataset, from_episodes
from raystitch.errors import UserError
from raystitch.io.files import atomic_path
from raystitch.seeding import numpy_rng

DEMO_REF = "demo:pointmaze"
DEFAULT_NUM_STEPS = 40_000
CACHED_COLUMNS = ("observations", "actions", "rewards", "terminated", "truncated", "offsets")
KIND_SHARES = (0.25, 0.22, 0.25, 0.28)

START, GOAL = (-3.5, -1.0), (3.5, -2.0)
APPROACH_Y, APPROACH_CUT_X = -1.0, (-1.3, -1.0)
ARRIVE_Y, ARRIVE_START_X, ARRIVE_CORNER_X = 1.0, (0.95, 1.2), 3.5
LANE_X, STREET_NORTH_Y, STREET_SOUTH_Y = 0.85, (1.6, 2.35), -2.1
YARDS_Y = ((-2.2, -1.2), (1.2, 2.3))
SPEED = (2.2, 3.4)
GAIN = 0.6
ACTION_NOISE = 0.25
REACHED = 0.3

Point = NDArray[np.float64]


@dataclass(frozen=True)
class _Plan:
    start: Point
    velocity: Point
    waypoints: list[Point]
    speed: float
    cut_x: float = np.inf


def _approach(rng: np.random.Generator) -> _Plan:
    speed = rng.uniform(*SPEED)
    start, velocity = np.array(START) + rng.uniform(-0.25, 0.25, 2), np.zeros(2)
    if rng.random() < 0.3:
        start[0], velocity[0] = rng.uniform(START[0], APPROACH_CUT_X[0] - 1.0), speed * rng.uniform(0.3, 1.0)
    waypoint = np.array([APPROACH_CUT_X[1] + 1.0, APPROACH_Y + rng.uniform(-0.2, 0.2)])
    return _Plan(start, velocity, [waypoint], speed, rng.uniform(*APPROACH_CUT_X))


def _arrive(rng: np.random.Generator) -> _Plan:
    speed = rng.uniform(*SPEED)
    start = np.array([rng.uniform(*ARRIVE_START_X), ARRIVE_Y + rng.uniform(-0.25, 0.25)])
    velocity = np.array([speed * rng.uniform(0.5, 1.0), rng.normal(0, 0.3)])
    corners = [np.array([ARRIVE_CORNER_X, ARRIVE_Y]), np.array(GOAL)]
    return _Plan(start, velocity, [corner + rng.uniform(-0.1, 0.1, 2) for corner in corners], speed)


def _pass_through(rng: np.random.Generator) -> _Plan:
    speed = rng.uniform(*SPEED)
    x, y = rng.uniform(-LANE_X, LANE_X), rng.uniform(*STREET_NORTH_Y)
    start, waypoints = np.array([x, y]), []
    while y > STREET_SOUTH_Y:
        y = max(y - rng.uniform(0.4, 0.9), STREET_SOUTH_Y)
        x = float(np.clip(x + rng.uniform(-0.5, 0.5), -LANE_X, LANE_X))
        waypoints.append(np.array([x, y]))
    velocity = np.array([rng.normal(0, 0.4), -speed * rng.uniform(0.0, 1.0)])
    return _Plan(start, velocity, waypoints, speed)


def _wander(rng: np.random.Generator) -> _Plan:
    count = int(rng.integers(4, 7))
    south, north = YARDS_Y[int(rng.integers(len(YARDS_Y)))]
    waypoints = list(np.stack([rng.uniform(-LANE_X, LANE_X, count), rng.uniform(south, north, count)], axis=1))
    return _Plan(waypoints[0], rng.normal(0, 1.0, 2), waypoints[1:], rng.uniform(*SPEED))


PLANS = {"approach": _approach, "arrive": _arrive, "pass": _pass_through, "wander": _wander}


def _record(env: Any, kind: str, rng: np.random.Generator, max_steps: int) -> Episode:
    """Roll one fragment out in the simulator."""
    plan = PLANS[kind](rng)
    waypoints = plan.waypoints
    env.reset(seed=int(rng.integers(2**31)))
    env.unwrapped.point_env.set_state(plan.start, plan.velocity)
    state = np.concatenate([plan.start, plan.velocity])
    observations, actions, rewards = [state], [], []
    terminated, current = False, 0
    for _ in range(max_steps):
        position = state[:2]
        if np.linalg.norm(waypoints[current] - position) < REACHED:
            if current + 1 == len(waypoints) and kind != "arrive":
                break
            current = min(current + 1, len(waypoints) - 1)
        towards = waypoints[current] - position
        wanted = plan.speed * towards / max(float(np.linalg.norm(towards)), 0.3)
        action = np.clip(GAIN * (wanted - state[2:]) + ACTION_NOISE * rng.standard_normal(2), -1, 1).astype(np.float32)
        observation, reward, terminated, _, _ = env.step(action)
        state = observation["observation"]
        if state[0] > plan.cut_x:
            break
        observations.append(state)
        actions.append(action)
        rewards.append(reward)
        if terminated:
            break
    return Episode.recorded(observations, actions, rewards, terminated=terminated)


def load_or_make_pointmaze(num_steps: int = DEFAULT_NUM_STEPS, seed: int = 0) -> EpisodeDataset:
    """``make_pointmaze``; made once per machine and version, then read from the cache folder.

    The folder is ``$RAYSTITCH_CACHE``, by default ``~/.cache/raystitch``. A cached copy is the same dataset, bit for
    bit, so a damaged one is made again.
    """
    folder = Path(os.environ.get("RAYSTITCH_CACHE") or Path.home() / ".cache" / "raystitch")
    path = folder / f"demo-pointmaze-{num_steps}-{seed}-{_recipe()}.npz"
    try:
        with np.load(path, allow_pickle=False) as columns:
            return _with_env(dict(columns))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        dataset = make_pointmaze(num_steps, seed)
    columns = {name: getattr(dataset, name) for name in CACHED_COLUMNS}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **columns)
    return dataset


def _recipe() -> str:
    """Return a short hash of everything that determines the content: this recipe, the maze and the simulator's
    version."""
    digest = hashlib.sha256(version("mujoco").encode())
    for source in (Path(__file__), Path(envs.__file__).with_name("pointmaze.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]


def _with_env(columns: dict[str, NDArray[Any]]) -> EpisodeDataset:
    from raystitch.envs.make import register_environments

    register_environments()
    from raystitch.envs.pointmaze import demo_spec

    return EpisodeDataset(
        name=DEMO_REF,
        **{name: columns[name] for name in CACHED_COLUMNS},
        action_low=-np.ones(2, np.float32),
        action_high=np.ones(2, np.float32),
        env=demo_spec(),
        found=(),
        selected_from=None,
    )


def make_pointmaze(num_steps: int = DEFAULT_NUM_STEPS, seed: int = 0) -> EpisodeDataset:
    """Collect at least ``num_steps`` transitions; bit-identical for a seed.

    Raises:
        UserError: when ``num_steps`` is below 1,000, too few for every kind of fragment.
    """
    import gymnasium as gym

    from raystitch.envs.make import register_environments

    register_environments()
    from raystitch.envs import pointmaze

    if num_steps < 1000:
        raise UserError(f"num_steps must be at least 1000, got {num_steps}")
    env = gym.make(pointmaze.ENV_ID)
    rng = numpy_rng(seed, "pointmaze")
    episodes: list[Episode] = []
    collected = 0
    while collected < num_steps:
        kind = str(rng.choice(list(PLANS), p=KIND_SHARES))
        episode = _record(env, kind, rng, pointmaze.MAX_EPISODE_STEPS)
        if len(episode.actions) >= 4:
            episodes.append(episode)
            collected += len(episode.actions)
    env.close()
    return from_episodes(
        episodes,
        name=DEMO_REF,
        action_low=-np.ones(2, np.float32),
        action_high=np.ones(2, np.float32),
        env=pointmaze.demo_spec(),
    )
