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
from raystitch.trainers.policy import MAX, Asked, Policy, PolicyMeta
from raystitch.trainers.prompt import LEARNING_RATE, PromptedTransformer, ReturnPrompt, build_transformer, prompt_loss
from raystitch.trainers.ratio import Ratio
from raystitch.trainers.stacked import ActingNetwork, clip_gradients, in_turn
from raystitch.trainers.state import Algorithm, Metrics, TrainState, apply_gradients


@dataclass(kw_only=True)
class DTState(TrainState):
    """State of DT; ``turns`` go forward and back one after the other: single seeds on a CPU, all at once elsewhere.
    ``prompt``, where one is learnt (``mode``), has no part in what the transformer learns."""

    model: DecisionTransformer
    optimizer: torch.optim.AdamW
    turns: list[DecisionTransformer]
    mode: str
    prompt: ReturnPrompt | None = None
    prompt_optimizer: torch.optim.Adam | None = None


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
        fourier=config.fourier,
        bf16=uses_bf16(config.precision, data.device),
    )
    if config.prompt == "target":
        return {"model": model}
    return {"model": model, "prompt": ReturnPrompt(data.obs_dim)}


def create(nets: Mapping[str, nn.Module], config: DTConfig) -> DTState:
    model = nets["model"]
    assert isinstance(model, DecisionTransformer)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    on_cpu = model.embed_time.device.type == "cpu"
    prompt = nets.get("prompt")
    assert prompt is None or isinstance(prompt, ReturnPrompt)
    return DTState(
        model=model,
        optimizer=optimizer,
        turns=in_turn(model) if on_cpu else [model],
        mode=config.prompt,
        prompt=prompt,
        prompt_optimizer=None if prompt is None else torch.optim.Adam(prompt.parameters(), fused=True),
    )


def actor(state: DTState) -> ActingNetwork:
    """Return the stacked networks that act."""
    return state.model if state.prompt is None else PromptedTransformer(state.model, state.prompt, state.mode)


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
    metrics = {"loss": torch.cat(losses), "grad_norm": norms, **_update_prompt(state, batch, config)}
    state.step += 1
    return metrics


def _update_prompt(state: DTState, batch: WindowBatch, config: DTConfig) -> Metrics:
    """Do one step of V_tau on the same windows, where it is learnt."""
    if state.prompt is None or state.prompt_optimizer is None:
        return {}
    for group in state.prompt_optimizer.param_groups:
        group["lr"] = LEARNING_RATE * learning_rate(state.step, config) / config.learning_rate
    losses = prompt_loss(state.prompt, batch, config.prompt_expectile)
    apply_gradients(state.prompt_optimizer, state.prompt, losses)
    return {"prompt_loss": losses.detach()}


class DTPolicy(Policy):
    """Keeps the last K steps of every environment.

    The return asked for shrinks by the rewards received (see ``ReturnRule`` for relabelled ones); with ``max`` it is
    what V_tau says at every step.
    """

    uses_target_return = True

    def __init__(self, meta: PolicyMeta, network: nn.Module) -> None:
        super().__init__(meta, network)
        self._prompt = network.prompt if isinstance(network, PromptedTransformer) else None
        model = network.model if isinstance(network, PromptedTransformer) else network
        assert isinstance(model, DecisionTransformer)
        self._model = model
        self.reset(0)

    @property
    def default_target(self) -> Asked:
        return MAX if self.meta.network.get("prompt") == MAX else self.meta.return_max

    @property
    def asked_beside(self) -> tuple[Asked, ...]:
        return (MAX,) if self.meta.network.get("prompt") == "both" else ()

    def reset(self, num_envs: int, target_return: Asked = None) -> None:
        """Start episodes; ``target_return`` None asks for ``default_target``. Where returns-to-go were relabelled, one
        larger than any that the original data promise at an episode's start asks for that.

        Raises:
            UserError: for a return that is not finite, or ``max`` of a policy that did not learn it.
        """
        asked = self.default_target if target_return is None else target_return
        if asked == MAX and self._prompt is None:
            raise UserError(f"target return {MAX}: the policy was trained without algorithms.dt.prompt: {MAX}")
        target = 0.0 if isinstance(asked, str) or asked is None else asked
        if not math.isfinite(target):
            raise UserError(f"target return must be finite, got {target}")
        device = self._mean.device
        self._time, self._asks_max = 0, asked == MAX
        if self.meta.return_rule is not None:
            target = min(target, self.meta.return_max)
        self._target = torch.full((num_envs,), target / self.meta.rtg_scale, device=device)
        self._obs = torch.zeros((num_envs, 0, self.obs_dim), device=device)
        self._action = torch.zeros((num_envs, 0, self.act_dim), device=device)
        self._rtg = torch.zeros((num_envs, 0), device=device)

    @torch.inference_mode()
    def observe(self, reward_B: NDArray[Any]) -> None:
        reward = torch.as_tensor(np.asarray(reward_B, np.float32), device=self._mean.device)
        self._target = self._target - reward / self.meta.rtg_scale
        if self.meta.return_rule is not None:
            rule, scale = self.meta.return_rule, self.meta.rtg_scale
            self._target = (self._target / rule.gamma).clamp(rule.low / scale, rule.high / scale)

    @torch.inference_mode()
    def keep(self, rows: NDArray[np.int64]) -> None:
        at = torch.as_tensor(rows, device=self._mean.device)
        self._target, self._obs, self._action, self._rtg = (
            kept[at] for kept in (self._target, self._obs, self._action, self._rtg)
        )

    def _act_unit(self, obs_BO: Tensor) -> Tensor:
        recent = slice(-self._model.context, None)
        if self._asks_max and self._prompt is not None:
            self._target = self._prompt(obs_BO[None])[0]
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
    actor=actor,
    network=build_transformer,
    policy=DTPolicy,
)
