"""Select pairs of a state to leave and a state to enter, with the real states around them.

Legend: N rows, P prefix states, S suffix states, O observation size, A action size, T transitions of a trajectory.
"""

from copy import copy
from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from raystitch.data.episodes import Bools, Episode, EpisodeDataset, Floats, Ints, from_episodes
from raystitch.errors import UserError, check_choice
from raystitch.models.bundle import Bundle
from raystitch.shaping.config import RECORDED, RewardConfig
from raystitch.stitching.candidates import Pairs
from raystitch.stitching.chain import Trajectories
from raystitch.stitching.config import PairConfig, StitchConfig
from raystitch.stitching.cuts import best_cuts
from raystitch.stitching.pools import Pools, States
from raystitch.stitching.selectors import (
    JOINED,
    NEEDS_FUTURE,
    SELECTORS,
    PairSelector,
    Selection,
    nearest,
    novel_enough,
    within_reach,
)
from raystitch.stitching.values import StateValues
from raystitch.stitching.wrapup import infer_actions, step_rewards

__all__ = [
    "SELECTORS",
    "PairSelector",
    "SourceIndex",
    "cut_trajectories",
    "given_trajectory",
    "nearest_pairs",
    "pairs_from_trajectories",
    "select_pairs",
]

Cut = Literal["best", "ends"]

Known = StateValues | Trajectories | None
"""What the rounds before have found: what states are worth, trajectories that may be left and entered, or nothing."""


class SourceIndex:
    """The data that pair selection needs, computed once per dataset: pools of states, their returns, a search tree.

    Args:
        source_episodes, target_episodes: int64, replace the split of the dataset by return.
        chain: the trajectories of a chain round; ``dataset`` is theirs.
        state_values: what states are worth in a chain round, where they are split by value.
        rewards: what the steps of the dataset count for in the returns of pairs.

    Raises:
        UserError: when the dataset has no state to leave or to enter, saying why; for pairs that a pilot has to choose.
    """

    def __init__(
        self,
        dataset: EpisodeDataset,
        bundle: Bundle,
        config: StitchConfig | None = None,
        *,
        source_episodes: Ints | None = None,
        target_episodes: Ints | None = None,
        chain: Trajectories | None = None,
        state_values: StateValues | None = None,
        rewards: RewardConfig = RECORDED,
    ) -> None:
        self.config = config or StitchConfig()
        if self.config.pairs.needs_pilot:
            raise UserError(
                f"pairs.mode={self.config.pairs.mode}, pairs.seam_max={self.config.pairs.seam_max}: auto is decided at "
                "the start of augment; name a mode, and a number, a quantile or off"
            )
        self.pools = Pools(
            dataset,
            bundle,
            self.config.pairs,
            needs_future=self.config.pairs.mode in NEEDS_FUTURE,
            source_episodes=source_episodes,
            target_episodes=target_episodes,
            chain=chain,
            state_values=state_values,
            rewards=rewards,
        )

    def with_values(self, state_values: StateValues) -> "SourceIndex":
        """Return the index of another round, where states are split by value; the search trees are kept."""
        later = copy(self)
        later.pools = self.pools.with_values(state_values)
        return later

    def with_seam_max(self, seam_max: float | str | None) -> "SourceIndex":
        """Return the index of the same states with another ``pairs.seam_max``; the search trees are kept."""
        other, pairs = copy(self), replace(self.config.pairs, seam_max=seam_max)
        other.config, other.pools = replace(self.config, pairs=pairs), copy(self.pools)
        other.pools.config = replace(self.pools.config, seam_max=seam_max)
        return other

    @property
    def known(self) -> Known:
        """The knowledge by which pairs are selected, beside the dataset."""
        return self.pools.state_values or self.pools.chain

    def select(self, seeds: Ints) -> Pairs:
        """One pair per seed (int64 [N]) in the configured mode; ``max_target_reuse`` counts within one call."""
        seeds = np.asarray(seeds, np.int64)
        return _fill(self.pools, SELECTORS[self.config.pairs.mode](self.pools, self.config, seeds))

    def worthwhile(self, pairs: Pairs) -> Bools:
        """Mark the pairs to stitch, bool [N]: those that pass through no real episode twice, are as novel and as near
        as asked and, where states are split by value (and ``value_check`` is on), promise a gain."""
        known = self.known
        kept = np.ones(len(pairs), np.bool_) if known is None else ~known.loops(pairs)
        source = States(pairs.source_episode, pairs.source_step)
        target = States(pairs.target_episode, pairs.target_step)
        if self.config.pairs.novelty:
            kept &= novel_enough(self.pools, source, target, pairs.gap)
        kept &= (pairs.gap == JOINED) | within_reach(self.pools, pairs.seam, pairs.gap)
        if isinstance(known, StateValues) and self.config.pairs.value_check:
            gap = np.where(pairs.gap == JOINED, JOINED, np.maximum(pairs.gap, self.pools.gap_min))
            kept &= self.pools.gain(source, target, gap) > 0
        return kept

    def nearest(self, seeds: Ints) -> Pairs:
        """The nearest real pairs of the same sources and targets, gap -1, for joining without a bridge."""
        return _fill(self.pools, nearest(self.pools, self.config, np.asarray(seeds, np.int64)))


