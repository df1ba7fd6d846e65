"""Layers of several networks at once: the seeds of one configuration, trained side by side.

Every parameter has a leading dimension S, one slice per seed, and every product is a batched one. Nothing mixes the
slices, so the gradient of a sum of losses is each seed's own, and a seed comes out the same alone or among others, up
to float error. Legend: S seeds, D width.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


class ActingNetwork(nn.Module):
    """A network that a policy acts with; ``arguments`` build it again."""

    arguments: Mapping[str, Any]


class StackedLinear(nn.Module):
    """y = x W + b per slice: [S, .., in] to [S, .., out]; starts as ``nn.Linear`` does."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        bound = in_dim**-0.5
        self.weight = nn.Parameter(torch.empty(1, in_dim, out_dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(1, 1, out_dim).uniform_(-bound, bound))

    def forward(self, x: Tensor, *, bf16: bool = False, relu: bool = False) -> Tensor:
        """Return x W + b, with ``relu`` its positive part. With ``bf16`` the product's factors are rounded to bf16; the
        result has the type of ``x``."""
        rows = x.flatten(1, -2)
        if bf16:
            factors = (self.bias.bfloat16(), rows.bfloat16(), self.weight.bfloat16())
            product = torch.baddbmm(*factors).to(x.dtype)
        else:
            product = torch.baddbmm(self.bias, rows, self.weight)
        if relu:
            # Before the view: in place on a view, the backward pass would copy every gradient.
            product = F.relu(product, inplace=True)
        return product.view(*x.shape[:-1], product.shape[-1])


class StackedLayerNorm(nn.Module):
    """Layer norm over the last dimension, [S, .., D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(1, width)), nn.Parameter(torch.zeros(1, width))

    def forward(self, x: Tensor) -> Tensor:
        width = (x.shape[-1],)
        if len(self.weight) == 1:
            return F.layer_norm(x, width, self.weight[0], self.bias[0])
        shape = (len(x), *[1] * (x.dim() - 2), x.shape[-1])
        return torch.addcmul(self.bias.view(shape), F.layer_norm(x, width), self.weight.view(shape))


def stack(networks: Sequence[Network]) -> Network:
    """Return networks of one seed each as one network of all seeds."""
    whole = copy.deepcopy(networks[0])
    for name, parameter in whole.named_parameters():
        parameter.data = torch.cat([network.get_parameter(name).data for network in networks])
    return whole


def unstack(network: Network, index: int) -> Network:
    """Return a copy of the network of seed ``index``."""
    one = copy.deepcopy(network)
    for parameter in one.parameters():
        parameter.data = parameter.data[index : index + 1].clone()
    return one


def in_turn(network: Network) -> list[Network]:
    """Return the network of every seed on its own, in the same memory: parameters and gradients are slices of
    ``network``'s. For training on a CPU, where large layers of all seeds at once would not fit its caches."""
    whole = dict(network.named_parameters())
    for parameter in whole.values():
        parameter.grad = torch.zeros_like(parameter)
    singles: list[Network] = []
    for index in range(len(next(iter(whole.values())))):
        single = copy.deepcopy(network)
        for name, parameter in single.named_parameters():
            parameter.data = whole[name].data[index : index + 1]
            gradient = whole[name].grad
            assert gradient is not None
            parameter.grad = gradient[index : index + 1]
        singles.append(single)
    return singles


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """Scale each seed's gradient down to ``max_norm`` and return the norms before, [S]."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
    scale = (max_norm / (norms + 1e-6)).clamp_(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale.view(-1, *[1] * (gradient.dim() - 1)))
    return norms
