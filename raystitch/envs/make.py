"""Make environments from plain data: flat float32 observations, Box actions, every mistake a ``UserError``.

A file gives no more than the id of a registered environment, plain arguments and the names of Gymnasium's own wrappers.
Only an id that a user has named (``spec_from_id``) may import a module.
"""

import contextlib
import io
import logging
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from importlib import import_module
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec as RegistryEntry
from numpy.typing import NDArray

from raystitch.envs.advice import remedy_for, working_versions
from raystitch.envs.ogbench import INSTALL, PACKAGE, settle
from raystitch.envs.spec import EnvSpec, check_plain, step_limit
from raystitch.envs.wrappers import WITHOUT_EFFECT, check_wrappers, gymnasium_wrappers, wrap
from raystitch.errors import UserError

FlatEnv = gym.Env[NDArray[np.float32], NDArray[np.float32]]
MUJOCO_LOG = logging.getLogger("raystitch.mujoco")
GOAL_KEYS = {"observation", "achieved_goal", "desired_goal"}


def register_environments() -> None:
    """Register the ids of gymnasium-robotics and of raystitch's own environments with Gymnasium; cheap the second
    time."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        # gymnasium-robotics prints a notice about versions of its Adroit environments when it is imported.
        import gymnasium_robotics

        from raystitch.envs import grid, maze2d, pointmaze
    if "PointMaze_UMaze-v3" not in gym.registry:
        gym.register_envs(gymnasium_robotics)
    for own in (pointmaze, grid, maze2d):
        own.register()


def registered_spec(spec: EnvSpec) -> RegistryEntry:
    """Find the Gymnasium registry's entry of ``spec.env_id``; import the module of ``module:ID`` if a user named it.

    Raises:
        UserError: when no installed package registers it, or a file names a module.
    """
    module, separator, name = spec.env_id.rpartition(":")
    if separator and not spec.named:
        raise UserError(
            f"environment {spec.env_id!r} is recorded in a file, and raystitch imports no module that a file names; if "
            f"you trust it, name it yourself: --env {spec.env_id} (env: in a configuration)"
        )
    if spec.env_id not in gym.registry and not separator:
        register_environments()
    if separator:  # package:NAME; gym.make imports the package, gym.spec does not
        _import(module, spec.env_id)
    try:
        return gym.spec(name)
    except gym.error.Error as error:
        hint = str(error).strip().split("\n")[0].strip("`").rstrip(".")
        remedy = remedy_for(module, name, spec.module)
        raise UserError(f"unknown environment {spec.env_id!r} ({hint}); {remedy}") from error


def _import(module: str, env_id: str) -> None:
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        remedy = f"; {INSTALL}" if module == PACKAGE else ""
        raise UserError(f"environment {env_id!r}: importing {module} failed: {error!r}{remedy}") from error
    except Exception as error:  # a user's own package may fail in any way
        raise UserError(f"environment {env_id!r}: importing {module} failed: {error!r}") from error


def _log_mujoco_warnings() -> None:
    """Send MuJoCo's warnings to our log; its own handler prints and appends to a file in the working folder."""
    try:
        mujoco: Any = import_module("mujoco")  # Any: its type stubs are incomplete
    except ImportError:
        return
    mujoco.set_mju_user_warning(MUJOCO_LOG.info)


def _make_raw(spec: EnvSpec, **overrides: Any) -> gym.Env[Any, Any]:
    registered_spec(spec)
    wrappers = tuple(wrapper for wrapper in spec.wrappers if wrapper.name not in WITHOUT_EFFECT)
    kwargs = {name: value for name, value in spec.kwargs.items() if name != "render_mode"}
    if not spec.named:
        check_plain(kwargs, f"environment {spec.env_id}")
        check_wrappers(spec.env_id, wrappers)
    _log_mujoco_warnings()
    options = {**kwargs, **overrides, "disable_env_checker": True}
    if spec.max_episode_steps is not None:
        options["max_episode_steps"] = spec.max_episode_steps
    try:
        env = gym.make(spec.env_id, **options)
    except (gym.error.DependencyNotInstalled, ImportError) as error:
        versions = working_versions(spec.env_id)
        remedy = f"; there is {versions}" if versions else ""
        reason = (str(error).strip().splitlines() or [""])[0].rstrip(".")
        raise UserError(f"environment {spec.env_id} needs a package that is not installed: {reason}{remedy}") from error
    except Exception as error:  # arguments from a file can cause any error
        reason = " ".join(str(error).split()) or repr(error)
        raise UserError(f"environment {spec.env_id} cannot be made with {options}: {reason}") from error
    return wrap(settle(env), spec.env_id, wrappers)


