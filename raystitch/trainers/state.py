"""What an algorithm carries from step to step, and what the training loop needs to know about an algorithm."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raystitch.trainers.batches import Kind, TrainData
from raystitch.trainers.policy import Policy, PolicyMeta
from raystitch.trainers.ratio import Ratio

Metrics = dict[str, Tensor]


@dataclass(kw_only=True)
class TrainState:
    """Networks and optimisers as attributes of a subclass; ``step`` counts the updates done."""

    step: int = 0

    def parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        return {name: part for name, part in vars(self).items() if isinstance(part, nn.Module | torch.optim.Optimizer)}

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, **{name: part.state_dict() for name, part in self.parts().items()}}

    def load_state_dict(self, value: dict[str, Any]) -> None:
        self.step = value["step"]
        for name, part in self.parts().items():
            part.load_state_dict(value[name])


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """One offline RL algorithm.

    Attributes:
        kind: what its batches are.
        create: (data, ratio, config) -> state; initialises from torch's global generator, which the loop seeds.
        update: (state, batch, config, generator) -> losses, as tensors; advances ``state`` by one step in place.
        policy_network: state -> the network that acts and the arguments that build it again.
        network: builds that network from those arguments.
        policy: (meta, network) -> Policy.
    """

    kind: Kind
    create: Callable[[TrainData, Ratio, Any], Any]
    update: Callable[[Any, Any, Any, torch.Generator], Metrics]
    policy_network: Callable[[Any], tuple[nn.Module, dict[str, Any]]]
    network: Callable[..., nn.Module]
    policy: Callable[[PolicyMeta, nn.Module], Policy]
