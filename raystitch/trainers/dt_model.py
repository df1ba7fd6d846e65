"""The Decision Transformer's network (Chen et al. 2021, arXiv 2106.01345).

Legend: S seeds (see ``stacked``), B batch, K time steps, T = 3K tokens (return, state, action of every step), D width,
O observation, A action.

It differs from the paper's code in two ways: embeddings of time steps start at a standard deviation of 0.02 (GPT-2's;
theirs is 1); time steps past the largest one trained on share its embedding.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raystitch.trainers.stacked import ActingNetwork, StackedLayerNorm, StackedLinear

INIT_STD = 0.02
DROPOUT_LEVELS = 2**15

Generators = Sequence[torch.Generator] | None
"""Generators of dropout, one per seed; None switches dropout off."""


def kept(x: Tensor, rate: float, generators: Generators) -> Tensor | None:
    """Return the factors of dropout for ``x`` [S, ..], 0 or 1 / (1 - rate); None without generators, for none.

    One random word serves four elements (torch's own dropout costs 10x).
    """
    if generators is None or rate == 0:
        return None
    count = x[0].numel()
    words = torch.empty((len(x), (count + 3) // 4), dtype=torch.int64, device=x.device)
    for row, generator in zip(words, generators, strict=True):
        row.random_(-(2**63), None, generator=generator)
    keep = words.view(torch.int16)[:, :count].view(x.shape) >= round(DROPOUT_LEVELS * (2 * rate - 1))
    return keep.to(x.dtype).mul_(1 / (1 - rate))


def dropout(x: Tensor, rate: float, generators: Generators) -> Tensor:
    keep = kept(x, rate, generators)
    return x if keep is None else x * keep


def add_dropout(x: Tensor, change: Tensor, rate: float, generators: Generators) -> Tensor:
    """Return x + dropout(change) in the type of ``x``, in one pass."""
    keep = kept(x, rate, generators)
    return x + change if keep is None else torch.addcmul(x, change.to(x.dtype), keep)


class TransformerBlock(nn.Module):
    """Pre-norm transformer block on [S, B, T, D]; with ``bf16`` all of it but norms and residuals is in bf16."""

    def __init__(self, width: int, num_heads: int, rate: float, bf16: bool) -> None:
        super().__init__()
        self.num_heads, self.rate, self.bf16 = num_heads, rate, bf16
        self.norm_1, self.norm_2 = StackedLayerNorm(width), StackedLayerNorm(width)
        self.query, self.key_value = StackedLinear(width, width), StackedLinear(width, 2 * width)
        self.out = StackedLinear(width, width)
        self.up, self.down = StackedLinear(width, 4 * width), StackedLinear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor, generators: Generators, queries: slice = slice(None)) -> Tensor:
        """Return the tokens that ``queries`` picks; keys and values come from all of them.

        Args:
            mask: [T, T], added to the scores: -inf where a query (row) must not see a key (column).
        """
        normed = self._normed(self.norm_1, x)
        key, value = self.key_value(normed, bf16=self.bf16).chunk(2, -1)
        query = self.query(normed[:, :, queries], bf16=self.bf16)
        change = self.out(self._attend(query, key, value, mask[queries], generators), bf16=self.bf16)
        x = add_dropout(x[:, :, queries], change, self.rate, generators)
        change = self.down(self.up(self._normed(self.norm_2, x), bf16=self.bf16, relu=True), bf16=self.bf16)
        return add_dropout(x, change, self.rate, generators)

    def _normed(self, norm: nn.Module, x: Tensor) -> Tensor:
        return norm(x).bfloat16() if self.bf16 else norm(x)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, generators: Generators) -> Tensor:
        """Attend; torch's fused attention is no faster at this length, and in bf16 on a CPU much slower."""
        shape = query.shape
        query, key, value = (self._heads(part) for part in (query, key, value))
        bias = mask.to(query.dtype).expand(len(query), -1, -1)
        weight = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=query.shape[-1] ** -0.5).softmax(-1)
        weight = dropout(weight.unflatten(0, (shape[0], -1)), self.rate, generators).flatten(0, 1)
        attended = torch.bmm(weight, value)
        return attended.unflatten(0, (-1, self.num_heads)).transpose(1, 2).reshape(shape)

    def _heads(self, x_SBTD: Tensor) -> Tensor:
        """Split the heads: [S, B, T, D] to [S * B * heads, T, D / heads]."""
        return x_SBTD.flatten(0, 1).unflatten(-1, (self.num_heads, -1)).transpose(1, 2).flatten(0, 1)


