"""Checks of what an evaluation needs, run before anything long starts."""

import numpy as np

from raystitch.data.episodes import EpisodeDataset
from raystitch.data.inspect import action_problems, training_problems
from raystitch.envs.spec import EnvSpec
from raystitch.errors import UserError
from raystitch.trainers.config import EvalConfig
from raystitch.trainers.evaluate import check_ends, check_env, check_target


def check_evaluation(dataset: EpisodeDataset, evaluation: EvalConfig, env: EnvSpec | None = None) -> None:
    """Find out what would end an evaluation on this dataset, before anything long starts.

    Args:
        env: evaluate here; None for the dataset's environment.

    Raises:
        UserError: no environment, one that cannot be made, does not fit or has no end, or an absurd target return.
    """
    chosen = environment_of(dataset, env).for_evaluation(evaluation.max_episode_steps)
    check_env(chosen, dataset.obs_dim, dataset.act_dim)
    if not dataset.terminated.any():
        check_ends(chosen, int(dataset.lengths.max(initial=0)))
    scale = float(np.abs(dataset.returns).max(initial=0)) or 1.0
    for target in evaluation.fixed_targets:
        check_target(target, scale)


def environment_of(dataset: EpisodeDataset, env: EnvSpec | None) -> EnvSpec:
    """Return the environment to evaluate in: ``env``, else the dataset's.

    Raises:
        UserError: when there is neither.
    """
    found = env or dataset.env
    if found is None:
        raise UserError(
            f"{dataset.name} does not say which environment it comes from; name one to evaluate in (--env ENV_ID, env: "
            "in a configuration)"
        )
    return found


def check_suitable(dataset: EpisodeDataset) -> list[str]:
    """Return what is odd about the dataset but no reason to stop, one line each.

    Raises:
        UserError: when every reward is 0, or there are not two episodes to stitch together.
    """
    if dataset.num_episodes < 2:
        raise UserError(
            f"{dataset.name} has {dataset.num_episodes} episode; stitching leads from one episode into another, so it "
            "needs at least 2 (if several runs were recorded as one, mark their ends as timeouts)"
        )
    if not dataset.rewards.any():
        raise UserError(
            f"{dataset.name}: every reward is 0 ({dataset.num_transitions:,} transitions), so no policy is better than "
            "another; put rewards into the dataset"
        )
    outside = [
        f"{dataset.name}: {problem['message']}; they are trained on as recorded, but no policy acts outside the bounds"
        for problem in action_problems(dataset)
    ]
    return over_limit_notes(dataset) + suitable_notes(dataset) + outside


def over_limit_notes(dataset: EpisodeDataset) -> list[str]:
    """Return a line where recorded episodes exceed the environment's time limit, at which training cuts them."""
    limit = dataset.env.max_episode_steps if dataset.env is not None else None
    over = 0 if limit is None else int((dataset.lengths > limit).sum())
    if not over:
        return []
    return [
        f"{dataset.name}: {over:,} episodes are longer than the environment's time limit of {limit:,} steps (the "
        f"longest has {int(dataset.lengths.max()):,}); original and stitched episodes alike are cut there for training"
    ]


def suitable_notes(dataset: EpisodeDataset) -> list[str]:
    """Return the reasons not to train on the dataset as it is, one line each; its reader has warned of the rest."""
    return [f"{dataset.name}: {problem['message']}" for problem in training_problems(dataset)]