def _fill(pools: Pools, selection: Selection) -> Pairs:
    """The pairs of a selection, with the real states around them."""
    source, target = selection.source, selection.target  # [N]
    prefix, prefix_length = pools.prefixes(source)  # [N, P, O], [N]
    suffix, suffix_length = pools.suffixes(target)  # [N, S, O], [N]
    return Pairs(
        source_episode=source.episode,
        source_step=source.step,
        target_episode=target.episode,
        target_step=target.step,
        prefix=prefix,
        prefix_length=prefix_length,
        suffix=suffix,
        suffix_length=suffix_length,
        return_source=pools.own_returns[pools.rows(source)],
        return_target=pools.returns[pools.rows(target)],
        gap=selection.gap,
        seam=selection.seam,
    )


def select_pairs(dataset: EpisodeDataset, bundle: Bundle, config: StitchConfig, seeds: Ints) -> Pairs:
    """Select pairs of states to leave and to enter, one per seed; a ``SourceIndex`` does it repeatedly.

    Raises:
        UserError: when the bundle was fitted on another dataset, or nothing can be left or entered.
    """
    bundle.check_dataset(dataset)
    return SourceIndex(dataset, bundle, config).select(seeds)


def nearest_pairs(dataset: EpisodeDataset, bundle: Bundle, config: StitchConfig, seeds: Ints) -> Pairs:
    """``SourceIndex.nearest`` for one use.

    Raises:
        UserError: when the bundle was fitted on another dataset, or nothing can be left or entered.
    """
    bundle.check_dataset(dataset)
    return SourceIndex(dataset, bundle, config).nearest(seeds)


def pairs_from_trajectories(
    bundle: Bundle,
    source_observations: Floats,
    target_observations: Floats,
    seeds: Ints,
    *,
    source_actions: Floats | None = None,
    source_rewards: Floats | None = None,
    source_terminated: bool = False,
    target_actions: Floats | None = None,
    target_rewards: Floats | None = None,
    target_terminated: bool = False,
    cut: Cut = "best",
    gap: int | None = None,
    config: PairConfig | None = None,
) -> Pairs:
    """Make pairs between two trajectories that the caller gives, one per seed.

    Args:
        source_observations, target_observations: [T + 1, O]; actions [T, A] and rewards [T] are inferred where None.

    Raises:
        UserError: for sizes that do not fit, non-finite values, a gap out of range, or nothing to leave or enter.
    """
    source = given_trajectory(
        bundle, "source", source_observations, source_actions, source_rewards, terminated=source_terminated
    )
    target = given_trajectory(
        bundle, "target", target_observations, target_actions, target_rewards, terminated=target_terminated
    )
    return cut_trajectories(bundle, source, target, len(seeds), cut=cut, gap=gap, config=config)


