"""Bridges: where they leave and enter (``References``), with their steps in memory (``BridgeSet``) or left in mapped
files (``MappedBridges``).

A buffer of any size is used through its references, 64 to 90 bytes each, and chunks of bridges one after the other.
Legend: B bridges, T their transitions, O observation size, A action size.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from raystitch.buffer.ways import Ways
from raystitch.data.episodes import Bools, Floats, Ints
from raystitch.models.calibration import Calibration

CHUNK_TRANSITIONS = 50_000
"""Transitions that are in memory at a time where a buffer is read from beginning to end."""

PER_BRIDGE = (
    "ids",
    "rows",
    "source_episode",
    "source_step",
    "target_episode",
    "target_step",
    "gap",
    "residual_max",
    "termination_max",
    "return_source",
    "return_stitched",
    "accepted",
    "chain_round",
    "source_parent",
    "target_parent",
)
"""Attributes of a ``BridgeSet`` with one value per bridge."""


def ranges(starts: Ints, lengths: Ints) -> Ints:
    """Return the concatenation of ``arange(start, start + length)`` over the rows, int64."""
    total = int(lengths.sum())
    before = np.cumsum(lengths) - lengths
    return np.arange(total, dtype=np.int64) + np.repeat(starts - before, lengths)


def chunk_bounds(lengths: Ints, most: int) -> Ints:
    """Return where to cut rows of these ``lengths`` so that no piece is longer than ``most``, or is a single row.

    Returns:
        int64, from 0 to the number of rows.
    """
    ends = np.cumsum(lengths)
    bounds = [0]
    while bounds[-1] < len(lengths):
        before = ends[bounds[-1] - 1] if bounds[-1] else 0
        bounds.append(max(bounds[-1] + 1, int(np.searchsorted(ends, before + most, side="right"))))
    return np.array(bounds, np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class References:
    """B bridges without their steps.

    Attributes:
        rows: int64 [B], row of each among the buffer's candidates.
        source_episode, target_episode: int64 [B], the real episodes that the stitched one begins and ends with.
        source_step, target_step: int64 [B], where the source is left and the target entered; counted in the parent's
            stitched episode where there is a parent.
        gap: int64 [B].
        offsets: int64 [B + 1], transitions before each bridge; a bridge has gap + 1.
        chain_round: int64 [B].
        source_parent, target_parent: int64 [B], row among the buffer's candidates of the bridge whose stitched episode
            is the source or the target; -1 for a real episode.
    """

    rows: Ints
    source_episode: Ints
    source_step: Ints
    target_episode: Ints
    target_step: Ints
    gap: Ints
    offsets: Ints
    chain_round: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    source_parent: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    target_parent: Ints = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        for name, value in (("chain_round", 0), ("source_parent", -1), ("target_parent", -1)):
            if len(getattr(self, name)) != len(self.gap):
                object.__setattr__(self, name, np.broadcast_to(np.int64(value), len(self.gap)))

    def __len__(self) -> int:
        return len(self.gap)

    @property
    def num_transitions(self) -> int:
        """The number of transitions, T."""
        return int(self.offsets[-1])

    @property
    def obs_offsets(self) -> Ints:
        """First observation row of each bridge, int64 [B + 1]."""
        return self.offsets + np.arange(len(self.offsets))

    @cached_property
    def is_chained(self) -> bool:
        """True if any bridge has a parent."""
        return bool((self.source_parent != -1).any() or (self.target_parent != -1).any())

    def parent_positions(self) -> tuple[Ints, Ints]:
        """Return where the source's and the target's parent lie in this set, int64 [B] each; -1 for real episodes.

        Raises:
            ValueError: when a parent is not in it.
        """
        return self._parent_positions

    @cached_property
    def _parent_positions(self) -> tuple[Ints, Ints]:
        if not self.is_chained:
            return self.source_parent, self.target_parent
        order = np.argsort(self.rows, kind="stable")
        found: list[Ints] = []
        for parent in (self.source_parent, self.target_parent):
            place = np.searchsorted(self.rows, parent, sorter=order)
            position = order[np.minimum(place, len(self) - 1)] if len(self) else place
            lost = np.flatnonzero((parent != -1) & (self.rows[position] != parent))
            if len(lost):
                raise ValueError(
                    f"the bridge in row {self.rows[lost[0]]} is chained onto another that is not among these "
                    f"{len(self)} bridges; rebuild from all bridges of one delta and choose by rows="
                )
            found.append(np.where(parent == -1, -1, position).astype(np.int64))
        return found[0], found[1]

    def with_ancestors(self, positions: Ints) -> Ints:
        """Return these and every bridge that they are chained onto, as ascending positions in this set, int64."""
        if not self.is_chained:
            return np.unique(positions)
        parents = self.parent_positions()
        found = new = np.unique(positions)
        while len(new):
            above = np.concatenate([parent[new] for parent in parents])
            new = np.setdiff1d(above[above >= 0], found)
            found = np.union1d(found, new)
        return found


AnyReferences = TypeVar("AnyReferences", bound=References)


@dataclass(frozen=True, kw_only=True, eq=False)
class BridgeSet(References):
    """B bridges in memory; the attributes of ``References`` and:

    Attributes:
        ids: str [B], ``bridge_id``.
        residual_max, termination_max, return_source, return_stitched: float32 [B].
        accepted: bool [B], at the generation settings.
        observations: float32 [T + B, O]; bridge b holds rows ``offsets[b] + b .. offsets[b + 1] + b`` inclusive.
        actions: float32 [T, A].
        rewards: float32 [T].
        residual, spread: float32 [T], the judges' residual and disagreement of each step (squared L2, standardised
            units); None where the buffer does not hold them (schema 2).
    """

    ids: NDArray[np.str_]
    residual_max: Floats
    termination_max: Floats
    return_source: Floats
    return_stitched: Floats
    accepted: Bools
    observations: Floats
    actions: Floats
    rewards: Floats
    residual: Floats | None = None
    spread: Floats | None = None

    @cached_property
    def obs_index(self) -> Ints:
        """Observation row of each transition's s_t, int64 [T]; s_{t+1} is the next row."""
        return np.arange(self.num_transitions) + np.repeat(np.arange(len(self)), self.gap + 1)

    def take(self, rows: Ints | Bools) -> "BridgeSet":
        """The given bridges, in the given order."""
        index = np.flatnonzero(rows) if np.asarray(rows).dtype == np.bool_ else np.asarray(rows, np.int64)
        lengths = self.gap[index] + 1
        steps = ranges(self.offsets[index], lengths)
        columns: dict[str, Any] = {name: getattr(self, name)[index] for name in PER_BRIDGE}
        return BridgeSet(
            **columns,
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            observations=self.observations[ranges(self.obs_offsets[index], lengths + 1)],
            actions=self.actions[steps],
            rewards=self.rewards[steps],
            residual=None if self.residual is None else self.residual[steps],
            spread=None if self.spread is None else self.spread[steps],
        )

    @property
    def all_references(self) -> References:
        """The references of all bridges: this set is a ``Bridges``."""
        return self

    def chunks(self, max_transitions: int = CHUNK_TRANSITIONS) -> Iterator["BridgeSet"]:
        """All bridges in pieces, in order."""
        for begin, end in pairwise(chunk_bounds(self.gap + 1, max_transitions).tolist()):
            yield self.take(np.arange(begin, end))

    def take_positions(self, positions: Ints) -> "BridgeSet":
        """The bridges at ascending positions."""
        return self.take(positions)

    @property
    def content(self) -> str:
        """A digest of the bridges."""
        digest = hashlib.sha256()
        for column in (self.rows, self.gap, self.observations, self.actions, self.rewards, self.residual, self.spread):
            if column is not None:
                digest.update(np.ascontiguousarray(column).data)
        return digest.hexdigest()


