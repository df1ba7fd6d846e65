"""From a dataset and a bundle to a buffer: what a shard holds, which shards are missing, when there are enough.

``augment_local`` does it in one process; ``raystitch.cluster.augment`` spreads the same functions over Ray actors.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from raystitch.buffer.chain import chained_trajectories
from raystitch.buffer.config import AugmentConfig
from raystitch.buffer.reader import open_buffer
from raystitch.buffer.rounds import close_round, current_round, finish, prefix_length, sound_rounds
from raystitch.buffer.schema import BufferMeta, ClosedRound, candidates_to_table
from raystitch.buffer.storage import Storage
from raystitch.buffer.writer import ShardStats, create_buffer, existing_stats, read_meta, write_shard
from raystitch.data.episodes import EpisodeDataset, Ints
from raystitch.errors import RunError
from raystitch.models.bundle import Bundle
from raystitch.seeding import numpy_rng
from raystitch.stitching.candidates import Candidates
from raystitch.stitching.chain import Trajectories
from raystitch.stitching.config import StitchConfig
from raystitch.stitching.pairs import SourceIndex
from raystitch.stitching.stitcher import Stitcher

Progress = Callable[[int, str], None]
"""Called with the accepted bridges so far and a note."""


def shard_seeds(root_seed: int, shard: int, pairs_per_shard: int) -> Ints:
    """One seed per pair of a shard, int64 [pairs_per_shard]."""
    return numpy_rng(root_seed, "shard", shard).integers(0, 2**63 - 1, pairs_per_shard, np.int64)


def propose_shard(
    stitcher: Stitcher, source_index: SourceIndex, root_seed: int, shard: int, pairs_per_shard: int
) -> Candidates:
    """The candidates of a shard before qualification; a pure function of its arguments.

    In a chain round they refer to real episodes and bridges, and pairs that would pass through the same real episode
    twice (a source for which no target was left) are dropped.
    """
    seeds, chain = shard_seeds(root_seed, shard, pairs_per_shard), source_index.chain
    pairs = source_index.select(seeds)
    if chain is None:
        return stitcher.propose(pairs, seeds)
    kept = np.flatnonzero(~chain.loops(pairs))
    return chain.refer(stitcher.propose(pairs.take(kept), seeds[kept]))


def make_shard(
    stitcher: Stitcher, source_index: SourceIndex, root_seed: int, shard: int, pairs_per_shard: int
) -> Candidates:
    """The qualified candidates of a shard; a pure function of its arguments."""
    return stitcher.qualify(propose_shard(stitcher, source_index, root_seed, shard, pairs_per_shard))


def source_index(
    dataset: EpisodeDataset, bundle: Bundle, config: StitchConfig, chain: Trajectories | None
) -> SourceIndex:
    """Pair selection for a round: over the dataset, or over the trajectories of a chain round."""
    return SourceIndex(dataset if chain is None else chain.dataset, bundle, config, chain=chain)


@dataclass(frozen=True, kw_only=True)
class AugmentSummary:
    """What a finished generation holds. ``new_shards`` and ``seconds`` are of this call alone."""

    uri: str
    num_accepted: int
    num_candidates: int
    num_shards: int
    new_shards: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.uri}: {self.num_accepted:,} accepted of {self.num_candidates:,} candidates in "
            f"{self.num_shards} shards ({self.new_shards} new, {self.seconds:.0f} s)"
        )


@dataclass(kw_only=True)
class Ledger:
    """Which shards of a buffer exist, which rounds are closed and whether the round at hand has enough.

    Attributes:
        stats: all shards there are, also those that do not count.
        rounds: the closed rounds.
    """

    path: str
    config: AugmentConfig
    progress: Progress | None = None
    stats: dict[int, ShardStats] = field(default_factory=dict[int, ShardStats])
    rounds: tuple[ClosedRound, ...] = ()
    new_shards: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def chain_round(self) -> int:
        return len(self.rounds)

    @property
    def first_shard(self) -> int:
        return self.rounds[-1].end if self.rounds else 0

    @property
    def manifest(self) -> str:
        """Hash of the closed round that the round at hand builds on; empty in the first."""
        return self.rounds[-1].hash if self.rounds else ""

    @property
    def wanted(self) -> int:
        """Accepted bridges that the round at hand has to bring."""
        return self.config.round_bridges(self.chain_round)

    @property
    def current(self) -> dict[int, ShardStats]:
        """The shards of the round at hand."""
        return current_round(self.stats, self.rounds)

    @property
    def round_done(self) -> bool:
        return prefix_length(self.current, self.wanted, self.first_shard) is not None

    @property
    def done(self) -> bool:
        return self.chain_round == self.config.chain_rounds and self.round_done

    def open_rounds(self) -> Iterator[int]:
        """The rounds that lack shards, one after the other; each has to be filled before the next is asked for."""
        while not self.done:
            if not self.round_done:
                yield self.chain_round
                assert self.round_done
            if self.chain_round < self.config.chain_rounds:
                close_round(self.path, self.rounds, self.wanted)
                self.rounds = sound_rounds(self.stats, read_meta(Storage(self.path)).rounds)
                self.report()

    def trajectories(self, dataset: EpisodeDataset) -> Trajectories | None:
        """What the round at hand selects its pairs from; None is the dataset alone."""
        if not self.rounds:
            return None
        closed = open_buffer(self.path, num_shards=self.first_shard)
        return chained_trajectories(dataset, closed, self.rounds, self.config.chain_pool)

    def missing(self, count: int) -> list[int]:
        """The next ``count`` shards to make.

        Raises:
            RunError: when ``max_shards`` shards were not enough, or the first ``patience`` hold nothing.
        """
        self._give_up_early()
        current, first = self.current, self.first_shard
        missing = [s for s in range(first, first + self.config.max_shards) if s not in current][:count]
        if not missing and not self.round_done:
            raise RunError(
                f"{self.path}: {self.config.max_shards} shards of {self.config.pairs_per_shard} pairs hold "
                f"{self._accepted()} accepted bridges, not the {self.wanted} asked for{self._of_round()} "
                f"({self._why()}); ask for fewer, use a larger delta or raise augment.max_shards"
            )
        return missing

    def add(self, stats: ShardStats) -> None:
        """Takes note of a shard that was written.

        Raises:
            RunError: when the first ``patience`` shards hold no accepted bridge.
        """
        self.stats[stats.shard] = stats
        self.new_shards += 1
        self.report()
        self._give_up_early()

    def report(self) -> None:
        if self.progress is not None:
            current = self.current.values()
            candidates, accepted = sum(stats.rows for stats in current), self._accepted()
            share = f"{accepted / candidates:.0%} of {candidates:,} candidates accepted" if candidates else ""
            before = sum(self.config.round_bridges(closed.chain_round) for closed in self.rounds)
            self.progress(before + min(accepted, self.wanted), share + (self._of_round() if share else ""))

    def finish(self) -> AugmentSummary:
        """Trims the buffer to the smallest prefix that is enough."""
        complete = finish(self.path, self.config.num_bridges)
        return AugmentSummary(
            uri=self.path,
            num_accepted=complete.num_accepted,
            num_candidates=complete.num_candidates,
            num_shards=complete.num_shards,
            new_shards=self.new_shards,
            seconds=time.monotonic() - self.started,
        )

    def _accepted(self) -> int:
        return sum(stats.accepted for stats in self.current.values())

    def _of_round(self) -> str:
        return f" in chain round {self.chain_round}" if self.config.chain_rounds else ""

    def _why(self) -> str:
        current = self.current.values()
        residuals = [stats.residual_min for stats in current if stats.residual_min is not None]
        smallest = f"smallest residual {min(residuals):.3g}" if residuals else "no finite residual"
        reasons = sum((Counter(stats.reasons) for stats in current), Counter[str]())
        return f"{smallest}; " + ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())

    def _give_up_early(self) -> None:
        current, first = self.current, self.first_shard
        stats = [current.get(first + n) for n in range(min(self.config.patience, self.config.max_shards))]
        if all(s is not None and s.accepted == 0 for s in stats):
            rows = sum(s.rows for s in stats if s is not None)
            fewer = ", fewer chain rounds" if self.rounds else ""
            raise RunError(
                f"{self.path}: nothing can be stitched{self._of_round()}: none of the first {rows} candidates was "
                f"accepted ({self._why()}); use a larger delta, another pairs.mode{fewer} or a stitcher fitted longer"
            )


def open_ledger(
    dataset: EpisodeDataset,
    bundle: Bundle,
    stitch_config: StitchConfig,
    config: AugmentConfig,
    out: str | os.PathLike[str],
    seed: int,
    progress: Progress | None,
) -> Ledger:
    """Starts a buffer at ``out`` or takes up the one that is there.

    Raises:
        UserError: another dataset than the bundle's, or ``out`` holds something else.
    """
    bundle.check_dataset(dataset)
    meta = BufferMeta(
        gamma=bundle.gamma,
        bundle_hash=bundle.hash,
        dataset_name=dataset.name,
        dataset_fingerprint=dataset.fingerprint,
        obs_dim=dataset.obs_dim,
        act_dim=dataset.act_dim,
        action_low=tuple(bundle.action_low.tolist()),
        action_high=tuple(bundle.action_high.tolist()),
        env=bundle.env,
        calibration=bundle.calibration.to_json(),
        stitch=stitch_config,
        augment=config,
        seed=seed,
    )
    storage = Storage(out)
    path = storage.uri if storage.local is None else str(storage.local)
    meta, stats = create_buffer(path, meta), existing_stats(path)
    rounds = sound_rounds(stats, meta.rounds)
    ledger = Ledger(path=path, config=config, progress=progress, stats=stats, rounds=rounds)
    ledger.report()
    return ledger


def augment_local(
    dataset: EpisodeDataset,
    bundle: Bundle,
    stitch_config: StitchConfig | None = None,
    config: AugmentConfig | None = None,
    *,
    out: str | os.PathLike[str],
    seed: int = 0,
    progress: Progress | None = None,
) -> AugmentSummary:
    """Fills a buffer in this process, shard by shard; takes up a buffer that was started with the same settings.

    Raises:
        UserError: another dataset than the bundle's, nothing to leave or enter, or ``out`` holds something else.
        RunError: when too little is accepted or the buffer cannot be written.
    """
    stitch_config, config = stitch_config or StitchConfig(), config or AugmentConfig()
    ledger = open_ledger(dataset, bundle, stitch_config, config, out, seed, progress)
    for chain_round in ledger.open_rounds():
        stitcher = Stitcher(bundle, stitch_config)
        index = source_index(dataset, bundle, stitch_config, ledger.trajectories(dataset))
        while not ledger.round_done:
            (shard,) = ledger.missing(1)
            candidates = make_shard(stitcher, index, seed, shard, config.pairs_per_shard)
            table = candidates_to_table(candidates, shard, chain_round)
            ledger.add(write_shard(ledger.path, shard, table, ledger.manifest))
    return ledger.finish()
