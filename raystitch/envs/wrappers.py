"""Gymnasium's own wrappers around a recorded environment: rebuilt by name, from an allow-list, with plain arguments.

A wrapper is refused when it is not Gymnasium's, when it carries code (``TransformReward``) or a state that was not
recorded (``NormalizeObservation``): an environment without it would be another one than that of the data.
"""

import re
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import WrapperSpec

from raystitch.envs.spec import WrapperRecord
from raystitch.errors import UserError

_OF_OBSERVATIONS: dict[str, tuple[str, ...]] = {
    "DelayObservation": ("delay",),
    "FilterObservation": ("filter_keys",),
    "FlattenObservation": (),
    "FrameStackObservation": ("stack_size", "padding_type"),
    "MaxAndSkipObservation": ("skip",),
    "RescaleObservation": ("min_obs", "max_obs"),
    "ReshapeObservation": ("shape",),
    "TimeAwareObservation": ("flatten", "normalize_time", "dict_time_key"),
}
_OF_ACTIONS_AND_REWARDS: dict[str, tuple[str, ...]] = {
    "ClipAction": (),
    "ClipReward": ("min_reward", "max_reward"),
    "RepeatAction": ("num_repeats",),
    "RescaleAction": ("min_action", "max_action"),
    "StickyAction": ("repeat_action_probability", "repeat_action_duration"),
    "TimeLimit": ("max_episode_steps",),
}
ALLOWED: Mapping[str, tuple[str, ...]] = _OF_OBSERVATIONS | _OF_ACTIONS_AND_REWARDS
"""Wrapper -> the arguments that it may be given."""

WITHOUT_EFFECT = {"HumanRendering", "OrderEnforcing", "PassiveEnvChecker", "RecordEpisodeStatistics", "RecordVideo"}
"""Change neither observations nor rewards nor where episodes end; they are left away (one of them writes files)."""

WRAPPER_MODULE = "gymnasium.wrappers"


def changes_observations(wrappers: tuple[WrapperRecord, ...]) -> str | None:
    """The first wrapper after which an observation no longer is what the environment itself gives."""
    return next((wrapper.name for wrapper in wrappers if wrapper.name in _OF_OBSERVATIONS), None)


def recorded_wrapper(value: Mapping[str, Any]) -> WrapperRecord:
    """One entry of ``additional_wrappers`` in a Gymnasium spec; its entry point is compared, never imported.

    Raises:
        UserError: for anything but a name and plain arguments.
    """
    record = WrapperRecord.from_json({"name": value.get("name"), "kwargs": value.get("kwargs")})
    entry_point = str(value.get("entry_point") or "")
    if entry_point == WRAPPER_MODULE or entry_point.startswith((f"{WRAPPER_MODULE}.", f"{WRAPPER_MODULE}:")):
        return record
    return WrapperRecord(name=f"{entry_point.partition(':')[0] or 'unknown'}:{record.name}", kwargs=record.kwargs)


def check_wrappers(env_id: str, wrappers: tuple[WrapperRecord, ...]) -> None:
    """Raises: UserError with the name of the first wrapper that cannot be rebuilt."""
    for wrapper in wrappers:
        advice = (
            f"environment {env_id} was recorded in the wrapper {wrapper.name[:80]}, which cannot be rebuilt from a file"
        )
        remedy = (
            "name an environment that has it (--env package:ID, of a package that registers it), or --env "
            f"{env_id} to leave it out"
        )
        if wrapper.name not in ALLOWED or wrapper.kwargs is None:
            raise UserError(f"{advice} (known are {', '.join(ALLOWED)}); {remedy}")
        odd = sorted(set(wrapper.kwargs) - set(ALLOWED[wrapper.name]))
        if odd:
            raise UserError(f"{advice} with the arguments {odd}; {remedy}")
        check_plain(wrapper.kwargs, f"environment {env_id}: wrapper {wrapper.name}")


def wrap(env: gym.Env[Any, Any], env_id: str, wrappers: tuple[WrapperRecord, ...]) -> gym.Env[Any, Any]:
    """The environment in its wrappers, which ``check_wrappers`` has let through.

    Raises:
        UserError: when a wrapper does not take its arguments.
    """
    for wrapper in wrappers:
        make: Any = getattr(gym.wrappers, wrapper.name)
        try:
            env = make(env, **(wrapper.kwargs or {}))
        except Exception as error:  # arguments from a file can cause any error
            env.close()
            raise UserError(f"environment {env_id} cannot be put into {wrapper}: {error}") from error
    return env


def gymnasium_wrappers(wrappers: tuple[WrapperRecord, ...]) -> tuple[WrapperSpec, ...]:
    """The same for a Gymnasium spec; those that cannot be rebuilt keep the name of their module."""
    specs: list[WrapperSpec] = []
    for wrapper in wrappers:
        module, _, name = wrapper.name.rpartition(":")
        kwargs = None if wrapper.kwargs is None else dict(wrapper.kwargs)
        specs.append(WrapperSpec(name=name, entry_point=f"{module or WRAPPER_MODULE}:{name}", kwargs=kwargs))
    return tuple(specs)


# Plain words, or the bare name of a model file, which MuJoCo's environments look up in their own folder.
_PLAIN_TEXT = re.compile(r"[\w +,-]*|[\w-]+\.xml|[+-]?\d+\.\d*")
_DEEPEST = 8


def check_plain(value: Any, where: str) -> None:
    """Refuses arguments that could name code or a file.

    A text with a path, a colon or a dotted name is refused: environments open files (``xml_file``) and import what
    such texts say. The registered environments' own arguments are words.

    Raises:
        UserError: with the argument, and what to do.
    """
    bad = _first_odd(value, "", 0)
    if bad is not None:
        raise UserError(
            f"{where} has the argument {bad}, which may name a file or code; recorded arguments may not. Name an "
            "environment that is registered with it (--env package:ID)"
        )


def _first_odd(value: Any, path: str, depth: int) -> str | None:
    if value is None or isinstance(value, bool | int | float):
        return None
    if isinstance(value, str) and _PLAIN_TEXT.fullmatch(value):
        return None
    if depth < _DEEPEST and isinstance(value, list | tuple):
        found = (_first_odd(item, path, depth + 1) for item in value)
        return next((bad for bad in found if bad is not None), None)
    if depth < _DEEPEST and isinstance(value, Mapping):
        keys = (_first_odd(key, path or str(key), depth + 1) for key in value)
        items = (_first_odd(item, f"{path}.{key}" if path else str(key), depth + 1) for key, item in value.items())
        return next((bad for found in (keys, items) for bad in found if bad is not None), None)
    return f"{path[:60]}={str(value)[:60]!r}"
