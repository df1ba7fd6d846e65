"""Gymnasium's own wrappers around a recorded environment, rebuilt by name from an allow-list with plain arguments.

A wrapper is refused when it is not Gymnasium's, when it carries code (``TransformReward``) or a state that was not
recorded (``NormalizeObservation``): an environment without it would be another one than that of the data.
"""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import WrapperSpec

from raystitch.envs.spec import WrapperRecord, check_plain
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
"""Wrappers that change neither observations nor rewards nor the ends of episodes; left out, as one writes files."""

WRAPPER_MODULE = "gymnasium.wrappers"


def changes_observations(wrappers: tuple[WrapperRecord, ...]) -> str | None:
    """Return the first wrapper that changes observations; None if they are the environment's own."""
    return next((wrapper.name for wrapper in wrappers if wrapper.name in _OF_OBSERVATIONS), None)


def recorded_wrapper(value: Mapping[str, Any]) -> WrapperRecord:
    """Read an entry of ``additional_wrappers`` in a Gymnasium spec; its entry point is compared, never imported.

    Raises:
        UserError: for anything but a name and plain arguments.
    """
    record = WrapperRecord.from_json({"name": value.get("name"), "kwargs": value.get("kwargs")})
    entry_point = str(value.get("entry_point") or "")
    if entry_point == WRAPPER_MODULE or entry_point.startswith((f"{WRAPPER_MODULE}.", f"{WRAPPER_MODULE}:")):
        return record
    return WrapperRecord(name=f"{entry_point.partition(':')[0] or 'unknown'}:{record.name}", kwargs=record.kwargs)


def check_wrappers(env_id: str, wrappers: tuple[WrapperRecord, ...]) -> None:
    """Refuse wrappers that cannot be rebuilt.

    Raises:
        UserError: naming the first of them and what to do.
    """
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
    """Put an environment into its wrappers, which ``check_wrappers`` has accepted.

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
    """Return the wrappers for a Gymnasium spec; those that cannot be rebuilt keep the name of their module."""
    specs: list[WrapperSpec] = []
    for wrapper in wrappers:
        module, _, name = wrapper.name.rpartition(":")
        kwargs = None if wrapper.kwargs is None else dict(wrapper.kwargs)
        specs.append(WrapperSpec(name=name, entry_point=f"{module or WRAPPER_MODULE}:{name}", kwargs=kwargs))
    return tuple(specs)
