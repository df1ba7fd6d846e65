"""The simulator as ground truth: it is put into s_t, a_t is applied, and s_{t+1} and r_t are read.

Legend: N rows, O observation size, A action size.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import OrderEnforcing, TimeLimit
from numpy.typing import NDArray

from raystitch.envs.make import FlatEnv, FlatObservation, make_env
from raystitch.envs.spec import EnvSpec
from raystitch.envs.wrappers import changes_observations
from raystitch.errors import RunError

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

# Hopper and Walker2d clip the velocities in their observation to this; at the clip the true velocity is unknown.
VELOCITY_CLIP = 10.0
# Resets with different seeds that must agree on the goal for it to count as known.
GOAL_SEEDS = (0, 1, 2, 3)


class Unavailable(RunError):
    """The simulator cannot be put into the states of this dataset; the message says why."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SimResult:
    """The simulator's answers for N rows.

    Attributes:
        next_observations: float32 [N, O]; NaN in rows that are not usable.
        rewards: float32 [N]; NaN in rows that are not usable, and wherever the reward depends on an unknown goal.
        terminated: bool [N].
        usable: bool [N], False where the observation does not determine the state or the simulation broke down.
    """

    next_observations: Floats
    rewards: Floats
    terminated: Bools
    usable: Bools


class StateSetter(Protocol):
    """Sets the simulator's state from observations, for one family of environments."""

    reward_known: bool

    def determined(self, observations: Floats) -> Bools:
        """Mark the rows whose observation determines the state, bool [N]."""
        ...

    def set_state(self, observation: NDArray[np.float64]) -> None:
        """Put the freshly reset simulator into the state of one observation [O]."""
        ...

    @property
    def mujoco_env(self) -> Any:
        """The environment that owns ``model`` and ``data``."""
        ...


class LocomotionSetter:
    """Sets Hopper, Walker2d and HalfCheetah, which observe joint positions without the root's x, then velocities.

    The root's x is free: it changes neither the dynamics nor the reward, which counts displacement.
    """

    reward_known = True

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self.env: Any = env.unwrapped
        self.skipped = int(self.env.observation_structure["skipped_qpos"])
        self.num_positions = int(self.env.observation_structure["qpos"])
        self.clips_velocity = type(self.env).__name__ in ("HopperEnv", "Walker2dEnv")

    @property
    def mujoco_env(self) -> Any:
        return self.env

    def determined(self, observations: Floats) -> Bools:
        if not self.clips_velocity:
            return np.ones(len(observations), np.bool_)
        return np.all(np.abs(observations[:, self.num_positions :]) < VELOCITY_CLIP, axis=1)

    def set_state(self, observation: NDArray[np.float64]) -> None:
        positions = np.concatenate([np.zeros(self.skipped), observation[: self.num_positions]])
        self.env.set_state(positions, observation[self.num_positions :])


class PointMazeSetter:
    """Sets PointMaze, which observes position, velocity and perhaps the goal; otherwise that is fixed or unknown."""

    def __init__(self, env: gym.Env[Any, Any], keys: tuple[str, ...]) -> None:
        if "observation" not in keys:
            raise Unavailable(f"the state cannot be rebuilt from the observation: it has only {list(keys)}")
        self.env: Any = env.unwrapped
        sizes = {key: int(self.env.observation_space[key].shape[0]) for key in keys}
        starts = dict(zip(keys, np.cumsum([0, *sizes.values()]), strict=False))
        self.state = slice(starts["observation"], starts["observation"] + sizes["observation"])
        self.goal_slice = slice(starts["desired_goal"], starts["desired_goal"] + 2) if "desired_goal" in sizes else None
        self.goal = None if self.goal_slice else self._fixed_goal(env)
        self.reward_known = self.goal_slice is not None or self.goal is not None

    @staticmethod
    def _fixed_goal(env: gym.Env[Any, Any]) -> NDArray[np.float64] | None:
        maze: Any = env.unwrapped
        goals = []
        for seed in GOAL_SEEDS:
            env.reset(seed=seed)
            goals.append(np.array(maze.goal, np.float64))
        return goals[0] if all(np.array_equal(goal, goals[0]) for goal in goals) else None

    @property
    def mujoco_env(self) -> Any:
        return self.env.point_env

    def determined(self, observations: Floats) -> Bools:
        return np.ones(len(observations), np.bool_)

    def set_state(self, observation: NDArray[np.float64]) -> None:
        goal = observation[self.goal_slice] if self.goal_slice is not None else self.goal
        if goal is not None:
            self.env.goal = goal.copy()
        state = observation[self.state]
        self.env.point_env.set_state(state[:2], state[2:])


