"""Batches drawn from training data that lies on the device, or in mapped files beside it.

Legend: N pool rows, E episodes, S seeds, B batch, K context, O observation size, A action size. Observations are
standardised by the ORIGINAL data, actions scaled to [-1, 1] by the bounds of the action space.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raystitch.data.episodes import Floats
from raystitch.data.normalise import Normalizer
from raystitch.envs.spec import EnvSpec
from raystitch.errors import UserError
from raystitch.trainers.config import Kind, UniformOver
from raystitch.trainers.policy import ReturnRule
from raystitch.trainers.ratio import Ratio
from raystitch.trainers.segments import Segments


@dataclass(frozen=True, eq=False)
class TransitionBatch:
    """Transitions: ``obs``, ``next_obs`` [S, B, O], ``action`` [S, B, A], ``reward``, ``done`` [S, B] (1 at terminals,
    0 at time-outs).

    Attributes:
        actor: the transitions that the policy learns from instead, where its data alone are weighted; None elsewhere.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    next_obs: Tensor
    done: Tensor
    actor: "TransitionBatch | None" = None

    @property
    def for_actor(self) -> "TransitionBatch":
        """The transitions that the policy learns from."""
        return self.actor or self


@dataclass(frozen=True, eq=False)
class WindowBatch:
    """Windows, padded at their end: ``obs`` [S, B, K, O], ``action`` [S, B, K, A], ``rtg`` [S, B, K] in units of the
    largest return of the original data, ``time`` int64 [S, B, K] from the episode's start, ``valid`` bool [S, B, K].
    """

    obs: Tensor
    action: Tensor
    rtg: Tensor
    time: Tensor
    valid: Tensor

    def of(self, seeds: slice) -> "WindowBatch":
        """Return the windows of some seeds."""
        return WindowBatch(self.obs[seeds], self.action[seeds], self.rtg[seeds], self.time[seeds], self.valid[seeds])


