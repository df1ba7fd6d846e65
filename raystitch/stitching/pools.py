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
from raystitch.stitching.chain import Trajectories
from raystitch.stitching.config import PairConfig
from raystitch.stitching.draws import integers
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
    ) -> None:
        self.dataset = dataset
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
        return NearestTargets(self.encode(self.observations(self.targets)), self.targets.episode, self.joinable)

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

    def draw_sources(self, uniform_episode: NDArray[np.float64], uniform_step: NDArray[np.float64]) -> States:
        """A source episode per row [N, 1], and several steps of it [N, C]; both uniform."""
        episode = self.source_episodes[integers(uniform_episode, len(self.source_episodes))]
        first, last = self.first_leave[episode], self.last_leave[episode]
        if self.chain is None:
            step = first + integers(uniform_step, last - first + 1)
        else:
            rows, start, count = self._leave_rows
            step = rows[start[episode] + integers(uniform_step, count[episode])] - self.dataset.obs_offsets[episode]
        return States(np.broadcast_to(episode, step.shape), step)

    @cached_property
    def _leave_rows(self) -> tuple[Ints, Ints, Ints]:
        """Of a chain round: observation rows that may be left, and where those of each episode start and how many they
        are (int64 [E])."""
        assert self.chain is not None
        lengths = self.dataset.lengths + 1
        step = np.arange(len(self.dataset.observations)) - np.repeat(self.dataset.obs_offsets[:-1], lengths)
        first, last = np.repeat(self.first_leave, lengths), np.repeat(self.last_leave, lengths)
        rows = np.flatnonzero(self.chain.may_leave & (step >= first) & (step <= last))
        start = np.searchsorted(rows, self.dataset.obs_offsets)
        return rows, start[:-1], np.diff(start)

    def joinable(self, source_episode: Ints, target: Ints) -> Bools:
        """Whether a source may go on in a target (indices into ``targets``), as far as their episodes are concerned."""
        target_episode = self.targets.episode[target]
        if self.chain is None:
            return np.asarray(source_episode != target_episode)
        return ~self.chain.share_fragment(source_episode, target_episode)

    def draw_targets(self, uniform: NDArray[np.float64], source_episode: Ints) -> Ints:
        """Uniform over the targets outside the source's episode: indices into ``targets``, shape of ``uniform``."""
        start = np.searchsorted(self.targets.episode, source_episode, side="left")
        own = np.searchsorted(self.targets.episode, source_episode, side="right") - start
        drawn = integers(uniform, len(self.targets.episode) - own)
        return drawn + own * (drawn >= start)

    def promises_gain(self, sources: States, targets: States, gap: Ints) -> Bools:
        """Whether a bridge would be worth it if its steps gave what the two states it joins give (value check)."""
        gamma = self.bundle.gamma
        steps = (gap + 1).astype(np.float64)
        annuity = steps if gamma == 1 else (1 - gamma**steps) / (1 - gamma)
        reward = (self._reward(sources) + self._reward(targets)) / 2
        stitched = annuity * reward + gamma**steps * self.returns[self.rows(targets)]
        return stitched > self.returns[self.rows(sources)]

    def _reward(self, states: States) -> Floats:
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
        return np.sort(usable)

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
