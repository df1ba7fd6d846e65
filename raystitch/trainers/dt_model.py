"""The Decision Transformer's network (Chen et al. 2021, arXiv 2106.01345).

Legend: S seeds (see ``stacked``), B batch, K time steps, T = 3K tokens (return, state, action of every step), D width,
O observation, A action.

It differs from the paper's code in three ways: no dropout on attention weights; embeddings start at a standard
deviation of 0.02 (GPT-2's, theirs is 1 for time steps); time steps past the largest one trained on share its embedding.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raystitch.trainers.stacked import StackedLayerNorm, StackedLinear

INIT_STD = 0.02
DROPOUT_LEVELS = 2**15


Generators = Sequence[torch.Generator] | None
"""For dropout, one per seed; None switches dropout off."""


def dropout(x: Tensor, rate: float, generators: Generators) -> Tensor:
    """Dropout of [S, ..], none without generators; one random word serves four elements (torch's own costs 10x)."""
    if generators is None or rate == 0:
        return x
    count = x[0].numel()
    words = torch.empty((len(x), (count + 3) // 4), dtype=torch.int64, device=x.device)
    for row, generator in zip(words, generators, strict=True):
        row.random_(-(2**63), None, generator=generator)
    bits = words.view(torch.int16)[:, :count].view(x.shape)
    threshold = round(DROPOUT_LEVELS * (2 * rate - 1))
    return x * (bits >= threshold) * (1 / (1 - rate))


class Block(nn.Module):
    """Pre-norm transformer block. ``queries`` picks the tokens it returns; keys and values come from all of them."""

    def __init__(self, width: int, num_heads: int, rate: float) -> None:
        super().__init__()
        self.num_heads, self.rate = num_heads, rate
        self.norm_1, self.norm_2 = StackedLayerNorm(width), StackedLayerNorm(width)
        self.query, self.key_value = StackedLinear(width, width), StackedLinear(width, 2 * width)
        self.out = StackedLinear(width, width)
        self.up, self.down = StackedLinear(width, 4 * width), StackedLinear(4 * width, width)

    def _heads(self, x_SBTD: Tensor) -> Tensor:
        return x_SBTD.flatten(0, 1).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def forward(self, x_SBTD: Tensor, mask: Tensor, generators: Generators, queries: slice = slice(None)) -> Tensor:
        """``mask`` bool, broadcast to [S * B, 1, T, T], True where a query (row) sees a key (column)."""
        normed = self.norm_1(x_SBTD)
        key, value = self.key_value(normed).chunk(2, -1)
        attended = F.scaled_dot_product_attention(
            self._heads(self.query(normed[:, :, queries])),
            self._heads(key),
            self._heads(value),
            attn_mask=mask[:, :, queries],
        )
        attended = attended.transpose(1, 2).flatten(2).unflatten(0, x_SBTD.shape[:2])
        x = x_SBTD[:, :, queries] + dropout(self.out(attended), self.rate, generators)
        return x + dropout(self.down(F.relu(self.up(self.norm_2(x)), inplace=True)), self.rate, generators)


class DecisionTransformer(nn.Module):
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
    ) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {
            "obs_dim": obs_dim,
            "act_dim": act_dim,
            "width": width,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "context": context,
            "max_time": max_time,
            "rate": rate,
        }
        self.context, self.max_time, self.rate = context, max_time, rate
        self.embed_return = StackedLinear(1, width)
        self.embed_state = StackedLinear(obs_dim, width)
        self.embed_action = StackedLinear(act_dim, width)
        self.embed_time = nn.Parameter(torch.empty(1, max_time + 1, width).normal_(std=INIT_STD))
        self.norm_in, self.norm_out = StackedLayerNorm(width), StackedLayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, num_heads, rate) for _ in range(num_layers))
        self.head = StackedLinear(width, act_dim)
        for block in self.blocks:
            for layer in block.children():
                if isinstance(layer, StackedLinear):
                    nn.init.normal_(layer.weight, std=INIT_STD)
                    nn.init.zeros_(layer.bias)
        causal = torch.ones(3 * context, 3 * context, dtype=torch.bool).tril()
        self.register_buffer("causal", causal, persistent=False)
        self.causal: Tensor

    def forward(
        self,
        obs_SBKO: Tensor,
        action_SBKA: Tensor,
        rtg_SBK: Tensor,
        time_SBK: Tensor,
        valid_SBK: Tensor | None = None,
        generators: Generators = None,
    ) -> Tensor:
        """Predicted actions in [-1, 1], [S, B, K, A]; each sees returns and states up to its own step, actions before.

        Args:
            valid_SBK: bool, False for padding, which nothing attends to; None for no padding.
        """
        seeds, batch, steps = rtg_SBK.shape
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
        mask = self.causal[None, None, : 3 * steps, : 3 * steps]
        if valid_SBK is not None:
            # A padded token still sees itself: a row of nothing but -inf would turn into NaN.
            seen = valid_SBK.flatten(0, 1).repeat_interleave(3, dim=1)[:, None, None, :]
            mask = mask & (seen | torch.eye(3 * steps, dtype=torch.bool, device=x.device))
        for block in self.blocks[:-1]:
            x = block(x, mask, generators)
        states = self.blocks[-1](x, mask, generators, queries=slice(1, None, 3))
        return torch.tanh(self.head(self.norm_out(states)))

    def _times(self, time_SBK: Tensor) -> Tensor:
        """Embeddings of time steps, each seed's own, [S, B, K, D]."""
        seeds, rows, width = self.embed_time.shape
        own = torch.arange(seeds, device=time_SBK.device)[:, None, None] * rows
        return F.embedding(time_SBK.clamp(max=self.max_time) + own, self.embed_time.view(seeds * rows, width))