def observation_keys_of(space: spaces.Space[Any]) -> tuple[str, ...] | None:
    """Return the entries of a Dict observation to concatenate; None for a space that is not a Dict.

    Of goal environments only the state is kept, of others every entry.
    """
    if not isinstance(space, spaces.Dict):
        return None
    return ("observation",) if set(space.spaces) == GOAL_KEYS else tuple(sorted(space.spaces))


def flat_size(space: spaces.Space[Any], keys: tuple[str, ...] | None, where: str) -> int:
    """Return the size of the flattened observation.

    Raises:
        UserError: for spaces that are not a Box or a Dict of Boxes, or that lack one of ``keys``.
    """
    if keys is None:
        if isinstance(space, spaces.Box):
            return int(np.prod(space.shape))
        raise UserError(f"{where}: the observation space must be a Box or a Dict of Boxes, got {space}")
    if not isinstance(space, spaces.Dict) or not set(keys) <= set(space.spaces):
        raise UserError(f"{where}: the observation space has no entries {list(keys)}, got {space}")
    return sum(flat_size(space.spaces[key], None, f"{where}, entry {key!r}") for key in keys)


class FlatObservation(gym.ObservationWrapper[NDArray[np.float32], NDArray[np.float32], Any]):
    """A Box or Dict observation as one float32 vector [O]."""

    def __init__(self, env: gym.Env[Any, Any], keys: tuple[str, ...] | None) -> None:
        super().__init__(env)
        self.keys = keys
        size = flat_size(env.observation_space, keys, "environment")
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)

    def observation(self, observation: Any) -> NDArray[np.float32]:
        parts = [observation] if self.keys is None else [observation[key] for key in self.keys]
        return np.concatenate([np.asarray(part, np.float32).reshape(-1) for part in parts])


def make_env(spec: EnvSpec, **overrides: Any) -> FlatEnv:
    """Make the environment with flat float32 observations; ``overrides`` go to ``gymnasium.make``.

    Raises:
        UserError: for an unknown id, a missing simulator package, wrong arguments, or spaces raystitch cannot use.
    """
    env = _make_raw(spec, **overrides)
    space = env.action_space
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        env.close()
        raise UserError(
            f"environment {spec.env_id}: the action space must be a Box of one dimension, got {space}; wrap the "
            "environment so that its actions are a vector of numbers"
        )
    keys = spec.observation_keys if spec.observation_keys is not None else observation_keys_of(env.observation_space)
    return FlatObservation(env, keys)


def spec_from_id(env_id: str, kwargs: Mapping[str, Any] | None = None) -> EnvSpec:
    """Return the plain data of an environment that a user has named, with its time limit from the registry.

    This is the only way to a spec that may import a module: never call it with an id that was found in a file.

    Raises:
        UserError: for an unknown id or a missing simulator package.
    """
    return _spec(EnvSpec(env_id=env_id, kwargs=dict(kwargs or {}), named=True))


def recorded_spec(env_id: str) -> EnvSpec:
    """Return the plain data of a registered environment whose id was found in a file; imports no module for it.

    Raises:
        UserError: for an unknown id, one with a module, or a missing simulator package.
    """
    return _spec(EnvSpec(env_id=env_id))


def _spec(spec: EnvSpec) -> EnvSpec:
    registered = registered_spec(spec)
    env = _make_raw(spec)
    keys = observation_keys_of(env.observation_space)
    env.close()
    return replace(spec, max_episode_steps=step_limit(registered.max_episode_steps), observation_keys=keys)


def raw_spaces(spec: EnvSpec) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
    """Return the observation and action space of an environment in its wrappers, before flattening.

    Raises:
        UserError: when it cannot be made.
    """
    env = _make_raw(spec)
    found = (env.observation_space, env.action_space)
    env.close()
    return found


def action_bounds(spec: EnvSpec) -> tuple[int, NDArray[np.float32], NDArray[np.float32]]:
    """Return the observation size and the action bounds, float32 [A], of an environment.

    Raises:
        UserError: when it cannot be made.
    """
    env = make_env(spec)
    observation_space, action_space = env.observation_space, env.action_space
    env.close()
    assert isinstance(action_space, spaces.Box)
    assert observation_space.shape is not None
    return observation_space.shape[0], action_space.low.astype(np.float32), action_space.high.astype(np.float32)


def gymnasium_spec(env: EnvSpec) -> RegistryEntry:
    """Return the registry's entry with our arguments and wrappers; without an entry if no package knows the id."""
    try:
        spec = deepcopy(registered_spec(env))
    except UserError:
        spec = RegistryEntry(id=env.env_id)
    spec.kwargs = {**spec.kwargs, **env.kwargs}
    spec.max_episode_steps = env.max_episode_steps
    spec.additional_wrappers = (*spec.additional_wrappers, *gymnasium_wrappers(env.wrappers))
    return spec
