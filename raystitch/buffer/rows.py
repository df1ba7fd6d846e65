"""The rows of a buffer that belong together, and those that count: ids as numbers, pairs, parents, chain rounds.

An id is ``shard-row-attempt``, where row is the row of the pair's first attempt in its shard, so ids say by themselves
in which rows of the buffer attempts of a pair begin. Whole columns of them are compared as numbers, without a Python
string per row. Legend: N ids or candidates, A rows that count.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raystitch.data.episodes import Bools, Ints

Small = NDArray[np.int32]

_DASH = ord("-")
_ZERO = ord("0")
BLOCK = 1 << 16
"""Ids that are taken apart at a time."""


@dataclass(frozen=True, eq=False)
class Ids:
    """The three numbers of N ids, int32 [N] each; -1 in all of them where a column has null."""

    shard: Small
    row: Small
    attempt: Small


def parse_ids(column: pa.ChunkedArray | pa.Array) -> Ids:
    """Takes a column of ids apart.

    Raises:
        ValueError: when a value is not an id.
    """
    chunks: list[Any] = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    found = np.full((3, len(column)), -1, np.int32)
    first = 0
    for chunk in chunks:
        for begin in range(0, len(chunk), BLOCK):
            part = chunk.slice(begin, BLOCK)
            if part.null_count < len(part):
                _parse(part, found[:, first + begin : first + begin + len(part)])
        first += len(chunk)
    return Ids(found[0], found[1], found[2])


def _parse(array: pa.StringArray, out: NDArray[np.int32]) -> None:
    """Fills ``out`` [3, n]; ids of one length and one place of the dashes are read together."""
    _, offsets_buffer, data_buffer = array.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)[array.offset : array.offset + len(array) + 1]
    data = np.frombuffer(data_buffer, np.uint8)
    given = np.flatnonzero(array.is_valid().to_numpy(zero_copy_only=False))
    lengths = np.diff(offsets)[given]
    for length in np.unique(lengths):
        rows = given[lengths == length]
        if len(rows) == len(array):
            characters = data[offsets[0] : offsets[-1]].reshape(-1, length)
        else:
            characters = data[offsets[rows][:, None] + np.arange(length)]
        is_dash = characters == _DASH
        is_digit = characters - _ZERO <= 9  # unsigned: what comes before "0" is large
        if not ((is_dash | is_digit).all() and (is_dash.sum(1) == 2).all()):
            raise ValueError("ids look like 000000-0003-0")
        places = np.argmax(is_dash, 1) * length + length - 1 - np.argmax(is_dash[:, ::-1], 1)
        for place in np.unique(places):
            same = np.flatnonzero(places == place)
            first, second = divmod(int(place), int(length))
            for number, (begin, end) in enumerate(((0, first), (first + 1, second), (second + 1, int(length)))):
                powers = 10 ** np.arange(end - begin - 1, -1, -1, dtype=np.int64)
                out[number, rows[same]] = (characters[same, begin:end] - _ZERO) @ powers


def pair_rows(ids: Ids, first_rows: dict[int, int]) -> Ints:
    """Row of the first attempt of each id's pair among the buffer's candidates, int64 [N]; -2 where the buffer does not
    have its shard, -1 for null.

    Args:
        first_rows: shard -> its first row.
    """
    shards = np.array(sorted(first_rows), np.int64)
    starts = np.array([first_rows[shard] for shard in shards.tolist()], np.int64)
    if not len(shards):
        return np.where(ids.shard < 0, -1, -2).astype(np.int64)
    place = np.minimum(np.searchsorted(shards, ids.shard), len(shards) - 1)
    rows = np.where(shards[place] == ids.shard, starts[place] + ids.row, -2)
    rows[ids.shard < 0] = -1
    return rows


def dense(first: Ints) -> Ints:
    """A number per pair from 0 on, in the order of their first attempts, for the row of each one's first attempt."""
    number = np.cumsum(first == np.arange(len(first)), dtype=np.int64) - 1
    return number[first]


