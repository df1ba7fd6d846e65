"""Environments and spaces from a Minari dataset's metadata, which a stranger may have written.

Minari's own ``MinariStorage.read`` and ``recover_environment`` make the environment of a recorded spec, entry point and
wrappers' entry points included: they import and call what the file names. Here a spec is read as data: the id of a
registered environment, plain arguments, a time limit, the names of Gymnasium's own wrappers. All else is dropped.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from raystitch.envs.spec import EnvSpec, reference_returns, step_limit
from raystitch.errors import UserError

OWN_METADATA = "raystitch"
_NUMBERS = re.compile(r"(float|u?int)(8|16|32|64)|bool")
_DEEPEST = 16
REFERENCES = ("ref_min_score", "ref_max_score")


def dataset_env(metadata: Mapping[str, Any], named: EnvSpec | None, where: str) -> EnvSpec | None:
    """Return the environment that a user named, else the recorded one with its evaluation environment, else None.

    The reference returns of the metadata belong to the task, so they go with either.

    Raises:
        UserError: when what is recorded is not an environment as plain data.
    """
    if named is not None:
        return replace(named, reference=_reference(metadata))
    own = metadata.get(OWN_METADATA)
    try:
        if isinstance(own, Mapping) and own.get("env"):
            return EnvSpec.from_json(own["env"])
        found = {name: _gymnasium(metadata.get(name)) for name in ("env_spec", "eval_env_spec")}
        reference = _reference(metadata)
    except (UserError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: its environment cannot be read: {error}; name one with --env ENV_ID") from error
    env, evaluation = (None if spec is None else replace(spec, reference=reference) for spec in found.values())
    if env is None:
        return evaluation
    return replace(env, evaluation=None if evaluation == env else evaluation)


def with_keys(env: EnvSpec, keys: tuple[str, ...] | None) -> EnvSpec:
    """Return the environment and the evaluation environment, with the entries of a Dict observation that were read.

    Data without entries leave a named environment those that it would be flattened with.
    """
    if keys is None:
        return env
    inner = env.evaluation
    return replace(env, observation_keys=keys, evaluation=None if inner is None else with_keys(inner, keys))


def evaluation_metadata(env: EnvSpec | None) -> dict[str, Any]:
    """Return the evaluation environment and the reference returns as metadata that Minari's own readers understand."""
    if env is None:
        return {}
    from raystitch.envs.make import gymnasium_spec

    found: dict[str, Any] = {}
    if env.evaluation is not None:
        found["eval_env_spec"] = gymnasium_spec(env.evaluation).to_json()
    if env.reference is not None:
        found |= dict(zip(REFERENCES, env.reference, strict=True))
    return found


def _gymnasium(text: Any) -> EnvSpec | None:
    """Read a Gymnasium spec in JSON; entry points and everything else that would be run are ignored."""
    if not text:
        return None
    from raystitch.envs.wrappers import recorded_wrapper

    value = json.loads(text) if isinstance(text, str) else text
    if not isinstance(value, Mapping):
        raise UserError(f"env_spec must be names and values, got {str(value)[:80]!r}")
    wrappers = value.get("additional_wrappers") or []
    plain = EnvSpec.from_json({"env_id": value.get("id"), "kwargs": value.get("kwargs")})
    return EnvSpec(
        env_id=plain.env_id,
        kwargs=plain.kwargs,
        max_episode_steps=step_limit(value.get("max_episode_steps")),
        wrappers=tuple(recorded_wrapper(wrapper) for wrapper in wrappers),
        module=_module(value.get("entry_point")),
    )


def _reference(metadata: Mapping[str, Any]) -> tuple[float, float] | None:
    """(lowest, highest) return; None when the metadata have none that a score could refer to."""
    try:
        return reference_returns([metadata.get(name) for name in REFERENCES])
    except UserError:
        return None


def _module(entry_point: Any) -> str | None:
    """Return the module of an entry point, for a user to judge; None for a module that is installed with raystitch."""
    module = str(entry_point or "").partition(":")[0]
    known = module.split(".")[0] in ("gymnasium", "gymnasium_robotics", "raystitch")
    return None if known or not re.fullmatch(r"[\w.]{1,80}", module) else module


def read_spaces(metadata: Mapping[str, Any], env: EnvSpec | None, where: str | Path) -> tuple[Any, Any]:
    """Return the observation and action space. Minari may leave out spaces that equal the environment's.

    Args:
        env: the environment to ask for what is left out: the one that a user has named, else the recorded one.

    Raises:
        UserError: when they cannot be read, or the environment cannot be made.
    """
    from minari.serialization import deserialize_space

    names = ("observation_space", "action_space")
    found: dict[str, Any] = {}
    for name in names:
        if metadata.get(name) is not None:
            try:
                described = metadata[name]
                described = json.loads(described) if isinstance(described, str) else described
                _check_space(described, 0)
                found[name] = deserialize_space(described)
            except Exception as error:  # Minari's reader does not validate untrusted input
                raise UserError(f"{where}: its {name} cannot be read: {error}") from error
    missing = [name for name in names if name not in found]
    if missing:
        found |= _spaces_of(env, " and ".join(missing), where)
    return found[names[0]], found[names[1]]


def _spaces_of(env: EnvSpec | None, missing: str, where: str | Path) -> dict[str, Any]:
    from raystitch.envs.make import raw_spaces

    if env is None:
        raise UserError(f"{where} says neither its {missing} nor its environment; name one with --env ENV_ID")
    try:
        return dict(zip(("observation_space", "action_space"), raw_spaces(env), strict=True))
    except UserError as error:
        raise UserError(f"{where} leaves its {missing} to its environment: {error}") from error


def _check_space(space: Any, depth: int) -> None:
    """Limit the size of a described space before Minari builds it: arrays no larger than the text that describes
    them."""
    if depth > _DEEPEST or not isinstance(space, Mapping):
        raise ValueError("it is not a space, or nested too deeply")
    inner = space.get("subspaces") or ()
    for subspace in inner.values() if isinstance(inner, Mapping) else inner:
        _check_space(subspace, depth + 1)
    if space.get("type") != "Box":
        return
    if not _NUMBERS.fullmatch(str(space.get("dtype"))):
        raise ValueError(f"its dtype {str(space.get('dtype'))[:40]!r} is not numeric")
    shape = tuple(space["shape"])
    for bound in ("low", "high"):
        if _shape(space[bound]) != shape:
            raise ValueError(f"{bound} has the shape {_shape(space[bound])}, its shape is {shape}")


def _shape(value: Any) -> tuple[int, ...]:
    """Return the shape of nested lists, by their first items; making the space refuses ragged lists."""
    return (len(value), *(_shape(value[0]) if value else ())) if isinstance(value, list) else ()