class FourierFeatures(nn.Module):
    """Observations with sines and cosines of random projections beside them (Tancik et al. 2020, arXiv 2006.10739).

    The projections are the same for every seed and every policy of one size: they are part of the network's form.
    """

    COUNT = 32
    """Frequencies."""

    def __init__(self, obs_dim: int, std: float) -> None:
        super().__init__()
        drawn = torch.randn((obs_dim, self.COUNT), generator=torch.Generator().manual_seed(0))
        self.register_buffer("frequency", 2 * math.pi * std * drawn, persistent=False)
        self.frequency: Tensor
        self.size = obs_dim + 2 * self.COUNT

    def forward(self, obs: Tensor) -> Tensor:
        """Return features of standardised observations: [.., O] to [.., O + 2 COUNT]."""
        angle = obs @ self.frequency
        return torch.cat([obs, angle.sin(), angle.cos()], -1)


class DecisionTransformer(ActingNetwork):
    """Actions from (return-to-go, state, action) histories; only state tokens leave the last block."""

    def __init__(
        self,
        *,
        obs_dim: int,
        act_dim: int,
        width: int,
        num_layers: int,
        num_heads: int,
        context: int,
        max_time: int,
        rate: float,
        bf16: bool = False,
        fourier: float = 0.0,
    ) -> None:
        """Take the sizes, the rate of dropout, ``max_time``, the largest time step with an embedding of its own, and
        the standard deviation of the frequencies of Fourier features."""
        super().__init__()
        self.arguments = {
            "obs_dim": obs_dim,
            "act_dim": act_dim,
            "width": width,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "context": context,
            "max_time": max_time,
            "rate": rate,
            **({"fourier": fourier} if fourier else {}),
        }
        self.context, self.max_time, self.rate = context, max_time, rate
        self.embed_return = StackedLinear(1, width)
        self.features = FourierFeatures(obs_dim, fourier) if fourier else None
        self.embed_state = StackedLinear(obs_dim if self.features is None else self.features.size, width)
        self.embed_action = StackedLinear(act_dim, width)
        self.embed_time = nn.Parameter(torch.empty(1, max_time + 1, width).normal_(std=INIT_STD))
        self.norm_in, self.norm_out = StackedLayerNorm(width), StackedLayerNorm(width)
        self.blocks = nn.ModuleList(TransformerBlock(width, num_heads, rate, bf16) for _ in range(num_layers))
        self.head = StackedLinear(width, act_dim)
        for block in self.blocks:
            for layer in block.children():
                if isinstance(layer, StackedLinear):
                    nn.init.normal_(layer.weight, std=INIT_STD)
                    nn.init.zeros_(layer.bias)
        future = torch.full((3 * context, 3 * context), -torch.inf).triu(1)
        self.register_buffer("future", future, persistent=False)
        self.future: Tensor

    def forward(
        self,
        obs_SBKO: Tensor,
        action_SBKA: Tensor,
        rtg_SBK: Tensor,
        time_SBK: Tensor,
        generators: Generators = None,
    ) -> Tensor:
        """Predict actions in [-1, 1], [S, B, K, A]; each sees returns and states up to its own step, actions before.

        Windows are padded at their end, where no step before sees the padding.
        """
        seeds, batch, steps = rtg_SBK.shape
        if self.features is not None:
            obs_SBKO = self.features(obs_SBKO)
        time = self._times(time_SBK)
        tokens = torch.stack(
            [
                self.embed_return(rtg_SBK[..., None]) + time,
                self.embed_state(obs_SBKO) + time,
                self.embed_action(action_SBKA) + time,
            ],
            dim=3,
        )
        x = dropout(self.norm_in(tokens.view(seeds, batch, 3 * steps, -1)), self.rate, generators)
        mask = self.future[: 3 * steps, : 3 * steps]
        for block in self.blocks[:-1]:
            x = block(x, mask, generators)
        states = self.blocks[-1](x, mask, generators, queries=slice(1, None, 3))
        return torch.tanh(self.head(self.norm_out(states)))

    def _times(self, time_SBK: Tensor) -> Tensor:
        """Return the embeddings of time steps, each seed's own, [S, B, K, D]."""
        seeds, rows, width = self.embed_time.shape
        own = torch.arange(seeds, device=time_SBK.device)[:, None, None] * rows
        return F.embedding(time_SBK.clamp(max=self.max_time) + own, self.embed_time.view(seeds * rows, width))
