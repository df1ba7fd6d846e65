"""Guidance: inside the sampler, unknown states move to where the proposers' standardised residual is smaller.

Only the proposing members of the ensemble are used; the judges never see what is optimised here (docs/engine.md).
Legend: B rows, H horizon, O observation size, A action size, V steps that touch an unknown state.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from raystitch.device import Precision, uses_bf16
from raystitch.models.bundle import Bundle
from raystitch.models.unet import ignored_positions
from raystitch.stitching.config import GuidanceConfig
from raystitch.stitching.newton import Steps, newton_step

SATURATED = 1 - 1e-4


class DynamicsGuide:
    """Refines the predicted clean windows of one batch; pass it to a sampler as ``refine``.

    Each move takes the actions that inverse dynamics gives for the current states. ``newton`` then solves for all
    unknown states of a window at once; ``gradient`` goes down the gradient of ``sum_t ||s_{t+1} - f(s_t, a_t)||^2``
    with the actions held.

    Args:
        mask_BH: 1 at known states, which never move.
    """

    def __init__(self, bundle: Bundle, mask_BH: Tensor, config: GuidanceConfig, precision: Precision = "auto") -> None:
        self.bundle, self.config = bundle, config
        self.bf16 = uses_bf16(precision, bundle.device)
        wanted_BH = ignored_positions(mask_BH) < 0.5
        self.free_BH = (mask_BH < 0.5) & wanted_BH
        self.steps = Steps.of(self.free_BH, wanted_BH)
        self.active = bundle.standardizer.active

    def share(self, step: int, num_steps: int) -> float:
        """Size of the moves after sampler step ``step`` of ``num_steps``; 0 if the step is not guided."""
        guided = min(self.config.last_steps, num_steps)
        since = step - (num_steps - guided)
        if self.config.schedule == "off" or since < 0:
            return 0.0
        return (since + 1) / guided if self.config.schedule == "scheduled" else 1.0

    def __call__(self, clean_BHO: Tensor, step: int, num_steps: int) -> Tensor:
        """Standardised windows after sampler step ``step`` of ``num_steps`` -> refined ones of the same shape."""
        share, clip = self.share(step, num_steps), self.config.clip
        for _ in range(self.config.moves if share else 0):
            move_BHO = share * _MOVES[self.config.solver](self, clean_BHO)
            # A state that is not finite is left as it is: qualification says why the bridge fails.
            clean_BHO = clean_BHO + torch.nan_to_num(move_BHO).clamp(-clip, clip)
        return clean_BHO

    def _states(self, clean_BHO: Tensor) -> tuple[Tensor, Tensor]:
        """Raw states s_t and s_{t+1} of each step, [V, O] each."""
        raw_BHO = self.bundle.standardizer.decode(clean_BHO)
        row, position = self.steps.row_V, self.steps.position_V
        return raw_BHO[row, position], raw_BHO[row, position + 1]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.bundle.device.type, torch.bfloat16, enabled=self.bf16)

    def newton(self, clean_BHO: Tensor) -> Tensor:
        """A damped Gauss-Newton step [B, H, O]."""
        dynamics = self.bundle.dynamics
        with torch.no_grad():
            obs_VO, next_obs_VO = self._states(clean_BHO)
            act_VA = self.bundle.inverse(obs_VO, next_obs_VO)
            difference_VO = next_obs_VO - dynamics.predict(obs_VO, act_VA, "proposers")
            with self._autocast():
                by_state_VOO, by_action_VOA = dynamics.derivatives(obs_VO, act_VA, "proposers")
            # An action at its bound is taken as fixed there.
            movable_VA = dynamics.action.encode(act_VA).abs() < SATURATED
            moves_BGO = newton_step(
                difference_VO / self.bundle.standardizer.std * self.active,
                by_state_VOO * self.active * self.active.unsqueeze(-1),
                by_action_VOA * self.active.unsqueeze(-1) * movable_VA.unsqueeze(1),
                self.steps,
                self.config.damping,
            )
        steps, move_BHO = self.steps, torch.zeros_like(clean_BHO)
        move_BHO[steps.row_F, steps.position_F] = moves_BGO[steps.row_F, steps.place_F]
        return move_BHO

    def gradient(self, clean_BHO: Tensor) -> Tensor:
        """A gradient step of size ``strength`` [B, H, O]."""
        with torch.enable_grad():
            states_BHO = clean_BHO.detach().clone().requires_grad_(True)
            obs_VO, next_obs_VO = self._states(states_BHO)
            with self._autocast():
                with torch.no_grad():
                    act_VA = self.bundle.inverse(obs_VO, next_obs_VO).float()
                residual_V = self.bundle.dynamics.residual(obs_VO, act_VA, next_obs_VO, "proposers")
            (gradient_BHO,) = torch.autograd.grad(residual_V.float().sum(), states_BHO)
        return -self.config.strength * gradient_BHO * self.free_BH.unsqueeze(-1) * self.active


_MOVES: Mapping[str, Callable[[DynamicsGuide, Tensor], Tensor]] = {
    "newton": DynamicsGuide.newton,
    "gradient": DynamicsGuide.gradient,
}
