"""Makes environments from plain data: flat float32 observations, Box actions, every mistake a ``UserError``.

What a file says is never more than the id of a registered environment, plain arguments and the names of Gymnasium's own
wrappers. Only an id that a user has named (``spec_from_id``) may import a module.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from importlib import import_module
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec as RegistryEntry
from gymnasium.envs.registration import get_env_id, parse_env_id
from numpy.typing import NDArray

from raystitch.envs.spec import EnvSpec, step_limit
from raystitch.envs.wrappers import WITHOUT_EFFECT, check_plain, check_wrappers, gymnasium_wrappers, wrap
from raystitch.errors import UserError

FlatEnv = gym.Env[NDArray[np.float32], NDArray[np.float32]]
MUJOCO_LOG = logging.getLogger("raystitch.mujoco")
GOAL_KEYS = {"observation", "achieved_goal", "desired_goal"}


def register_environments() -> None:
    """Makes the ids of gymnasium-robotics and of raystitch's own maze known to Gymnasium; cheap the second time."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        # gymnasium-robotics prints a notice about versions of its Adroit environments when it is imported.
        import gymnasium_robotics

        from raystitch.envs import pointmaze
    if "PointMaze_UMaze-v3" not in gym.registry:
        gym.register_envs(gymnasium_robotics)
    pointmaze.register()


def registered_spec(spec: EnvSpec) -> RegistryEntry:
    """The Gymnasium registry's entry of ``spec.env_id``; the module of ``module:ID`` is imported if a user named it.

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
        remedy = _remedy(module, name, spec.module)
        raise UserError(f"unknown environment {spec.env_id!r} ({hint}); {remedy}") from error


def _import(module: str, env_id: str) -> None:
    try:
        import_module(module)
    except Exception as error:  # a user's own package may fail in any way
        raise UserError(f"environment {env_id!r}: importing {module} failed: {error!r}") from error


def _remedy(imported: str, name: str, recorded: str | None) -> str:
    if imported:
        return (
            f"{imported} was imported and does not register it: call gymnasium.register(id={name!r}, ..) in it, or "
            "name the module that does"
        )
    if recorded is not None:
        return (
            f"it was recorded from the module {recorded}, which is not run because a file names it; if you trust it, "
            f"name the module that registers it when it is imported: --env {recorded}:{name}, or --env package:{name}"
        )
    versions = working_versions(name)
    if versions:
        return f"there is {versions}"
    return (
        "check the spelling and the version, or name the package that registers it when it is imported: "
        f"--env package:{name}"
    )


def _log_mujoco_warnings() -> None:
    """MuJoCo's own handler prints and appends to a file in the working folder."""
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
    return wrap(env, spec.env_id, wrappers)


def observation_keys_of(space: spaces.Space[Any]) -> tuple[str, ...] | None:
    """Entries of a Dict observation to concatenate: the state alone where the rest are goals, all of them otherwise.

    None for a space that is not a Dict.
    """
    if not isinstance(space, spaces.Dict):
        return None
    return ("observation",) if set(space.spaces) == GOAL_KEYS else tuple(sorted(space.spaces))


def flat_size(space: spaces.Space[Any], keys: tuple[str, ...] | None, where: str) -> int:
    """Size of the flattened observation.

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
    """Makes the environment with flat float32 observations; ``overrides`` go to ``gymnasium.make``.

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


def make_vector_env(spec: EnvSpec, num_envs: int) -> gym.vector.SyncVectorEnv:
    """``num_envs`` copies stepped one after the other in this process.

    Autoreset is DISABLED, so that the caller seeds every episode: an environment that has ended must be reset with
    ``reset(seed=[...], options={"reset_mask": done})`` before the next step.
    """
    mode = gym.vector.AutoresetMode.DISABLED
    return gym.vector.SyncVectorEnv([lambda: make_env(spec)] * num_envs, autoreset_mode=mode)


def spec_from_id(env_id: str, kwargs: Mapping[str, Any] | None = None) -> EnvSpec:
    """Plain data of an environment that a user has named, its time limit from the registry.

    This is the only way to a spec that may import a module: never call it with an id that was found in a file.

    Raises:
        UserError: for an unknown id or a missing simulator package.
    """
    return _spec(EnvSpec(env_id=env_id, kwargs=dict(kwargs or {}), named=True))


def recorded_spec(env_id: str) -> EnvSpec:
    """Plain data of a registered environment whose id was found in a file; no module is imported for it.

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
    """Observation and action space of an environment in its wrappers, before anything is flattened.

    Raises:
        UserError: when it cannot be made.
    """
    env = _make_raw(spec)
    found = (env.observation_space, env.action_space)
    env.close()
    return found


def action_bounds(spec: EnvSpec) -> tuple[int, NDArray[np.float32], NDArray[np.float32]]:
    """Observation size and action bounds float32 [A] of an environment.

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
    """The registry's entry with our arguments and wrappers; only those where no installed package knows the id."""
    try:
        spec = deepcopy(registered_spec(env))
    except UserError:
        spec = RegistryEntry(id=env.env_id)
    spec.kwargs = {**spec.kwargs, **env.kwargs}
    spec.max_episode_steps = env.max_episode_steps
    spec.additional_wrappers = (*spec.additional_wrappers, *gymnasium_wrappers(env.wrappers))
    return spec


def spaces_of(env_id: str) -> tuple[str, str] | None:
    """Observation and action space of a registered environment in words, None when it cannot be made here."""
    quiet = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            warnings.simplefilter("ignore")
            env: gym.Env[Any, Any] = gym.make(env_id, disable_env_checker=True)
            found = (_words(env.observation_space), _words(env.action_space))
            env.close()
    except Exception:  # an environment that is not installed may fail in any way
        return None
    return found


def _words(space: gym.Space[Any]) -> str:
    return str(space.shape) if space.shape is not None else type(space).__name__


def working_versions(env_id: str) -> str:
    """Versions of the environment that can be made here, with their sizes; empty where there is none.

    Versions of one name do not always have the same observations (Ant, Humanoid), so the sizes are there to compare.
    """
    try:
        namespace, name, version = parse_env_id(env_id)
    except gym.error.Error:
        return ""
    entries = list(gym.registry.values())
    versions = {entry.version for entry in entries if (entry.namespace, entry.name) == (namespace, name)}
    known = sorted((v for v in versions if v is not None and v != version), reverse=True)
    found: list[str] = []
    for candidate in known:
        other = get_env_id(namespace, name, candidate)
        sizes = spaces_of(other)
        if sizes is not None:
            found.append(f"--env {other} (observation {sizes[0]}, action {sizes[1]})")
    return " or ".join(found)
