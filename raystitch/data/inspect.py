"""What is in a dataset, and what is wrong with it.

Legend: N transitions, E episodes, O observation size, A action size.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raystitch.data.context import still_dimensions
from raystitch.data.episodes import EpisodeDataset

# An action this close to a bound, as a share of its range, is saturated.
SATURATED = 1e-3

Problem = dict[str, Any]


def _summary(values: NDArray[Any]) -> dict[str, float]:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return {"min": 0.0, "mean": 0.0, "max": 0.0}
    return {"min": float(finite.min()), "mean": float(finite.mean()), "max": float(finite.max())}


def _list(numbers: NDArray[np.int64], most: int = 8) -> str:
    shown = ", ".join(str(number) for number in numbers[:most])
    return shown if len(numbers) <= most else f"{shown}, ..."


def _problem(kind: str, message: str, count: int) -> Problem:
    return {"kind": kind, "message": message, "count": count}


def _non_finite(dataset: EpisodeDataset) -> list[Problem]:
    found = []
    for name in ("observations", "actions", "rewards"):
        values = getattr(dataset, name)
        bad = ~np.isfinite(values).reshape(len(values), -1).all(1)
        if not bad.any():
            continue
        first = int(np.argmax(bad))
        starts = dataset.obs_offsets if name == "observations" else dataset.offsets
        episode = int(np.searchsorted(starts, first, side="right")) - 1
        where = f"the first in episode {episode}, step {first - int(starts[episode])}"
        found.append(_problem("non_finite", f"{name}: NaN or infinity in {bad.sum()} rows, {where}", int(bad.sum())))
    return found


def _dimensions(dataset: EpisodeDataset) -> list[Problem]:
    constant, context = (np.flatnonzero(which) for which in still_dimensions(dataset))
    found = []
    if len(constant):
        message = f"observation dimensions {_list(constant)} never change; they are left out of every score"
        found.append(_problem("constant_dimension", message, len(constant)))
    if len(context):
        message = (
            f"observation dimensions {_list(context)} are constant within episodes but differ between them "
            "(a context such as a goal); stitching two episodes that disagree on them joins different tasks"
        )
        found.append(_problem("context_dimension", message, len(context)))
    return found


def _actions(dataset: EpisodeDataset) -> tuple[float, list[Problem]]:
    """Share of transitions with a saturated action, and the problems."""
    with np.errstate(invalid="ignore"):
        width = dataset.action_high - dataset.action_low
        margin = np.where(np.isfinite(width), SATURATED * width, 0.0)
        near_low = dataset.actions <= dataset.action_low + margin
        near_high = dataset.actions >= dataset.action_high - margin
        outside = (
            (dataset.actions < dataset.action_low - margin) | (dataset.actions > dataset.action_high + margin)
        ).any(1)
    saturated = float((near_low | near_high).any(1).mean())
    if not outside.any():
        return saturated, []
    worst = np.fmax.reduce(np.fmax(dataset.action_low - dataset.actions, dataset.actions - dataset.action_high), None)
    message = (
        f"{outside.sum()} transitions have an action outside its bounds (by up to {worst:.3g}), "
        f"the first in row {int(np.argmax(outside))}"
    )
    return saturated, [_problem("action_out_of_bounds", message, int(outside.sum()))]


def action_problems(dataset: EpisodeDataset) -> list[Problem]:
    """The problem of actions outside their bounds, if there are any: how many, by how much, where the first is."""
    return _actions(dataset)[1]


def _episodes(dataset: EpisodeDataset) -> list[Problem]:
    found = []
    if not dataset.terminated.any():
        message = "no episode has a terminal flag; right for tasks that never end, wrong if failures were not recorded"
        found.append(_problem("no_terminal_flag", message, dataset.num_episodes))
    single = np.flatnonzero(dataset.lengths <= 1)
    if len(single):
        message = f"{len(single)} episodes have a single step: {_list(single)}"
        found.append(_problem("one_step_episode", message, len(single)))
    limit = dataset.env.max_episode_steps if dataset.env else None
    if limit is not None and (long := np.flatnonzero(dataset.lengths > limit)).size:
        message = f"{len(long)} episodes are longer than the environment's time limit of {limit} steps: {_list(long)}"
        found.append(_problem("over_time_limit", message, len(long)))
    missing = int((~dataset.final_observed).sum())
    if missing:
        message = f"{missing} episodes lack the observation after their last action; that transition is not learnt from"
        found.append(_problem("missing_final_observation", message, missing))
    return found


def inspect(dataset: EpisodeDataset) -> dict[str, Any]:
    """Sizes, returns and problems of a dataset that may hold NaN, as plain data for JSON.

    ``problems`` is a list of ``{kind, message, count}``; the kinds are non_finite, constant_dimension,
    context_dimension, action_out_of_bounds, no_terminal_flag, one_step_episode, over_time_limit and
    missing_final_observation.
    """
    saturated, action_problems = _actions(dataset)
    return {
        "name": dataset.name,
        "env": dataset.env.to_json() if dataset.env is not None else None,
        "num_episodes": dataset.num_episodes,
        "num_transitions": dataset.num_transitions,
        "obs_dim": dataset.obs_dim,
        "act_dim": dataset.act_dim,
        "lengths": _summary(dataset.lengths),
        "returns": _summary(dataset.returns),
        "terminated": int(dataset.terminated.sum()),
        "truncated": int(dataset.truncated.sum()),
        "action_saturated_share": saturated,
        "problems": [*_non_finite(dataset), *_dimensions(dataset), *action_problems, *_episodes(dataset)],
    }
