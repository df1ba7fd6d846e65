"""Guidance: inside the sampler, unknown states move to where the proposers' standardised residual is smaller.

Only the proposing members of the ensemble are used; the judges never see what is optimised here (docs/engine.md).
Legend: B rows, H horizon, O observation size, A action size, V steps that touch an unknown state, R rows that are still
moved.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from raystitch.device import Precision, uses_bf16
from raystitch.models.bundle import Bundle
from raystitch.models.unet import ignored_positions
from raystitch.stitching.config import GuidanceConfig
from raystitch.stitching.newton import Steps, newton_step

SATURATED = 1 - 1e-4


@dataclass(frozen=True, eq=False)
class _Windows:
    """Windows that move together, and the steps in them that touch an unknown state.

    Attributes:
        states_BHO: standardised. free_BH: bool, what moves.
        obs_VO, next_obs_VO: raw. act_VA: of inverse dynamics.
        each_MVO: next states by each proposing member, raw.
    """

    states_BHO: Tensor
    free_BH: Tensor
    steps: Steps
    obs_VO: Tensor
    next_obs_VO: Tensor
    act_VA: Tensor
    each_MVO: Tensor

    def take(self, row_R: Tensor, wanted_RH: Tensor) -> "_Windows":
        """Return some rows, int64 [R] in ascending order."""
        chosen_B = torch.zeros(len(self.states_BHO), dtype=torch.bool, device=row_R.device)
        chosen_B[row_R] = True
        chosen_V = chosen_B[self.steps.row_V]
        free_RH = self.free_BH[row_R]
        return _Windows(
            states_BHO=self.states_BHO[row_R],
            free_BH=free_RH,
            steps=Steps.of(free_RH, wanted_RH),
            obs_VO=self.obs_VO[chosen_V],
            next_obs_VO=self.next_obs_VO[chosen_V],
            act_VA=self.act_VA[chosen_V],
            each_MVO=self.each_MVO[:, chosen_V],
        )


class DynamicsGuide:
    """Refines the predicted clean windows of one batch; pass it to a sampler as ``refine``.

    Each move takes the actions that inverse dynamics gives for the current states. ``newton`` then solves for all
    unknown states of a window at once; ``gradient`` goes down the gradient of ``sum_t ||s_{t+1} - f(s_t, a_t)||^2``
    with the actions held. With ``until`` a row whose largest residual is small enough is moved no more, and costs
    nothing in later moves.

    Args:
        mask_BH: 1 at known states, which never move.
    """

    def __init__(self, bundle: Bundle, mask_BH: Tensor, config: GuidanceConfig, precision: Precision = "auto") -> None:
        self.bundle, self.config = bundle, config
        self.bf16 = uses_bf16(precision, bundle.device)
        self.wanted_BH = ignored_positions(mask_BH) < 0.5
        self.free_BH = (mask_BH < 0.5) & self.wanted_BH
        self.steps = Steps.of(self.free_BH, self.wanted_BH)
        self.active = bundle.standardizer.active
        self.limit_B: Tensor | None = None
        if config.until is not None:
            limit = bundle.calibration.threshold(config.until, self.steps.unknown_B.cpu().numpy(), "proposers")
            self.limit_B = torch.from_numpy(limit).to(bundle.device)

    def share(self, step: int, num_steps: int) -> float:
        """Size of the moves after sampler step ``step`` of ``num_steps``; 0 if the step is not guided."""
        guided = min(self.config.last_steps, num_steps)
        since = step - (num_steps - guided)
        if self.config.schedule == "off" or since < 0:
            return 0.0
        return (since + 1) / guided if self.config.schedule == "scheduled" else 1.0

    def __call__(self, clean_BHO: Tensor, step: int, num_steps: int) -> Tensor:
        """Standardised windows after sampler step ``step`` of ``num_steps`` -> refined ones of the same shape."""
        share = self.share(step, num_steps)
        if not share:
            return clean_BHO
        if self.limit_B is not None:
            return self._until(clean_BHO, share, self.limit_B)
        for _ in range(self.config.moves):
            clean_BHO = clean_BHO + self._move(self._windows(clean_BHO, self.free_BH, self.steps), share)
        return clean_BHO

    def _until(self, clean_BHO: Tensor, share: float, limit_B: Tensor) -> Tensor:
        """Move every row until its largest residual is within its limit, at most ``moves`` times."""
        clean_BHO = clean_BHO.clone()
        row_R, free_RH, steps = torch.arange(len(clean_BHO), device=clean_BHO.device), self.free_BH, self.steps
        for _ in range(self.config.moves):
            windows = self._windows(clean_BHO[row_R], free_RH, steps)
            residual_V = self.bundle.dynamics.state.distance(windows.next_obs_VO, windows.each_MVO).mean(0)
            largest_R = residual_V.new_zeros(len(row_R)).scatter_reduce(0, steps.row_V, residual_V, "amax")
            # Not "at most": a row that is not finite would be moved in vain.
            doubted_R = (largest_R > limit_B[row_R]).nonzero().squeeze(1)
            if not len(doubted_R):
                break
            row_R = row_R[doubted_R]
            windows = windows.take(doubted_R, self.wanted_BH[row_R])
            free_RH, steps = windows.free_BH, windows.steps
            clean_BHO[row_R] = windows.states_BHO + self._move(windows, share)
        return clean_BHO

    def _move(self, windows: _Windows, share: float) -> Tensor:
        """Return the moves of windows, [B, H, O]."""
        move_BHO = share * _MOVES[self.config.solver](self, windows)
        # A state that is not finite is left as it is: qualification says why the bridge fails.
        return torch.nan_to_num(move_BHO).clamp(-self.config.clip, self.config.clip)

    def _windows(self, states_BHO: Tensor, free_BH: Tensor, steps: Steps) -> _Windows:
        with torch.no_grad():
            obs_VO, next_obs_VO = self._states(states_BHO, steps)
            act_VA = self.bundle.inverse(obs_VO, next_obs_VO)
            each_MVO = self.bundle.dynamics.member_next(obs_VO, act_VA, "proposers")
        return _Windows(states_BHO, free_BH, steps, obs_VO, next_obs_VO, act_VA, each_MVO)

    def _states(self, clean_BHO: Tensor, steps: Steps) -> tuple[Tensor, Tensor]:
        """Raw states s_t and s_{t+1} of each step, [V, O] each."""
        raw_BHO = self.bundle.standardizer.decode(clean_BHO)
        return raw_BHO[steps.row_V, steps.position_V], raw_BHO[steps.row_V, steps.position_V + 1]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.bundle.device.type, torch.bfloat16, enabled=self.bf16)

    def newton(self, windows: _Windows) -> Tensor:
        """A damped Gauss-Newton step [B, H, O]."""
        dynamics, steps = self.bundle.dynamics, windows.steps
        with torch.no_grad():
            difference_VO = windows.next_obs_VO - windows.each_MVO.mean(0)
            with self._autocast():
                by_state_VOO, by_action_VOA = dynamics.derivatives(windows.obs_VO, windows.act_VA, "proposers")
            # An action at its bound is taken as fixed there.
            movable_VA = dynamics.action.encode(windows.act_VA).abs() < SATURATED
            moves_BGO = newton_step(
                difference_VO / self.bundle.standardizer.std * self.active,
                by_state_VOO * self.active * self.active.unsqueeze(-1),
                by_action_VOA * self.active.unsqueeze(-1) * movable_VA.unsqueeze(1),
                steps,
                self.config.damping,
            )
        move_BHO = torch.zeros_like(windows.states_BHO)
        move_BHO[steps.row_F, steps.position_F] = moves_BGO[steps.row_F, steps.place_F]
        return move_BHO

    def gradient(self, windows: _Windows) -> Tensor:
        """A gradient step of size ``strength`` [B, H, O]."""
        with torch.enable_grad():
            states_BHO = windows.states_BHO.detach().clone().requires_grad_(True)
            obs_VO, next_obs_VO = self._states(states_BHO, windows.steps)
            with self._autocast():
                residual_V = self.bundle.dynamics.residual(obs_VO, windows.act_VA, next_obs_VO, "proposers")
            (gradient_BHO,) = torch.autograd.grad(residual_V.float().sum(), states_BHO)
        return -self.config.strength * gradient_BHO * windows.free_BH.unsqueeze(-1) * self.active


_MOVES: Mapping[str, Callable[[DynamicsGuide, _Windows], Tensor]] = {
    "newton": DynamicsGuide.newton,
    "gradient": DynamicsGuide.gradient,
}
