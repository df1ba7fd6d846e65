"""The Decision Transformer's network (Chen et al. 2021, arXiv 2106.01345).

Legend: B batch, K time steps, S = 3K tokens (return, state, action of every step), D width, O observation, A action.

It differs from the paper's code in three ways: no dropout on attention weights; embeddings start at a standard
deviation of 0.02 (GPT-2's, theirs is 1 for time steps); time steps past the largest one trained on share its embedding.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INIT_STD = 0.02
DROPOUT_LEVELS = 2**15


def dropout(x: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """Dropout from ``generator``, none without one; one random word serves four elements (torch's own costs 10x)."""
    if generator is None or rate == 0:
        return x
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device)
    words.random_(-(2**63), None, generator=generator)
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)
    threshold = round(DROPOUT_LEVELS * (2 * rate - 1))
    return x * (bits >= threshold) * (1 / (1 - rate))


class Block(nn.Module):
    """Pre-norm transformer block. ``queries`` picks the tokens it returns; keys and values come from all of them."""

    def __init__(self, width: int, num_heads: int, rate: float) -> None:
        super().__init__()
        self.num_heads, self.rate = num_heads, rate
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def _heads(self, x_BSD: Tensor) -> Tensor:
        return x_BSD.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def forward(
        self, x_BSD: Tensor, mask: Tensor, generator: torch.Generator | None, queries: slice = slice(None)
    ) -> Tensor:
        """``mask`` bool, broadcast to [B, 1, S, S], True where a query (row) sees a key (column)."""
        normed = self.norm_1(x_BSD)
        key, value = self.key_value(normed).chunk(2, -1)
        attended = F.scaled_dot_product_attention(
            self._heads(self.query(normed[:, queries])),
            self._heads(key),
            self._heads(value),
            attn_mask=mask[:, :, queries],
        )
        x = x_BSD[:, queries] + dropout(self.out(attended.transpose(1, 2).flatten(2)), self.rate, generator)
        return x + dropout(self.down(F.relu(self.up(self.norm_2(x)), inplace=True)), self.rate, generator)


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
        self.embed_return = nn.Linear(1, width)
        self.embed_state = nn.Linear(obs_dim, width)
        self.embed_action = nn.Linear(act_dim, width)
        self.embed_time = nn.Embedding(max_time + 1, width)
        self.norm_in, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, num_heads, rate) for _ in range(num_layers))
        self.head = nn.Linear(width, act_dim)
        for block in self.blocks:
            for layer in block.children():
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, std=INIT_STD)
                    nn.init.zeros_(layer.bias)
        nn.init.normal_(self.embed_time.weight, std=INIT_STD)
        causal = torch.ones(3 * context, 3 * context, dtype=torch.bool).tril()
        self.register_buffer("causal", causal, persistent=False)
        self.causal: Tensor

    def forward(
        self,
        obs_BKO: Tensor,
        action_BKA: Tensor,
        rtg_BK: Tensor,
        time_BK: Tensor,
        valid_BK: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Predicted actions in [-1, 1], [B, K, A]; each sees returns and states up to its own step, actions before it.

        Args:
            valid_BK: bool, False for padding, which nothing attends to; None for no padding.
            generator: for dropout; None switches dropout off.
        """
        batch, steps = rtg_BK.shape
        time = self.embed_time(time_BK.clamp(max=self.max_time))
        tokens = torch.stack(
            [
                self.embed_return(rtg_BK[..., None]) + time,
                self.embed_state(obs_BKO) + time,
                self.embed_action(action_BKA) + time,
            ],
            dim=2,
        )
        x = dropout(self.norm_in(tokens.view(batch, 3 * steps, -1)), self.rate, generator)
        mask = self.causal[None, None, : 3 * steps, : 3 * steps]
        if valid_BK is not None:
            # A padded token still sees itself: a row of nothing but -inf would turn into NaN.
            seen = valid_BK.repeat_interleave(3, dim=1)[:, None, None, :]
            mask = mask & (seen | torch.eye(3 * steps, dtype=torch.bool, device=x.device))
        for block in self.blocks[:-1]:
            x = block(x, mask, generator)
        states = self.blocks[-1](x, mask, generator, queries=slice(1, None, 3))
        return torch.tanh(self.head(self.norm_out(states)))
