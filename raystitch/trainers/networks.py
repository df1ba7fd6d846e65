"""The small MLPs of TD3+BC, IQL and BC, of S seeds each. Legend: S seeds, B batch, O observation, A action."""

from typing import Any

import torch
from torch import Tensor, nn

from raystitch.trainers.mlp import StackedMLP


class Actor(nn.Module):
    """Deterministic tanh policy: standardised observations [S, B, O] to actions in [-1, 1], [S, B, A]."""

    def __init__(self, *, obs_dim: int, act_dim: int, hidden: int, num_layers: int, bf16: bool = False) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {
            "obs_dim": obs_dim,
            "act_dim": act_dim,
            "hidden": hidden,
            "num_layers": num_layers,
        }
        self.net = StackedMLP(obs_dim, act_dim, hidden, num_layers, bf16=bf16)

    def forward(self, obs: Tensor) -> Tensor:
        return torch.tanh(self.net(obs))


class TwinCritic(nn.Module):
    """Two Q(s, a) per seed: [S, B, O] and [S, B, A] to [S, 2, B]."""

    def __init__(self, *, obs_dim: int, act_dim: int, hidden: int, num_layers: int, bf16: bool = False) -> None:
        super().__init__()
        self.net = StackedMLP(obs_dim + act_dim, 1, hidden, num_layers, stack=(1, 2), bf16=bf16)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        x = torch.cat([obs, action], -1)
        return self.net(x[:, None].expand(-1, 2, -1, -1)).squeeze(-1)

    def first(self, obs: Tensor, action: Tensor) -> Tensor:
        """The first of the two alone, [S, B], for the gradients of what goes in."""
        return self.net.of(torch.cat([obs, action], -1), 0).squeeze(-1)
