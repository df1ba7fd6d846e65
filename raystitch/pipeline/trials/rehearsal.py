"""A rehearsal of a run on this machine: a few steps of every stage, timed, from which its cost follows.

Times are measured and not computed from sizes: machines differ in the instructions that they have, and settings in what
their steps share.
"""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from raystitch.config import RunConfig
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.normalise import Normalizer
from raystitch.data.returns import is_goal_task
from raystitch.device import torch_threads
from raystitch.envs.make import make_env
from raystitch.envs.spec import EnvSpec
from raystitch.models.bundle import Bundle
from raystitch.models.fit import time_fit
from raystitch.pipeline.generate.augment import make_shard
from raystitch.pipeline.generate.pilot import usable_modes
from raystitch.pipeline.trials.groups import Group
from raystitch.pipeline.trials.train import training_data
from raystitch.pipeline.trials.trial import LoadedInputs, Trial
from raystitch.shaping.config import RewardConfig, WeightConfig
from raystitch.shaping.returns import VALUED
from raystitch.stitching.stitcher import Stitcher
from raystitch.trainers.config import EvalConfig
from raystitch.trainers.evaluate import SharedEnvs, evaluate
from raystitch.trainers.loop import train_policies
from raystitch.trainers.policy import Policy
from raystitch.trainers.pool import build_pool
from raystitch.trainers.value import fit_values

WARM_STEPS, TIMED_STEPS, TIMED_SECONDS = 4, 16, 1.0
"""Gradient steps of a group before it is timed, the fewest while it is, and for about how long."""
VALUE_STEPS = 100
"""Steps of fitting V, of which twice as many are done, too, to know what a step takes."""
PAIRS = 64
"""Pairs of the shards that are stitched; the second of two is timed."""
EPISODE_STEPS = 40
"""Longest episode that is evaluated."""
LONG_EPISODE = 0.9
"""Quantile of the recorded lengths that a policy is taken to reach where episodes do not end at a goal."""


@dataclass(frozen=True, kw_only=True)
class RunPace:
    """Seconds on this machine.

    Attributes:
        fit: of the whole fit, on all CPUs.
        candidate: per candidate bridge, on one CPU, as all that follows.
        group_step: per gradient step of a group, by algorithm and number of stacked seeds.
        episode: per episode of an evaluation for one return asked for, by algorithm.
        asked_beside: returns that policies are asked for beside the run's, by algorithm.
        environment: per environment that is made.
        values: of fitting V for returns-to-go that are relabelled by it, once for every rule (by its text).
        trials_on: the kind of device that gradient steps were timed on.
    """

    fit: float
    candidate: float
    group_step: Mapping[tuple[str, int], float]
    episode: Mapping[str, float]
    environment: float
    asked_beside: Mapping[str, int] = field(default_factory=dict[str, int])
    values: Mapping[str, float] = field(default_factory=dict[str, float])
    trials_on: str = "cpu"

    def group_seconds(self, config: RunConfig, algo: str, num_seeds: int) -> float:
        """Return the seconds that a group trains and is evaluated."""
        evaluation, train_steps = config.evaluation, config.algorithms.of(algo).train_steps
        curve = (train_steps - 1) // evaluation.every if evaluation.every else 0
        asked = max(1, len(evaluation.fixed_targets)) + self.asked_beside.get(algo, 0)
        episodes = evaluation.num_episodes + curve * evaluation.every_episodes
        most = max(evaluation.num_episodes, evaluation.every_episodes if curve else 0)
        made = min(most, evaluation.num_envs) * self.environment  # once, for all of the group
        return train_steps * self.group_step[algo, num_seeds] + num_seeds * asked * episodes * self.episode[algo] + made


def rehearse(config: RunConfig, dataset: EpisodeDataset, groups: Sequence[Group]) -> RunPace:
    """Do a little of every stage in this process, on the CPU (of trials that ask for a GPU on one, where there is one);
    writes nothing.

    Args:
        config: with what is ``auto`` decided for the dataset. groups: of its trials.
    """
    asked = dict.fromkeys((group[0].algo, len(group)) for group in groups)
    if config.search.algorithm != "none":
        asked[config.search.algo, len(config.search.seeds)] = None
    device = "cuda" if config.resources.trial_gpus and torch.cuda.is_available() else "cpu"
    with torch_threads(os.cpu_count() or 1):
        bundle, fit = time_fit(dataset, config.fit)
    with torch_threads(1):
        candidate = _candidate_seconds(config, dataset, bundle)
        steps: dict[tuple[str, int], float] = {}
        policies: dict[str, Policy] = {}
        for algo, num_seeds in asked:
            steps[algo, num_seeds], policies[algo] = _step_seconds(config, dataset, algo, num_seeds, device)
        assert dataset.env is not None, "runs are refused without one"
        env = dataset.env.for_evaluation(config.evaluation.max_episode_steps)
        values = _value_seconds(dataset, groups)
        made = _timed(lambda: make_env(env).close())
        length = _episode_steps(dataset, env)
        episodes = {
            algo: length * _env_step_seconds(policy, env, config.evaluation) for algo, policy in policies.items()
        }
    return RunPace(
        fit=fit,
        candidate=candidate,
        group_step=steps,
        episode=episodes,
        environment=made,
        asked_beside={algo: len(policy.asked_beside) for algo, policy in policies.items()},
        values=values,
        trials_on=device,
    )


