"""Evaluation in the real environment: episodes side by side, every one with a seed of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from raystitch.envs.make import FlatEnv, make_env
from raystitch.envs.simulator import make_resettable
from raystitch.envs.spec import EnvSpec
from raystitch.envs.task import normalised_score
from raystitch.errors import RunError, UserError
from raystitch.seeding import derive_seed
from raystitch.trainers.policy import MAX, Asked, Policy

SAFETY_LIMIT = 100_000
"""Steps after which an episode counts as one without an end."""

FURTHEST_TARGET = 1000.0
"""Largest target return, in units of the largest absolute return of the training data."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EvalResult:
    """Undiscounted returns of N episodes in raw units, in the order of their seeds.

    Attributes:
        target_return: what a return-conditioned policy was asked for, None for the others.
        prompt: ``max`` where the policy itself said at every step what to ask it for.
        returns: float64 [N]; lengths: int64 [N].
        successes: bool [N], success at any step; None where the environment does not report it.
        score: normalised mean return, None where no reference is known.
    """

    target_return: float | None
    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    successes: NDArray[np.bool_] | None
    score: float | None
    prompt: str | None = None

    @property
    def return_mean(self) -> float:
        return float(self.returns.mean())

    @property
    def return_std(self) -> float:
        return float(self.returns.std())

    @property
    def success_rate(self) -> float | None:
        return None if self.successes is None else float(self.successes.mean())

    def to_json(self) -> dict[str, Any]:
        """Return one evaluation of ``returns.json``."""
        prompt = {} if self.prompt is None else {"prompt": self.prompt}
        return {
            "target_return": self.target_return,
            **prompt,
            "return_mean": self.return_mean,
            "return_std": self.return_std,
            "success_rate": self.success_rate,
            "score": self.score,
            "num_eval_episodes": len(self.returns),
            "returns": self.returns.tolist(),
            "lengths": self.lengths.tolist(),
            "successes": None if self.successes is None else self.successes.tolist(),
        }


def check_env(env: EnvSpec, obs_dim: int, act_dim: int) -> None:
    """Make the environment once and compare its sizes, before hours of training and not after them.

    Raises:
        UserError: when it cannot be made or has other sizes.
    """
    made = make_env(env)
    try:
        _check_sizes(made, env, obs_dim, act_dim)
    finally:
        made.close()


def check_ends(env: EnvSpec, longest: int) -> None:
    """Refuse an environment whose episodes may have no end, before hours of training and not after them.

    Args:
        env: where data without a single termination come from. longest: steps of the longest recorded episode.

    Raises:
        UserError: when it has no time limit that an evaluation could reach.
    """
    made = make_env(env)
    limit = made.spec.max_episode_steps if made.spec is not None else None
    made.close()
    if limit is not None and limit <= SAFETY_LIMIT:
        return
    has = "has no time limit" if limit is None else f"has a time limit of {limit:,} steps"
    raise UserError(
        f"environment {env.env_id} {has} and no recorded episode terminated, so an evaluation would not end; give "
        f"--max-episode-steps N (evaluation.max_episode_steps in a configuration); the longest recorded episode has "
        f"{longest:,} steps"
    )


def check_target(target_return: float, scale: float) -> None:
    """Refuse a return that no policy can have been trained for.

    Args:
        scale: largest absolute return of the training data.

    Raises:
        UserError: when it is not finite or out of all proportion.
    """
    if not abs(target_return) <= FURTHEST_TARGET * scale:
        raise UserError(
            f"target return {target_return:g} is out of all proportion to the training data, whose returns lie within "
            f"{-scale:g} and {scale:g}; ask for a return near those"
        )


def _check_sizes(made: FlatEnv, env: EnvSpec, obs_dim: int, act_dim: int) -> None:
    sizes = tuple(int(np.prod(space.shape or ())) for space in (made.observation_space, made.action_space))
    if sizes != (obs_dim, act_dim):
        raise UserError(
            f"environment {env.env_id} has {sizes[0]} observations and {sizes[1]} actions, "
            f"the policy has {obs_dim} and {act_dim}; name the environment of its training data"
        )


class SharedEnvs:
    """Environments of one kind that several evaluations use one after another, made when they are first needed.

    To make one can take as long as an episode; every episode resets its own with its own seed.
    """

    def __init__(self, spec: EnvSpec, resettable: bool = False) -> None:
        """Remember what to make. ``resettable``: episodes begin in given states."""
        self.spec = spec
        self._make = make_resettable if resettable else make_env
        self._made: list[FlatEnv] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._made:
            self._made.pop().close()

    def take(self, count: int) -> Sequence[FlatEnv]:
        """Return ``count`` environments.

        Raises:
            Unavailable: when they have to be resettable and cannot.
            UserError: when they cannot be made.
        """
        while len(self._made) < count:
            self._made.append(self._make(self.spec))
        return self._made[:count]