@dataclass(frozen=True, eq=False)
class RatioPart:
    """One side of the ratio: episodes to draw from, in proportion to weight x length, or to weight alone.

    Attributes:
        length: int64 [E]. cumulative: float64 [E], of the episodes' weights; of all steps' [M], episode after episode,
            where ``ends`` int64 [E] says where each ends: single steps have weights then.
    """

    first_episode: int
    length: Tensor
    cumulative: Tensor
    ends: Tensor | None = None

    @classmethod
    def of(
        cls,
        segments: Segments,
        first_episode: int,
        device: torch.device,
        uniform_over: UniformOver = "transitions",
        steps: NDArray[np.float64] | None = None,
    ) -> "RatioPart":
        """Return the side that begins with ``first_episode``.

        Args:
            uniform_over: whether, at equal weights, every transition is as likely as any other or every episode.
            steps: float64 [M], weights of all steps, episode after episode; None where those of an episode are equal.
        """
        mass = segments.weight * (segments.total if uniform_over == "transitions" else 1)
        if steps is not None:
            total = segments.total
            mass = np.repeat(mass / np.maximum(total, 1), total) * steps
        return cls(
            first_episode=first_episode,
            length=torch.as_tensor(segments.total, device=device),
            cumulative=torch.as_tensor(np.cumsum(mass), dtype=torch.float64, device=device),
            ends=None if steps is None else torch.as_tensor(np.cumsum(segments.total), device=device),
        )

    def __len__(self) -> int:
        return len(self.length)

    def draw(self, count: int, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Draw ``count`` episodes per seed and a uniform step in each, int64 [S, count]."""
        device = self.length.device
        u = torch.stack([torch.rand((2, count), dtype=torch.float64, device=device, generator=g) for g in generators])
        episode = torch.searchsorted(self.cumulative, u[:, 0] * self.cumulative[-1], right=True)
        if self.ends is not None:
            place = episode.clamp_(max=len(self.cumulative) - 1)
            episode = torch.searchsorted(self.ends, place, right=True)
            return episode + self.first_episode, place - (self.ends - self.length)[episode]
        episode = episode.clamp_(max=len(self) - 1)
        length = self.length[episode]
        step = (u[:, 1] * length).long()
        return episode + self.first_episode, torch.minimum(step, length - 1)


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainData:
    """Everything a trainer draws from; built by ``build_data``.

    Attributes:
        observations [P, O], obs_row int64 [N] (s_t; s_{t+1} is the next row), actions [N, A], rewards, dones [N]:
            the pool, dataset first, bridges after. On the device, or, where they are too large for it, on the CPU in
            mapped files.
        run_start, run_before integers [E, R]: the runs of every episode (see ``segments``), on the device.
        rtg [M], rtg_start integers [E, R] or None, rtg_offset [E, R]: returns-to-go in raw units (see
            ``EpisodeReturns``); ``rtg`` lies beside the pool. ``prepare`` may give each seed its own: ``rtg`` [S, M].
        original, augmented: the two sides of the ratio. actor: the augmented side as the policy alone draws it, None
            where everything learns from the same.
        rtg_scale: largest absolute return of the original data.
        return_span: difference between the largest and the smallest return of the original part.
        return_max: largest return of the original data, raw.
        return_rule: of returns-to-go that are relabelled by a value function: windows keep the last one and rebuild
            the others, see ``rebuilt``. None where every step's stands.
    """

    kind: Kind
    observations: Tensor
    obs_row: Tensor
    actions: Tensor
    rewards: Tensor
    dones: Tensor
    run_start: Tensor
    run_before: Tensor
    rtg: Tensor
    rtg_start: Tensor | None
    rtg_offset: Tensor
    original: RatioPart
    augmented: RatioPart
    actor: RatioPart | None = None
    normalizer: Normalizer
    action_low: Floats
    action_high: Floats
    rtg_scale: float
    return_max: float
    return_span: float
    env: EnvSpec | None
    dataset_name: str
    dataset_fingerprint: str
    return_rule: ReturnRule | None = None

    @property
    def device(self) -> torch.device:
        """The device that batches are wanted on."""
        return self.run_start.device

    def max_time(self, ratio: Ratio) -> int:
        """Return the largest time step that batches of this ratio contain."""
        shares = ((self.original, ratio.original), (self.augmented, ratio.augmented))
        return max((int(part.length.max()) - 1 for part, share in shares if share and len(part)), default=0)

    def require(self, ratio: Ratio) -> None:
        """Raise UserError where a part with a positive share is empty."""
        if ratio.original and not len(self.original):
            raise UserError(f"ratio {ratio}: {self.dataset_name} has no usable transition to draw")
        none = not len(self.augmented) or (self.actor is not None and not self.actor.cumulative[-1] > 0)
        if ratio.augmented and none:
            raise UserError(
                f"ratio {ratio} gives augmented data a share, but there is none (no accepted bridge at this delta, no "
                "pairs, or weights that leave none); use 1:0, a larger delta or more bridges"
            )

    @property
    def obs_dim(self) -> int:
        return self.observations.shape[1]

    @property
    def act_dim(self) -> int:
        return self.actions.shape[1]

    def _rows(self, episode: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pool row and the flat index of the run, for every (episode, step)."""
        before = self.run_before[episode]
        run = (step[..., None] >= before[..., 1:]).sum(-1)
        flat = episode * self.run_start.shape[1] + run
        return self.run_start.view(-1)[flat] + step - self.run_before.view(-1)[flat], flat

    def _values(self, row: Tensor, flat: Tensor, step: Tensor) -> Tensor:
        """Return the entries of ``rtg`` at pool rows, or at steps of runs where episodes have values of their own."""
        at = row
        if self.rtg_start is not None:
            at = (self.rtg_start.view(-1)[flat] + step - self.run_before.view(-1)[flat]).to(self.rtg.device)
        if self.rtg.dim() == 1:
            return self.rtg[at]
        return self.rtg.gather(1, at.flatten(1)).view(at.shape)

    def transitions(self, episode: Tensor, step: Tensor) -> TransitionBatch:
        """Return the transitions at (episode, step), int64 [S, B] each."""
        row = self._rows(episode, step)[0].to(self.observations.device)
        obs_row = self.obs_row[row]
        return TransitionBatch(
            obs=self.observations[obs_row].to(self.device),
            action=self.actions[row].to(self.device),
            reward=self.rewards[row].to(self.device),
            next_obs=self.observations[obs_row + 1].to(self.device),
            done=self.dones[row].to(self.device),
        )

    def windows(self, episode: Tensor, start: Tensor, length: Tensor, context: int) -> WindowBatch:
        """Return windows of up to ``context`` steps from (episode, start) on.

        Args:
            episode, start, length: int64 [S, B]; the length is the episode's.
        """
        count = (length - start).clamp(max=context)
        ahead = torch.arange(context, device=self.device)
        valid = ahead < count[..., None]
        time = start[..., None] + torch.minimum(ahead, count[..., None] - 1)
        row, flat = self._rows(episode[..., None].expand_as(time), time)
        row = row.to(self.observations.device)
        rtg = self._values(row, flat, time).to(self.device) + self.rtg_offset.view(-1)[flat]
        if self.return_rule is not None:
            rtg = rebuilt(rtg, self.rewards[row].to(self.device), count, self.return_rule.gamma)
        obs = self.observations[self.obs_row[row]].to(self.device)
        return WindowBatch(obs, self.actions[row].to(self.device), rtg / self.rtg_scale, time, valid)


def rebuilt(rtg_SBK: Tensor, reward_SBK: Tensor, count_SB: Tensor, gamma: float) -> Tensor:
    """Return the returns-to-go of windows in which the last valid one stands and R_j = r_j + gamma R_{j+1} before it,
    as a policy sees them when it acts (Yamagata et al. 2023, arXiv 2209.03993, section 4)."""
    steps = torch.arange(rtg_SBK.shape[-1], device=rtg_SBK.device)
    last = count_SB[..., None] - 1
    parts = torch.where(steps < last, reward_SBK, torch.where(steps == last, rtg_SBK, 0))
    after = steps[:, None] - steps  # [K, K], how far step i lies after step j
    return torch.where(steps < last, parts @ (gamma ** after.clamp(min=0) * (after >= 0)), rtg_SBK)


class RatioSampler:
    """Draws batches with the same number of original and of augmented rows in each, for every seed from its generator.

    Raises:
        UserError: where a part with a positive share is empty.
    """

    def __init__(self, data: TrainData, ratio: Ratio, batch_size: int, generators: Sequence[torch.Generator]) -> None:
        data.require(ratio)
        self.counts = ratio.counts(batch_size)
        self._parts, self._generators = (data.original, data.augmented), generators

    def over(self, augmented: RatioPart) -> "RatioSampler":
        """Return a sampler of the same batches from the same generators with another augmented side."""
        other = copy(self)
        other._parts = (self._parts[0], augmented)
        return other

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Draw episode and step, and return them with the episode's length, int64 [S, B] each; original rows first."""
        drawn: list[tuple[Tensor, Tensor, Tensor]] = []
        for part, count in zip(self._parts, self.counts, strict=True):
            if count:
                episode, step = part.draw(count, self._generators)
                drawn.append((episode, step, part.length[episode - part.first_episode]))
        if len(drawn) == 1:
            return drawn[0]
        episode, step, length = (torch.cat(both, 1) for both in zip(*drawn, strict=True))
        return episode, step, length
