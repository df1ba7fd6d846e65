"""Stitch potential: what the best paths through the recorded states are worth, before anything is trained.

U(x) = r_x + gamma max(U(x + 1), max U(y) over recorded states y of other episodes within a step of x + 1), where a
bridge from x to z in n steps offers sum gamma^t r_t + gamma^n U(z) instead. It is optimistic: whoever joins may move by
up to a step for nothing, and again at the next state. So it can say that a tool cannot help, never that it will. A
time-out counts like an end: nothing is bootstrapped there.

Legend: E episodes, N transitions, M = N + E observation rows, K neighbours, B bridges.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raystitch.data.episodes import EpisodeDataset, Floats, Ints
from raystitch.data.normalise import NearStates
from raystitch.errors import UserError

Doubles = NDArray[np.float64]

GAMMA = 0.99
NEIGHBOURS = 32
"""Recorded states looked at around each state, the nearest; in dense data there are more within a step."""
TOP = 0.1
"""The share of the episodes whose mean stands for the most that weighting may reach."""
MOST_OF_IT = 0.95
"""The cheapest tool that promises this share of the largest gain is named."""
TINY = 1e-9
POTENTIALS = (
    ("as recorded", "recorded"),
    ("weighting: the best tenth of the records", "top"),
    ("joining, once", "join_one"),
    ("joining, any number of times", "join_any"),
    ("bridges, one", "bridge_one"),
    ("bridges, any number", "bridge_any"),
    ("joins and bridges, any number", "both_any"),
)
"""The numbers of a ``Potential`` in the order to show them, with their names."""
CHUNK = 1 << 15


def promise_text(value: float) -> str:
    """Return a promised return as tables show it: 0.0561, 1.00, 139.8, 2,640.1."""
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:#.3g}"


@dataclass(frozen=True, kw_only=True, eq=False)
class BridgeEdges:
    """B bridges between observation rows of a dataset.

    Attributes:
        source, target: int64 [B], rows left and entered.
        reward: float64 [B], discounted sum of the rewards on the way.
        discount: float64 [B], gamma to the number of steps.
        left_out: bridges of chain rounds beside these, which enter or leave generated trajectories.
    """

    source: Ints
    target: Ints
    reward: Doubles
    discount: Doubles
    left_out: int = 0


@dataclass(frozen=True, kw_only=True)
class Potential:
    """Mean discounted return over the states in which the task starts, with each tool; ``None`` without a buffer.

    Attributes:
        task_starts: the environment said where the task starts; False where the first states of the episodes stand
            for that.
        gamma: of all returns here. radius: a median step, in standard deviations.
        rpsv: E[max(R - E R, 0)^2] of undiscounted returns R (Hong et al. 2023): the room for weighting.
        recorded: no tool. top: the best ``TOP`` of the records from those states alone.
        join_one, join_any: at most one join, any number of them; ``bridge_one``, ``bridge_any``: the same for bridges.
        both_any: joins and bridges, any number.
        capped: share of the states with more neighbours than were looked at.
        num_timeouts: episodes that end in a time-out.
        num_bridges: bridges that were looked at. num_left_out: those of chain rounds, which were not.
    """

    gamma: float
    radius: float
    num_episodes: int
    num_timeouts: int
    return_mean: float
    return_best: float
    rpsv: float
    recorded: float
    top: float
    join_one: float
    join_any: float
    bridge_one: float | None = None
    bridge_any: float | None = None
    both_any: float | None = None
    num_bridges: int | None = None
    capped: float = 0.0
    task_starts: bool = False
    num_left_out: int = 0
    notes: tuple[str, ...] = field(default_factory=tuple)

    @property
    def promises(self) -> dict[str, float]:
        """The gain over what is recorded that each tool may bring at most, cheapest tool first: used once, or, where
        one use brings nothing, any number of times."""
        once = {"weighting": self.top, "joining": self.join_one, "stitching": self.bridge_one}
        often = {"weighting": self.top, "joining, many times": self.join_any, "stitching, many times": self.both_any}
        gains = ({tool: v - self.recorded for tool, v in found.items() if v is not None} for found in (once, often))
        at_once, at_most = gains
        return at_once if max(at_once.values()) > self._enough else at_most

    @property
    def _enough(self) -> float:
        """The least gain that counts."""
        return TINY + 0.01 * abs(self.recorded)

    @property
    def worth_trying(self) -> str | None:
        """The cheapest tool that promises nearly the largest gain; None where none promises any."""
        largest = max(self.promises.values())
        if largest <= self._enough:
            return None
        return next(tool for tool, gain in self.promises.items() if gain >= MOST_OF_IT * largest)

    def to_json(self) -> dict[str, Any]:
        """Return plain data, ``worth_trying`` and ``text`` included."""
        return dict(vars(self)) | {"notes": list(self.notes), "worth_trying": self.worth_trying, "text": self.text}

    @property
    def text(self) -> list[str]:
        """Conclusions, a sentence each."""
        tool = self.worth_trying
        said = ["no tool promises more than what is recorded" if tool is None else f"worth trying first: {tool}"]
        said += self._cannot()
        said.append(
            "optimistic: it can say that a tool cannot help, never that it will; joins may drift by a step each, and "
            f"returns end at time-outs ({self.num_timeouts:,} of {self.num_episodes:,} episodes)"
        )
        if self.bridge_one is None:
            said.append("what bridges promise is unknown without a buffer")
        return [*said, *self.notes]

    def _cannot(self) -> list[str]:
        enough, said = self._enough, list[str]()
        if self.rpsv <= TINY:
            said.append("weighting cannot help: all episodes return the same")
        elif self.top - self.recorded <= enough:
            said.append("weighting cannot help: no record from where the task starts returns more than the others")
        if self.join_any - self.recorded <= enough:
            said.append("joining cannot help: nowhere does an episode pass within a step of one that leads to more")
        if self.num_left_out:
            said.append(
                f"{self.num_left_out:,} bridges of chain rounds are left out here, which lead further than the "
                f"{self.num_bridges:,} that were looked at"
            )
            return said
        if self.both_any is not None and self.both_any - self.join_any <= enough:
            said.append("these bridges lead to nothing that joins do not reach")
        if self.bridge_any is not None and self.bridge_any - self.recorded <= enough:
            said.append("these bridges cannot help: none leads to more than is recorded")
        return said


def potential(
    dataset: EpisodeDataset,
    gamma: float = GAMMA,
    bridges: BridgeEdges | None = None,
    task_starts: Floats | None = None,
) -> Potential:
    """Compute what weighting, joining and stitching promise on a dataset.

    Args:
        gamma: in (0, 1).
        bridges: those that count; None where there is no buffer.
        task_starts: states in which the task starts, raw [K, O]: records count from where they pass within a step of
            one, or nearest to it. None for the first state of every episode.

    Raises:
        UserError: for values that are not finite, a dataset without a step, or another gamma.
    """
    if not 0 < gamma < 1:
        raise UserError(f"potential: gamma must be between 0 and 1, got gamma={gamma}")
    if not dataset.num_transitions:
        raise UserError(f"{dataset.name} has no transitions, so there is no potential")
    if not (np.isfinite(dataset.rewards).all() and np.isfinite(dataset.observations).all()):
        raise UserError(f"{dataset.name}: values are not finite; add --select clean")
    near = NearStates(dataset)
    graph = _Graph(dataset, gamma)
    joins, full = _joins(dataset, near)
    recorded = graph.recorded
    if task_starts is None:
        starts = dataset.obs_offsets[:-1][dataset.lengths > 0]
    else:
        departs = np.zeros(len(dataset.observations), np.bool_)
        departs[dataset.obs_index] = True
        starts = near.around(task_starts, departs)
    at_start = np.sort(recorded[starts])
    returns = dataset.returns[dataset.lengths > 0]
    common = {
        "gamma": gamma,
        "radius": near.radius,
        "num_episodes": dataset.num_episodes,
        "num_timeouts": int((~dataset.terminated).sum()),
        "return_mean": float(returns.mean()),
        "return_best": float(returns.max()),
        "rpsv": float((np.maximum(returns - returns.mean(), 0) ** 2).mean()),
        "recorded": float(at_start.mean()),
        "top": float(at_start[-max(1, round(TOP * len(at_start))) :].mean()),
        "join_one": float(graph.once(joins, None)[starts].mean()),
        "join_any": float(graph.converged(joins, None)[starts].mean()),
        "capped": full / len(joins),
        "task_starts": task_starts is not None,
    }
    if bridges is None:
        return Potential(**common)
    return Potential(
        **common,
        bridge_one=float(graph.once(None, bridges)[starts].mean()),
        bridge_any=float(graph.converged(None, bridges)[starts].mean()),
        both_any=float(graph.converged(joins, bridges)[starts].mean()),
        num_bridges=len(bridges.source),
        num_left_out=bridges.left_out,
    )


def _joins(dataset: EpisodeDataset, near: NearStates) -> tuple[NDArray[np.int32], int]:
    """Return for every observation that a step leads to the states where it could be joined; -1 for none, [M, K]."""
    departs = np.zeros(len(dataset.observations), np.bool_)
    departs[dataset.obs_index] = True  # the last observation of an episode leads nowhere
    reached = dataset.obs_index[dataset.next_observed & ~dataset.transition_terminal] + 1
    joins = np.full((len(dataset.observations), NEIGHBOURS), -1, np.int32)
    joins[reached], full = near.neighbours(reached, departs, NEIGHBOURS)
    return joins, full


class _Graph:
    """Values of the observation rows of a dataset; -1 as a row stands for nothing, worth minus infinity."""

    def __init__(self, dataset: EpisodeDataset, gamma: float) -> None:
        self.gamma = gamma
        self.size = len(dataset.observations)
        self.reward, self.next = np.zeros(self.size), np.full(self.size, -1, np.int64)
        self.reward[dataset.obs_index] = dataset.rewards
        self.next[dataset.obs_index] = dataset.obs_index + 1
        self.recorded = _evaluate(self.reward, np.where(self.next >= 0, gamma, 0.0), self.next)
        lengths = dataset.lengths
        self._by_step_left = [
            dataset.obs_offsets[:-1][lengths >= left] + lengths[lengths >= left] - left
            for left in range(1, int(lengths.max()) + 1)
        ]
        """Rows from which an episode has 1, 2, .. steps left."""

    def once(self, joins: NDArray[np.int32] | None, bridges: BridgeEdges | None) -> Doubles:
        """Return the value of each row where at most one join or bridge is used, float64 [M]."""
        joined = self._best_join(joins, self.recorded)[0]
        bridged = self._best_bridge(bridges, self.recorded)[0]
        value = np.maximum(self.recorded, bridged)
        for rows in self._by_step_left:
            after = np.maximum(value[rows + 1], joined[rows + 1])
            value[rows] = np.maximum(value[rows], self.reward[rows] + self.gamma * after)
        return value

    def converged(self, joins: NDArray[np.int32] | None, bridges: BridgeEdges | None) -> Doubles:
        """Return the value of each row with any number of joins and bridges, by policy iteration, float64 [M]."""
        value = self.recorded
        while True:
            joined, entered = self._best_join(joins, value)
            bridged, over = self._best_bridge(bridges, value)
            own = np.where(self.next >= 0, value[self.next], -np.inf)
            after = np.append(joined, -np.inf)[self.next]
            step = self.reward + self.gamma * np.maximum(own, after)
            follow = np.where(after > own, np.append(entered, -1)[self.next], self.next)
            reward = self.reward.copy()
            discount = np.where(self.next >= 0, self.gamma, 0.0)
            crosses = bridged > np.where(self.next >= 0, step, 0.0)
            if bridges is not None:
                taken = over[crosses]
                follow[crosses] = bridges.target[taken]
                reward[crosses], discount[crosses] = bridges.reward[taken], bridges.discount[taken]
            better = np.maximum(_evaluate(reward, discount, follow), value)
            if (better - value).max(initial=0.0) <= 1e-6 * (1.0 + np.abs(better).max(initial=0.0)):
                return better
            value = better

    def _best_join(self, joins: NDArray[np.int32] | None, value: Doubles) -> tuple[Doubles, Ints]:
        """The value of the best join of each row, and the row that it enters."""
        best, entered = np.full(self.size, -np.inf), np.full(self.size, -1, np.int64)
        if joins is None:
            return best, entered
        padded = np.append(value, -np.inf)
        for first in range(0, self.size, CHUNK):
            options = joins[first : first + CHUNK]
            worth = padded[options]
            at = worth.argmax(1)[:, None]
            best[first : first + CHUNK] = np.take_along_axis(worth, at, 1)[:, 0]
            entered[first : first + CHUNK] = np.take_along_axis(options, at, 1)[:, 0]
        return best, entered

    def _best_bridge(self, bridges: BridgeEdges | None, value: Doubles) -> tuple[Doubles, Ints]:
        """The value of the best bridge from each row, and which it is."""
        best, which = np.full(self.size, -np.inf), np.full(self.size, -1, np.int64)
        if bridges is None or not len(bridges.source):
            return best, which
        worth = bridges.reward + bridges.discount * value[bridges.target]
        order = np.argsort(worth, kind="stable")  # of several bridges from a row the last one written is the best
        best[bridges.source[order]], which[bridges.source[order]] = worth[order], order
        return best, which


def _evaluate(reward: Doubles, discount: Doubles, follow: Ints) -> Doubles:
    """Return the value of always following, float64 [M]: sums over 1, 2, 4, .. steps until nothing more counts."""
    reward, discount = reward.copy(), discount.copy()
    follow = np.where(follow < 0, 0, follow)  # where nothing follows, the discount is 0
    while (discount > 1e-12).any():
        reward += discount * reward[follow]
        discount *= discount[follow]
        follow = follow[follow]
    return reward
