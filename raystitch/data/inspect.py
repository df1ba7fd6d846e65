"""The content of a dataset and its problems.

Legend: N transitions, E episodes, O observation size, A action size.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raystitch.data.checks import Problem, absurd_rows, problem
from raystitch.data.context import still_dimensions
from raystitch.data.episodes import EpisodeDataset, Floats, Ints

# An action this close to a bound, as a share of its range, is saturated.
SATURATED = 1e-3
EQUAL = 1e-6
"""Returns that differ by less, as a share of their size, are equal but for rounding."""


def _summary(values: NDArray[Any]) -> dict[str, float]:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return {"min": 0.0, "mean": 0.0, "max": 0.0}
    return {"min": float(finite.min()), "mean": float(finite.mean()), "max": float(finite.max())}


def _list(numbers: NDArray[np.int64], most: int = 8) -> str:
    shown = ", ".join(str(number) for number in numbers[:most])
    return shown if len(numbers) <= most else f"{shown}, ..."


def _non_finite(dataset: EpisodeDataset) -> list[Problem]:
    found = []
    for name in ("observations", "actions", "rewards"):
        values = getattr(dataset, name)
        bad = ~np.isfinite(values).reshape(len(values), -1).all(1)
        if not bad.any():
            continue
        where = _first(dataset, name, int(np.argmax(bad)))
        found.append(problem("non_finite", f"{name}: NaN or infinity in {bad.sum()} rows, {where}", int(bad.sum())))
    return found


def _first(dataset: EpisodeDataset, name: str, row: int) -> str:
    """Return the place of a column's row, for messages."""
    starts = dataset.obs_offsets if name == "observations" else dataset.offsets
    episode = int(np.searchsorted(starts, row, side="right")) - 1
    return f"the first in episode {episode}, step {row - int(starts[episode])}"


def _absurd(dataset: EpisodeDataset) -> list[Problem]:
    found = []
    for name in ("observations", "actions", "rewards"):
        values = getattr(dataset, name)
        rows = absurd_rows(name, values)
        if len(rows):
            largest = float(np.nanmax(np.abs(np.where(np.isfinite(values[rows]), values[rows], 0.0))))
            message = (
                f"{name}: {len(rows)} rows have a value far beyond all others (up to {largest:.3g}), "
                f"{_first(dataset, name, int(rows[0]))}"
            )
            found.append(problem("absurd_value", message, len(rows)))
    return found


def _jumps(dataset: EpisodeDataset) -> list[Problem]:
    rows, largest = jumps(dataset)
    if not len(rows):
        return []
    episodes = len(np.unique(dataset.episode_of[rows]))
    message = (
        f"{len(rows)} steps inside {episodes} episodes jump (by up to {largest:,.0f} times a usual step), "
        f"{_first(dataset, 'actions', int(rows[0]))}: episodes end there, but no timeouts or terminals say so"
    )
    return [problem("jump_inside_episode", message, len(rows))]


def _returns(dataset: EpisodeDataset) -> list[Problem]:
    if dataset.num_episodes < 2 or not np.isfinite(dataset.returns).all():
        return []
    low, high = float(dataset.returns.min()), float(dataset.returns.max())
    if high - low > EQUAL * max(1.0, abs(low), abs(high)):
        return []
    message = (
        f"all {dataset.num_episodes} episodes have the return {high:g}, so none is better than another: "
        "stitching has nothing better to lead to, and training has nothing to improve on"
    )
    return [problem("equal_returns", message, dataset.num_episodes)]


def _dimensions(dataset: EpisodeDataset) -> list[Problem]:
    constant, context = (np.flatnonzero(which) for which in still_dimensions(dataset))
    found = []
    if len(constant):
        message = f"observation dimensions {_list(constant)} never change; they are left out of every score"
        found.append(problem("constant_dimension", message, len(constant)))
    if len(context):
        message = (
            f"observation dimensions {_list(context)} are constant within episodes but differ between them "
            "(a context such as a goal); stitching two episodes that disagree on them joins different tasks"
        )
        found.append(problem("context_dimension", message, len(context)))
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
    return saturated, [problem("action_out_of_bounds", message, int(outside.sum()))]


def action_problems(dataset: EpisodeDataset) -> list[Problem]:
    """Return the problem of actions outside their bounds, if there are any: how many, how far, and where the first
    is."""
    return _actions(dataset)[1]


