"""Weights of single transitions, by an advantage that is learned from the data first (OPER-A).

Legend: M steps, all of the first episode, then of the second, ..; N pool rows, P observation rows, O observation size,
A action size, D features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raystitch.data.episodes import Floats, Ints
from raystitch.seeding import numpy_rng

ROUNDS, GAMMA = 5, 0.99
SPREAD, FLOOR = 2.0, 0.1
"""Standard deviation of the weights about 1, and the smallest of them."""
NUM_FEATURES, NUM_FITTED, CHUNK = 256, 40_000, 8192
"""Random features; steps that values are fitted on; steps whose features are in memory at a time."""
RIDGE = 1e-3

Floats64 = NDArray[np.float64]
FeatureMap = Callable[[Floats], Floats64]
"""Points [., O] or [., O + A] to features [., D]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EpisodeSteps:
    """M steps, episode after episode, as rows of a pool of N; nothing is copied.

    Attributes:
        observations: float32 [P, O], standardised. obs_row: int64 [N], row of s_t; s_{t+1} is the next one.
        actions: float32 [N, A], in [-1, 1]. rewards, dones: float32 [N], shaped rewards, 1 at terminations.
        row: int64 [M], of the pool.
    """

    observations: Floats
    obs_row: Ints
    actions: Floats
    rewards: Floats
    dones: Floats
    row: Ints

    def __len__(self) -> int:
        return len(self.row)

    def states(self, places: Ints, ahead: int = 0) -> Floats:
        """Return the states of some steps, or those that they lead into (``ahead`` 1), float32 [., O]."""
        return self.observations[self.obs_row[self.row[places]] + ahead]

    def pairs(self, places: Ints) -> Floats:
        """Return states and actions side by side, float32 [., O + A]."""
        return np.concatenate([self.states(places), self.actions[self.row[places]]], 1)


def advantage_priorities(steps: EpisodeSteps) -> Floats64:
    """Return weights by advantage, float64 [M] (Yue et al. 2023, arXiv 2306.05412, OPER-A).

    Five rounds: V of the policy that collected the data as it is weighted so far, and Q one step before it; every
    weight times A - min A, A = Q - V, and divided by their mean. At the end the weights get the mean 1 and the standard
    deviation 2, and 0.1 at least.

    The paper trains networks. Here V is linear in random Fourier features of s and solved for by least squares on the
    temporal differences (LSTD, discount 0.99), and A is the ridge regression of r + gamma V(s') - V(s) on features of
    (s, a); both, and min and mean, on at most ``NUM_FITTED`` steps.
    """
    rng = numpy_rng(0, "oper_a")
    fitted = np.arange(len(steps))
    if len(steps) > NUM_FITTED:
        fitted = np.sort(rng.choice(len(steps), NUM_FITTED, replace=False))
    of_state, of_pair = _features(rng, steps.states(fitted)), _features(rng, steps.pairs(fitted))
    rounds = _rounds(steps, fitted, of_state, of_pair)
    weights = np.ones(len(steps))
    for first in range(0, len(steps), CHUNK):
        here = np.arange(first, min(first + CHUNK, len(steps)))
        pair = of_pair(steps.pairs(here))
        for of in rounds:
            weights[here] *= np.maximum(pair @ of.advantage - of.least, 0.0) / of.mean
    spread = weights.std()
    return np.maximum(1 + SPREAD * (weights - weights.mean()) / spread, FLOOR) if spread > 0 else np.ones(len(steps))


class _Round(NamedTuple):
    """The advantages of one round, and the smallest and the mean of A - min A that it multiplies weights by."""

    advantage: Floats64
    least: float
    mean: float


def _rounds(steps: EpisodeSteps, fitted: Ints, of_state: FeatureMap, of_pair: FeatureMap) -> list[_Round]:
    """Fit the rounds on some steps; fewer than five where nothing is better than anything else."""
    rewards = steps.rewards[steps.row[fitted]].astype(np.float64)
    goes_on = GAMMA * (steps.dones[steps.row[fitted], None] == 0)
    state, pair = of_state(steps.states(fitted)), of_pair(steps.pairs(fitted))
    change = state - of_state(steps.states(fitted, ahead=1)) * goes_on
    weights, found = np.ones(len(fitted)), list[_Round]()
    for _ in range(ROUNDS):
        value = _solve(state, change, rewards, weights)
        theta = _solve(pair, pair, rewards - change @ value, weights)
        advantage = pair @ theta
        least = float(advantage.min())
        mean = float((advantage - least).mean())
        if not mean > 0:
            break
        weights *= (advantage - least) / mean
        found.append(_Round(theta, least, mean))
    return found


def _features(rng: np.random.Generator, points: Floats) -> FeatureMap:
    """Return the map to random Fourier features of a Gaussian kernel as wide as the points lie apart, [., D]."""
    some = points[rng.permutation(len(points))[:512]].astype(np.float64)
    apart = np.sqrt(((some - some[::-1]) ** 2).sum(1))
    width = float(np.median(apart[apart > 0])) if (apart > 0).any() else 1.0
    frequency = rng.normal(size=(points.shape[1], NUM_FEATURES)) / width
    phase = rng.uniform(0, 2 * np.pi, NUM_FEATURES)

    def features(x: Floats) -> Floats64:
        waves = np.cos(x @ frequency + phase) * np.sqrt(2 / NUM_FEATURES)
        return np.concatenate([waves, x.astype(np.float64), np.ones((len(x), 1))], 1)

    return features


def _solve(features: Floats64, change: Floats64, targets: Floats64, weights: Floats64) -> Floats64:
    """Return the coefficients theta, float64 [D], of E[w f change^T] theta = E[w f target], with a small ridge."""
    weighted = features * (weights / weights.sum())[:, None]
    ridge = RIDGE * np.trace(weighted.T @ features) / features.shape[1]
    return np.linalg.solve(weighted.T @ change + ridge * np.eye(features.shape[1]), weighted.T @ targets)
