"""The small models around the diffusion model: dynamics, inverse dynamics, reward, termination, value.

Each takes and returns raw units; standardisation happens inside. All are stacked ensembles.
Legend: M members, B rows, O observation size, A action size. Leading shapes [*] are free unless said otherwise.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from raystitch.models.config import FitConfig, HeadConfig
from raystitch.models.embedding import TemporalEmbedding
from raystitch.models.mlp import EnsembleMLP
from raystitch.models.scales import ActionScale, HeadScales, Standardizer

Members = Literal["judges", "proposers", "all"]

JACOBIAN_ROWS = {"cpu": 256, "cuda": 65536}
"""Rows whose derivatives are taken at once: on a CPU their tangents (rows x inputs x hidden) stay in the cache."""


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)


def _merge(outputs_MBX: Tensor, leading: torch.Size) -> Tensor:
    """[M, B, X] -> [M, *, X]."""
    return outputs_MBX.reshape(outputs_MBX.shape[0], *leading, outputs_MBX.shape[-1])


class DynamicsEnsemble(nn.Module):
    """Dynamics s' = f(s, a): members predict the standardised s' - s, and no state beyond the end of its sensor.

    A velocity that is recorded at the end of its sensor was at least as large (``HeadScales.state_high``), so
    predicting a larger one is no error: the squared error of a plain fit would pull predictions off the end.

    The last ``num_judges`` members are the judges, which only qualification asks; the others (proposers) serve gap
    selection, guidance and repair.
    """

    low: Tensor
    high: Tensor

    def __init__(self, config: HeadConfig, num_judges: int, scales: HeadScales, generator: torch.Generator) -> None:
        super().__init__()
        self.num_judges = num_judges
        for name in ("low", "high"):
            self.register_buffer(name, torch.from_numpy(getattr(scales, f"state_{name}").copy()))
        self.state = Standardizer(scales.state)
        self.delta = Standardizer(scales.delta)
        self.action = ActionScale(scales)
        obs_dim, act_dim = len(scales.state.mean), len(scales.action_low)
        self.mlp = EnsembleMLP(
            config.num_members, obs_dim + act_dim, obs_dim, config.hidden, config.num_layers, generator
        )

    def _inputs(self, obs: Tensor, act: Tensor) -> Tensor:
        return torch.cat([self.state.encode(obs), self.action.encode(act)], -1)

    def member_next(self, obs: Tensor, act: Tensor, members: Members = "all") -> Tensor:
        """Each member's next state, raw [M', *, O]."""
        inputs = self._inputs(obs, act)
        delta = self.mlp(inputs.reshape(-1, inputs.shape[-1]), self._asked(members))
        return self.within_sensors(obs + self.delta.decode(_merge(delta, obs.shape[:-1])))

    def within_sensors(self, states: Tensor) -> Tensor:
        """Raw states [*, O] as they would be recorded: not beyond the ends of their sensors."""
        return torch.minimum(torch.maximum(states, self.low), self.high)

    def inside_sensors(self, states: Tensor) -> Tensor:
        """Whether raw states [*, O] lie before the ends of their sensors, bool [*, O]."""
        return (states > self.low) & (states < self.high)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not torch.cat([self.low, self.high]).isfinite().any():  # files without ends are those of earlier versions
            del destination[f"{prefix}low"], destination[f"{prefix}high"]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in ("low", "high"):  # earlier versions knew no ends
            state_dict.setdefault(
                f"{prefix}{name}", torch.full_like(self.low, -torch.inf if name == "low" else torch.inf)
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _asked(self, members: Members) -> slice:
        split = self.mlp.num_members - self.num_judges
        return {"all": slice(None), "proposers": slice(split), "judges": slice(split, None)}[members]

    def derivatives(self, obs: Tensor, act: Tensor, members: Members) -> tuple[Tensor, Tensor]:
        """Compute how the next state of the first of the members changes, in standardised units.

        One member's slopes are enough for a Newton step and cost a fraction of all members'.

        Args:
            obs, act: raw [V, O] and [V, A].

        Returns:
            by the state [V, O, O] and by the action scaled to [-1, 1], [V, O, A]; entry [i, j] is output i by input j.
        """
        asked = range(self.mlp.num_members)[self._asked(members)]
        first, chunk = slice(asked[0], asked[0] + 1), JACOBIAN_ROWS[obs.device.type]
        parts = [self.mlp.jacobian(rows, first) for rows in self._inputs(obs, act).split(chunk)]
        scale = self.delta.std * self.delta.active / self.state.std
        jacobian = torch.cat([slopes[0].float() for _, slopes in parts]).transpose(1, 2) * scale.unsqueeze(-1)
        by_obs, by_act = jacobian.split([obs.shape[-1], act.shape[-1]], -1)
        reached = obs + self.delta.decode(torch.cat([outputs[0].float() for outputs, _ in parts]))
        free = ((reached >= self.low) & (reached <= self.high)).unsqueeze(-1)  # beyond the end nothing changes
        return (by_obs + torch.eye(obs.shape[-1], device=obs.device)) * free, by_act * free

    def predict(self, obs: Tensor, act: Tensor, members: Members) -> Tensor:
        """Mean next state of the members, raw [*, O]."""
        return self.member_next(obs, act, members).mean(0)

    def residual(self, obs: Tensor, act: Tensor, next_obs: Tensor, members: Members) -> Tensor:
        """``||s' - f(s, a)||^2`` over active dimensions in standardised units, the members' mean [*] (DiffStitch,
        qualification). The mean of the members' residuals, not the residual of their mean: it also counts what they do
        not agree on, and ranks bridges better."""
        return self.residual_and_spread(obs, act, next_obs, members)[0]

    def residual_and_spread(
        self, obs: Tensor, act: Tensor, next_obs: Tensor, members: Members
    ) -> tuple[Tensor, Tensor]:
        """``residual`` and the largest squared distance of a member to the members' mean, both [*]."""
        each = self.member_next(obs, act, members)
        return self.state.distance(next_obs, each).mean(0), self.state.distance(each, each.mean(0)).amax(0)

    def rollout(self, obs: Tensor, act: Tensor, members: Members) -> Tensor:
        """Raw first states [B, O] and actions [B, T, A] -> the members' own path [B, T, O]."""
        states: list[Tensor] = []
        for act_t in act.unbind(1):
            obs = self.predict(obs, act_t, members)
            states.append(obs)
        return torch.stack(states, 1)

    def loss(self, obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
        """Mean squared error of the standardised change, none beyond a sensor's end; inputs [M, B, O] and [M, B, A],
        rows per member."""
        predicted = self.mlp(self._inputs(obs, act))
        reached = obs + self.delta.decode(predicted)
        beyond = ((next_obs >= self.high) & (reached > self.high)) | ((next_obs <= self.low) & (reached < self.low))
        error = (predicted - self.delta.encode(next_obs - obs)) * self.delta.active
        return (error.masked_fill(beyond, 0.0) ** 2).mean()


class InverseDynamics(nn.Module):
    """Inverse dynamics a = g(s, s'), clipped to the action bounds (DiffStitch wrap-up)."""

    def __init__(self, config: HeadConfig, scales: HeadScales, generator: torch.Generator) -> None:
        super().__init__()
        self.state = Standardizer(scales.state)
        self.delta = Standardizer(scales.delta)
        self.action = ActionScale(scales)
        obs_dim, act_dim = len(scales.state.mean), len(scales.action_low)
        self.mlp = EnsembleMLP(config.num_members, 2 * obs_dim, act_dim, config.hidden, config.num_layers, generator)

    def _inputs(self, obs: Tensor, next_obs: Tensor) -> Tensor:
        return torch.cat([self.state.encode(obs), self.delta.encode(next_obs - obs)], -1)

    def forward(self, obs: Tensor, next_obs: Tensor) -> Tensor:
        """Raw states [*, O] -> raw actions [*, A] within the bounds: the members' mean."""
        return self.with_spread(obs, next_obs)[0]

    def with_spread(self, obs: Tensor, next_obs: Tensor) -> tuple[Tensor, Tensor]:
        """Actions [*, A] and the members' largest disagreement [*] (L-inf, actions scaled to [-1, 1])."""
        inputs = self._inputs(obs, next_obs)
        scaled = _merge(self.mlp(inputs.reshape(-1, inputs.shape[-1])), obs.shape[:-1]).clamp(-1, 1)
        mean = scaled.mean(0)
        return self.action.decode(mean), (scaled - mean).abs().amax((0, -1))

    def loss(self, obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
        """Squared error in actions scaled to [-1, 1]; inputs [M, B, ...].

        A saturated action says only that the true command was at least that large, so overshooting a bound that
        the action sits on costs nothing; plain squared error would pull predictions off the bounds.
        """
        target = self.action.encode(act).clamp(-1, 1)
        predicted = self.mlp(self._inputs(obs, next_obs))
        saturated = target.abs() >= 1 - 1e-5
        error = torch.where(saturated, predicted.clamp(-1, 1), predicted) - target
        return (error**2).mean()


class RewardModel(nn.Module):
    """Reward r(s, a, s') or the paper's r(s, a), clipped to the data's range.

    Where the data has only a few distinct rewards, predictions snap to them, so that a sparse reward does not leak
    into states that never gave any.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor
    levels: Tensor

    def __init__(
        self, config: HeadConfig, inputs: Literal["sas", "sa"], scales: HeadScales, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.use_next = inputs == "sas"
        self.state = Standardizer(scales.state)
        self.delta = Standardizer(scales.delta)
        self.action = ActionScale(scales)
        for name in ("mean", "std", "low", "high"):
            self.register_buffer(name, _scalar(getattr(scales, f"reward_{name}")))
        self.register_buffer("levels", torch.from_numpy(scales.reward_levels.copy()))
        obs_dim, act_dim = len(scales.state.mean), len(scales.action_low)
        in_dim = obs_dim + act_dim + (obs_dim if self.use_next else 0)
        self.mlp = EnsembleMLP(config.num_members, in_dim, 1, config.hidden, config.num_layers, generator)

    def _inputs(self, obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
        parts = [self.state.encode(obs), self.action.encode(act)]
        if self.use_next:
            parts.append(self.delta.encode(next_obs - obs))
        return torch.cat(parts, -1)

    def forward(self, obs: Tensor, act: Tensor, next_obs: Tensor) -> tuple[Tensor, Tensor]:
        """Raw [*, O], [*, A], [*, O] -> the members' mean reward [*] and their standard deviation [*]."""
        inputs = self._inputs(obs, act, next_obs)
        scaled = _merge(self.mlp(inputs.reshape(-1, inputs.shape[-1])), obs.shape[:-1]).squeeze(-1)
        each = torch.minimum(torch.maximum(scaled * self.std + self.mean, self.low), self.high)
        mean = each.mean(0)
        std = (each - mean).square().mean(0).sqrt()
        if len(self.levels):
            snapped = self.levels[(mean.unsqueeze(-1) - self.levels).abs().argmin(-1)]
            mean = torch.where(mean.isnan(), mean, snapped)  # a NaN is no level: qualification gives the reason
        return mean, std

    def loss(self, obs: Tensor, act: Tensor, next_obs: Tensor, reward: Tensor) -> Tensor:
        """Mean squared error of the standardised reward; inputs [M, B, ...], ``reward`` [M, B]."""
        predicted = self.mlp(self._inputs(obs, act, next_obs)).squeeze(-1)
        return ((predicted - (reward - self.mean) / self.std) ** 2).mean()


class TerminationModel(nn.Module):
    """Probability that a state is one the environment ends an episode in. Always 0 where no episode terminates."""

    any_terminal: Tensor

    def __init__(self, config: HeadConfig, scales: HeadScales, generator: torch.Generator) -> None:
        super().__init__()
        self.state = Standardizer(scales.state)
        self.register_buffer("any_terminal", _scalar(float(scales.any_terminal)))
        self.mlp = EnsembleMLP(
            config.num_members, len(scales.state.mean), 1, config.hidden, config.num_layers, generator
        )

    def forward(self, next_obs: Tensor) -> Tensor:
        """Raw s' [*, O] -> probability [*]."""
        encoded = self.state.encode(next_obs)
        logits = _merge(self.mlp(encoded.reshape(-1, encoded.shape[-1])), next_obs.shape[:-1]).squeeze(-1)
        return torch.sigmoid(logits).mean(0) * self.any_terminal

    def loss(self, next_obs: Tensor, terminal: Tensor) -> Tensor:
        """Binary cross-entropy; [M, B, O] and 0/1 [M, B]."""
        logits = self.mlp(self.state.encode(next_obs)).squeeze(-1)
        return nn.functional.binary_cross_entropy_with_logits(logits, terminal)


class ValueModel(nn.Module):
    """Value V(s): expected discounted return of the data's behaviour from s, time-outs bootstrapped."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: HeadConfig, scales: HeadScales, generator: torch.Generator) -> None:
        super().__init__()
        self.state = Standardizer(scales.state)
        self.register_buffer("mean", _scalar(scales.value_mean))
        self.register_buffer("std", _scalar(scales.value_std))
        self.mlp = EnsembleMLP(
            config.num_members, len(scales.state.mean), 1, config.hidden, config.num_layers, generator
        )

    def forward(self, obs: Tensor) -> Tensor:
        """Raw s [*, O] -> value [*]."""
        encoded = self.state.encode(obs)
        scaled = _merge(self.mlp(encoded.reshape(-1, encoded.shape[-1])), obs.shape[:-1]).squeeze(-1)
        return scaled.mean(0) * self.std + self.mean

    def loss(self, obs: Tensor, returns: Tensor) -> Tensor:
        """Mean squared error of the standardised return; [M, B, O] and [M, B]."""
        scaled = self.mlp(self.state.encode(obs)).squeeze(-1)
        return ((scaled - (returns - self.mean) / self.std) ** 2).mean()


@dataclass(kw_only=True, eq=False)
class Heads:
    """The heads of a bundle."""

    dynamics: DynamicsEnsemble
    inverse: InverseDynamics
    reward: RewardModel
    termination: TerminationModel
    value: ValueModel
    embedding: TemporalEmbedding


def build_heads(config: FitConfig, scales: HeadScales, generator: torch.Generator) -> Heads:
    """Freshly initialised heads on the CPU."""
    return Heads(
        dynamics=DynamicsEnsemble(config.dynamics, config.num_judges, scales, generator),
        inverse=InverseDynamics(config.inverse, scales, generator),
        reward=RewardModel(config.reward, config.reward_inputs, scales, generator),
        termination=TerminationModel(config.termination, scales, generator),
        value=ValueModel(config.value, scales, generator),
        embedding=TemporalEmbedding(config.embedding, scales.state, generator),
    )
