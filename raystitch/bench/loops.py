"""Plain loops over shards, each in a process of its own with one thread, to compare actors with."""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import TracebackType

import torch

from raystitch.buffer.schema import candidates_to_table
from raystitch.buffer.shard_file import write_shard
from raystitch.data.episodes import EpisodeDataset
from raystitch.models.bundle import Bundle
from raystitch.pipeline.generate.augment import make_shard, source_index
from raystitch.stitching.config import StitchConfig
from raystitch.stitching.pairs import SourceIndex
from raystitch.stitching.stitcher import Stitcher

LONGEST_WAIT = 120.0
PROBE_PAIRS = 32


@dataclass(frozen=True, eq=False)
class _State:
    """The state of one process; ``barrier`` lets two begin at once."""

    stitcher: Stitcher
    index: SourceIndex
    out: Path
    barrier: Barrier

    def shard_seconds(self, shard: int, pairs: int) -> float:
        """Propose, judge and write one shard; return the seconds."""
        began = time.perf_counter()
        candidates = make_shard(self.stitcher, self.index, 0, shard, pairs)
        write_shard(self.out, shard, candidates_to_table(candidates, shard, 0))
        return time.perf_counter() - began


_state: list[_State] = []


def _load(dataset: EpisodeDataset, bundle_dir: Path, config: StitchConfig, out: Path, barrier: Barrier) -> None:
    torch.set_num_threads(1)
    bundle = Bundle.load(bundle_dir, "cpu")
    state = _State(Stitcher(bundle, config), source_index(dataset, bundle, config, None), out, barrier)
    state.shard_seconds(0, PROBE_PAIRS)
    _state.append(state)


def _shards(first: int, count: int, pairs: int, together: bool) -> float:
    if together:
        _state[0].barrier.wait(LONGEST_WAIT)
    return sum(_state[0].shard_seconds(first + number, pairs) for number in range(count))


class PlainLoops:
    """A context manager of two processes that make shards when asked, alone or both at once."""

    def __init__(self, dataset: EpisodeDataset, bundle_dir: Path, config: StitchConfig, out: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(2, context, _load, (dataset, bundle_dir, config, out, context.Barrier(2)))
        self._next = 1

    def __enter__(self) -> "PlainLoops":
        self.rate(2, PROBE_PAIRS, 1)  # both are up
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()

    def rate(self, processes: int, pairs: int, num_shards: int) -> float:
        """Measure pairs per second of one process, or of two at once, over ``num_shards`` shards in each."""
        firsts = [self._next + number * num_shards for number in range(processes)]
        self._next += processes * num_shards
        asked = [self._pool.submit(_shards, first, num_shards, pairs, processes == 2) for first in firsts]
        return sum(num_shards * pairs / work.result() for work in asked)

    def pairs_for(self, seconds: float) -> int:
        """Measure how many pairs one process makes in about this time."""
        rate = self.rate(1, PROBE_PAIRS, 1)
        probe = max(PROBE_PAIRS, round(rate * seconds / 5))
        return max(1, round(self.rate(1, probe, 1) * seconds))
