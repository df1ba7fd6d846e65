"""TD3+BC (Fujimoto and Gu 2021, arXiv 2106.06860) in one file, in the manner of CORL: it knows numpy, torch and the
layout of ``d4rl.qlearning_dataset``, and nothing of raystitch.

Legend: N transitions, B batch, O observation size, A action size.
"""

from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise

import gymnasium as gym
import numpy as np
import torch
from torch import nn

Arrays = dict[str, np.ndarray]
History = list[dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Config:
    """The paper's settings, but for the number of steps."""

    num_steps: int = 3000
    batch_size: int = 256
    hidden: int = 256
    learning_rate: float = 3e-4
    gamma: float = 0.99
    tau: float = 0.005
    policy_noise: float = 0.2
    noise_clip: float = 0.5
    policy_delay: int = 2
    alpha: float = 2.5
    report_every: int = 500


def qlearning_dataset(arrays: Arrays) -> Arrays:
    """Transitions as ``d4rl.qlearning_dataset`` makes them: the next observation is the next row's, and a row whose
    episode was cut there is left out, as is the last one of all. ``next_observations`` of the file are not looked at.
    """
    kept = ~arrays["timeouts"].astype(bool)
    kept[-1] = False
    rows = np.flatnonzero(kept)
    return {
        "observations": arrays["observations"][rows],
        "actions": arrays["actions"][rows],
        "next_observations": arrays["observations"][rows + 1],
        "rewards": arrays["rewards"][rows],
        "terminals": arrays["terminals"][rows].astype(np.float32),
    }


def network(sizes: list[int]) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for size_in, size_out in pairwise(sizes):
        layers += [nn.Linear(size_in, size_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Actor(nn.Module):
    """A deterministic policy; standardises observations [B, O] and acts within the bounds, [B, A]."""

    def __init__(self, data: Arrays, low: np.ndarray, high: np.ndarray, hidden: int) -> None:
        super().__init__()
        observations = data["observations"]
        self.mean = nn.Parameter(torch.tensor(observations.mean(0)), requires_grad=False)
        self.scale = nn.Parameter(torch.tensor(observations.std(0) + 1e-3), requires_grad=False)
        self.middle = nn.Parameter(torch.tensor((high + low) / 2), requires_grad=False)
        self.reach = nn.Parameter(torch.tensor((high - low) / 2), requires_grad=False)
        self.body = network([observations.shape[1], hidden, hidden, len(low)])

    def standardised(self, obs_BO: torch.Tensor) -> torch.Tensor:
        return (obs_BO - self.mean) / self.scale

    def forward(self, obs_BO: torch.Tensor) -> torch.Tensor:
        return self.middle + self.reach * torch.tanh(self.body(self.standardised(obs_BO)))


def train(data: Arrays, low: np.ndarray, high: np.ndarray, config: Config, seed: int = 0) -> tuple[Actor, History]:
    """Train; return the policy and the mean losses of every ``report_every`` steps."""
    torch.manual_seed(seed)
    tensors = {name: torch.tensor(values, dtype=torch.float32) for name, values in data.items()}
    actor = Actor(data, low, high, config.hidden)
    sizes = [data["observations"].shape[1] + len(low), config.hidden, config.hidden, 1]
    critics = nn.ModuleList([network(sizes), network(sizes)])
    target_actor, target_critics = deepcopy(actor), deepcopy(critics)
    actor_optimizer = torch.optim.Adam(actor.body.parameters(), config.learning_rate)
    critic_optimizer = torch.optim.Adam(critics.parameters(), config.learning_rate)

    def values(networks: nn.ModuleList, obs_BO: torch.Tensor, action_BA: torch.Tensor) -> torch.Tensor:
        joint = torch.cat([actor.standardised(obs_BO), action_BA], 1)
        return torch.stack([critic(joint).squeeze(1) for critic in networks])  # [2, B]

    history: History = []
    recent: list[tuple[float, float]] = []
    for step in range(1, config.num_steps + 1):
        rows = torch.randint(len(tensors["rewards"]), (config.batch_size,))
        obs, action, next_obs = (tensors[name][rows] for name in ("observations", "actions", "next_observations"))
        with torch.no_grad():
            noise = (config.policy_noise * torch.randn_like(action)).clamp(-config.noise_clip, config.noise_clip)
            next_action = target_actor(next_obs) + actor.reach * noise
            next_action = next_action.clamp(torch.tensor(low), torch.tensor(high))
            next_value = values(target_critics, next_obs, next_action).amin(0)
            wanted = tensors["rewards"][rows] + config.gamma * (1 - tensors["terminals"][rows]) * next_value
        critic_loss = (values(critics, obs, action) - wanted).square().mean(1).sum()
        critic_optimizer.zero_grad()
        critic_loss.backward()
        critic_optimizer.step()

        if step % config.policy_delay == 0:
            chosen = actor(obs)
            value = values(critics, obs, chosen)[0]
            cloning = ((chosen - action) / actor.reach).square().mean()
            loss = cloning - config.alpha * value.mean() / value.abs().mean().detach()
            actor_optimizer.zero_grad()
            loss.backward()
            actor_optimizer.step()
            recent.append((critic_loss.item(), cloning.item()))
            with torch.no_grad():
                for module, target in ((actor, target_actor), (critics, target_critics)):
                    for own, slow in zip(module.parameters(), target.parameters(), strict=True):
                        slow.lerp_(own, config.tau)
        if step % config.report_every == 0:
            critic_mean, cloning_mean = np.mean(recent, 0)
            history.append({"step": step, "critic_loss": float(critic_mean), "bc_loss": float(cloning_mean)})
            recent = []
    return actor, history


@torch.no_grad()
def evaluate(actor: Actor, env_id: str, num_episodes: int) -> float:
    """Mean return over episodes with the seeds 0, 1, .."""
    env = gym.make(env_id)
    total = 0.0
    for seed in range(num_episodes):
        observation, _ = env.reset(seed=seed)
        ended = False
        while not ended:
            action = actor(torch.tensor(observation, dtype=torch.float32)[None])[0].numpy()
            observation, reward, terminated, truncated, _ = env.step(action)
            total += float(reward)
            ended = terminated or truncated
    env.close()
    return total / num_episodes
