"""Actions, rewards and return of a bridge from its states (DiffStitch, trajectory wrap-up).

Legend: N rows, G largest gap, O observation size, A action size. A bridge of gap g has g + 1 steps.
"""

import numpy as np
import torch
from torch import Tensor

from raystitch.data.episodes import Bools, Floats, Ints
from raystitch.envs.reward import known_reward
from raystitch.models.bundle import Bundle
from raystitch.shaping.config import RewardConfig
from raystitch.shaping.rewards import apply_rewards, generated_steps


def steps_of(bridges: Floats, gap: Ints) -> Bools:
    """Mark which of the G + 1 steps exist, bool [N, G + 1]."""
    return np.arange(bridges.shape[1] - 1) <= gap[:, None]


def step_states(bundle: Bundle, bridges: Floats, steps: Bools) -> tuple[Tensor, Tensor]:
    """s and s' of every existing step, raw [V, O] each on the bundle's device."""
    obs, next_obs = bridges[:, :-1][steps], bridges[:, 1:][steps]
    return torch.from_numpy(obs).to(bundle.device), torch.from_numpy(next_obs).to(bundle.device)


def infer_actions(bundle: Bundle, bridges: Floats, gap: Ints) -> Floats:
    """Inverse-dynamics actions within the bounds, float32 [N, G + 1, A]; zero past gap + 1 steps."""
    steps = steps_of(bridges, gap)
    actions = np.zeros((*steps.shape, bundle.act_dim), np.float32)
    with torch.inference_mode():
        actions[steps] = bundle.inverse(*step_states(bundle, bridges, steps)).cpu().numpy()
    return actions


def infer_rewards(bundle: Bundle, bridges: Floats, actions: Floats, gap: Ints) -> tuple[Floats, Floats]:
    """Mean and ensemble standard deviation of the reward of each step, float32 [N, G + 1]; zero past gap + 1."""
    steps = steps_of(bridges, gap)
    rewards, stds = np.zeros(steps.shape, np.float32), np.zeros(steps.shape, np.float32)
    rewards[steps], stds[steps] = step_rewards(bundle, bridges[:, :-1][steps], actions[steps], bridges[:, 1:][steps])
    return rewards, stds


def step_rewards(bundle: Bundle, obs: Floats, actions: Floats, next_obs: Floats) -> tuple[Floats, Floats]:
    """Mean and ensemble standard deviation of the rewards of V transitions, float32 [V].

    Where the environment's own reward follows from the states, it is taken instead of the model's.
    """
    known = known_reward(bundle.env)
    if known is not None:
        return known(next_obs), np.zeros(len(obs), np.float32)
    with torch.inference_mode():
        inputs = (torch.from_numpy(column).to(bundle.device) for column in (obs, actions, next_obs))
        mean, std = bundle.reward(*inputs)
    return mean.cpu().numpy(), std.cpu().numpy()


def shaped_rewards(config: RewardConfig, rewards: Floats, gap: Ints) -> Floats:
    """Return what the steps count for before any model has judged them, float32 [N, G + 1]; zero past gap + 1."""
    steps = np.arange(rewards.shape[1]) <= gap[:, None]
    shaped = np.zeros_like(rewards)
    shaped[steps] = apply_rewards(config, generated_steps(rewards[steps], gap))
    return shaped


def stitched_return(
    rewards: Floats, stds: Floats, gap: Ints, return_target: Floats, gamma: float, kappa: float
) -> Floats:
    """Pessimistic discounted return from the state left on, float32 [N]:
    sum_{j <= gap} gamma^j (r_j - kappa std_j) + gamma^(gap + 1) return_target."""
    discount = gamma ** np.arange(rewards.shape[1])
    bridge = ((rewards.astype(np.float64) - kappa * stds) * discount).sum(1)
    return (bridge + gamma ** (gap + 1.0) * return_target).astype(np.float32)
