"""Advice in messages about environments that cannot be made: the versions and modules to name instead."""

import contextlib
import io
import warnings
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import get_env_id, parse_env_id


def remedy_for(imported: str, name: str, recorded: str | None) -> str:
    """Say what to do about an unknown id.

    Args:
        imported: the module that was imported for it, empty for none. name: the id without a module.
        recorded: the module of the entry point in the data's file, which was not imported.
    """
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


def working_versions(env_id: str) -> str:
    """Name the other versions of an environment that can be made here, with their sizes; empty if there are none.

    Versions of one name do not always have the same observations (Ant, Humanoid), so the sizes are given to compare.
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
        sizes = _spaces_of(other)
        if sizes is not None:
            found.append(f"--env {other} (observation {sizes[0]}, action {sizes[1]})")
    return " or ".join(found)


def _spaces_of(env_id: str) -> tuple[str, str] | None:
    """Describe the observation and action space of a registered environment; None when it cannot be made here."""
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
