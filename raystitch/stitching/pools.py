"""Which states of a dataset may be left and entered, and what following them is worth.

Legend: E episodes, N transitions, O observation size, D active dimensions, S source states, M target states.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from raystitch.data.episodes import Bools, EpisodeDataset, Floats, Ints
from raystitch.data.returns import discounted_returns
from raystitch.data.select import low_high_split
from raystitch.errors import UserError
from raystitch.models.bundle import Bundle
from raystitch.models.embedding import embed
from raystitch.seeding import integers
from raystitch.shaping.config import RECORDED, RewardConfig
from raystitch.shaping.rewards import shape_dataset
from raystitch.stitching.chain import Trajectories
from raystitch.stitching.config import PairConfig
from raystitch.stitching.contexts import WEIGHT, Contexts, Partners
from raystitch.stitching.retrieval import NearestTargets

_VALUE_CHUNK = 65536


@dataclass(frozen=True, eq=False)
class States:
    """Some states of a dataset: int64 episodes and steps of equal shape."""

    episode: Ints
    step: Ints

    def at(self, rows: Ints) -> "States":
        return States(self.episode[rows], self.step[rows])


class Pools:
    """States to leave, states to enter, their returns and a nearest-neighbour index; built once per dataset.

    Args:
        needs_future: leave only states whose own recorded future reaches past the smallest gap.
        source_episodes, target_episodes: replace the split by return.
        chain: of a chain round, whose dataset is ``dataset``: which states may be left and entered, who goes with whom.
        rewards: what the real steps count for; the rewards of a chain round are shaped already.

    Raises:
        UserError: when nothing can be left or entered, saying why.
    """

    def __init__(
        self,
        dataset: EpisodeDataset,
        bundle: Bundle,
        config: PairConfig,
        *,
        needs_future: bool = False,
        source_episodes: Ints | None = None,
        target_episodes: Ints | None = None,
        chain: Trajectories | None = None,
        rewards: RewardConfig = RECORDED,
    ) -> None:
        self.dataset = dataset = dataset if chain is not None else shape_dataset(dataset, rewards)
        self.chain = chain
        self.bundle = bundle
        self.config = config
        self.gap_min = bundle.config.diffusion.gap_min
        if not bundle.normalizer.active.any():
            raise UserError(f"{dataset.name}: every observation dimension is constant, so no state is near another")
        if not dataset.num_transitions:
            raise UserError(f"{dataset.name} has no transitions, so there is nothing to stitch")
        low, high = low_high_split(dataset, config.source_fraction, config.target_fraction)
        if target_episodes is None:
            # An episode that returned no more than the typical source is no high-return target, tie or not.
            better = dataset.returns[high] > np.median(dataset.returns[low])
            target_episodes = high[better] if better.any() else high
        self.targets = self._target_states(np.sort(target_episodes))
        self.contexts: Contexts | None = None
        self.partners: Partners | None = None
        if config.context == "match":
            num_recorded = dataset.num_episodes if chain is None else int((chain.bridge_ids == "").sum())
            self.contexts = Contexts.find(dataset, bundle.normalizer, num_recorded)
        self.first_leave, self.last_leave = self._leave_range(needs_future)
        self.source_episodes = self._source_episodes(low if source_episodes is None else source_episodes)
        self.overlap = chain is not None or bool(np.isin(self.source_episodes, self.targets.episode).any())

    @cached_property
    def last_state(self) -> Ints:
        """Last recorded step of each episode, int64 [E]."""
        return self.dataset.lengths - ~self.dataset.final_observed

    @cached_property
    def last_future(self) -> Ints:
        """Last step of each episode that is recorded and not terminal, int64 [E]."""
        return np.minimum(self.last_state, self.dataset.lengths - self.dataset.terminated)

    @cached_property
    def returns(self) -> Floats:
        """Discounted return from each observation on, float32 [N + E]; at a time-out the fitted value stands in for
        the future, after a termination there is none."""
        final_rows = self.dataset.obs_offsets[1:] - 1
        bootstrap = np.where(self.dataset.terminated, 0.0, values(self.bundle, self.dataset.observations[final_rows]))
        bootstrap = bootstrap.astype(np.float32)
        returns = np.empty(len(self.dataset.observations), np.float32)
        returns[final_rows] = bootstrap
        returns[self.dataset.obs_index] = discounted_returns(
            self.dataset.rewards, self.dataset.offsets, self.bundle.gamma, bootstrap
        )
        return returns

    @cached_property
    def nearest(self) -> NearestTargets:
        """Searches ``search_points`` of standardised states."""
        states = self.encode(self.observations(self.targets))
        return NearestTargets(self._with_contexts(states), self.targets.episode, self.joinable)

    @cached_property
    def phi(self) -> Floats:
        """Every observation in the temporal-distance embedding, float32 [N + E, Z]; distances are steps."""
        return embed(self.bundle.embedding, self.dataset.observations)

    @cached_property
    def nearest_in_time(self) -> NearestTargets:
        """Searches ``search_points`` of embedded states, exactly."""
        points = self._with_contexts(self.phi[self.rows(self.targets)])
        return NearestTargets(points, self.targets.episode, self.joinable, slack=0.0)

    def search_points(self, states: Floats, source_episode: Ints) -> Floats:
        """Standardised or embedded states [..., D] of sources as points to search targets near to."""
        if self.contexts is None:
            return states
        return np.concatenate([states, WEIGHT * self.contexts.leave[source_episode]], -1)

    def _with_contexts(self, states: Floats) -> Floats:
        if self.contexts is None:
            return states
        return np.concatenate([states, WEIGHT * self.contexts.enter[self.targets.episode]], -1)

    def rows(self, states: States) -> Ints:
        """Observation rows of the states."""
        return self.dataset.obs_offsets[states.episode] + states.step

    def observations(self, states: States) -> Floats:
        """Raw observations [..., O]."""
        return self.dataset.observations[self.rows(states)]

    def prefixes(self, states: States) -> tuple[Floats, Ints]:
        """Real states up to each of the N given ones: [N, P, O] right-aligned (zeros before), and how many."""
        width = self.bundle.config.diffusion.prefix_max
        before = np.arange(width - 1, -1, -1)
        count = np.minimum(states.step + 1, width)
        rows = self.rows(states)[:, None] - np.minimum(before, count[:, None] - 1)
        return self.dataset.observations[rows] * (before < count[:, None])[..., None], count

    def suffixes(self, states: States) -> tuple[Floats, Ints]:
        """Real states from each of the N given ones on: [N, S, O] left-aligned (zeros after), and how many."""
        diffusion = self.bundle.config.diffusion
        after = np.arange(diffusion.horizon - diffusion.gap_min - 1)
        count = np.minimum(self.last_state[states.episode] - states.step + 1, len(after))
        rows = self.rows(states)[:, None] + np.minimum(after, count[:, None] - 1)
        return self.dataset.observations[rows] * (after < count[:, None])[..., None], count

    def encode(self, observations: Floats) -> Floats:
        """Raw [..., O] -> standardised active dimensions [..., D]."""
        normalizer = self.bundle.normalizer
        return normalizer.encode(observations)[..., normalizer.active]

    def draw_sources(
        self,
        uniform_episode: NDArray[np.float64],
        uniform_step: NDArray[np.float64],
        ahead: Ints | None = None,
    ) -> States:
        """A source episode per row [N, 1] or per try [N, C], and steps of it [N, C]; both uniform.

        Args:
            ahead: int64 [N, 1], at most ``longest_future``: leave only states with a recorded, not terminal state that
                many steps later. None: any state that may be left.
        """
        rows, start, count = self._leave_rows
        offsets = self.dataset.obs_offsets
        if ahead is None:
            episode = self.source_episodes[integers(uniform_episode, len(self.source_episodes))]
            eligible = count[episode]
        else:
            by_future, future = self._by_future
            num_long = np.searchsorted(-future, -ahead, side="right")
            episode = by_future[integers(uniform_episode, num_long)]
            last_row = offsets[episode] + self.last_future[episode] - ahead
            eligible = np.minimum(np.searchsorted(rows, last_row, side="right") - start[episode], count[episode])
        step = rows[start[episode] + integers(uniform_step, eligible)] - offsets[episode]
        return States(np.broadcast_to(episode, step.shape), step)

    @property
    def longest_future(self) -> int:
        """Most steps that the record of any source goes on, without a termination, after a state that may be left."""
        return int(self._by_future[1][0])

    @cached_property
    def _by_future(self) -> tuple[Ints, Ints]:
        """Source episodes by how long their record goes on after the first state that may be left, longest first."""
        rows, start, _ = self._leave_rows
        first = rows[start[self.source_episodes]] - self.dataset.obs_offsets[self.source_episodes]
        future = self.last_future[self.source_episodes] - first
        order = np.argsort(-future, kind="stable")
        return self.source_episodes[order], future[order]

    @cached_property
    def _leave_rows(self) -> tuple[Ints, Ints, Ints]:
        """Observation rows that may be left; where those of each episode start, and how many (int64 [E])."""
        lengths = self.dataset.lengths + 1
        step = np.arange(len(self.dataset.observations)) - np.repeat(self.dataset.obs_offsets[:-1], lengths)
        first, last = np.repeat(self.first_leave, lengths), np.repeat(self.last_leave, lengths)
        may_leave = (step >= first) & (step <= last)
        rows = np.flatnonzero(may_leave if self.chain is None else may_leave & self.chain.may_leave)
        start = np.searchsorted(rows, self.dataset.obs_offsets)
        return rows, start[:-1], np.diff(start)

    def joinable(self, source_episode: Ints, target: Ints) -> Bools:
        """Whether a source may go on in a target (indices into ``targets``), as far as their episodes are concerned."""
        target_episode = self.targets.episode[target]
        if self.chain is None:
            joinable = np.asarray(source_episode != target_episode)
        else:
            joinable = ~self.chain.share_fragment(source_episode, target_episode)
        return joinable if self.contexts is None else joinable & self.contexts.agree(source_episode, target_episode)

    def draw_targets(self, uniform: NDArray[np.float64], source_episode: Ints) -> Ints:
        """Uniform over the targets outside the source's episode: indices into ``targets``, shape of ``uniform``. Where
        contexts are matched, over all targets of its context; ask ``joinable``."""
        if self.partners is not None:
            return self.partners.pick(source_episode, integers(uniform, self.partners.count(source_episode)))
        start = np.searchsorted(self.targets.episode, source_episode, side="left")
        own = np.searchsorted(self.targets.episode, source_episode, side="right") - start
        drawn = integers(uniform, len(self.targets.episode) - own)
        return drawn + own * (drawn >= start)

    def gain(self, sources: States, targets: States, gap: Ints) -> NDArray[np.float64]:
        """What a bridge would add to the source's return if its steps gave what the two states it joins give."""
        gamma = self.bundle.gamma
        steps = (gap + 1).astype(np.float64)
        annuity = steps if gamma == 1 else (1 - gamma**steps) / (1 - gamma)
        reward = (self.rewards_of(sources) + self.rewards_of(targets)) / 2
        stitched = annuity * reward + gamma**steps * self.returns[self.rows(targets)]
        return stitched - self.returns[self.rows(sources)]

    def rewards_of(self, states: States) -> Floats:
        """The reward of the transition that starts in each state, of its last one where none does."""
        step = np.minimum(states.step, self.dataset.lengths[states.episode] - 1)
        return self.dataset.rewards[self.dataset.offsets[states.episode] + step]

    def _leave_range(self, needs_future: bool) -> tuple[Ints, Ints]:
        """First and last step at which each episode may be left, int64 [E]; first > last where it may not."""
        lengths, terminated = self.dataset.lengths, self.dataset.terminated
        last = np.where(terminated, lengths - self.config.terminal_margin, self.last_state)
        last = np.minimum(last, self.last_state)
        if needs_future:
            last = np.minimum(last, self.last_future - self.gap_min - 1)
        last = np.where(lengths > 0, last, -1)
        first = last if self.config.source_cut == "ends" else np.zeros_like(last)
        return np.where(last < 0, 0, first), last

    def _source_episodes(self, episodes: Ints) -> Ints:
        target_episodes = np.unique(self.targets.episode)
        can_be_left = self.last_leave >= 0 if self.chain is None else self._leave_rows[2] > 0
        usable = episodes[can_be_left[episodes]]
        if not len(usable):
            ended = int(self.dataset.terminated[episodes].sum())
            raise UserError(
                f"{self.dataset.name}: no state to leave in the {len(episodes)} source episodes (pairs.source_fraction="
                f"{self.config.source_fraction}): {ended} terminate, and none is long enough to leave "
                f"{self.config.terminal_margin} steps before that (pairs.terminal_margin) or, with pairs.mode="
                f"{self.config.mode}, {self.gap_min + 1} steps before its record ends; raise pairs.source_fraction, "
                "lower pairs.terminal_margin or the model's gap_min"
            )
        if len(target_episodes) == 1:
            usable = usable[usable != target_episodes[0]]
        if not len(usable):
            raise UserError(
                f"{self.dataset.name}: the only source episode is also the only target episode; stitching needs two "
                "(raise pairs.source_fraction or pairs.target_fraction, or add episodes)"
            )
        usable = np.sort(usable)
        if self.contexts is None:
            return usable
        self.partners, matched = self.contexts.partners(usable, self.targets.episode)
        return matched

    def _target_states(self, episodes: Ints) -> States:
        # A target needs a recorded transition after it.
        count = np.maximum(self.last_state[episodes], 0)
        if self.config.target_cut == "ends":
            count = np.minimum(count, 1)
        if not count.sum():
            raise UserError(
                f"{self.dataset.name}: no state to enter: none of the {len(episodes)} target episodes "
                f"(pairs.target_fraction={self.config.target_fraction}) has a transition with a recorded next state; "
                "raise pairs.target_fraction or add longer episodes"
            )
        starts = np.concatenate([[0], np.cumsum(count)[:-1]])
        states = States(np.repeat(episodes, count), np.arange(count.sum()) - np.repeat(starts, count))
        return states if self.chain is None else states.at(np.flatnonzero(self.chain.may_enter[self.rows(states)]))


def values(bundle: Bundle, observations: Floats) -> Floats:
    """The bundle's value of raw observations [B, O], float32 [B]."""
    if not len(observations):
        return np.zeros(0, np.float32)
    with torch.inference_mode():
        chunks = torch.from_numpy(np.ascontiguousarray(observations)).split(_VALUE_CHUNK)
        return torch.cat([bundle.value(chunk.to(bundle.device)).cpu() for chunk in chunks]).numpy()
