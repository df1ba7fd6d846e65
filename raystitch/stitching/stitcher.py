"""The Stitcher, which turns pairs into qualified candidates, and the micro-batches in which it works through them.

Ray actors, the endpoint, pipelines and notebooks all use this one object.
Legend: N pairs of a call, B rows of a micro-batch, G largest gap.
"""

from collections.abc import Callable
from dataclasses import fields
from typing import TypeVar

import numpy as np
import torch

from raystitch.data.episodes import Ints
from raystitch.errors import RunError, UserError
from raystitch.models.bundle import Bundle
from raystitch.shaping.config import RECORDED, RewardConfig
from raystitch.stitching.bridge import build_bridges
from raystitch.stitching.candidates import Candidates, Pairs
from raystitch.stitching.config import StitchConfig
from raystitch.stitching.gap import GAPS
from raystitch.stitching.qualify import qualify
from raystitch.stitching.repair import Attempt, repairs
from raystitch.stitching.wrapup import infer_actions, infer_rewards, shaped_rewards, stitched_return

T = TypeVar("T")


class Stitcher:
    """Proposes and qualifies bridges. A row's result depends on its pair and its seed, not on its batch-mates.

    Args:
        bundle: the fitted models; the work is done on their device.
        config: None for the defaults.
        rewards: what generated steps count for in ``return_stitched``; the rewards themselves stay as generated.

    Raises:
        UserError: when the judges' disagreement is a criterion and there is only one judge, or when sampling is to
            depend on a return and the network was fitted without.

    Examples:
        >>> stitcher = rs.Stitcher(bundle, stitching)
        >>> pairs = select_pairs(dataset, bundle, stitching, np.arange(4))  # N = 4
        >>> found = stitcher.stitch(pairs, np.arange(4))  # at least N rows: repairs have rows of their own
        >>> found.observations.shape[1:], found.actions.shape[1:], found.residuals.shape[1:]  # G = 8
        ((10, 4), (9, 2), (9,))
        >>> len(found) >= 4 and bool((found.residual_max >= 0).all())
        True
    """

    def __init__(self, bundle: Bundle, config: StitchConfig | None = None, *, rewards: RewardConfig = RECORDED) -> None:
        self.bundle = bundle
        self.rewards = rewards
        self.config = config or StitchConfig()
        spread = self.config.qualify.spread
        if spread not in (None, "off") and bundle.config.num_judges < 2:
            raise UserError(
                f"qualify.spread={spread} is the disagreement of judges, and this stitcher has only one; fit it with "
                "num_judges of at least 2 or leave qualify.spread off"
            )
        bundle.check_return_weight(self.config.sampler.return_weight)
        self._micro_batches = MicroBatches(self.config.sampler.micro_batch)

    def propose(self, pairs: Pairs, seeds: Ints) -> Candidates:
        """Propose one bridge per pair, with gap, states, actions and rewards, and its repairs; ``seeds`` int64 [N].

        Row n < N is the first attempt of pair n; ``first_row`` of a repair is the row of its pair's first attempt.

        Raises:
            UserError: when the pairs' observations are not of the bundle's size.
        """
        obs_dim = self.bundle.obs_dim
        if pairs.prefix.shape[-1] != obs_dim or pairs.suffix.shape[-1] != obs_dim:
            raise UserError(
                f"the pairs have {pairs.prefix.shape[-1]} observation dimensions, the stitcher was fitted on {obs_dim}"
            )
        if len(seeds) != len(pairs):
            raise ValueError(f"need one seed per pair, got {len(seeds)} seeds for {len(pairs)} pairs")
        seeds = np.asarray(seeds, np.int64)
        parts = self._micro_batches.run(len(pairs), lambda rows: self._propose(pairs.take(rows), seeds[rows], rows))
        candidates = _concatenate([part for attempts in parts for part in attempts])
        return candidates.take(np.lexsort((candidates.first_row, candidates.attempt)))

    def qualify(self, candidates: Candidates) -> Candidates:
        """Add residuals, decision and reason to candidates, by dynamics members that ``propose`` never uses."""
        return _concatenate(
            self._micro_batches.run(
                len(candidates), lambda rows: qualify(self.bundle, candidates.take(rows), self.config.qualify)
            )
        )

    def stitch(self, pairs: Pairs, seeds: Ints) -> Candidates:
        """Propose and qualify."""
        return self.qualify(self.propose(pairs, seeds))

    def _propose(self, pairs: Pairs, seeds: Ints, rows: Ints) -> list[Candidates]:
        """All attempts at B pairs, which are ``rows`` (int64 [B]) of the call's N."""
        bundle, config = self.bundle, self.config
        gap = pairs.gap if pairs.gap_is_given else GAPS[config.gap.mode](bundle, config, pairs, seeds)
        bridges = build_bridges(bundle, pairs, gap, seeds, config.sampler, guidance=config.guidance)
        attempts = [Attempt(np.arange(len(pairs)), gap, bridges, infer_actions(bundle, bridges, gap))]
        attempts += repairs(bundle, config, pairs, seeds, attempts[0])
        return [
            self._wrap_up(pairs.take(attempt.rows), seeds[attempt.rows], attempt, number, rows[attempt.rows])
            for number, attempt in enumerate(attempts)
        ]

    def _wrap_up(self, pairs: Pairs, seeds: Ints, attempt: Attempt, number: int, first_row: Ints) -> Candidates:
        """The candidates of one attempt, with actions, rewards and returns; pairs and seeds are the attempt's own."""
        bundle, gap = self.bundle, attempt.gap
        rewards, reward_stds = infer_rewards(bundle, attempt.bridges, attempt.actions, gap)
        counted = shaped_rewards(self.rewards, rewards, gap)
        gamma, kappa = bundle.gamma, self.config.qualify.kappa
        return Candidates(
            source_episode=pairs.source_episode,
            source_step=pairs.source_step,
            target_episode=pairs.target_episode,
            target_step=pairs.target_step,
            gap=gap,
            seed=seeds,
            attempt=np.full(len(pairs), number, np.int64),
            first_row=first_row,
            observations=attempt.bridges,
            actions=attempt.actions,
            rewards=rewards,
            return_source=pairs.return_source,
            return_target=pairs.return_target,
            return_stitched=stitched_return(counted, reward_stds, gap, pairs.return_target, gamma, kappa),
        )


