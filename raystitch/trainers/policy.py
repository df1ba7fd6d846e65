"""Policies as they act and as they are stored: a network, and the units around it.

Legend: B environments, O observation size, A action size.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raystitch.data.episodes import Floats
from raystitch.envs.spec import EnvSpec
from raystitch.io.digest import sealed
from raystitch.io.files import atomic_path, write_json

SCHEMA_VERSION = 1

Asked = float | Literal["max"] | None
"""The return that a policy is asked for: in raw units; ``max``, the largest one that the data promise at every state
(``prompt``); None, what the policy asks for by itself."""

MAX = "max"


@dataclass(frozen=True, kw_only=True)
class ReturnRule:
    """How a return that is asked for goes on from step to step, where it is not a plain sum of rewards.

    Attributes:
        gamma: discount, R_{t+1} = (R_t - r_t) / gamma.
        low, high: smallest and largest return-to-go of the training data, raw units. What is asked for stays within:
            with gamma < 1 any difference between promise and reward would grow without end.
    """

    gamma: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, eq=False)
class PolicyMeta:
    """Everything that a policy needs besides its weights.

    Attributes:
        algo: key of ``ALGORITHMS``.
        network: arguments of the algorithm's network.
        obs_mean, obs_std: float32 [O], of the original data; action_low, action_high: float32 [A].
        rtg_scale, return_max: largest absolute and largest return of the original data, raw units.
        env: the environment of the training data, None when unknown.
        record: what it was trained on and how, for the reader.
        return_rule: None where returns-to-go are sums of rewards.
    """

    algo: str
    network: Mapping[str, Any]
    obs_mean: Floats
    obs_std: Floats
    action_low: Floats
    action_high: Floats
    rtg_scale: float
    return_max: float
    env: EnvSpec | None = None
    record: Mapping[str, Any] = field(default_factory=dict[str, Any])
    return_rule: ReturnRule | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``policy.json``."""
        later = {} if self.return_rule is None else {"return_rule": asdict(self.return_rule)}
        return {
            "algo": self.algo,
            "network": dict(self.network),
            "obs_mean": [float(value) for value in self.obs_mean],
            "obs_std": [float(value) for value in self.obs_std],
            "action_low": [float(value) for value in self.action_low],
            "action_high": [float(value) for value in self.action_high],
            "rtg_scale": self.rtg_scale,
            "return_max": self.return_max,
            "env": None if self.env is None else self.env.to_json(),
            "record": dict(self.record),
            **later,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "PolicyMeta":
        """Read what ``to_json`` returned."""
        arrays = ("obs_mean", "obs_std", "action_low", "action_high")
        plain = ("algo", "network", "rtg_scale", "return_max", "record")
        return cls(
            **{name: np.asarray(value[name], np.float32) for name in arrays},
            **{name: value[name] for name in plain},
            env=None if value["env"] is None else EnvSpec.from_json(value["env"]),
            return_rule=None if value.get("return_rule") is None else ReturnRule(**value["return_rule"]),
        )


class Policy(ABC):
    """Deterministic actions for B environments side by side, raw units in and out.

    Call ``reset`` before the first action, then ``act`` and ``observe`` in turn; ``keep`` drops those that ended.
    """

    uses_target_return = False

    def __init__(self, meta: PolicyMeta, network: nn.Module) -> None:
        self.meta, self.network = meta, network
        device = next(network.parameters()).device
        self._mean, self._std = (torch.as_tensor(x, device=device) for x in (meta.obs_mean, meta.obs_std))
        low, high = (torch.as_tensor(x, device=device) for x in (meta.action_low, meta.action_high))
        self._centre, self._half_range = (low + high) / 2, (high - low) / 2

    @property
    def obs_dim(self) -> int:
        """The size of an observation, O."""
        return len(self.meta.obs_mean)

    @property
    def act_dim(self) -> int:
        """The size of an action, A."""
        return len(self.meta.action_low)

    @property
    def default_target(self) -> Asked:
        """What is asked for where nothing is named."""
        return None

    @property
    def asked_beside(self) -> tuple[Asked, ...]:
        """What is evaluated besides the returns that are named, as results of its own."""
        return ()

    @torch.inference_mode()
    def act(self, obs_BO: NDArray[Any]) -> Floats:
        """Return actions within the bounds, float32 [B, A]."""
        obs = torch.as_tensor(np.asarray(obs_BO, np.float32), device=self._mean.device)
        unit_BA = self._act_unit((obs - self._mean) / self._std).clamp(-1, 1)
        return (self._centre + self._half_range * unit_BA).cpu().numpy()

    @abstractmethod
    def reset(self, num_envs: int, target_return: Asked = None) -> None:
        """Start ``num_envs`` episodes; ``target_return`` is in raw units."""

    @abstractmethod
    def observe(self, reward_B: NDArray[Any]) -> None:
        """Take the rewards of the last actions, [B]."""

    @abstractmethod
    def keep(self, rows: NDArray[np.int64]) -> None:
        """Go on with these environments only."""

    @abstractmethod
    def _act_unit(self, obs_BO: Tensor) -> Tensor:
        """Map standardised observations to actions in [-1, 1]."""

    def save(self, folder: str | Path) -> None:
        """Write ``policy.safetensors``, then ``policy.json`` with its hash: without it there is no policy. Both
        are on the disk when this returns."""
        from safetensors.torch import save  # policies are trained where it is not installed

        weights = save({name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()})
        folder = Path(folder)
        with atomic_path(folder / "policy.safetensors") as temporary:
            temporary.write_bytes(weights)
        hash = "sha256:" + hashlib.sha256(weights).hexdigest()
        content = {"schema_version": SCHEMA_VERSION, "hash": hash, **self.meta.to_json()}
        write_json(folder / "policy.json", sealed(content))


class MarkovPolicy(Policy):
    """A policy that looks at the present observation only."""

    def reset(self, num_envs: int, target_return: Asked = None) -> None:
        pass

    def observe(self, reward_B: NDArray[Any]) -> None:
        pass

    def keep(self, rows: NDArray[np.int64]) -> None:
        pass

    def _act_unit(self, obs_BO: Tensor) -> Tensor:
        return self.network(obs_BO[None])[0]
