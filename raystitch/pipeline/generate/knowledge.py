"""Knowledge from which each round of a generation selects its pairs: what the rounds before it have found."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from raystitch.buffer.bridges import MappedBridges
from raystitch.buffer.chain import chained_trajectories, values_after
from raystitch.buffer.config import AugmentConfig
from raystitch.buffer.episodes import on_dataset
from raystitch.buffer.opening import open_buffer
from raystitch.buffer.reach_file import Reach, reach_is_known, write_reach
from raystitch.buffer.reader import Buffer
from raystitch.buffer.schema import ClosedRound
from raystitch.buffer.ways import Ways
from raystitch.data.episodes import EpisodeDataset, Floats, Ints
from raystitch.errors import DamagedError
from raystitch.io.storage import Storage
from raystitch.models.bundle import Bundle
from raystitch.pipeline.generate.reach import measure_reach
from raystitch.stitching.config import PairConfig
from raystitch.stitching.links import RECORD
from raystitch.stitching.pairs import Known
from raystitch.stitching.values import StateValues


@dataclass(kw_only=True)
class Knowledge:
    """The findings of the rounds of a buffer; a function of dataset, bundle, settings and closed rounds.

    Attributes:
        path: of the buffer.
        starts: float32 [K, O], states in which the task starts; None where they are not known.
    """

    path: str
    dataset: EpisodeDataset
    bundle: Bundle
    pairs: PairConfig
    augment: AugmentConfig
    starts: Floats | None = None
    _known: dict[str, Known] = field(default_factory=dict[str, Known])

    def after(self, rounds: Sequence[ClosedRound]) -> Known:
        """Return what the round after the closed ones selects its pairs by; None is the dataset alone."""
        name = rounds[-1].hash if rounds else ""
        if name not in self._known:
            self._known = {name: self._find(rounds)}  # one at a time: it may be as large as the data
        return self._known[name]

    def _find(self, rounds: Sequence[ClosedRound]) -> Known:
        if self.pairs.split == "value":
            return self._values(rounds, rounds[-1].end if rounds else 0)
        if not rounds:
            return None
        return chained_trajectories(self.dataset, self._open(rounds[-1].end), rounds, self.augment.chain_pool)

    def _open(self, num_shards: int) -> Buffer:
        return on_dataset(open_buffer(self.path, num_shards=num_shards), self.dataset)

    def _values(self, rounds: Sequence[ClosedRound], num_shards: int) -> StateValues:
        """Return what states are worth after the first shards, from what was known of some of the closed rounds."""
        names = ["", *(closed.hash for closed in rounds)]
        earlier = next((self._known[name] for name in names if name in self._known), None)
        if not isinstance(earlier, StateValues):
            earlier = recorded_values(self.dataset, self.bundle, self.starts)
        return values_after(earlier, self.bundle, self._open(num_shards)) if num_shards else earlier

    def measure(self, rounds: Sequence[ClosedRound], num_shards: int, *, finished: bool = False) -> Reach | None:
        """Measure what the trajectories of a buffer's first shards reach, write it beside the others in its
        ``reach.json`` and return it; None where pairs are split by return.

        Args:
            finished: these are all shards; also write how their episodes go on (``ways.arrow``).
        """
        if self.pairs.split != "value":
            return None
        buffer = self._open(num_shards)
        closed = bool(rounds) and num_shards == rounds[-1].end  # then the next round wants to know it too
        known = self.after(rounds) if closed else self._values(rounds, num_shards)
        assert isinstance(known, StateValues)
        ways = known_ways(known, buffer.accepted_rows())
        found = measure_reach(known, MappedBridges(buffer, ways.row, ways))
        write_reach(self.path, found)
        if finished:  # the last to be written: what is there of another number of bridges is of an earlier time
            numbers = self.dataset.episode_numbers
            replace(ways, last_episode=numbers[ways.last_episode]).write(Storage(self.path))
        return found

    def is_told(self, num_rounds: int, num_accepted: int) -> bool:
        """Return True if the finished buffer says all that ``measure`` writes, of as many rounds and bridges."""
        if self.pairs.split != "value":
            return True
        try:
            ways = Ways.read(Storage(self.path))
        except DamagedError:
            return False
        return ways is not None and len(ways.row) == num_accepted and reach_is_known(self.path, num_rounds)


def known_ways(known: StateValues, rows: Ints) -> Ways:
    """Return how the bridges of ``known``, in ``rows`` of a buffer, go on; episodes are rows of its dataset."""
    links = known.links
    next_row = np.where(links.next == RECORD, -1, rows[links.next]) if len(rows) else rows
    return Ways(row=rows, next_row=next_row, last_episode=links.last_episode)


def recorded_values(dataset: EpisodeDataset, bundle: Bundle, starts: Floats | None) -> StateValues:
    """Return what states are worth by their records, those marked in which the task starts."""
    known = StateValues.recorded(dataset, bundle)
    return known if starts is None else known.starting_at(starts, bundle.normalizer)
