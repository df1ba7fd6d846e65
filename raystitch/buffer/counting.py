"""Which candidates count at a delta, and what each chain round brought.

Legend: N candidates (rows of the buffer), A those that count.
"""

from dataclasses import dataclass

import numpy as np

from raystitch.data.episodes import Bools, Ints


def rows_that_count(passing: Bools, pair: Ints, attempt: Ints, chain_round: Ints, parents: tuple[Ints, Ints]) -> Ints:
    """Of the attempts of one pair the first that passes, provided that its parents count; int64 [A], ascending.

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
