"""Pictures of states: recorded trajectories, one bridge, many bridges.

Legend: N candidates, T states, O observation size, g gap.
"""

from collections.abc import Sequence
from operator import index
from typing import Any, SupportsIndex

import numpy as np
import pyarrow.compute as pc
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray

from raystitch.buffer.episodes import on_dataset
from raystitch.buffer.parts import CONTEXT_STEPS, BridgeParts, parts_of, parts_of_candidate
from raystitch.buffer.reader import AtDelta, Buffer
from raystitch.data.episodes import Episode, EpisodeDataset, Floats
from raystitch.data.plane import Plane, plane_of, plane_of_dimensions, two_dimensions
from raystitch.errors import UserError
from raystitch.plot.drawing import BridgeLines, draw_bridge, draw_bridges, draw_recorded, finish_ground
from raystitch.plot.style import drawing
from raystitch.seeding import numpy_rng
from raystitch.stitching.candidates import REASONS, Candidates

NUM_EPISODES, NUM_BRIDGES, NUM_BEHIND = 250, 40, 60
SIZE = (6.4, 4.8)
"""Inches of a picture of states."""

Given = Episode | ArrayLike
"""A trajectory of the caller's: an episode, or its observations [T, O]."""


def bridge(
    found: Buffer | Candidates,
    which: SupportsIndex | str | None = None,
    dataset: EpisodeDataset | None = None,
    *,
    source: Given | None = None,
    target: Given | None = None,
    dims: Sequence[int] | None = None,
    context: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw one bridge, state by state, between what it leaves and what it enters.

    In chain rounds source and target are stitched episodes, whose own bridges are drawn as parts of them.

    Args:
        found: a buffer, or the candidates of ``Stitcher.stitch``.
        which: row of the candidate, or its ``bridge_id`` in a buffer; None for the first accepted one.
        dataset: that of the bridges. Source, target and other recorded trajectories are drawn with it, in the plane of
            its maze or of its two main directions; without it the bridge alone, in two dimensions that change.
        source, target: the trajectories that were given to ``pairs_from_trajectories``; None in every other case.
        dims: two dimensions of the observation to draw instead.
        context: most steps of source and target before and after the bridge; None for all.
        ax: where to draw; None for a new figure of pyplot.

    Returns:
        The axes drawn on; ``.figure.savefig(FILE)`` writes them.

    Raises:
        UserError: when there is no such candidate or dimension, or the trajectories are not those of the bridge.

    Example:
        >>> ax = rs.plot.bridge(buffer, dataset=dataset)
        >>> ax.get_xlabel(), rs.plot.bridge(buffer, 0, dataset, dims=(0, 2)).get_xlabel()
        ('first principal component (standardised)', 'observation[0]')
    """
    row = _row(found, which)
    if isinstance(found, Buffer):
        if source is not None or target is not None:
            raise UserError("source and target are for candidates; a buffer's are in its dataset")
        parts, title = _of_buffer(found, row, dataset, context)
    else:
        parts, title = _of_candidates(found, row, dataset, {"source": source, "target": target}, context)
    plane = _plane(parts, dataset, dims)
    behind = [] if dataset is None else _episodes(dataset, NUM_BEHIND, plane)
    with drawing(ax, SIZE) as axis:
        draw_bridge(axis, plane.ground, _lines(parts, plane), behind)
        finish_ground(axis, plane.ground)
        axis.set_title(title)
        axis.legend(loc="upper left", bbox_to_anchor=(0.0, -0.12), ncols=3, borderaxespad=0.0)
    return axis


def bridges(
    buffer: Buffer,
    dataset: EpisodeDataset,
    delta: AtDelta = "generation",
    *,
    count: int = NUM_BRIDGES,
    dims: Sequence[int] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw accepted bridges, taken at random, with the 25 steps before and after each.

    Args:
        delta: a number, a quantile such as ``q99``, ``auto`` or ``off``; ``generation`` is what the buffer was made
            with.
        count: most bridges drawn. dims, ax: as of ``bridge``.

    Raises:
        UserError: when the dataset is not the buffer's, a dimension does not exist, or delta is none.

    Example:
        >>> rs.plot.bridges(buffer, dataset, "q90", count=10).get_title()
        'Stitched: source, bridge, target'
    """
    accepted = on_dataset(_checked(buffer, Buffer), dataset).mapped(delta)
    rows = np.sort(numpy_rng(0, "plot", "bridges").permutation(len(accepted))[: _count(count)])
    plane = _plane(None, dataset, dims)
    lines = [_lines(parts, plane) for parts in parts_of(dataset, accepted, rows, CONTEXT_STEPS)]
    with drawing(ax, SIZE) as axis:
        handles = draw_bridges(axis, plane.ground, lines)
        finish_ground(axis, plane.ground)
        axis.legend(handles=handles, loc="upper left", bbox_to_anchor=(0.0, -0.12), ncols=3, borderaxespad=0.0)
    return axis


def episodes(
    dataset: EpisodeDataset,
    *,
    count: int = NUM_EPISODES,
    dims: Sequence[int] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw recorded trajectories, taken at random.

    Args:
        count: most trajectories drawn. dims, ax: as of ``bridge``.

    Raises:
        UserError: when a dimension does not exist.

    Example:
        >>> rs.plot.episodes(dataset, dims=(0, 1)).get_ylabel()
        'observation[1]'
    """
    plane = _plane(None, _checked(dataset, EpisodeDataset), dims)
    lines = _episodes(dataset, count, plane)
    with drawing(ax, SIZE) as axis:
        draw_recorded(axis, plane.ground, lines)
        finish_ground(axis, plane.ground)
    return axis


def _checked(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise UserError(f"this plot takes {kind.__name__}, got {type(value).__name__}")
    return value


def _count(count: int) -> int:
    if count < 0:
        raise UserError(f"count must be >= 0, got count={count}")
    return count


def _row(found: Buffer | Candidates, which: SupportsIndex | str | None) -> int:
    """Return the row of the candidate that the caller names."""
    if not isinstance(found, Buffer | Candidates):
        raise UserError(f"a bridge is drawn from a buffer or from candidates, got {type(found).__name__}")
    held = found.uri if isinstance(found, Buffer) else "these candidates"
    if which is None:
        rows = found.accepted_rows() if isinstance(found, Buffer) else np.flatnonzero(found.accepted)
        if not len(rows):
            raise UserError(f"no bridge of {held} is accepted; name any candidate by its row")
        return int(rows[0])
    if isinstance(which, str):
        if not isinstance(found, Buffer):
            raise UserError(f"candidates have no ids before they are stored; give a row instead of {which!r}")
        row = pc.index(found.table["bridge_id"], which).as_py()
        if row < 0:
            raise UserError(f"{held} has no bridge {which!r}; ids look like 000000-0003-0")
        return row
    row, count = index(which), found.num_candidates if isinstance(found, Buffer) else len(found)
    if not 0 <= row < count:
        raise UserError(f"there is no candidate {row}: the rows of {held} are 0 .. {count - 1}")
    return row


def _of_buffer(
    buffer: Buffer, row: int, dataset: EpisodeDataset | None, context: int | None
) -> tuple[BridgeParts, str]:
    values = buffer.table.slice(row, 1).drop_columns(["actions", "rewards"]).to_pylist()[0]
    title = _title(f"Bridge {values['bridge_id']}", values["gap"], values["residual_max"], values["reason"])
    if dataset is not None:
        return parts_of_candidate(dataset, buffer, row, context), title
    return _alone(np.asarray(values["observations"], np.float32)), title


def _of_candidates(
    found: Candidates,
    row: int,
    dataset: EpisodeDataset | None,
    given: dict[str, Given | None],
    context: int | None,
) -> tuple[BridgeParts, str]:
    states = found.observations[row, : found.gap[row] + 2]
    if found.source_bridge[row] or found.target_bridge[row]:
        raise UserError(f"candidate {row} is chained onto a stored bridge; draw it from the buffer")
    around: dict[str, Floats | None] = {}
    for side, end in (("source", 0), ("target", -1)):
        episode, step = int(getattr(found, f"{side}_episode")[row]), int(getattr(found, f"{side}_step")[row])
        trajectory, name = _trajectory(given[side], side, episode, dataset, states.shape[1])
        if trajectory is None:
            around[side] = None
            continue
        if not 0 <= step < len(trajectory) or not np.array_equal(trajectory[step], states[end]):
            verb = "leaves" if side == "source" else "enters"
            raise UserError(f"candidate {row} {verb} a state that is not step {step} of {name}: it joins others")
        around[side] = trajectory[: step + 1] if side == "source" else trajectory[step:]
    before, after = around["source"], around["target"]
    steps = None if context is None else _count(context) + 1
    parts = BridgeParts(
        before=states[:1] if before is None else before[-steps if steps else None :],
        bridge=states,
        after=states[-1:] if after is None else after[:steps],
    )
    return parts, _title(f"Candidate {row}", found.gap[row], found.residual_max[row], REASONS[found.reason[row]])


def _trajectory(
    given: Given | None, side: str, episode: int, dataset: EpisodeDataset | None, obs_dim: int
) -> tuple[Floats | None, str]:
    """Return the observations [T, O] of a bridge's source or target, as far as they are known, and their name."""
    if given is not None:
        if episode >= 0:
            raise UserError(f"{side} is for trajectories that are in no dataset; this one is episode {episode} of one")
        states = np.asarray(given.observations if isinstance(given, Episode) else given, np.float32)
        if states.ndim != 2 or states.shape[1] != obs_dim:
            raise UserError(f"{side} has observations of shape {states.shape}, the bridge needs [T, {obs_dim}]")
        return states, side
    if episode < 0 or dataset is None:
        return None, ""
    if episode >= dataset.num_episodes:
        raise UserError(f"{side} is episode {episode}, but {dataset.name} has {dataset.num_episodes} episodes")
    return dataset.episode(episode).observations, f"episode {episode} of {dataset.name}"


def _alone(states: Floats) -> BridgeParts:
    return BridgeParts(before=states[:1], bridge=states, after=states[-1:])


def _title(name: str, gap: int, residual: float, reason: str) -> str:
    verdict = "accepted" if reason == "ok" else f"rejected: {reason}"
    return f"{name}: gap {gap}, largest residual {residual:.3g}, {verdict}"


def _plane(parts: BridgeParts | None, dataset: EpisodeDataset | None, dims: Sequence[int] | None) -> Plane:
    states = parts.bridge if parts is not None else None
    if states is not None and dataset is not None and states.shape[1] != dataset.obs_dim:
        raise UserError(f"the bridge has {states.shape[1]} observation dimensions, {dataset.name} {dataset.obs_dim}")
    if dims is None and dataset is not None:
        return plane_of(dataset)
    columns = dataset.observations if states is None and dataset is not None else states
    assert columns is not None
    return plane_of_dimensions(two_dimensions(columns) if dims is None else dims, columns.shape[1])


def _episodes(dataset: EpisodeDataset, count: int, plane: Plane) -> list[NDArray[np.float64]]:
    chosen = numpy_rng(0, "plot", "episodes").permutation(dataset.num_episodes)[: _count(count)]
    return [plane.project(dataset.episode(int(row)).observations) for row in chosen]


def _lines(parts: BridgeParts, plane: Plane) -> BridgeLines:
    return BridgeLines(
        before=plane.project(parts.before), bridge=plane.project(parts.bridge), after=plane.project(parts.after)
    )
