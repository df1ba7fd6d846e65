"""G3: returns of policies that begin in states of poor episodes, next to the usual start.

Legend: N starts, O observation size.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from raystitch.data.episodes import EpisodeDataset, Floats, Ints
from raystitch.envs.simulator import StateSetter, Unavailable
from raystitch.envs.spec import EnvSpec
from raystitch.pipeline.study.parts import StudyParts
from raystitch.pipeline.validate.simulated import open_for
from raystitch.seeding import derive_seed, numpy_rng
from raystitch.trainers.evaluate import SharedEnvs, evaluate
from raystitch.trainers.policy import Asked, Policy

LOW_SHARE = 1 / 3
"""Share of the episodes of a part, by return, whose states policies have to recover from."""
SAFE_TRIES = 20


@dataclass(frozen=True, kw_only=True)
class RecoveryConfig:
    """Settings of the measurement.

    Attributes:
        num_starts: states of each part that a policy begins in, the same ones for every policy.
        num_envs: episodes side by side.
        max_episode_steps: where an episode ends; None for the environment's own limit.
    """

    num_starts: int = 20
    num_envs: int = 25
    max_episode_steps: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class PoorStarts:
    """States to recover from.

    Attributes:
        held_out, train: float32 [N, O], of low-return episodes of either part.
        env: where policies act. return_below: largest return of the episodes that the held-out states are from.
    """

    held_out: Floats
    train: Floats
    env: EnvSpec
    return_below: float

    @property
    def digest(self) -> str:
        """A digest of the states."""
        return hashlib.sha256(self.held_out.tobytes() + self.train.tobytes()).hexdigest()[:16]

    @classmethod
    def of(cls, parts: StudyParts, config: RecoveryConfig, seed: int) -> "PoorStarts":
        """Draw the starts.

        Raises:
            Unavailable: when the simulator cannot be put into the dataset's states; says why.
            UserError: when the environment does not belong to the dataset.
        """
        dataset = parts.dataset
        simulator = open_for(dataset)  # also compares its observations with the dataset's
        setter, env = simulator.setter, dataset.env
        assert env is not None
        rng = numpy_rng(seed, "study", "starts")
        try:
            held_out, train = (
                _states(dataset, low_return(dataset, episodes), config.num_starts, setter, rng)
                for episodes in (parts.held_out, parts.train)
            )
        finally:
            simulator.close()
        return cls(
            held_out=held_out,
            train=train,
            env=env.for_evaluation(config.max_episode_steps),
            return_below=float(dataset.returns[low_return(dataset, parts.held_out)].max()),
        )


def low_return(dataset: EpisodeDataset, episodes: Ints) -> Ints:
    """Return the third of ``episodes`` with the lowest returns, at least one; only those with a step."""
    usable = episodes[dataset.lengths[episodes] > 0]
    by_return = usable[np.argsort(dataset.returns[usable], kind="stable")]
    return by_return[: max(1, round(LOW_SHARE * len(by_return)))]


def _states(
    dataset: EpisodeDataset, episodes: Ints, count: int, setter: StateSetter, rng: np.random.Generator
) -> Floats:
    """Draw states that are left by a recorded step and that the simulator can be put into, float32 [count, O]."""
    steps = np.flatnonzero(np.isin(dataset.episode_of, episodes))
    rows = dataset.obs_index[rng.permutation(steps)[: SAFE_TRIES * count]]
    observations = dataset.observations[rows]
    usable = observations[setter.determined(observations)]
    if not len(usable):
        raise Unavailable("no state of a low-return episode determines the simulator's state")
    return usable[np.arange(count) % len(usable)]


def recovery(policy: Policy, starts: PoorStarts, config: RecoveryConfig, seed: int, target: Asked) -> dict[str, Any]:
    """Return what a policy achieves from the starts: ``held_out`` and ``train``, each ``return_mean, success_rate``.

    Args:
        target: the return that a return-conditioned policy is asked for.
    """
    found: dict[str, Any] = {}
    with SharedEnvs(starts.env, resettable=True) as envs:
        for name in ("held_out", "train"):
            states: Floats = getattr(starts, name)
            at = derive_seed(seed, "recovery", name)
            result = evaluate(policy, envs, len(states), config.num_envs, at, target, states)
            found[name] = {"return_mean": result.return_mean, "success_rate": result.success_rate}
    return found
