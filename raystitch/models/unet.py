"""The temporal U-Net over windows of states.

Legend: B batch, H horizon (states per window), O observation size, C channels, k diffusion step.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

KERNEL = 5
NUM_GROUPS = 8


def fill_between(known_BHO: Tensor, mask_BH: Tensor) -> Tensor:
    """Unknown positions replaced by the straight line between their known neighbours (constant past the ends)."""
    horizon = mask_BH.shape[1]
    position_H = torch.arange(horizon, device=mask_BH.device)
    is_known_BH = mask_BH > 0.5
    before_BH = torch.where(is_known_BH, position_H, -1).cummax(1).values
    after_BH = torch.where(is_known_BH, position_H, horizon).flip(1).cummin(1).values.flip(1)
    left_BH = torch.where(before_BH < 0, after_BH, before_BH).clamp(0, horizon - 1)
    right_BH = torch.where(after_BH >= horizon, before_BH, after_BH).clamp(0, horizon - 1)
    weight_BH = (position_H - left_BH) / (right_BH - left_BH).clamp(min=1)
    size = known_BHO.shape[-1]
    left_BHO = known_BHO.gather(1, left_BH.unsqueeze(-1).expand(-1, -1, size))
    right_BHO = known_BHO.gather(1, right_BH.unsqueeze(-1).expand(-1, -1, size))
    return torch.lerp(left_BHO, right_BHO, weight_BH.unsqueeze(-1).clamp(0, 1).to(known_BHO.dtype))


def ignored_positions(mask_BH: Tensor) -> Tensor:
    """1 where a row's content means nothing: before its first known state, and, in a row that has unknown states
    between known ones, after its last known state (the window's unused rest). [B, H]

    A row that knows only its beginning has no such end: there everything that follows is wanted.
    """
    before_BH = (mask_BH.cummax(1).values < 0.5).to(mask_BH.dtype)
    after_BH = (mask_BH.flip(1).cummax(1).values.flip(1) < 0.5).to(mask_BH.dtype)
    has_gap_B1 = ((mask_BH < 0.5) & (before_BH < 0.5) & (after_BH < 0.5)).any(1, keepdim=True)
    return torch.maximum(before_BH, after_BH * has_gap_B1)


class _Block(nn.Module):
    """Residual block: two convolutions, the step embedding as scale and shift (FiLM) in between; ``count`` in a row."""

    def __init__(self, in_channels: int, out_channels: int, embed: int, count: int) -> None:
        super().__init__()
        self.then = _Block(out_channels, out_channels, embed, count - 1) if count > 1 else None
        groups = math.gcd(NUM_GROUPS, out_channels)
        self.conv_in = nn.Conv1d(in_channels, out_channels, KERNEL, padding=KERNEL // 2)
        self.norm_in = nn.GroupNorm(groups, out_channels)
        self.film = nn.Linear(embed, 2 * out_channels)
        self.conv_out = nn.Conv1d(out_channels, out_channels, KERNEL, padding=KERNEL // 2)
        self.norm_out = nn.GroupNorm(groups, out_channels)
        self.skip = nn.Conv1d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x_BCH: Tensor, embed_BE: Tensor) -> Tensor:
        y = nn.functional.silu(self._norm_film(self.conv_in(x_BCH), self.film(embed_BE)))
        y = nn.functional.silu(self.norm_out(self.conv_out(y)))
        y = y + self.skip(x_BCH)
        return y if self.then is None else self.then(y, embed_BE)

    def _norm_film(self, y_BCH: Tensor, film_BF: Tensor) -> Tensor:
        """Normalises, then scales by 1 + the film's first half and shifts by its second [B, 2 C]: in one operation,
        with every row's groups as groups of a single row, because a broadcast over a short H is slow on CPU.
        """
        size, norm = len(y_BCH), self.norm_in
        scale_BC, shift_BC = film_BF.chunk(2, 1)
        scale_BC = 1 + scale_BC
        if torch.compiler.is_compiling():
            # The rows as groups would be compiled anew for every number of rows.
            normed_BCH = nn.functional.group_norm(y_BCH, norm.num_groups, norm.weight, norm.bias, norm.eps)
            return torch.addcmul(shift_BC.unsqueeze(-1), normed_BCH, scale_BC.unsqueeze(-1))
        weight_R, bias_R = norm.weight * scale_BC, norm.bias * scale_BC + shift_BC
        y_1RH = y_BCH.reshape(1, -1, y_BCH.shape[-1])
        groups = size * norm.num_groups
        return nn.functional.group_norm(y_1RH, groups, weight_R.flatten(), bias_R.flatten(), norm.eps).view_as(y_BCH)


class _Grow(nn.ConvTranspose1d):
    """A layer that doubles the resolution: a transposed convolution (kernel 4, stride 2), computed as an ordinary one.

    On CPUs in bf16 the result of torch's own depends on how many rows there are, in the last bit of a float32 that is
    rounded then; with it a row would depend on its batch-mates.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 4, stride=2, padding=1)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """[B, C, H] -> [B, C', 2 H]"""
        after, left, right, before = self.weight.permute(2, 1, 0)
        nothing = torch.zeros_like(left)
        # The weights of each new position for the old ones before, at and after it.
        kernel = torch.stack([torch.stack([before, left, nothing], -1), torch.stack([nothing, right, after], -1)], 1)
        bias = None if self.bias is None else self.bias.repeat_interleave(2)
        y = nn.functional.conv1d(input, kernel.flatten(0, 1), bias, padding=1)
        return y.unflatten(1, (-1, 2)).transpose(2, 3).flatten(2)


