"""TD3+BC written as public single-file implementations are, to compare speed with; the code is our own.

It does the work of a step in CORL (Tarasov et al. 2022, arXiv 2210.07105) except for logging: indices from numpy, five
gathers, three networks with an optimiser each, unused gradients (of the critic in the actor's loss), one blend per
target tensor, every loss read on the host. Legend: B batch, O observation, A action.
"""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raystitch.data.episodes import EpisodeDataset
from raystitch.data.normalise import Normalizer
from raystitch.trainers.config import TD3BCConfig


def _network(inputs: int, outputs: int, hidden: int, last: type[nn.Module]) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs), last()
    )


class ReferenceTD3BC:
    """The replay buffer, networks and optimisers; ``step`` does all the work of a step of the training loop."""

    def __init__(self, dataset: EpisodeDataset, config: TD3BCConfig, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.rng = np.random.default_rng(seed)
        self.config, self.steps = config, 0
        normalizer = Normalizer.fit(dataset.observations)
        observations = torch.from_numpy((dataset.observations - normalizer.mean) / normalizer.std)
        row = torch.from_numpy(dataset.obs_index)
        self.buffer = (
            observations[row],
            torch.from_numpy(dataset.actions),
            torch.from_numpy(dataset.rewards)[:, None],
            observations[row + 1],
            torch.from_numpy(dataset.transition_terminal.astype(np.float32))[:, None],
        )
        obs_dim, act_dim, hidden = dataset.obs_dim, dataset.act_dim, config.hidden
        self.actor = _network(obs_dim, act_dim, hidden, nn.Tanh)
        self.critics = [_network(obs_dim + act_dim, 1, hidden, nn.Identity) for _ in range(2)]
        self.online = [*self.critics, self.actor]
        self.target = copy.deepcopy(self.online)
        self.optimizers = [torch.optim.Adam(net.parameters(), lr=config.learning_rate) for net in self.online]

    def sample(self) -> list[Tensor]:
        """Return a batch: obs [B, O], action [B, A], reward [B, 1], next_obs [B, O], done [B, 1]."""
        rows = self.rng.integers(len(self.buffer[0]), size=self.config.batch_size)
        return [values[rows] for values in self.buffer]

    def step(self) -> dict[str, float]:
        """Update once on a fresh batch; return the losses as numbers."""
        config = self.config
        obs, action, reward, next_obs, done = self.sample()
        self.steps += 1
        critic_1, critic_2 = self.critics
        target_1, target_2, target_actor = self.target
        with torch.no_grad():
            noise = (torch.randn_like(action) * config.policy_noise).clamp(-config.noise_clip, config.noise_clip)
            next_action = (target_actor(next_obs) + noise).clamp(-1, 1)
            next_q = torch.min(
                target_1(torch.cat([next_obs, next_action], 1)), target_2(torch.cat([next_obs, next_action], 1))
            )
            wanted = reward + (1 - done) * config.gamma * next_q
        q_1 = critic_1(torch.cat([obs, action], 1))
        q_2 = critic_2(torch.cat([obs, action], 1))
        loss = F.mse_loss(q_1, wanted) + F.mse_loss(q_2, wanted)
        losses = {"critic_loss": loss.item()}
        self._descend(loss, self.optimizers[:2])
        if self.steps % config.policy_delay == 0:
            chosen = self.actor(obs)
            q = critic_1(torch.cat([obs, chosen], 1))
            loss = -config.alpha / q.abs().mean().detach() * q.mean() + F.mse_loss(chosen, action)
            losses["actor_loss"] = loss.item()
            self._descend(loss, self.optimizers[2:])
            for target, online in zip(self.target, self.online, strict=True):
                for old, new in zip(target.parameters(), online.parameters(), strict=True):
                    old.data.copy_((1 - config.tau) * old.data + config.tau * new.data)
        return losses

    @staticmethod
    def _descend(loss: Tensor, optimizers: list[torch.optim.Adam]) -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