def _timed(work: Callable[[], object]) -> float:
    """Return the seconds that a piece of work takes the second time."""
    work()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _candidate_seconds(config: RunConfig, dataset: EpisodeDataset, bundle: Bundle) -> float:
    # A bundle that was fitted for a moment has no delta auto, and a pilot by it would choose nothing.
    stitch = replace(config.stitch, qualify=replace(config.stitch.qualify, delta="q99"))
    index = next(usable_modes(dataset, bundle, stitch))
    stitcher = Stitcher(bundle, index.config)
    count = min(PAIRS, config.augment.pairs_per_shard)
    shards = iter(range(2))
    return _timed(lambda: make_shard(stitcher, index, config.seed, next(shards), count)) / count


def _step_seconds(
    config: RunConfig, dataset: EpisodeDataset, algo: str, num_seeds: int, device: str
) -> tuple[float, Policy]:
    """Return the seconds of a gradient step of so many stacked seeds, and the policy of the first."""
    settings = config.algorithms.of(algo)
    trial = Trial(algo=algo, config=settings, device=device, memory_gib=config.resources.memory_gib)
    data = training_data(trial, LoadedInputs(dataset=dataset))

    def steps(count: int) -> tuple[float, Policy]:
        """Time the second half of so many steps, without what is done once."""
        half, warm = max(WARM_STEPS, count // 2), list[float]()
        found, *_ = train_policies(
            data,
            algo,
            replace(settings, train_steps=2 * half),
            "1:0",
            range(num_seeds),
            every=half,  # once: every time policies are copied
            on_every=lambda step, _: warm.append(time.perf_counter()),
        )
        seconds = time.perf_counter() - warm[0]
        if not isinstance(found, Policy):
            raise found
        return seconds / half, found

    first, policy = steps(TIMED_STEPS)
    more = int(TIMED_SECONDS / max(first, 1e-6))
    if more <= TIMED_STEPS:
        return first, policy
    return steps(min(more, settings.train_steps))[0], policy


def _env_step_seconds(policy: Policy, env: EnvSpec, evaluation: EvalConfig) -> float:
    """Return the seconds of a step of one environment with its action, among as many as are evaluated at once."""
    count = min(evaluation.num_envs, evaluation.num_episodes)
    limit = min(EPISODE_STEPS, env.max_episode_steps or EPISODE_STEPS)
    with SharedEnvs(env.for_evaluation(limit)) as made:
        evaluate(policy, made, count, count)  # makes them, and all that is done once
        began = time.perf_counter()
        result = evaluate(policy, made, count, count)
        return (time.perf_counter() - began) / int(result.lengths.sum())


def _value_seconds(dataset: EpisodeDataset, groups: Sequence[Group]) -> dict[str, float]:
    """Return the seconds of fitting V on the original data, by the text of the rule that asks for it."""
    rules = {valued(group[0]): group[0].shaping.returns for group in groups if valued(group[0])}
    found: dict[str, float] = {}
    for text, rule in rules.items():
        pool = build_pool(dataset, None, Normalizer.fit(dataset.observations), math.inf, None)
        usable = dataset.next_observed | dataset.transition_terminal
        seconds: list[float] = []
        for count in (VALUE_STEPS, 3 * VALUE_STEPS):
            began = time.perf_counter()
            fit_values(pool, replace(rule, steps=count), usable, torch.device("cpu"))
            seconds.append(time.perf_counter() - began)
        found[text] = rule.steps * max(0.0, seconds[1] - seconds[0]) / (2 * VALUE_STEPS)
    return found


def valued(trial: Trial) -> str:
    """Return the rule for returns-to-go that V is fitted for; empty where the trial needs none."""
    rule = trial.shaping.returns
    return replace(trial.shaping, weights=WeightConfig(), rewards=RewardConfig()).text if rule.name in VALUED else ""


def _episode_steps(dataset: EpisodeDataset, env: EnvSpec) -> float:
    """Return the steps of an evaluation's episode: all that there are where a policy may look for a goal in vain."""
    recorded = float(np.quantile(dataset.lengths, LONG_EPISODE))
    limit = env.max_episode_steps
    if limit is None:
        return recorded
    return float(limit) if is_goal_task(dataset) else min(recorded, float(limit))