class _ReturnEmbedding(nn.Module):
    """A term of the step embedding for a return, or for there being none."""

    def __init__(self, embed: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(1, embed), nn.SiLU(), nn.Linear(embed, embed))
        self.nothing = nn.Parameter(torch.zeros(embed))

    def forward(self, return_B: Tensor | None) -> Tensor:
        """Standardised returns [B], NaN for none -> [B, E]; None for no row's -> [E]."""
        if return_B is None:
            return self.nothing
        is_missing_B1 = return_B.isnan().unsqueeze(-1)
        return torch.where(is_missing_B1, self.nothing, self.mlp(return_B.nan_to_num().unsqueeze(-1)))


class TemporalUNet(nn.Module):
    """Predicts the clean states (or the noise) of a window from its noisy version.

    The mask and the known states, joined by straight lines, are inputs. The last layer starts at zero.

    Args:
        horizon: must be divisible by ``2 ** (len(multipliers) - 1)``.
        width, multipliers: channels per resolution.
        add_line: the output is the departure from the straight lines; for the prediction of clean states, where it
            makes short trainings several times truer. For the prediction of noise it means nothing.
        takes_return: a standardised return is a further input (classifier-free guidance).
    """

    def __init__(
        self,
        obs_dim: int,
        horizon: int,
        width: int,
        multipliers: Sequence[int],
        add_line: bool,
        takes_return: bool = False,
        num_blocks: int = 1,
    ) -> None:
        super().__init__()
        self.horizon = horizon
        self.add_line = add_line
        embed = 4 * width
        self.embed_dim = 2 * width
        self.embed = nn.Sequential(nn.Linear(self.embed_dim, embed), nn.SiLU(), nn.Linear(embed, embed), nn.SiLU())
        channels = [width * multiplier for multiplier in multipliers]
        self.enter = nn.Conv1d(2 * obs_dim + 2, channels[0], KERNEL, padding=KERNEL // 2)
        self.down = nn.ModuleList()
        self.shrink = nn.ModuleList()
        self.up = nn.ModuleList()
        self.grow = nn.ModuleList()
        previous = channels[0]
        for level, size in enumerate(channels):
            self.down.append(_Block(previous, size, embed, num_blocks))
            if level < len(channels) - 1:
                self.shrink.append(nn.Conv1d(size, size, 3, stride=2, padding=1))
            previous = size
        self.middle = _Block(previous, previous, embed, num_blocks)
        for size in reversed(channels[:-1]):
            self.grow.append(_Grow(previous, size))
            self.up.append(_Block(2 * size, size, embed, num_blocks))
            previous = size
        self.leave = nn.Conv1d(previous, obs_dim, 1)
        for parameter in self.leave.parameters():
            nn.init.zeros_(parameter)
        self.embed_return = _ReturnEmbedding(embed) if takes_return else None

    def forward(
        self, noisy_BHO: Tensor, known_BHO: Tensor, mask_BH: Tensor, k_B: Tensor, return_B: Tensor | None = None
    ) -> Tensor:
        """``noisy`` [B, H, O] at step ``k`` int64 [B], ``known`` [B, H, O] (read where ``mask`` is 1) -> [B, H, O].

        All in standardised units; ``mask`` is 1 at known positions, else 0. ``return`` [B] is NaN, or None for all
        rows, where no return is asked for; a network that takes none must get None.
        """
        assert noisy_BHO.shape[1] == self.horizon
        assert return_B is None or self.embed_return is not None
        ignored_BH = ignored_positions(mask_BH)
        wanted_BH1 = ((1 - mask_BH) * (1 - ignored_BH)).unsqueeze(-1)
        line_BHO = fill_between(known_BHO * mask_BH.unsqueeze(-1), mask_BH)
        inputs_BHC = torch.cat([noisy_BHO * wanted_BH1, line_BHO, mask_BH.unsqueeze(-1), ignored_BH.unsqueeze(-1)], -1)
        embed_BE = self.embed(_sinusoid(k_B, self.embed_dim).to(noisy_BHO.dtype))
        if self.embed_return is not None:
            embed_BE = embed_BE + self.embed_return(return_B)
        x = self.enter(inputs_BHC.transpose(1, 2))
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(x, embed_BE)
            if level < len(self.shrink):
                skips.append(x)
                x = self.shrink[level](x)
        x = self.middle(x, embed_BE)
        for block, grow in zip(self.up, self.grow, strict=True):
            x = block(torch.cat([grow(x), skips.pop()], 1), embed_BE)
        output_BHO = self.leave(x).transpose(1, 2)
        return output_BHO + line_BHO if self.add_line else output_BHO


def _sinusoid(k_B: Tensor, dim: int) -> Tensor:
    half = dim // 2
    frequency = torch.exp(-math.log(10000.0) * torch.arange(half, device=k_B.device) / max(half - 1, 1))
    angle = k_B.float().unsqueeze(1) * frequency
    return torch.nn.functional.pad(torch.cat([angle.sin(), angle.cos()], 1), (0, dim - 2 * half))
