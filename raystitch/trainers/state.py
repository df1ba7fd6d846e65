"""The state that an algorithm carries from step to step, and the ``Algorithm`` that the training loop runs."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raystitch.trainers.batches import TrainData
from raystitch.trainers.config import Kind
from raystitch.trainers.policy import Policy, PolicyMeta
from raystitch.trainers.ratio import Ratio
from raystitch.trainers.stacked import ActingNetwork

Metrics = dict[str, Tensor]
"""Values by name, [S] each: one per seed."""


@dataclass(kw_only=True)
class TrainState:
    """Networks and optimisers of S seeds as attributes of a subclass; ``step`` counts the updates done."""

    step: int = 0

    def parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """Return the networks and optimisers by attribute."""
        return {name: part for name, part in vars(self).items() if isinstance(part, nn.Module | torch.optim.Optimizer)}

    def state_dict(self, index: int) -> dict[str, Any]:
        """Return the state of seed ``index``, as if it had been trained alone."""
        return {
            "step": self.step,
            **{name: _map(part.state_dict(), lambda x: x[index : index + 1]) for name, part in self.parts().items()},
        }

    def load_state_dicts(self, values: Sequence[Mapping[str, Any]]) -> None:
        """Take on the states of all seeds, each as ``state_dict`` gave it, all at the same step."""
        self.step = values[0]["step"]
        assert all(value["step"] == self.step for value in values)
        for name, part in self.parts().items():
            part.load_state_dict(_join([value[name] for value in values]))


def _map(value: Any, of: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``of`` to every tensor that has dimensions: the first one counts seeds."""
    if isinstance(value, dict):
        return {key: _map(item, of) for key, item in value.items()}
    return of(value) if isinstance(value, Tensor) and value.dim() else value


def _join(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, dict):
        return {key: _join([value[key] for value in values]) for key in first}
    return torch.cat([*values]) if isinstance(first, Tensor) and first.dim() else first


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """One offline RL algorithm, written for S seeds side by side (see ``stacked``).

    Attributes:
        kind: what its batches are; for sequences the settings' ``data_needs`` name a ``context``.
        networks: (data, ratio, config) -> the networks of one seed by name; initialises from torch's global generator,
            which the loop seeds.
        create: (the stacked networks, config) -> state.
        update: (state, batch, config, generators) -> metrics; advances ``state`` by one step in place. Seed s draws
            from ``generators[s]`` only.
        actor: state -> the stacked networks that act; their ``arguments`` build one of them again.
        network: builds that network, of one seed, from those arguments.
        policy: (meta, network) -> Policy.
        prepare: (data, config, generators) -> the data to train on, None for those given. Runs before the networks are
            made, and again when a run is resumed: it must be a function of its arguments. There is one generator per
            seed, other than that of its batches; what one seed gets must not depend on the others.
    """

    kind: Kind
    networks: Callable[[TrainData, Ratio, Any], dict[str, nn.Module]]
    create: Callable[[Mapping[str, nn.Module], Any], Any]
    update: Callable[[Any, Any, Any, Sequence[torch.Generator]], Metrics]
    actor: Callable[[Any], ActingNetwork]
    network: Callable[..., nn.Module]
    policy: Callable[[PolicyMeta, nn.Module], Policy]
    prepare: Callable[[TrainData, Any, Sequence[torch.Generator]], TrainData | None] | None = None


def apply_gradients(optimizer: torch.optim.Optimizer, network: nn.Module, losses: Tensor) -> None:
    """Do one step of ``network`` alone on its seeds' ``losses`` [S]: the gradients of other networks in the graph are
    not computed."""
    parameters = list(network.parameters())
    for parameter, gradient in zip(parameters, torch.autograd.grad(losses.sum(), parameters), strict=True):
        parameter.grad = gradient
    optimizer.step()


def decay_rate(optimizer: torch.optim.Optimizer, rate: float, step: int, train_steps: int) -> None:
    """Set the learning rate to ``rate`` with cosine decay to nothing at ``train_steps``; ``step`` counts the updates
    done before this one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * (1 + math.cos(math.pi * step / train_steps)) / 2


def normal(shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """Draw standard normal numbers [S, ..], each seed its own."""
    return torch.stack([torch.randn(shape[1:], device=g.device, generator=g) for g in generators])