class Bridges(Protocol):
    """Bridges that need not be in memory: a ``BridgeSet``, or those of a buffer at a delta (``MappedBridges``)."""

    def __len__(self) -> int: ...
    @property
    def all_references(self) -> References:
        """References of every bridge, in order."""
        ...

    @property
    def content(self) -> str:
        """A digest, equal where bridges are equal; it names files that are made from them."""
        ...

    def chunks(self, max_transitions: int = CHUNK_TRANSITIONS) -> Iterator[BridgeSet]:
        """All bridges in order, in pieces of at most so many transitions (or one bridge)."""
        ...

    def take_positions(self, positions: Ints) -> BridgeSet:
        """The bridges at ascending positions, in memory."""
        ...


class CandidateStore(Protocol):
    """Stored candidates whose steps can be read row by row: an open buffer."""

    @property
    def content(self) -> str:
        """A digest of all that is stored."""
        ...

    @property
    def calibration(self) -> Calibration:
        """The criteria's numbers on real windows."""
        ...

    def column(self, name: str) -> np.ndarray[Any, Any]:
        """A column of one value per candidate."""
        ...

    def references(self, rows: Ints) -> References:
        """Candidates without their steps, in the order of ``rows``."""
        ...

    def take(self, rows: Ints) -> BridgeSet:
        """Candidates in memory, in ascending order of ``rows``."""
        ...


class MappedBridges:
    """Some candidates of a buffer as ``Bridges``; their steps are read when they are asked for."""

    def __init__(self, buffer: CandidateStore, rows: Ints, ways: Ways | None = None) -> None:
        """Args: rows: int64, ascending. ways: how their episodes go on, where the buffer does not say it itself."""
        self.buffer, self._rows, self._ways = buffer, rows, ways

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def all_references(self) -> References:
        return self._references

    @cached_property
    def _references(self) -> References:
        return self._on_their_way(self.buffer.references(self._rows))

    @property
    def num_transitions(self) -> int:
        return self.all_references.num_transitions

    @property
    def content(self) -> str:
        digest = hashlib.sha256(self.buffer.content.encode())
        digest.update(np.ascontiguousarray(self._rows).data)
        return digest.hexdigest()

    def chunks(self, max_transitions: int = CHUNK_TRANSITIONS) -> Iterator[BridgeSet]:
        lengths = self.buffer.column("gap")[self._rows] + 1
        for begin, end in pairwise(chunk_bounds(lengths, max_transitions).tolist()):
            yield self._on_their_way(self.buffer.take(self._rows[begin:end]))

    def take_positions(self, positions: Ints) -> BridgeSet:
        return self._on_their_way(self.buffer.take(self._rows[positions]))

    def _on_their_way(self, bridges: AnyReferences) -> AnyReferences:
        """Return the bridges with the trajectories that they go on with."""
        if self._ways is None or not len(bridges):
            return bridges
        return with_ways(bridges, self._ways)


def with_ways(bridges: AnyReferences, ways: Ways) -> AnyReferences:
    """Return bridges that go on as ``ways`` says; those that it does not name stay as they are."""
    place = np.minimum(np.searchsorted(ways.row, bridges.rows), max(len(ways.row) - 1, 0))
    told = ways.row[place] == bridges.rows
    return replace(
        bridges,
        target_parent=np.where(told, ways.next_row[place], bridges.target_parent),
        target_episode=np.where(told, ways.last_episode[place], bridges.target_episode),
    )
