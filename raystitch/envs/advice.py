"""Words that lead from an environment that cannot be made to one that can."""

import contextlib
import io
import warnings
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import get_env_id, parse_env_id


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
