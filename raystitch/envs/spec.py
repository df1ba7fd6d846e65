"""Environments as plain data, enough to make them again.

Data from a file is never code: ``EnvSpec.from_json`` never returns a spec that may import a module, whatever the file
says. Only ``envs.make.spec_from_id`` does, which takes the id that a user has typed.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from raystitch.errors import UserError

# Plain words, or the bare name of a model file, which MuJoCo's environments look up in their own folder.
_PLAIN_TEXT = re.compile(r"[\w +,-]*|[\w-]+\.xml|[+-]?\d+\.\d*")
_DEEPEST = 8


@dataclass(frozen=True, kw_only=True)
class WrapperRecord:
    """One of Gymnasium's wrappers around an environment, by name.

    Attributes:
        name: of the class; ``module:NAME`` where it is not one of Gymnasium's, and cannot be rebuilt then.
        kwargs: arguments beside the environment; None where they were not recorded.
    """

    name: str
    kwargs: Mapping[str, Any] | None = field(default_factory=dict[str, Any])

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "kwargs": None if self.kwargs is None else dict(self.kwargs)}

    @classmethod
    def from_json(cls, value: Any) -> "WrapperRecord":
        """Read a wrapper.

        Raises:
            UserError: for anything but a name and plain arguments.
        """
        kwargs = _mapping(value, "a wrapper").get("kwargs")
        return cls(name=_text(value.get("name"), "a wrapper's name"), kwargs=kwargs and _mapping(kwargs, "kwargs"))

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value}' for name, value in (self.kwargs or {}).items())})"


@dataclass(frozen=True, kw_only=True)
class EnvSpec:
    """An environment as plain data; goes into JSON unchanged.

    Attributes:
        env_id: a Gymnasium id.
        kwargs: keyword arguments of ``gymnasium.make``.
        max_episode_steps: the time limit, None where the environment has none or it is unknown.
        observation_keys: entries of a Dict observation that are concatenated in this order; None for a Box.
        wrappers: applied to the environment in this order, before its observations are flattened.
        reference: (lowest, highest) return that normalised scores refer to, where the data say so.
        evaluation: the environment that the data name for judging policies; None for this one.
        module: of the entry point that was recorded, where it is not Gymnasium's; for advice, never imported.
        named: a user has named the id, so the module of ``module:ID`` may be imported. Never read from a file and never
            written to one.
    """

    env_id: str
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    max_episode_steps: int | None = None
    observation_keys: tuple[str, ...] | None = None
    wrappers: tuple[WrapperRecord, ...] = ()
    reference: tuple[float, float] | None = None
    evaluation: "EnvSpec | None" = None
    module: str | None = None
    named: bool = field(default=False, compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return plain data. Fields that were added later are left out if empty, so that hashes stay the same."""
        value: dict[str, Any] = {
            "env_id": self.env_id,
            "kwargs": dict(self.kwargs),
            "max_episode_steps": self.max_episode_steps,
            "observation_keys": list(self.observation_keys) if self.observation_keys is not None else None,
        }
        if self.wrappers:
            value["wrappers"] = [wrapper.to_json() for wrapper in self.wrappers]
        if self.reference is not None:
            value["reference"] = list(self.reference)
        if self.evaluation is not None:
            value["evaluation"] = self.evaluation.to_json()
        if self.module is not None:
            value["module"] = self.module
        return value

    @classmethod
    def from_json(cls, value: Any) -> "EnvSpec":
        """Read an environment.

        Raises:
            UserError: for anything that ``to_json`` would not have written.
        """
        value = _mapping(value, "an environment")
        keys, wrappers, inner = (value.get(name) for name in ("observation_keys", "wrappers", "evaluation"))
        if inner is not None and _mapping(inner, "the evaluation environment").get("evaluation") is not None:
            raise UserError("an evaluation environment must not name an evaluation environment of its own")
        return cls(
            env_id=_text(value.get("env_id"), "env_id"),
            kwargs=_mapping(value.get("kwargs") or {}, "kwargs"),
            max_episode_steps=step_limit(value.get("max_episode_steps")),
            observation_keys=None if keys is None else tuple(_text(key, "an observation key") for key in _list(keys)),
            wrappers=tuple(WrapperRecord.from_json(wrapper) for wrapper in _list(wrappers or [])),
            reference=reference_returns(value["reference"]) if value.get("reference") is not None else None,
            evaluation=None if inner is None else cls.from_json(inner),
            module=None if value.get("module") is None else _text(value["module"], "module")[:80],
        )

    def for_evaluation(self, max_episode_steps: int | None = None) -> "EnvSpec":
        """Return the environment in which policies are judged, with this time limit if one is given."""
        chosen = self.evaluation or self
        return chosen if max_episode_steps is None else replace(chosen, max_episode_steps=max_episode_steps)

    def __str__(self) -> str:
        return " in ".join([self.env_id, *(str(wrapper) for wrapper in self.wrappers)])


def confirmed_id(recorded: str | None, named: str | None, how: str) -> str | None:
    """Return the id of the environment that a run's folder names, so that ``load_dataset`` takes it as named.

    Args:
        recorded: the id in the folder. named: the id that the user has named, None for none.
        how: the option with which to name it, for the message.

    Raises:
        UserError: when the id has a module that the user has not named too, or the user named another environment.
    """
    if named is not None and named != recorded:
        raise UserError(f"{how}{named}: the run was made in the environment {recorded or 'that its data record'}")
    if recorded is not None and ":" in recorded and named is None:
        raise UserError(
            f"environment {recorded!r} is recorded in a file, and raystitch imports no module that a file names; if "
            f"you trust it, name it yourself: {how}{recorded}"
        )
    return recorded


def step_limit(value: Any) -> int | None:
    """Return a time limit as a whole number; None, -1 and infinity mean no limit.

    Raises:
        UserError: for anything else.
    """
    if value is None or value in (-1, math.inf):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 1 or value != int(value):
        raise UserError(f"max_episode_steps must be a whole number of at least 1, got {value!r}")
    return int(value)


def reference_returns(value: Any) -> tuple[float, float]:
    """Return (lowest, highest) as numbers.

    Raises:
        UserError: unless they are two finite numbers, the first the smaller one.
    """
    numbers = [item for item in _list(value) if isinstance(item, int | float) and math.isfinite(item)]
    if len(_list(value)) != 2 or len(numbers) != 2 or not numbers[0] < numbers[1]:
        raise UserError(f"reference returns must be two numbers, the lower one first, got {str(value)[:80]}")
    return float(numbers[0]), float(numbers[1])


def check_plain(value: Any, where: str) -> None:
    """Refuse arguments that could name code or a file.

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


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{what} must be names and values, got {str(value)[:80]!r}")
    return dict(value)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise UserError(f"expected a list, got {str(value)[:80]!r}")
    return list(value)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise UserError(f"{what} must be a text, got {str(value)[:80]!r}")
    return value