class MicroBatches:
    """Runs work on portions of rows. If memory runs out, the portion is halved for good and the work goes on."""

    def __init__(self, size: int) -> None:
        self.size = size

    def run(self, count: int, work: Callable[[Ints], T]) -> list[T]:
        """Call ``work(rows)`` on consecutive portions of 0 .. count - 1 (once with no rows if ``count`` is 0).

        Raises:
            RunError: when a single row does not fit.
        """
        done: list[T] = []
        start = 0
        while start < count or not done:
            rows = np.arange(start, min(start + self.size, count))
            try:
                done.append(work(rows))
            except (MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                if len(rows) <= 1:
                    raise RunError(f"not enough memory for a single bridge: {error}") from error
                self.size = len(rows) // 2
            else:
                start += len(rows)
                continue
            # Outside the handler: its traceback keeps the tensors of the failed attempt alive.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return done


def _concatenate(parts: list[Candidates]) -> Candidates:
    columns = {f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Candidates)}
    return Candidates(**columns)


def _is_out_of_memory(error: Exception) -> bool:
    # torch has a class of its own on accelerators; its CPU allocator raises a plain RuntimeError, and so do CUDA's
    # libraries (cuBLAS, cuSOLVER, cuDNN) that find no memory for their workspaces.
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(text in str(error) for text in ("can't allocate memory", "_STATUS_ALLOC_FAILED"))
