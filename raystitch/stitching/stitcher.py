"""From pairs to qualified candidates: the one object that Ray actors, the endpoint, pipelines and notebooks share."""

from dataclasses import fields

import numpy as np

from raystitch.data.episodes import Ints
from raystitch.errors import UserError
from raystitch.models.bundle import Bundle
from raystitch.stitching.bridge import build_bridges
from raystitch.stitching.candidates import Candidates, Pairs
from raystitch.stitching.config import StitchConfig
from raystitch.stitching.gap import GAPS
from raystitch.stitching.qualify import qualify
from raystitch.stitching.wrapup import infer_actions, infer_rewards, stitched_return


class Stitcher:
    """Proposes and qualifies bridges. A row's result depends on its pair and its seed, not on its batch-mates."""

    def __init__(self, bundle: Bundle, config: StitchConfig | None = None) -> None:
        self.bundle = bundle
        self.config = config or StitchConfig()

    def propose(self, pairs: Pairs, seeds: Ints) -> Candidates:
        """Gap, states, actions and rewards of one bridge per pair; ``seeds`` int64 [N].

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
        micro_batches = _micro_batches(len(pairs), self.config.sampler.micro_batch)
        candidates = _concatenate([self._propose(pairs.take(rows), seeds[rows]) for rows in micro_batches])
        candidates.first_row = np.arange(len(candidates))
        return candidates

    def qualify(self, candidates: Candidates) -> Candidates:
        """The candidates with residuals, decision and reason by dynamics members that ``propose`` never asks."""
        micro_batches = _micro_batches(len(candidates), self.config.sampler.micro_batch)
        return _concatenate(
            [qualify(self.bundle, candidates.take(rows), self.config.qualify) for rows in micro_batches]
        )

    def stitch(self, pairs: Pairs, seeds: Ints) -> Candidates:
        """``qualify`` after ``propose``."""
        return self.qualify(self.propose(pairs, seeds))

    def _propose(self, pairs: Pairs, seeds: Ints) -> Candidates:
        bundle, config = self.bundle, self.config
        gap = pairs.gap if pairs.gap_is_given else GAPS[config.gap.mode](bundle, config, pairs, seeds)
        bridges = build_bridges(bundle, pairs, gap, seeds, config.sampler)
        actions = infer_actions(bundle, bridges, gap)
        rewards, reward_stds = infer_rewards(bundle, bridges, actions, gap)
        gamma, kappa = bundle.gamma, config.qualify.kappa
        return Candidates(
            source_episode=pairs.source_episode,
            source_step=pairs.source_step,
            target_episode=pairs.target_episode,
            target_step=pairs.target_step,
            gap=gap,
            seed=seeds,
            attempt=np.zeros(len(pairs), np.int64),
            first_row=np.arange(len(pairs)),
            observations=bridges,
            actions=actions,
            rewards=rewards,
            return_source=pairs.return_source,
            return_target=pairs.return_target,
            return_stitched=stitched_return(rewards, reward_stds, gap, pairs.return_target, gamma, kappa),
        )


def _micro_batches(count: int, size: int) -> list[Ints]:
    return [np.arange(start, min(start + size, count)) for start in range(0, max(count, 1), size)]


def _concatenate(parts: list[Candidates]) -> Candidates:
    columns = {f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Candidates)}
    return Candidates(**columns)