def training_problems(dataset: EpisodeDataset) -> list[Problem]:
    """Return the reasons not to train on the dataset as it is, beyond those that its reader reported."""
    missing = [_missing_final(dataset)] if dataset.final_observed.any() and not dataset.final_observed.all() else []
    return [*missing, *_returns(dataset), *_jumps(dataset)]


def _episodes(dataset: EpisodeDataset) -> list[Problem]:
    found = []
    if not dataset.terminated.any():
        message = "no episode has a terminal flag; right for tasks that never end, wrong if failures were not recorded"
        found.append(problem("no_terminal_flag", message, dataset.num_episodes))
    single = np.flatnonzero(dataset.lengths <= 1)
    if len(single):
        message = f"{len(single)} episodes have a single step: {_list(single)}"
        found.append(problem("one_step_episode", message, len(single)))
    limit = dataset.env.max_episode_steps if dataset.env else None
    if limit is not None and (long := np.flatnonzero(dataset.lengths > limit)).size:
        message = f"{len(long)} episodes are longer than the environment's time limit of {limit} steps: {_list(long)}"
        found.append(problem("over_time_limit", message, len(long)))
    if not dataset.final_observed.all():
        found.append(_missing_final(dataset))
    return found


def _missing_final(dataset: EpisodeDataset) -> Problem:
    missing = int((~dataset.final_observed).sum())
    message = f"{missing} episodes lack the observation after their last action; that transition is not learnt from"
    return problem("missing_final_observation", message, missing)


def inspect(dataset: EpisodeDataset) -> dict[str, Any]:
    """Describe a dataset that may hold NaN, as plain data for JSON: sizes, returns and problems.

    ``problems`` is a list of ``{kind, message, count}``; docs/data.md lists the kinds.
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
        "problems": [
            *_non_finite(dataset),
            *_absurd(dataset),
            *dataset.found,
            *_dimensions(dataset),
            *action_problems,
            *_episodes(dataset),
            *_jumps(dataset),
            *_returns(dataset),
        ],
    }


FAR = 20.0
"""A step that jumps is this many times as large as nine in ten steps of its dimension,"""
SHARE = 0.25
"""and it jumps in more than this share of the moving dimensions: contacts and wrapped angles jump in one or two."""
MOST = 0.2
"""If a larger share of the steps are jumps, the task itself jumps."""
SAMPLE = 100_000
TURNS = (2 * np.pi, 360.0)


def jumps(dataset: EpisodeDataset) -> tuple[Ints, float]:
    """Transitions that jump, int64, and how many times the typical step the largest of them is (0 without one).

    Values that are not finite are passed over.
    """
    inside = np.flatnonzero(dataset.next_observed)
    rows = dataset.obs_index[inside]
    count = np.zeros(len(rows), np.int16)
    moving, worst = 0, np.zeros(len(rows), np.float32)
    if not len(rows):
        return rows, 0.0
    sample = slice(None, None, max(1, len(rows) // SAMPLE))
    for index in range(dataset.obs_dim):
        steps = _steps(dataset.observations[:, index], rows)
        taken = steps[sample]
        taken = taken[taken > 0]
        if len(taken) < 0.01 * len(steps[sample]):
            continue  # a constant, a goal, or something that hardly ever moves
        typical = float(np.quantile(taken, 0.9))
        moving += 1
        count += steps > FAR * typical
        np.maximum(worst, steps / np.float32(typical), out=worst)
    found = np.flatnonzero(count > SHARE * moving) if moving else np.zeros(0, np.int64)
    if not len(found) or len(found) > MOST * len(rows):
        return np.zeros(0, np.int64), 0.0
    return inside[found], float(worst[found].max())


def _steps(column: Floats, rows: Ints) -> Floats:
    """Distances that one dimension moves in S transitions, float32 [S]; across the seam of an angle the short way."""
    with np.errstate(invalid="ignore", over="ignore"):
        steps = np.abs(column[rows + 1] - column[rows])
        width = float(np.fmax.reduce(column) - np.fmin.reduce(column))
        for turn in TURNS:
            if 0.9 * turn < width <= 1.001 * turn:
                steps = np.minimum(steps, np.float32(turn) - steps)
    steps[~np.isfinite(steps)] = 0
    return steps
