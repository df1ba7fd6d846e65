"""The pools of states of a dataset that may be left and entered, and the returns of following them.

Legend: E episodes, N transitions, N + E observation rows, L rows that may be left, M target states, O observation size,
D active dimensions, Z embedding dimensions. Arguments about pairs: B pairs, C tries of each; ``..`` is any shape.
"""

from copy import copy
from dataclasses import dataclass
from functools import cached_property

import numpy as np
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
from raystitch.stitching.frontier import EnteredStates, weighted_sources
from raystitch.stitching.retrieval import NearestTargets
from raystitch.stitching.values import StateValues, fitted_values, step_length


@dataclass(frozen=True, eq=False)
class States:
    """Some states of a dataset: int64 episodes and steps of equal shape, any."""

    episode: Ints
    step: Ints

    def at(self, rows: Ints) -> "States":
        return States(self.episode[rows], self.step[rows])


class Pools:
    """States to leave, states to enter, their returns and a nearest-neighbour index; built once per dataset.

    Args:
        needs_future: leave only states whose own recorded future reaches past the smallest gap.
        source_episodes, target_episodes: int64, replace any split.
        chain: the trajectories of a chain round, which restrict states and pairs; ``dataset`` is theirs.
        state_values: of a chain round where states are split by value; ``dataset`` is theirs. None: the recorded ones.
        rewards: what the real steps count for; the rewards of a chain round are shaped already.

    Attributes:
        state_values: what states are worth; None where episodes are split by return or given by the caller.
        targets: [M], the states that may be entered, by episode and step.
        source_episodes: int64, the episodes that may be left, ascending.
        first_leave, last_leave: int64 [E], first and last step at which each episode may be left; see ``_leave_range``.
        overlap: a target near a source may be in the source's own episode, so searches have to look further.

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
        state_values: StateValues | None = None,
        rewards: RewardConfig = RECORDED,
    ) -> None:
        self.config = config = config.for_dataset(dataset)
        self.dataset = dataset = dataset if chain is not None else shape_dataset(dataset, rewards)
        self.chain = chain
        self.bundle = bundle
        self.gap_min, self.gap_max = bundle.config.diffusion.gap_min, bundle.config.diffusion.gap_max
        if not bundle.normalizer.active.any():
            raise UserError(f"{dataset.name}: every observation dimension is constant, so no state is near another")
        if not dataset.num_transitions:
            raise UserError(f"{dataset.name} has no transitions, so there is nothing to stitch")
        by_value = config.split == "value" and chain is None and source_episodes is None and target_episodes is None
        if by_value and state_values is None:
            state_values = StateValues.recorded(dataset, bundle)
        self.state_values = state_values
        if state_values is not None:
            source_episodes = target_episodes = np.arange(dataset.num_episodes)
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
        self._draw_from(low if source_episodes is None else source_episodes)

    def _draw_from(self, episodes: Ints) -> None:
        """Choose the sources among ``episodes``, and how often each is drawn."""
        self.source_episodes = self._source_episodes(episodes)
        self.overlap = self.chain is not None or bool(np.isin(self.source_episodes, self.targets.episode).any())
        values = self.state_values
        self.drawn_episodes = self.source_episodes if values is None else weighted_sources(self, values)

    def with_values(self, state_values: StateValues) -> "Pools":
        """Return the pools of the same data in another round, where states are split by value: what depends on the
        states alone, the indexes above all, is kept."""
        assert self.state_values is not None and self.chain is None
        later = copy(self)
        later.state_values = state_values
        for name in ("returns", "own_returns", "entered", "_leave_rows", "_by_future"):
            later.__dict__.pop(name, None)
        for name in ("nearest", "nearest_in_time"):
            if name in later.__dict__:
                later.__dict__[name] = later.__dict__[name].joined_by(later.joinable)
        later._draw_from(np.arange(self.dataset.num_episodes))
        return later

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
        """Discounted return from each observation on, float32 [N + E].

        At a time-out the fitted value stands in for the future; after a termination there is none. Where states are
        split by value it is the return of the best trajectory known, which may take bridges.
        """
        if self.state_values is not None:
            return self.state_values.value.astype(np.float32)
        dataset = self.dataset
        final_row_E = dataset.obs_offsets[1:] - 1
        value_E = fitted_values(self.bundle, dataset.observations[final_row_E])
        bootstrap_E = np.where(dataset.terminated, 0.0, value_E).astype(np.float32)
        returns = np.empty(len(dataset.observations), np.float32)
        returns[final_row_E] = bootstrap_E
        returns[dataset.obs_index] = discounted_returns(
            dataset.rewards, dataset.offsets, self.bundle.gamma, bootstrap_E
        )
        return returns

    @cached_property
    def own_returns(self) -> Floats:
        """Return that a bridge from each observation has to exceed, float32 [N + E]."""
        return self.returns if self.state_values is None else self.state_values.own.astype(np.float32)

    @cached_property
    def entered(self) -> EnteredStates:
        """The states that earlier rounds have entered; only where states are split by value."""
        assert self.state_values is not None
        return EnteredStates(self, self.state_values)

    @cached_property
    def nearest(self) -> NearestTargets:
        """The index over standardised target states, for ``search_points`` of such states."""
        state_MD = self.encode(self.observations(self.targets))
        return NearestTargets(self._target_points(state_MD), self.targets.episode, self.joinable)

    @cached_property
    def phi(self) -> Floats:
        """Every observation in the temporal-distance embedding, float32 [N + E, Z]; distances are steps."""
        return embed(self.bundle.embedding, self.dataset.observations)

    @cached_property
    def nearest_in_time(self) -> NearestTargets:
        """The exact index over embedded target states, for ``search_points`` of embedded states."""
        phi_MZ = self.phi[self.rows(self.targets)]
        return NearestTargets(self._target_points(phi_MZ), self.targets.episode, self.joinable, slack=0.0)

    def search_points(self, states: Floats, source_episode: Ints) -> Floats:
        """Turn standardised or embedded states [.., D], near which targets are searched, into points of an index."""
        if self.contexts is None:
            return states
        return np.concatenate([states, WEIGHT * self.contexts.leave[source_episode]], -1)

    def _target_points(self, states: Floats) -> Floats:
        """Standardised or embedded target states [M, D] as the points of an index, next to their contexts."""
        if self.contexts is None:
            return states
        return np.concatenate([states, WEIGHT * self.contexts.enter[self.targets.episode]], -1)

    def rows(self, states: States) -> Ints:
        """Observation rows of states, int64 of their shape."""
        return self.dataset.obs_offsets[states.episode] + states.step

    def observations(self, states: States) -> Floats:
        """Raw observations of states, float32 [.., O]."""
        return self.dataset.observations[self.rows(states)]

    def prefixes(self, states_B: States) -> tuple[Floats, Ints]:
        """Real states up to each of the given ones: [B, P, O] right-aligned (zeros before), and how many, int64 [B]."""
        width = self.bundle.config.diffusion.prefix_max
        before_P = np.arange(width - 1, -1, -1)
        count_B = np.minimum(states_B.step + 1, width)
        row_BP = self.rows(states_B)[:, None] - np.minimum(before_P, count_B[:, None] - 1)
        exists_BP = before_P < count_B[:, None]
        return self.dataset.observations[row_BP] * exists_BP[..., None], count_B

    def suffixes(self, states_B: States) -> tuple[Floats, Ints]:
        """Real states from each of the given ones on: [B, S, O] left-aligned (zeros after), and how many, int64 [B]."""
        diffusion = self.bundle.config.diffusion
        after_S = np.arange(diffusion.horizon - diffusion.gap_min - 1)
        last_B = self.last_state[states_B.episode]
        if self.state_values is not None:
            last_B = self.state_values.last_step(self.rows(states_B), last_B)
        count_B = np.minimum(last_B - states_B.step + 1, len(after_S))
        row_BS = self.rows(states_B)[:, None] + np.minimum(after_S, count_B[:, None] - 1)
        exists_BS = after_S < count_B[:, None]
        return self.dataset.observations[row_BS] * exists_BS[..., None], count_B

    def encode(self, observations: Floats) -> Floats:
        """Raw observations [.., O] -> their standardised active dimensions [.., D]."""
        normalizer = self.bundle.normalizer
        return normalizer.encode(observations)[..., normalizer.active]

    def draw_sources(
        self,
        uniform_episode: NDArray[np.float64],
        uniform_step_BC: NDArray[np.float64],
        ahead_B1: Ints | None = None,
    ) -> States:
        """Draw source states [B, C]: an episode per row (uniforms [B, 1]) or per try ([B, C]), then a step of it.

        Args:
            ahead_B1: at most ``longest_future``: leave only states with a recorded, not terminal state this many steps
                later. None: any state that may be left.
        """
        leave_rows_L, start_E, count_E = self._leave_rows
        offsets = self.dataset.obs_offsets
        if ahead_B1 is None:
            episode = self.drawn_episodes[integers(uniform_episode, len(self.drawn_episodes))]
            eligible = count_E[episode]
        else:
            episodes, future = self._by_future
            num_long_B1 = np.searchsorted(-future, -ahead_B1, side="right")
            episode = episodes[integers(uniform_episode, num_long_B1)]
            last_row = offsets[episode] + self.last_future[episode] - ahead_B1
            before_last = np.searchsorted(leave_rows_L, last_row, side="right") - start_E[episode]
            eligible = np.minimum(before_last, count_E[episode])
        step_BC = leave_rows_L[start_E[episode] + integers(uniform_step_BC, eligible)] - offsets[episode]
        return States(np.broadcast_to(episode, step_BC.shape), step_BC)

    @property
    def longest_future(self) -> int:
        """The most recorded, not terminal steps that any source has after the first state at which it may be left."""
        return int(self._by_future[1][0])

    @cached_property
    def _by_future(self) -> tuple[Ints, Ints]:
        """Source episodes, and how many steps each goes on after its first state that may be left; longest first."""
        leave_rows_L, start_E, _ = self._leave_rows
        drawn = self.drawn_episodes
        first = leave_rows_L[start_E[drawn]] - self.dataset.obs_offsets[drawn]
        future = self.last_future[drawn] - first
        order = np.argsort(-future, kind="stable")
        return drawn[order], future[order]

    @cached_property
    def _leave_rows(self) -> tuple[Ints, Ints, Ints]:
        """Observation rows that may be left [L]; where each episode's start among them [E], and how many it has [E]."""
        num_states_E = self.dataset.lengths + 1
        step = np.arange(len(self.dataset.observations)) - np.repeat(self.dataset.obs_offsets[:-1], num_states_E)
        first, last = np.repeat(self.first_leave, num_states_E), np.repeat(self.last_leave, num_states_E)
        may_leave = (step >= first) & (step <= last)
        if self.chain is not None:
            may_leave &= self.chain.may_leave
        if self.state_values is not None and (may_leave & ~self.state_values.failed).any():
            may_leave &= ~self.state_values.failed  # where every state was left in vain, all are tried again
        leave_rows_L = np.flatnonzero(may_leave)
        start = np.searchsorted(leave_rows_L, self.dataset.obs_offsets)
        return leave_rows_L, start[:-1], np.diff(start)

    def joinable(self, source_episode: Ints, target: Ints) -> Bools:
        """Return True where the episodes let a source go on in a target (index into ``targets``); shapes broadcast."""
        target_episode = self.targets.episode[target]
        if self.chain is not None:
            joinable = ~self.chain.share_fragment(source_episode, target_episode)
        else:
            joinable = np.asarray(source_episode != target_episode)
            if self.state_values is not None:
                joinable &= ~self.state_values.pass_through(source_episode, self.rows(self.targets.at(target)))
        return joinable if self.contexts is None else joinable & self.contexts.agree(source_episode, target_episode)

    def draw_targets(self, uniform: NDArray[np.float64], source_episode: Ints) -> Ints:
        """Draw targets uniformly outside the source's episode, where contexts are matched from those that agree:
        indices into ``targets``, of the shape of ``uniform``."""
        if self.partners is not None:
            return self.partners.pick(source_episode, integers(uniform, self.partners.count(source_episode)))
        start = np.searchsorted(self.targets.episode, source_episode, side="left")
        own = np.searchsorted(self.targets.episode, source_episode, side="right") - start
        drawn = integers(uniform, len(self.targets.episode) - own)
        return drawn + own * (drawn >= start)

    def gain(self, sources: States, targets: States, gap: Ints) -> NDArray[np.float64]:
        """Return what bridges add to the sources' returns if each step gives the mean reward of the joined states."""
        gamma = self.bundle.gamma
        steps = (gap + 1).astype(np.float64)
        annuity = steps if gamma == 1 else (1 - gamma**steps) / (1 - gamma)
        reward = (self.rewards_of(sources) + self.rewards_of(targets)) / 2
        stitched = annuity * reward + gamma**steps * self.returns[self.rows(targets)]
        return stitched - self.own_returns[self.rows(sources)]

    def rewards_of(self, states: States) -> Floats:
        """The reward of the transition that starts in each state; at the end of an episode, of its last transition."""
        step = np.minimum(states.step, self.dataset.lengths[states.episode] - 1)
        return self.dataset.rewards[self.dataset.offsets[states.episode] + step]

    def _leave_range(self, needs_future: bool) -> tuple[Ints, Ints]:
        """First and last step at which each episode may be left, int64 [E]; first > last where it may not."""
        lengths, terminated = self.dataset.lengths, self.dataset.terminated
        last_E = np.where(terminated, lengths - self.config.terminal_margin, self.last_state)
        last_E = np.minimum(last_E, self.last_state)
        if needs_future:
            last_E = np.minimum(last_E, self.last_future - self.gap_min - 1)
        last_E = np.where(lengths > 0, last_E, -1)
        first_E = last_E if self.config.source_cut == "ends" else np.zeros_like(last_E)
        return np.where(last_E < 0, 0, first_E), last_E

    def _source_episodes(self, episodes: Ints) -> Ints:
        """Keep the episodes that can be left and have a target to go on in; sets ``partners`` where contexts match.

        Raises:
            UserError: when none is left, saying why.
        """
        target_episodes, by_return = np.unique(self.targets.episode), self.state_values is None
        restricted = self.chain is not None or self.state_values is not None
        can_be_left = self._leave_rows[2] > 0 if restricted else self.last_leave >= 0
        usable = episodes[can_be_left[episodes]]
        if not len(usable):
            ended = int(self.dataset.terminated[episodes].sum())
            share = f" (pairs.source_fraction={self.config.source_fraction})" if by_return else ""
            more = "raise pairs.source_fraction, " if by_return else ""
            raise UserError(
                f"{self.dataset.name}: no state to leave in the {len(episodes)} source episodes{share}: {ended} "
                f"terminate, and none is long enough to leave {self.config.terminal_margin} steps before that "
                f"(pairs.terminal_margin) or, with pairs.mode={self.config.mode}, {self.gap_min + 1} steps before its "
                f"record ends; {more}lower pairs.terminal_margin or the model's gap_min"
            )
        if len(target_episodes) == 1:
            usable = usable[usable != target_episodes[0]]
        if not len(usable):
            remedy = "raise pairs.source_fraction or pairs.target_fraction, or " if by_return else ""
            raise UserError(
                f"{self.dataset.name}: the only source episode is also the only target episode; stitching needs two "
                f"({remedy}add episodes)"
            )
        usable = np.sort(usable)
        if self.contexts is None:
            return usable
        self.partners, matched = self.contexts.partners(usable, self.targets.episode)
        return matched

    @cached_property
    def step_length(self) -> float:
        """The median distance of one recorded step, standardised."""
        return step_length(self.dataset, self.bundle.normalizer)

    def _target_states(self, episodes: Ints) -> States:
        """Every state [M] of the episodes that may be entered: a recorded transition follows it.

        Raises:
            UserError: when there is none.
        """
        count = np.maximum(self.last_state[episodes], 0)
        if self.config.target_cut == "ends":
            count = np.minimum(count, 1)
        if not count.sum():
            by_return = self.state_values is None
            share = f" (pairs.target_fraction={self.config.target_fraction})" if by_return else ""
            raise UserError(
                f"{self.dataset.name}: no state to enter: none of the {len(episodes)} target episodes{share} has a "
                f"transition with a recorded next state; {'raise pairs.target_fraction or ' * by_return}add longer "
                "episodes"
            )
        starts = np.concatenate([[0], np.cumsum(count)[:-1]])
        states = States(np.repeat(episodes, count), np.arange(count.sum()) - np.repeat(starts, count))
        return states if self.chain is None else states.at(np.flatnonzero(self.chain.may_enter[self.rows(states)]))