def evaluate(
    policy: Policy,
    env: EnvSpec | SharedEnvs,
    num_episodes: int = 50,
    num_envs: int = 25,
    seed: int = 0,
    target_return: Asked = None,
    starts: NDArray[np.floating] | None = None,
) -> EvalResult:
    """Run ``num_episodes`` episodes, ``num_envs`` at a time; equal arguments give equal results.

    Args:
        env: where; ``SharedEnvs`` are left as they are for the next evaluation.
        starts: float [num_episodes, O], the observations whose states the episodes begin in; None for the usual ones.

    Raises:
        Unavailable: when the environment cannot be put into ``starts``.
        UserError: when the environment cannot be made or does not fit the policy, or for a target return that is absurd
            or that the policy cannot be asked for.
        RunError: when an episode has no end, or the policy's actions are not finite.
    """
    if isinstance(env, EnvSpec):
        with SharedEnvs(env, resettable=starts is not None) as own:
            return evaluate(policy, own, num_episodes, num_envs, seed, target_return, starts)
    asked = policy.default_target if target_return is None else target_return
    asked = asked if policy.uses_target_return else None
    if isinstance(asked, float | int):
        check_target(asked, policy.meta.rtg_scale)
    counts = _Counts(num_episodes)
    made = env.take(min(num_envs, num_episodes))
    for one in made:
        _check_sizes(one, env.spec, policy.obs_dim, policy.act_dim)
    for first in range(0, num_episodes, len(made)):
        episodes = np.arange(first, min(first + len(made), num_episodes))
        seeds = [derive_seed(seed, "episode", int(episode)) % 2**31 for episode in episodes]
        policy.reset(len(episodes), asked)
        used = made[: len(episodes)]
        options = [None if starts is None else {"state": starts[episode]} for episode in episodes]
        begun = [one.reset(seed=at, options=option)[0] for one, at, option in zip(used, seeds, options, strict=True)]
        _run_side_by_side(policy, used, np.stack(begun), episodes, counts, env.spec.env_id)
    return EvalResult(
        target_return=None if asked == MAX else asked,
        prompt=MAX if asked == MAX else None,
        returns=counts.returns,
        lengths=counts.lengths,
        successes=counts.successes if counts.reported else None,
        score=normalised_score(env.spec.env_id, float(counts.returns.mean()), env.spec.reference),
    )


class _Counts:
    """Sums over the steps of N episodes so far; ``reported``: the environment says whether a step is a success."""

    def __init__(self, num_episodes: int) -> None:
        self.returns, self.lengths = np.zeros(num_episodes), np.zeros(num_episodes, np.int64)
        self.successes, self.reported = np.zeros(num_episodes, np.bool_), False

    def add(self, episodes: NDArray[np.int64], reward: NDArray[np.float64], infos: Sequence[Mapping[str, Any]]) -> None:
        """Add one step of each of the ``episodes``."""
        self.returns[episodes] += reward
        self.lengths[episodes] += 1
        self.reported = self.reported or "success" in infos[0]
        self.successes[episodes] |= [bool(info.get("success", False)) for info in infos]


def _run_side_by_side(
    policy: Policy,
    envs: Sequence[FlatEnv],
    obs: NDArray[np.floating],
    episodes: NDArray[np.int64],
    counts: _Counts,
    env_id: str,
) -> None:
    """Run one episode in each environment, from its first observation on, and add their steps to ``counts``.

    Raises:
        RunError: when an episode has no end, or the policy's actions are not finite.
    """
    alive = np.arange(len(envs))
    while len(alive):
        actions = policy.act(obs)
        if not np.isfinite(actions).all():
            raise RunError(f"the policy's actions in {env_id} are not finite; train it again")
        steps = [envs[int(at)].step(action) for at, action in zip(alive, actions, strict=True)]
        reward = np.array([float(step[1]) for step in steps])
        policy.observe(reward)
        counts.add(episodes[alive], reward, [step[4] for step in steps])
        obs = np.stack([step[0] for step in steps])
        going = np.flatnonzero([not (step[2] or step[3]) for step in steps])
        if len(going) and counts.lengths[episodes[alive[going]]].max() >= SAFETY_LIMIT:
            raise RunError(
                f"{env_id} did not end after {SAFETY_LIMIT:,} steps; give --max-episode-steps N "
                "(evaluation.max_episode_steps in a configuration)"
            )
        if len(going) < len(alive):
            policy.keep(going)
            obs, alive = obs[going], alive[going]