def cut_trajectories(
    bundle: Bundle,
    source: Episode,
    target: Episode,
    count: int,
    *,
    cut: Cut = "best",
    gap: int | None = None,
    config: PairConfig | None = None,
) -> Pairs:
    """Choose ``count`` pairs between two trajectories that are in no dataset; their episodes are -1 in the result.

    Args:
        cut: ``ends`` joins the end of the source to the start of the target; ``best`` takes the places that
            ``cuts.best_cuts`` chooses, the most promising first. A source is never left from a terminal state.
        gap: states to generate; None leaves it to the cut and the gap mode.

    Raises:
        UserError: a gap out of range, or nothing to leave or enter.
    """
    check_choice("cut", cut, get_args(Cut))
    base = config or PairConfig()
    diffusion = bundle.config.diffusion
    if gap is not None and not diffusion.gap_min <= gap <= diffusion.gap_max:
        raise UserError(
            f"gap={gap} is outside {diffusion.gap_min}..{diffusion.gap_max}, which the stitcher was fitted on"
        )
    if source.terminated and len(source.actions) < base.terminal_margin:
        raise UserError(
            f"source: {len(source.actions)} steps that end in a termination leave no state to start from "
            f"{base.terminal_margin} steps before it; give a longer trajectory or lower terminal_margin"
        )
    dataset = from_episodes(
        [source, target], name="source/target", action_low=bundle.action_low, action_high=bundle.action_high
    )
    places: Literal["any", "ends"] = "ends" if cut == "ends" else "any"
    pools = Pools(
        dataset,
        bundle,
        replace(base, source_cut=places, target_cut=places, max_target_reuse=0, context="ignore"),
        source_episodes=np.zeros(1, np.int64),
        target_episodes=np.ones(1, np.int64),
    )
    if cut == "best":
        selection = best_cuts(pools, count, gap)
    else:
        first = np.zeros(count, np.int64)
        selection = Selection(States(first, first + pools.last_leave[0]), States(first + 1, first), first)
    pairs = _fill(pools, selection)
    unknown = np.full(len(pairs), -1, np.int64)
    chosen = pairs.gap if gap is None else np.full(len(pairs), gap, np.int64)
    return replace(pairs, source_episode=unknown, target_episode=unknown, gap=chosen, gap_is_given=gap is not None)


def given_trajectory(
    bundle: Bundle,
    name: str,
    observations: Floats,
    actions: Floats | None = None,
    rewards: Floats | None = None,
    *,
    terminated: bool = False,
) -> Episode:
    """Check a caller's trajectory, inferring the actions and rewards that are not given, as for a bridge.

    Args:
        name: its name in errors. observations: [T + 1, O]; actions: [T, A]; rewards: [T].

    Raises:
        UserError: sizes that do not fit, or the first row that is not finite.
    """
    observations = np.asarray(observations, np.float32)
    if observations.ndim != 2 or observations.shape[1] != bundle.obs_dim:
        raise UserError(
            f"{name}.observations has shape {observations.shape}, the stitcher needs [T + 1, {bundle.obs_dim}]"
        )
    length = len(observations) - 1
    if length < 1:
        raise UserError(f"{name}.observations has {length + 1} rows, a trajectory needs at least 2")
    if actions is None:
        actions = infer_actions(bundle, observations[None], np.array([length - 1]))[0]
    actions = np.asarray(actions, np.float32)
    if actions.shape != (length, bundle.act_dim):
        raise UserError(f"{name}.actions has shape {actions.shape}, expected [{length}, {bundle.act_dim}]")
    if rewards is None:
        rewards = step_rewards(bundle, observations[:-1], actions, observations[1:])[0]
    rewards = np.asarray(rewards, np.float32)
    if rewards.shape != (length,):
        raise UserError(f"{name}.rewards has shape {rewards.shape}, expected [{length}]")
    for field, values in (("observations", observations), ("actions", actions), ("rewards", rewards)):
        bad = ~np.isfinite(values.reshape(len(values), -1)).all(1)
        if bad.any():
            raise UserError(f"{name}.{field}: row {int(bad.argmax())} is not finite")
    return Episode(observations, actions, rewards, terminated=terminated, truncated=not terminated)
