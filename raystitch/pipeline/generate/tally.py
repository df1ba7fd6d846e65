"""Counts over the shards of one round, kept up to date shard by shard; the memory of a run's driver is this."""

from collections import Counter
from collections.abc import Collection, Iterable

from raystitch.buffer.rounds import prefix_end
from raystitch.buffer.shard_file import ShardStats


class Tally:
    """Sums over the shards of one round; about a hundred bytes per shard, however large the shards are.

    Attributes:
        first: number of the round's first shard.
        accepted_of: accepted bridges of each shard there is.
        accepted, candidates, reasons: sums over them.
        residual_min: the smallest finite largest-residual of all candidates.
    """

    def __init__(self, first: int = 0, stats: Iterable[ShardStats] = ()) -> None:
        self.first = first
        self.accepted_of: dict[int, int] = {}
        self.accepted = self.candidates = 0
        self.reasons: Counter[str] = Counter()
        self.residual_min: float | None = None
        self._end, self._accepted_before_end = first, 0
        for shard in stats:
            self.add(shard)

    def __contains__(self, shard: object) -> bool:
        return shard in self.accepted_of

    def __len__(self) -> int:
        return len(self.accepted_of)

    def add(self, stats: ShardStats) -> bool:
        """Counts a shard; False where it was counted before."""
        if stats.shard in self.accepted_of:
            return False
        self.accepted_of[stats.shard] = stats.accepted
        self.accepted += stats.accepted
        self.candidates += stats.rows
        self.reasons.update(stats.reasons)
        known = [r for r in (self.residual_min, stats.residual_min) if r is not None]
        self.residual_min = min(known, default=None)
        while self._end in self.accepted_of:
            self._accepted_before_end += self.accepted_of[self._end]
            self._end += 1
        return True

    def held_before(self, end: int) -> int | None:
        """Return the accepted bridges of the shards before ``end``; None while one of them is missing."""
        return sum(self.accepted_of[shard] for shard in range(self.first, end)) if self._end >= end else None

    def prefix_end(self, wanted: int, without: Collection[int] = ()) -> int | None:
        """Return where the smallest gapless run of shards with ``wanted`` accepted ends; None while there is none.

        Args:
            without: shards that are not there and are passed over.
        """
        if self.enough(wanted):
            return prefix_end(self.accepted_of, wanted, self.first, without)
        if without and self.accepted >= wanted:
            return prefix_end(self.accepted_of, wanted - self._accepted_before_end, self._end, without)
        return None

    def enough(self, wanted: int) -> bool:
        """Return True if there is such a run without a gap."""
        return self._accepted_before_end >= wanted
