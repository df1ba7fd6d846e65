"""What it takes to make an environment again, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class EnvSpec:
    """An environment as plain data; goes into JSON unchanged.

    Attributes:
        env_id: a Gymnasium id.
        kwargs: keyword arguments of ``gymnasium.make``.
        max_episode_steps: the time limit, None where the environment has none or it is unknown.
        observation_keys: entries of a Dict observation that are concatenated in this order; None for a Box.
    """

    env_id: str
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    max_episode_steps: int | None = None
    observation_keys: tuple[str, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "env_id": self.env_id,
            "kwargs": dict(self.kwargs),
            "max_episode_steps": self.max_episode_steps,
            "observation_keys": list(self.observation_keys) if self.observation_keys is not None else None,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "EnvSpec":
        keys = value.get("observation_keys")
        return cls(
            env_id=value["env_id"],
            kwargs=dict(value.get("kwargs") or {}),
            max_episode_steps=value.get("max_episode_steps"),
            observation_keys=None if keys is None else tuple(keys),
        )
