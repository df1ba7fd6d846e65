"""ReLU networks side by side, with a backward pass of their own and all weights of one in a single row.

Autograd would do the same with three times the calls. One parameter keeps the optimiser and the blending of targets
at one call each. Narrow results are made the other way round, [few, many] instead of [many, few]: a BLAS is several
times slower on the latter. Legend: N networks, R rows, I inputs, H hidden units, A outputs, P weights of one network.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from raystitch.trainers.stacked import ActingNetwork

PADDED = 16
"""Weights per network are rounded up to whole cache lines."""

Layer = tuple[Tensor, Tensor]
"""Weight [N, in, out], of the last layer [N, out, in], and bias [N, 1, out], of the last layer [N, out, 1]."""


def views(weights: Tensor, sizes: Sequence[int]) -> list[Layer]:
    """Return the layers in ``weights`` [N, P]: all matrices first, so that they stay aligned, then the biases."""
    count, last = len(weights), len(sizes) - 2
    pairs = [*pairwise(sizes)]
    lengths = [inputs * outputs for inputs, outputs in pairs] + [outputs for _, outputs in pairs]
    pieces = weights.split([*lengths, weights.shape[1] - sum(lengths)], 1)
    matrices, biases = pieces[: last + 1], pieces[last + 1 : -1]
    layers = [
        (matrix.view(count, *pair), bias.view(count, 1, -1))
        for matrix, bias, pair in zip(matrices[:-1], biases[:-1], pairs[:-1], strict=True)
    ]
    return [*layers, (matrices[-1].view(count, sizes[-1], sizes[-2]), biases[-1].view(count, -1, 1))]


class _Through(torch.autograd.Function):
    """The networks as one function of x [N, R, I], weights [N, P], sizes and bf16 to [N, A, R]; once differentiable."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, sizes: Sequence[int], bf16: bool) -> Tensor:
        layers = views(weights, sizes)
        hidden, rounded = [x], []
        for at, (weight, bias) in enumerate(layers[:-1]):
            if bf16 and at:
                factors = hidden[-1].bfloat16(), weight.bfloat16()
                rounded += factors
                hidden.append(torch.add(torch.bmm(*factors), bias).relu_())
            else:
                hidden.append(torch.baddbmm(bias, hidden[-1], weight).relu_())
        ctx.save_for_backward(weights, *hidden, *rounded)
        ctx.sizes, ctx.bf16 = sizes, bf16
        weight, bias = layers[-1]
        return torch.baddbmm(bias, weight, hidden[-1].mT)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        depth = len(ctx.sizes) - 1
        weights, *saved = ctx.saved_tensors
        hidden, rounded = saved[:depth], saved[depth:]
        layers = views(weights, ctx.sizes)
        wanted = ctx.needs_input_grad[1]
        found = torch.empty(weights.shape, device=weights.device) if wanted else None
        if found is not None:
            found[:, -PADDED:] = 0  # what pads the rows
        into = views(found, ctx.sizes) if found is not None else None
        of_out = gradients[0]
        if into is not None:
            torch.bmm(of_out, hidden[-1], out=into[-1][0])
            torch.sum(of_out, -1, keepdim=True, out=into[-1][1])
        last = layers[-1][0]
        grad = of_out.mT * last if last.shape[1] == 1 else torch.bmm(of_out.mT, last)
        for at in range(depth - 2, -1, -1):
            torch.ops.aten.threshold_backward(grad, hidden[at + 1], 0, grad_input=grad)
            bf16 = ctx.bf16 and at > 0
            low = grad.bfloat16() if bf16 else grad
            left, right = rounded[2 * at - 2 : 2 * at] if bf16 else (hidden[at], layers[at][0])
            if into is not None:
                torch.sum(grad, 1, keepdim=True, out=into[at][1])
                if bf16:
                    into[at][0].copy_(torch.bmm(left.mT, low))
                else:
                    torch.bmm(left.mT, low, out=into[at][0])
            if at:
                grad = torch.bmm(low, right.mT).float() if bf16 else torch.bmm(low, right.mT)
        of_x = torch.bmm(layers[0][0], grad.mT).mT if ctx.needs_input_grad[0] else None
        return of_x, found, None, None


class StackedMLP(nn.Module):
    """Hidden ReLU layers, then a linear one: [*stack, R, in] to [*stack, R, out]; starts as ``nn.Linear`` does."""

    def __init__(
        self, in_dim: int, out_dim: int, hidden: int, num_layers: int, stack: tuple[int, ...] = (1,), bf16: bool = False
    ) -> None:
        """Take the sizes; ``bf16`` is for the products between hidden layers, the first and the last stay exact."""
        super().__init__()
        self.sizes, self.bf16 = (in_dim, *[hidden] * num_layers, out_dim), bf16
        pairs = [*pairwise(self.sizes)]
        count = sum((inputs + 1) * outputs for inputs, outputs in pairs)
        weights = torch.zeros(*stack, -(-count // PADDED) * PADDED)
        for (weight, bias), (inputs, _) in zip(
            views(weights.view(-1, weights.shape[-1]), self.sizes), pairs, strict=True
        ):
            weight.uniform_(-(inputs**-0.5), inputs**-0.5)
            bias.uniform_(-(inputs**-0.5), inputs**-0.5)
        self.weights = nn.Parameter(weights)

    def layers(self) -> list[Layer]:
        """Return views of the weights, networks flattened; detached."""
        return views(self.weights.detach().view(-1, self.weights.shape[-1]), self.sizes)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, self.weights.dim() - 2)
        out = _Through.apply(rows, self.weights.view(-1, self.weights.shape[-1]), self.sizes, self.bf16)
        return out.mT.view(*x.shape[:-1], self.sizes[-1])

    def of(self, x: Tensor, index: int) -> Tensor:
        """Return the output of network ``index`` of the second stacked dimension for ``x`` [S, R, in].

        Only ``x`` gets gradients.
        """
        return _Through.apply(x, self.weights.detach()[:, index], self.sizes, self.bf16).mT


class Actor(ActingNetwork):
    """Deterministic tanh policy: standardised observations [S, B, O] to actions in [-1, 1], [S, B, A]."""

    def __init__(self, *, obs_dim: int, act_dim: int, hidden: int, num_layers: int, bf16: bool = False) -> None:
        super().__init__()
        self.arguments = {
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
        """Return the first of the two alone, [S, B], with gradients of the inputs alone."""
        return self.net.of(torch.cat([obs, action], -1), 0).squeeze(-1)
