"""A Decision Transformer written as public single-file implementations are, to compare speed with; the code is our own.

It does the work of a step in CORL (Tarasov et al. 2022, arXiv 2210.07105) except for logging: every window is cut and
padded in numpy, ``nn.MultiheadAttention`` has a causal and a padding mask, every layer computes every token, dropout is
torch's, the loss is read on the host. Legend: B batch, K context, S = 3K tokens, D width.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from raystitch.data.episodes import EpisodeDataset
from raystitch.data.normalise import Normalizer
from raystitch.trainers.config import DTConfig

MAX_STEPS = 1000
REWARD_SCALE = 0.001
INIT_STD = 0.02
Window = tuple[NDArray[Any], ...]


class ReferenceWindows(IterableDataset[Window]):
    """An endless stream of random windows, right-padded: obs [K, O], actions [K, A], returns, times and mask [K]."""

    def __init__(self, dataset: EpisodeDataset, context: int, seed: int) -> None:
        self.context, self.normalizer = context, Normalizer.fit(dataset.observations)
        self.rng = np.random.default_rng(seed)
        self.share = dataset.lengths / dataset.lengths.sum()
        self.episodes: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = []
        for first, length in zip(dataset.offsets[:-1], dataset.lengths, strict=True):
            rows = slice(int(first), int(first + length))
            to_go = np.cumsum(dataset.rewards[rows][::-1])[::-1].astype(np.float32)
            self.episodes.append((dataset.observations[dataset.obs_index[rows]], dataset.actions[rows], to_go))

    def __iter__(self) -> Iterator[Window]:
        while True:
            episode = self.episodes[self.rng.choice(len(self.episodes), p=self.share)]
            start = int(self.rng.integers(len(episode[1])))
            obs, action, to_go = (values[start : start + self.context] for values in episode)
            obs = (obs - self.normalizer.mean) / self.normalizer.std
            missing = self.context - len(obs)
            mask = np.hstack([np.ones(len(obs)), np.zeros(missing)])
            window = [obs, action, to_go * np.float32(REWARD_SCALE)]
            if missing:
                window = [np.pad(values, [(0, missing)] + [(0, 0)] * (values.ndim - 1)) for values in window]
            yield (*window, np.arange(start, start + self.context), mask)


class ReferenceBlock(nn.Module):
    """A pre-norm transformer block on all tokens, [B, S, D] -> [B, S, D]."""

    def __init__(self, config: DTConfig) -> None:
        super().__init__()
        width, tokens = config.width, 3 * config.context
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, config.num_heads, config.dropout, batch_first=True)
        self.drop = nn.Dropout(config.dropout)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(config.dropout)
        )
        self.register_buffer("hidden_future", torch.ones(tokens, tokens).tril() == 0)
        self.hidden_future: Tensor

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        normed = self.norm_1(x)
        attended, _ = self.attention(
            normed, normed, normed, attn_mask=self.hidden_future, key_padding_mask=padding, need_weights=False
        )
        x = x + self.drop(attended)
        return x + self.mlp(self.norm_2(x))


class Network(nn.Module):
    """The network: actions [B, K, A] from the state tokens of the last layer."""

    def __init__(self, obs_dim: int, act_dim: int, config: DTConfig) -> None:
        super().__init__()
        width = config.width
        self.time = nn.Embedding(MAX_STEPS + config.context, width)
        self.embed = nn.ModuleList(nn.Linear(size, width) for size in (1, obs_dim, act_dim))
        self.norm_in, self.norm_out, self.drop = nn.LayerNorm(width), nn.LayerNorm(width), nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(ReferenceBlock(config) for _ in range(config.num_layers))
        self.head = nn.Sequential(nn.Linear(width, act_dim), nn.Tanh())
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Embedding):
                nn.init.normal_(layer.weight, std=INIT_STD)
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)

    def forward(self, obs: Tensor, action: Tensor, to_go: Tensor, time: Tensor, padding: Tensor) -> Tensor:
        at = self.time(time)
        parts = [layer(values) + at for layer, values in zip(self.embed, (to_go[..., None], obs, action), strict=True)]
        x = torch.stack(parts, 1).permute(0, 2, 1, 3).reshape(len(obs), -1, at.shape[-1])
        padding = torch.stack([padding] * 3, 1).permute(0, 2, 1).reshape(len(obs), -1)
        x = self.drop(self.norm_in(x))
        for block in self.blocks:
            x = block(x, padding)
        return self.head(self.norm_out(x)[:, 1::3])


class ReferenceDT:
    """The data loader, network, optimiser and schedule; ``step`` does all the work of a step of the training loop."""

    def __init__(self, dataset: EpisodeDataset, config: DTConfig, seed: int = 0) -> None:
        torch.manual_seed(seed)
        # Loaded by the process that trains: one thread has to do it all.
        self.batches = iter(DataLoader(ReferenceWindows(dataset, config.context, seed), batch_size=config.batch_size))
        self.config = config
        self.network = Network(dataset.obs_dim, dataset.act_dim, config)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        warmup = max(config.warmup_fraction * config.train_steps, 1)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: min((step + 1) / warmup, 1))

    def step(self) -> dict[str, float]:
        """Update once on a fresh batch; return the loss and the learning rate as numbers."""
        obs, action, to_go, time, mask = next(self.batches)
        predicted = self.network(obs, action, to_go, time, ~mask.bool())
        loss = (F.mse_loss(predicted, action, reduction="none") * mask[..., None]).mean()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.config.grad_clip)
        self.optimizer.step()
        self.schedule.step()
        return {"loss": loss.item(), "learning_rate": self.optimizer.param_groups[0]["lr"]}