class OgbenchPointSetter:
    """Sets OGBench's point mazes, which observe the position; a step forgets the velocity.

    Close to an entrance of a teleport the observation shows the place before the jump, so the state is unknown.
    """

    reward_known = False  # the registered tasks notice success a step late, so their reward is the state's before

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self.env: Any = env.unwrapped
        teleport = self.env._teleport_info or {"teleport_in_xys": [], "teleport_radius": 0.0}
        self.entrances = np.array(teleport["teleport_in_xys"], np.float64).reshape(-1, 2)
        self.reach = 1.5 * teleport["teleport_radius"]

    @property
    def mujoco_env(self) -> Any:
        return self.env

    def determined(self, observations: Floats) -> Bools:
        distances = np.linalg.norm(observations[:, None].astype(np.float64) - self.entrances, axis=2)
        return (distances > self.reach).all(1)

    def set_state(self, observation: NDArray[np.float64]) -> None:
        self.env.set_state(observation, np.zeros(self.env.model.nv))


def _steppable(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """Strip the wrappers that would disturb single steps, after one reset; wrappers that act on steps are kept."""
    env.reset(seed=0)
    while isinstance(env, FlatObservation | TimeLimit | OrderEnforcing):
        env = env.env
    return env


class Simulator:
    """Steps single transitions from given states.

    Each row starts from reset ``mjData`` with a cold solver, so the answer depends on (s_t, a_t) alone.
    """

    def __init__(self, env: gym.Env[Any, Any], setter: StateSetter, keys: tuple[str, ...] | None) -> None:
        self.env = env
        self.setter = setter
        self.keys = keys
        self.steppable = _steppable(env)
        self.mujoco: Any = import_module("mujoco")  # Any: its type stubs are incomplete

    def step_from(self, observations: Floats, actions: Floats) -> SimResult:
        """Take one environment step from each of N states.

        Args:
            observations: float32 [N, O].
            actions: float32 [N, A], within the bounds.
        """
        usable = np.isfinite(observations).all(1) & np.isfinite(actions).all(1)
        usable &= self.setter.determined(observations)
        next_observations = np.full(observations.shape, np.nan, np.float32)
        rewards = np.full(len(observations), np.nan, np.float32)
        terminated = np.zeros(len(observations), np.bool_)
        wide = observations.astype(np.float64)
        for row in np.flatnonzero(usable):
            observation, reward, ended, sound = self._step(wide[row], actions[row])
            usable[row] = sound
            if sound:
                next_observations[row] = observation
                rewards[row] = reward if self.setter.reward_known else np.nan
                terminated[row] = ended and self.setter.reward_known
        return SimResult(next_observations=next_observations, rewards=rewards, terminated=terminated, usable=usable)

    def _step(self, observation: NDArray[np.float64], action: Floats) -> tuple[NDArray[np.float32], float, bool, bool]:
        owner = self.setter.mujoco_env
        self.mujoco.mj_resetData(owner.model, owner.data)
        self.setter.set_state(observation)
        owner.data.qacc_warmstart[:] = 0.0  # set_state has just solved for the acceleration without the action
        raw, reward, ended, _, _ = self.steppable.step(action)
        parts = [raw] if self.keys is None else [raw[key] for key in self.keys]
        flat = np.concatenate([np.asarray(part, np.float32).reshape(-1) for part in parts])
        # MuJoCo answers numerical breakdown with a warning and a reset of the state.
        sound = bool(np.isfinite(flat).all()) and not any(owner.data.warning.number)
        return flat, float(reward), bool(ended), sound

    def close(self) -> None:
        self.env.close()


def _locomotion(env: gym.Env[Any, Any], keys: tuple[str, ...] | None) -> StateSetter:
    return LocomotionSetter(env)


def _point_maze(env: gym.Env[Any, Any], keys: tuple[str, ...] | None) -> StateSetter:
    return PointMazeSetter(env, keys or ())


def _ogbench_point(env: gym.Env[Any, Any], keys: tuple[str, ...] | None) -> StateSetter:
    return OgbenchPointSetter(env)


SETTERS = {
    "HopperEnv": _locomotion,
    "Walker2dEnv": _locomotion,
    "HalfCheetahEnv": _locomotion,
    "PointMazeEnv": _point_maze,
    "PointEnv": _ogbench_point,  # the base of OGBench's mazes alone: gymnasium-robotics' PointMazeEnv only holds one
}
"""State setters, by the name of the environment's class or of one of its bases."""

UNAVAILABLE = {
    "AdroitHandPenEnv": "the state cannot be rebuilt from the observation: it lacks the hand's joint velocities",
}
"""Environments that hide a part of their state, and what is hidden."""


def open_simulator(spec: EnvSpec) -> Simulator:
    """Open the simulator of an environment.

    Raises:
        Unavailable: when its observation does not determine the state, or raystitch does not know how.
        UserError: when the environment cannot be made.
    """
    flat_env, setter = _with_setter(spec)
    return Simulator(flat_env, setter, flat_env.get_wrapper_attr("keys"))


def _with_setter(spec: EnvSpec) -> tuple[FlatEnv, StateSetter]:
    wrapper = changes_observations(spec.wrappers)
    if wrapper is not None:
        raise Unavailable(f"the state cannot be set from observations that the wrapper {wrapper} has changed")
    flat_env = make_env(spec)
    classes = [base.__name__ for base in type(flat_env.unwrapped).__mro__]
    reason = next((UNAVAILABLE[name] for name in classes if name in UNAVAILABLE), None)
    make_setter = next((SETTERS[name] for name in classes if name in SETTERS), None)
    if reason is not None or make_setter is None:
        flat_env.close()
        raise Unavailable(
            reason or f"raystitch cannot set the state of {spec.env_id}; it knows {', '.join(SETTERS)} ({classes[0]})"
        )
    return flat_env, make_setter(flat_env, flat_env.get_wrapper_attr("keys"))


class StateReset(gym.Wrapper[Floats, Floats, Floats, Floats]):
    """An environment whose episodes may begin in any state: ``reset(options={"state": observation})``, float [O].

    Where the reward depends on a goal that neither the observation nor the environment fixes, it is the goal of the
    reset's seed.
    """

    def __init__(self, env: FlatEnv, setter: StateSetter) -> None:
        super().__init__(env)
        self.setter = setter
        self.mujoco: Any = import_module("mujoco")  # Any: its type stubs are incomplete

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Floats, dict[str, Any]]:
        """Begin an episode, in the state of ``options["state"]`` where that is given."""
        observation, info = self.env.reset(seed=seed)
        if options is None or "state" not in options:
            return observation, info
        owner = self.setter.mujoco_env
        self.mujoco.mj_resetData(owner.model, owner.data)
        state = np.asarray(options["state"])
        self.setter.set_state(state.astype(np.float64))
        owner.data.qacc_warmstart[:] = 0.0  # as for single steps: nothing of the episode before
        return state.astype(np.float32), info


def make_resettable(spec: EnvSpec) -> StateReset:
    """Make an environment whose episodes may begin in any state.

    Raises:
        Unavailable: as ``open_simulator``.
        UserError: when the environment cannot be made.
    """
    return StateReset(*_with_setter(spec))