def find_rows(wanted: Ints, attempt: Ints | Small, first: Ints, attempts: Ints) -> Ints:
    """Find the rows of the candidates with these ids, int64; -2 where there is none.

    Args:
        wanted: rows of the first attempts of the pairs asked for, -2 for unknown ones; ``attempt``: which attempt.
        first, attempts: of all candidates, row of the pair's first attempt and number of the attempt, int64 [N].
    """
    found = np.full(len(wanted), -2, np.int64)
    known = (wanted >= 0) & (wanted < len(first))
    known[known] &= first[wanted[known]] == wanted[known]
    plain = known & (np.asarray(attempt) == 0)
    found[plain] = wanted[plain]
    repaired = np.flatnonzero(known & ~plain)
    if len(repaired):
        width = 1 + max(int(attempts.max()), int(np.max(attempt)))
        others = np.flatnonzero(attempts > 0)
        key = first[others] * width + attempts[others]
        order = np.argsort(key, kind="stable")
        asked = wanted[repaired] * width + np.asarray(attempt)[repaired]
        place = np.minimum(np.searchsorted(key[order], asked), max(len(order) - 1, 0))
        hit = key[order][place] == asked if len(order) else np.zeros(len(asked), np.bool_)
        found[repaired[hit]] = others[order[place[hit]]]
    return found


def rows_that_count(passing: Bools, pair: Ints, attempt: Ints, chain_round: Ints, parents: tuple[Ints, Ints]) -> Ints:
    """Return the rows that count: a pair's first attempt that passes, if its parents count; int64 [A], ascending.

    The states of a chained bridge belong to the attempts that it was made from: where another attempt of the parent's
    pair is the first to pass, the chained bridge does not count.

    Args:
        passing: bool [N]. pair: int64 [N], equal for the attempts of one pair. attempt, chain_round: int64 [N].
        parents: rows of the source's and the target's parent, int64 [N] each; -1 for none, -2 for one that is lost.
    """
    # A row more, for the parents that are not rows: -1 counts, -2 (the last row but one) does not.
    counts = np.zeros(len(passing) + 2, np.bool_)
    counts[-1] = True
    for current in np.unique(chain_round):
        rows = np.flatnonzero((chain_round == current) & passing)
        rows = rows[counts[parents[0][rows]] & counts[parents[1][rows]]]
        if not attempt[rows].any():  # no repair among them: every pair has one row
            counts[rows] = True
            continue
        order = np.lexsort((attempt[rows], pair[rows]))
        first = np.ones(len(rows), np.bool_)
        first[1:] = pair[rows][order][1:] != pair[rows][order][:-1]
        counts[rows[order[first]]] = True
    return np.flatnonzero(counts[:-2])


@dataclass(frozen=True, kw_only=True)
class RoundCounts:
    """One chain round at one delta.

    Attributes:
        candidates: attempts made. pairs: pairs tried. accepted: pairs of which an attempt counts.
        rescued: of those, by a repair after the first attempt failed. chained: of those, with a stitched parent.
        by_attempt: how many count with attempt 0, 1, ..
    """

    chain_round: int
    candidates: int
    pairs: int
    accepted: int
    rescued: int
    chained: int
    by_attempt: tuple[int, ...]


def count_rounds(
    counting: Ints, pair: Ints, attempt: Ints, chain_round: Ints, parents: tuple[Ints, Ints]
) -> list[RoundCounts]:
    """The counts of every round there is; ``counting`` are the rows that count, the rest as for ``rows_that_count``."""
    found: list[RoundCounts] = []
    for current in np.unique(chain_round).tolist():
        made = chain_round == current
        rows = counting[made[counting]]
        by_attempt = np.bincount(attempt[rows], minlength=int(attempt[made].max()) + 1)
        found.append(
            RoundCounts(
                chain_round=current,
                candidates=int(made.sum()),
                pairs=len(np.unique(pair[made])),
                accepted=len(rows),
                rescued=int(by_attempt[1:].sum()),
                chained=int(((parents[0][rows] != -1) | (parents[1][rows] != -1)).sum()),
                by_attempt=tuple(by_attempt.tolist()),
            )
        )
    return found
