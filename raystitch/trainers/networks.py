"""The small MLPs of TD3+BC and BC."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


def mlp(in_dim: int, out_dim: int, hidden: int, num_layers: int) -> nn.Sequential:
    """``num_layers`` hidden ReLU layers, then a linear one."""
    sizes = [in_dim] + [hidden] * num_layers
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], out_dim))


class Actor(nn.Module):
    """Deterministic tanh policy: standardised observations [B, O] to actions in [-1, 1], [B, A]."""

    def __init__(self, *, obs_dim: int, act_dim: int, hidden: int, num_layers: int) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {
            "obs_dim": obs_dim,
            "act_dim": act_dim,
            "hidden": hidden,
            "num_layers": num_layers,
        }
        self.net = mlp(obs_dim, act_dim, hidden, num_layers)

    def forward(self, obs: Tensor) -> Tensor:
        return torch.tanh(self.net(obs))


class Critic(nn.Module):
    """Q(s, a): [B, O] and [B, A] to [B]."""

    def __init__(self, *, obs_dim: int, act_dim: int, hidden: int, num_layers: int) -> None:
        super().__init__()
        self.net = mlp(obs_dim + act_dim, 1, hidden, num_layers)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        return self.net(torch.cat([obs, action], -1)).squeeze(-1)
