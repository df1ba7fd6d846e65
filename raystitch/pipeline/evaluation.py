"""Checks of what an evaluation needs, run before anything long starts."""

import numpy as np

from raystitch.data.episodes import EpisodeDataset
from raystitch.envs.spec import EnvSpec
from raystitch.errors import UserError
from raystitch.trainers.config import EvalConfig
from raystitch.trainers.evaluate import check_ends, check_env, check_target


def check_evaluation(dataset: EpisodeDataset, evaluation: EvalConfig, env: EnvSpec | None = None) -> None:
    """Everything that would end an evaluation on this dataset, found out before anything long starts.

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
    for target in evaluation.target_returns:
        check_target(target, scale)


def environment_of(dataset: EpisodeDataset, env: EnvSpec | None) -> EnvSpec:
    found = env or dataset.env
    if found is None:
        raise UserError(
            f"{dataset.name} does not say which environment it comes from; name one to evaluate in (--env ENV_ID, env: "
            "in a configuration)"
        )
    return found
