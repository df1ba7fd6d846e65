"""Decision Transformer: reinforcement learning as sequence modelling (Chen et al. 2021, arXiv 2106.01345).

Legend: S seeds; losses are [S].
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raystitch.device import uses_bf16
from raystitch.errors import UserError
from raystitch.trainers.batches import TrainData, WindowBatch
from raystitch.trainers.config import DTConfig
from raystitch.trainers.dt_model import DecisionTransformer, Generators
from raystitch.trainers.policy import Policy, PolicyMeta
from raystitch.trainers.ratio import Ratio
from raystitch.trainers.stacked import clip_gradients, in_turn
from raystitch.trainers.state import Algorithm, Metrics, TrainState


@dataclass(kw_only=True)
class DTState(TrainState):
    """State of DT; ``turns`` go forward and back one after the other: single seeds on a CPU, all at once elsewhere."""

    model: DecisionTransformer
    optimizer: torch.optim.AdamW
    turns: list[DecisionTransformer]


def networks(data: TrainData, ratio: Ratio, config: DTConfig) -> dict[str, nn.Module]:
    """Return the network of one seed."""
    model = DecisionTransformer(
        obs_dim=data.obs_dim,
        act_dim=data.act_dim,
        width=config.width,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        context=config.context,
        max_time=data.max_time(ratio),
        rate=config.dropout,
        bf16=uses_bf16(config.precision, data.device),
    )
    return {"model": model}


def create(nets: Mapping[str, nn.Module], config: DTConfig) -> DTState:
    model = nets["model"]
    assert isinstance(model, DecisionTransformer)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    on_cpu = model.embed_time.device.type == "cpu"
    return DTState(model=model, optimizer=optimizer, turns=in_turn(model) if on_cpu else [model])


def learning_rate(step: int, config: DTConfig) -> float:
    """Return the rate of linear warm-up, then of the decay; ``step`` counts the updates done before this one."""
    warmup = config.warmup_fraction * config.train_steps
    if step < warmup:
        return config.learning_rate * (step + 1) / math.ceil(warmup)
    done = (step - warmup) / (config.train_steps - warmup)
    left = {"none": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[config.decay]
    return config.learning_rate * (config.final_fraction + (1 - config.final_fraction) * left)


def action_loss(model: DecisionTransformer, batch: WindowBatch, generators: Generators) -> Tensor:
    """Return the mean squared error of the actions at valid steps, [S]."""
    predicted = model(batch.obs, batch.action, batch.rtg, batch.time, generators)
    error = (predicted - batch.action).square().mean(-1)
    return (error * batch.valid).sum((1, 2)) / batch.valid.sum((1, 2))


def update(state: DTState, batch: WindowBatch, config: DTConfig, generators: Sequence[torch.Generator]) -> Metrics:
    """Do one clipped AdamW step."""
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(state.step, config)
    # In place: the gradients of those that take turns are slices of the whole one's.
    state.optimizer.zero_grad(set_to_none=False)
    losses: list[Tensor] = []
    size = len(generators) // len(state.turns)
    for at, model in enumerate(state.turns):
        seeds = slice(at * size, (at + 1) * size)
        loss = action_loss(model, batch.of(seeds), generators[seeds])
        loss.sum().backward()
        losses.append(loss.detach())
    norms = clip_gradients([*state.model.parameters()], config.grad_clip)
    state.optimizer.step()
    state.step += 1
    return {"loss": torch.cat(losses), "grad_norm": norms}


class DTPolicy(Policy):
    """Keeps the last K steps of every environment; the return asked for shrinks by the rewards received."""

    uses_target_return = True

    def __init__(self, meta: PolicyMeta, network: nn.Module) -> None:
        super().__init__(meta, network)
        assert isinstance(network, DecisionTransformer)
        self._model = network
        self.reset(0)

    def reset(self, num_envs: int, target_return: float | None = None) -> None:
        """Start episodes; ``target_return`` None asks for the largest return of the original data."""
        if target_return is not None and not math.isfinite(target_return):
            raise UserError(f"target return must be finite, got {target_return}")
        target = self.meta.return_max if target_return is None else target_return
        device = self._mean.device
        self._time = 0
        self._target = torch.full((num_envs,), target / self.meta.rtg_scale, device=device)
        self._obs = torch.zeros((num_envs, 0, self.obs_dim), device=device)
        self._action = torch.zeros((num_envs, 0, self.act_dim), device=device)
        self._rtg = torch.zeros((num_envs, 0), device=device)

    @torch.inference_mode()
    def observe(self, reward_B: NDArray[Any]) -> None:
        reward = torch.as_tensor(np.asarray(reward_B, np.float32), device=self._mean.device)
        self._target = self._target - reward / self.meta.rtg_scale

    @torch.inference_mode()
    def keep(self, rows: NDArray[np.int64]) -> None:
        at = torch.as_tensor(rows, device=self._mean.device)
        self._target, self._obs, self._action, self._rtg = (
            kept[at] for kept in (self._target, self._obs, self._action, self._rtg)
        )

    def _act_unit(self, obs_BO: Tensor) -> Tensor:
        recent = slice(-self._model.context, None)
        self._obs = torch.cat([self._obs, obs_BO[:, None]], 1)[:, recent]
        self._rtg = torch.cat([self._rtg, self._target[:, None]], 1)[:, recent]
        unknown = torch.zeros_like(obs_BO[:, None, :1]).expand(-1, 1, self.act_dim)
        self._action = torch.cat([self._action, unknown], 1)[:, recent]
        steps = self._obs.shape[1]
        time = torch.arange(self._time - steps + 1, self._time + 1, device=obs_BO.device).expand(len(obs_BO), -1)
        # All environments are at the same step, so no window is padded.
        action = self._model(self._obs[None], self._action[None], self._rtg[None], time[None])[0, :, -1]
        self._action = torch.cat([self._action[:, :-1], action[:, None]], 1)
        self._time += 1
        return action


DT = Algorithm(
    kind="sequences",
    networks=networks,
    create=create,
    update=update,
    actor=lambda state: state.model,
    network=DecisionTransformer,
    policy=DTPolicy,
)
