"""Value that travels through rounds: the best return known from every recorded state, and the bridges that lead there.

In the first round a state is worth what its own record returned from there on. An accepted bridge makes the state that
it leaves worth its own pessimistic return, and every state recorded before that one what it collects on the way. So
value travels one bridge further in every round, over all states at once, and no stitched trajectory is kept in memory:
a state names the bridge that its best trajectory takes next, and that bridge names the rest.

Ends of records are worth less than the fitted value says, by its own error: what was recorded counts for more than what
is guessed, and a state from which the goal is known to be reached for more than one from which it is hoped for.

Legend: E episodes, S observation rows (N + E of them), L bridges, F most real episodes in one trajectory, N pairs.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from raystitch.data.episodes import Bools, EpisodeDataset, Floats, Ints
from raystitch.data.normalise import Normalizer
from raystitch.data.returns import discounted_returns
from raystitch.models.bundle import Bundle
from raystitch.seeding import numpy_rng
from raystitch.shaping.config import RECORDED, RewardConfig
from raystitch.shaping.rewards import shape_dataset
from raystitch.stitching.candidates import Candidates, Pairs
from raystitch.stitching.links import RECORD, Links

DOUBT_STATES = 20_000
"""States on which the error of the fitted value is measured."""
SETTLED = 0.1
"""Growth of the starts' value in a round, as a share of that in the best round, below which nothing new comes."""
MOST_SWEEPS = 64
"""Bridges that value travels through, at most, in one round."""
STEPS = 4096
"""Recorded steps whose lengths are looked at."""
_CHUNK = 65536
TOLERANCE = 1e-6
"""Share of the span of values by which a trajectory has to be better than another to take its place."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StateValues:
    """Worth of every recorded state after some rounds, and the bridges behind it.

    Attributes:
        dataset: the recorded episodes, with the rewards that count.
        record: float64 [S], pessimistic discounted return of each state's own record.
        value: float64 [S], that of the best trajectory known from it.
        bridge: int64 [S], the next bridge on that trajectory, an index into ``links``; ``RECORD`` for none.
        arrived: int64 [S], round in which that trajectory became known; 0 for the record.
        failed: bool [S], the state was left in a round and no bridge from it was accepted.
        links: the bridges of all rounds.
        fragments: int64 [L, F], the real episodes that a trajectory passes through from each bridge's source on; unused
            places are -1.
        start, start_row: int64 [J], the recorded states within a step of each state in which the task starts, or the
            nearest one: number of the start and observation row. Empty where starts are not known.
        num_rounds: rounds that these values know of.
        news, best_news: growth of each of ``worth`` in the last round, and in the round in which it grew most; empty
            before the first.
        floor: the least that any state is worth by its record.
    """

    dataset: EpisodeDataset
    record: NDArray[np.float64]
    value: NDArray[np.float64]
    bridge: Ints
    arrived: Ints
    failed: Bools
    links: Links
    fragments: Ints
    start: Ints
    start_row: Ints
    num_rounds: int
    news: tuple[float, ...]
    best_news: tuple[float, ...]
    floor: float

    @classmethod
    def recorded(cls, dataset: EpisodeDataset, bundle: Bundle, rewards: RewardConfig = RECORDED) -> "StateValues":
        """Return what states are worth by their own records, before any bridge.

        Args:
            rewards: what the steps of the dataset count for.
        """
        dataset = shape_dataset(dataset, rewards)
        return cls.without_bridges(dataset, *_recorded_values(dataset, bundle))

    @classmethod
    def without_bridges(cls, dataset: EpisodeDataset, record: NDArray[np.float64], floor: float) -> "StateValues":
        """Return the values of states from which no bridge is known, float64 [S], and the least there is."""
        return cls(
            dataset=dataset,
            record=record,
            value=record,
            bridge=np.full(len(record), RECORD, np.int64),
            arrived=np.zeros(len(record), np.int64),
            failed=np.zeros(len(record), np.bool_),
            links=Links.none(),
            fragments=np.full((0, 2), -1, np.int64),
            start=np.zeros(0, np.int64),
            start_row=np.zeros(0, np.int64),
            num_rounds=0,
            news=(),
            best_news=(),
            floor=floor,
        )

    def after(self, accepted: Links, failed: Ints, gamma: float) -> "StateValues":
        """Return the values when the bridges of one more round are known.

        Value travels through the bridges of all rounds until no state gains: each goes on with what is best from the
        state it enters, unless its trajectory would pass through a real episode twice.

        Args:
            accepted: the bridges of the round; ``parent`` and ``next`` count the bridges of earlier rounds.
            failed: int64, observation rows that were left in that round without an accepted bridge.
        """
        links, least = self.links.and_more(accepted), self._least_gain
        value, bridge = self.value.copy(), self.bridge.copy()
        risen = np.arange(len(self.links), len(links))
        improved = [_carry_back(self.dataset, value, bridge, links, risen, gamma, least)]
        target = self.rows(links.target_episode, links.target_step)
        for _ in range(MOST_SWEEPS):
            following, worth = bridge[target], links.reward + links.discount * value[target]
            better = np.flatnonzero((following != links.next) & (worth > links.value + least))
            later = self._along(links.switched(better, following[better]), gamma)
            risen = np.flatnonzero(later.value > links.value)
            if not len(risen):
                break
            links = later
            improved.append(_carry_back(self.dataset, value, bridge, links, risen, gamma, least))
        rows = np.unique(np.concatenate(improved))
        arrived, marked = self.arrived.copy(), self.failed.copy()
        arrived[rows] = self.num_rounds + 1
        marked[failed] = True
        marked[rows] = False
        later_values = replace(
            self,
            value=value,
            bridge=bridge,
            arrived=arrived,
            failed=marked,
            links=links,
            fragments=links.fragments(),
            num_rounds=self.num_rounds + 1,
        )
        news = tuple(now - before for now, before in zip(later_values.worth, self.worth, strict=True))
        best = self.best_news or news
        return replace(later_values, news=news, best_news=tuple(map(max, news, best)))

    def _along(self, links: Links, gamma: float) -> Links:
        """Return links worth what the trajectories return that they go on with; none is worth less than before."""
        value, depth = links.value.copy(), links.depth
        left = self.rows(links.source_episode, links.source_step)
        entered = self.rows(links.target_episode, links.target_step)
        for level in range(int(depth.max(initial=-1)) + 1):
            here = np.flatnonzero(depth == level)
            later = links.next[here]
            fade = gamma ** (links.source_step[later] - links.target_step[here])
            gained = np.where(later == RECORD, 0.0, fade * (value[later] - self.record[left[later]]))
            onwards = self.record[entered[here]] + gained
            value[here] = np.maximum(value[here], links.reward[here] + links.discount[here] * onwards)
        return replace(links, value=value)

    @cached_property
    def _least_gain(self) -> float:
        return TOLERANCE * float(self.value.max() - self.floor)

    def starting_at(self, states: Floats, normalizer: Normalizer) -> "StateValues":
        """Return these values for a task that starts in the given states, raw [K, O].

        The last state of a record is no start: nothing is known to follow it.
        """
        if not normalizer.active.any():
            return self  # no state is near another; pair selection says so
        from scipy.spatial import KDTree  # takes half a second, in every process that loads this module

        rows = self.dataset.obs_index
        followed = self.dataset.observations[rows]
        recorded, asked = (normalizer.encode(x)[..., normalizer.active] for x in (followed, states))
        tree = KDTree(recorded, balanced_tree=False)
        within = tree.query_ball_point(asked, step_length(self.dataset, normalizer), return_sorted=True)
        nearest = np.asarray(tree.query(asked)[1]).tolist()
        near = [inside or [closest] for inside, closest in zip(within, nearest, strict=True)]
        count = np.array([len(inside) for inside in near], np.int64)
        start_row = rows[np.concatenate(near).astype(np.int64)]
        return replace(self, start=np.repeat(np.arange(len(near)), count), start_row=start_row)

    @cached_property
    def at_start(self) -> Bools:
        """Mark the states in which the task starts, bool [S]; none where that is not known."""
        marked = np.zeros(len(self.value), np.bool_)
        marked[self.start_row] = True
        return marked

    @property
    def on_the_way(self) -> Ints:
        """Real episodes in which the task starts, and those that the best trajectories from there pass through; int64,
        ascending."""
        bridge = self.bridge[self.start_row]
        passed = self.fragments[bridge[bridge != RECORD]].ravel()
        return np.union1d(self.dataset.episodes_of_rows(self.start_row), passed[passed >= 0])

    @property
    def is_new(self) -> Bools:
        """Mark the states whose value arrived in the last round, bool [S]; before the first those worth a standard
        deviation more than the mean by their records."""
        if self.num_rounds:
            return self.arrived == self.num_rounds
        return self.value > self.value.mean() + self.value.std()

    @property
    def is_settled(self) -> bool:
        """True if the last round brought next to nothing: neither the states in which the task starts nor all states
        gained ``SETTLED`` of what they gained in the best round.

        Starts that never gained may be worth the most there is, or value has not come to them yet: then the share is
        that of ``SETTLED`` once more.
        """
        pairs = list(zip(self.news, self.best_news, strict=True))
        gained = [(now, best) for now, best in pairs if best > 0]
        share = SETTLED if len(gained) == len(pairs) else SETTLED**2
        return bool(pairs) and all(now < share * best for now, best in gained)

    @property
    def own(self) -> NDArray[np.float64]:
        """Return that a source has to gain over, float64 [S]: the best that is known from it while value travels.

        When that is settled, its own record: then more and other ways to what is known are worth having.
        """
        return self.record if self.is_settled else self.value

    @property
    def worth(self) -> tuple[float, ...]:
        """Mean value of all states, and of those in which the task starts, where these are known."""
        everywhere = float(self.value.mean())
        return (everywhere, float(self.value[self.at_start].mean())) if self.at_start.any() else (everywhere,)

    def rows(self, episode: Ints, step: Ints) -> Ints:
        """Return the observation rows of states, int64 of their shape."""
        return self.dataset.obs_offsets[episode] + step

    def last_step(self, row: Ints, last_recorded: Ints) -> Ints:
        """Return the last step that the best trajectory of each state takes in the state's own record.

        Args:
            row: int64, observation rows. last_recorded: int64 of their shape, where the record itself ends.
        """
        bridge = self.bridge[row]
        if not len(self.links):
            return last_recorded
        return np.where(bridge == RECORD, last_recorded, self.links.source_step[bridge])

    def pass_through(self, source_episode: Ints, target_row: Ints) -> Bools:
        """Return True where the best trajectory from a target passes through the source's own episode; shapes
        broadcast."""
        source_episode, target_row = np.broadcast_arrays(source_episode, target_row)
        if not len(self.links):
            return np.zeros(source_episode.shape, np.bool_)
        bridge = self.bridge[target_row]
        passes = np.zeros(source_episode.shape, np.bool_)
        for fragment in self.fragments.T:
            passes |= (bridge != RECORD) & (fragment[bridge] == source_episode)
        return passes

    def loops(self, pairs: Pairs) -> Bools:
        """Mark the pairs that must not be stitched because the trajectory would pass an episode twice, bool [N]."""
        target = self.rows(pairs.target_episode, pairs.target_step)
        same = pairs.source_episode == pairs.target_episode
        return same | self.pass_through(pairs.source_episode, target)

    def refer(self, candidates: Candidates) -> Candidates:
        """Turn candidates between states into references to real episodes and the bridges that targets go on with.

        They name the trajectories of those bridges as they were when each was made, which never changes.
        """
        bridge = self.bridge[self.rows(candidates.target_episode, candidates.target_step)]
        chained, numbers = bridge != RECORD, self.dataset.episode_numbers
        ids, last = np.append(self.links.ids, ""), np.append(self.links.first_last_episode, 0)
        return replace(
            candidates,
            source_episode=numbers[candidates.source_episode],
            target_episode=numbers[np.where(chained, last[bridge], candidates.target_episode)],
            source_bridge=np.zeros(len(candidates), np.str_),
            target_bridge=np.where(chained, ids[bridge], ""),
        )

    @cached_property
    def longest_chain(self) -> int:
        """The most bridges in one trajectory."""
        return int(self.links.depth.max(initial=-1)) + 1


def _recorded_values(dataset: EpisodeDataset, bundle: Bundle) -> tuple[NDArray[np.float64], float]:
    """Return the discounted return from every observation on by its own record, float64 [S], and the least there is.

    At a time-out stands the fitted value less its error (root mean square over states), but never less than the worst
    reward for ever; after a termination there is nothing.
    """
    gamma = bundle.gamma
    final_row_E = dataset.obs_offsets[1:] - 1
    fitted_E = fitted_values(bundle, dataset.observations[final_row_E]).astype(np.float64)
    alive_E = ~dataset.terminated
    returns = discounted_returns(dataset.rewards, dataset.offsets, gamma, np.where(alive_E, fitted_E, 0.0))
    worst = float(dataset.rewards.min()) / (1 - gamma) if gamma < 1 else -np.inf
    end_E = np.where(alive_E, np.maximum(fitted_E - _doubt(dataset, bundle, returns), min(worst, 0.0)), 0.0)
    value = np.empty(len(dataset.observations))
    value[final_row_E] = end_E
    value[dataset.obs_index] = discounted_returns(dataset.rewards, dataset.offsets, gamma, end_E)
    return value, float(value.min())


def _doubt(dataset: EpisodeDataset, bundle: Bundle, returns: Floats) -> float:
    """Return the root mean square difference between the fitted value and the recorded returns of some states."""
    count = min(DOUBT_STATES, dataset.num_transitions)
    drawn = numpy_rng(bundle.config.seed, "doubt").choice(dataset.num_transitions, count, replace=False)
    fitted = fitted_values(bundle, dataset.observations[dataset.obs_index[drawn]])
    return float(np.sqrt(np.mean((fitted.astype(np.float64) - returns[drawn]) ** 2)))


def _carry_back(
    dataset: EpisodeDataset,
    value: NDArray[np.float64],
    bridge: Ints,
    links: Links,
    chosen: Ints,
    gamma: float,
    least_gain: float,
) -> Ints:
    """Carry the values of the ``chosen`` links back over the records that lead to them; changes ``value`` and
    ``bridge`` in place.

    Returns:
        The rows that are worth more now, int64.
    """
    number = chosen[np.argsort(links.value[chosen], kind="stable")]  # of two for one state the better one stays
    worth, left = links.value[number], links.source_step[number]
    row = dataset.obs_offsets[links.source_episode[number]] + left
    transition = dataset.offsets[links.source_episode[number]] + left
    improved: list[Ints] = []
    while len(row):
        ascending = np.argsort(worth, kind="stable")
        known_way = bridge[row[ascending]] == number[ascending]
        at = ascending[worth[ascending] > value[row[ascending]] + np.where(known_way, 0.0, least_gain)]
        number, worth, row, left, transition = number[at], worth[at], row[at], left[at], transition[at]
        value[row], bridge[row] = worth, number
        improved.append(row)
        going = np.flatnonzero((left > 0) & (bridge[row] == number))
        number, row, left, transition = number[going], row[going] - 1, left[going] - 1, transition[going] - 1
        worth = dataset.rewards[transition] + gamma * worth[going]
    return np.unique(np.concatenate(improved)) if improved else np.zeros(0, np.int64)


def step_length(dataset: EpisodeDataset, normalizer: Normalizer) -> float:
    """Return the median distance of one recorded step (L2, standardised active dimensions)."""
    transitions = np.flatnonzero(dataset.next_observed)
    drawn = transitions[np.linspace(0, len(transitions) - 1, min(len(transitions), STEPS)).astype(np.int64)]
    row = dataset.obs_index[drawn]
    before, after = (normalizer.encode(dataset.observations[row + ahead]) for ahead in (0, 1))
    return float(np.median(np.linalg.norm((after - before)[:, normalizer.active], axis=-1)))


def fitted_values(bundle: Bundle, observations: Floats) -> Floats:
    """Return the bundle's value of raw observations [B, O], float32 [B]."""
    if not len(observations):
        return np.zeros(0, np.float32)
    with torch.inference_mode():
        chunks = torch.from_numpy(np.ascontiguousarray(observations)).split(_CHUNK)
        return torch.cat([bundle.value(chunk.to(bundle.device)).cpu() for chunk in chunks]).numpy()
