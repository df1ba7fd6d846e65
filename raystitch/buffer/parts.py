"""A bridge with what it joins: the states that lead to it, its own, and the states that it leads to.

Legend: O observation size, g gap.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raystitch.buffer.bridges import Bridges, MappedBridges
from raystitch.buffer.episodes import on_dataset, rebuild
from raystitch.data.episodes import EpisodeDataset, Floats, Ints
from raystitch.errors import UserError

if TYPE_CHECKING:
    from raystitch.buffer.reader import Buffer

CONTEXT_STEPS = 25
"""States shown before and after a bridge where many are drawn."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BridgeParts:
    """States of a stitched episode around one of its bridges, raw units.

    Attributes:
        before: float32 [T, O], up to and including the state left.
        bridge: float32 [g + 2, O], from the state left to the state entered.
        after: float32 [T, O], from the state entered on.
    """

    before: Floats
    bridge: Floats
    after: Floats


def parts_of(
    dataset: EpisodeDataset, bridges: Bridges, positions: Ints, context: int | None = CONTEXT_STEPS
) -> list[BridgeParts]:
    """Return the parts of some bridges.

    Args:
        bridges: their episodes are rows of ``dataset``, and the parents of chained ones are among them.
        positions: int64, ascending, which of the bridges.
        context: most steps before and after a bridge; None for the whole stitched episode.
    """
    needed = bridges.all_references.with_ancestors(positions)
    taken, chosen = bridges.take_positions(needed), np.searchsorted(needed, positions)
    stitched = rebuild(dataset, taken, chosen, max_episode_steps=None).episodes
    parts: list[BridgeParts] = []
    for row, bridge in enumerate(chosen.tolist()):
        states = stitched.episode(row).observations
        leave, enter = int(taken.source_step[bridge]), int(taken.source_step[bridge] + taken.gap[bridge] + 1)
        first, last = (0, len(states)) if context is None else (max(0, leave - context), enter + context + 1)
        parts.append(
            BridgeParts(before=states[first : leave + 1], bridge=states[leave : enter + 1], after=states[enter:last])
        )
    return parts


def parts_of_candidate(dataset: EpisodeDataset, buffer: "Buffer", row: int, context: int | None = None) -> BridgeParts:
    """Return the parts of any candidate of a buffer, accepted or not.

    Args:
        row: among the buffer's candidates. context: as of ``parts_of``.

    Raises:
        UserError: when the dataset holds other trajectories, or lacks those of this candidate.
    """
    opened, accepted = on_dataset(buffer, dataset), buffer.accepted_rows()
    if row not in accepted:  # the stitched episodes of accepted ones go on as the buffer's ways say
        rows, ways = _with_parents(buffer, row), None
    else:
        rows, ways = accepted, None if opened.ways is None else opened.ways.among(accepted)
    position = np.searchsorted(rows, [row])
    return parts_of(dataset, MappedBridges(opened, rows, ways), position, context)[0]


def _with_parents(buffer: "Buffer", row: int) -> Ints:
    """Return a candidate and all that it is chained onto, as ascending rows."""
    found, waiting = {row}, [row]
    while waiting:
        at = waiting.pop()
        for parents in buffer.parents:
            parent = int(parents[at])
            if parent < -1:
                raise UserError(f"{buffer.uri} lacks a bridge that the candidate in row {at} is chained onto")
            if parent >= 0 and parent not in found:
                found.add(parent)
                waiting.append(parent)
    return np.array(sorted(found), np.int64)
