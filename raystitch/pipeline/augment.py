"""From a dataset and a bundle to a buffer: what a shard holds, which shards are missing, when there are enough.

``augment_local`` does it in one process; ``raystitch.cluster.augment`` spreads the same functions over Ray actors.
"""

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from raystitch.buffer.config import AugmentConfig
from raystitch.buffer.schema import BufferMeta, candidates_to_table
from raystitch.buffer.storage import Storage
from raystitch.buffer.writer import ShardStats, create_buffer, existing_stats, finish, prefix_length, write_shard
from raystitch.data.episodes import EpisodeDataset, Ints
from raystitch.errors import RunError
from raystitch.models.bundle import Bundle
from raystitch.seeding import numpy_rng
from raystitch.stitching.candidates import Candidates
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
    """The candidates of a shard before qualification; a pure function of its arguments."""
    seeds = shard_seeds(root_seed, shard, pairs_per_shard)
    return stitcher.propose(source_index.select(seeds), seeds)


def make_shard(
    stitcher: Stitcher, source_index: SourceIndex, root_seed: int, shard: int, pairs_per_shard: int
) -> Candidates:
    """The qualified candidates of a shard; a pure function of its arguments."""
    return stitcher.qualify(propose_shard(stitcher, source_index, root_seed, shard, pairs_per_shard))


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
    """Which shards of a buffer exist and whether they are enough."""

    path: str
    config: AugmentConfig
    progress: Progress | None = None
    stats: dict[int, ShardStats] = field(default_factory=dict[int, ShardStats])
    new_shards: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def done(self) -> bool:
        return prefix_length(self.stats, self.config.num_bridges) is not None

    def missing(self, count: int) -> list[int]:
        """The next ``count`` shards to make.

        Raises:
            RunError: when ``max_shards`` shards were not enough, or the first ``patience`` hold nothing.
        """
        self._give_up_early()
        missing = [shard for shard in range(self.config.max_shards) if shard not in self.stats][:count]
        if not missing and not self.done:
            raise RunError(
                f"{self.path}: {self.config.max_shards} shards of {self.config.pairs_per_shard} pairs hold "
                f"{self._accepted()} accepted bridges, not the {self.config.num_bridges} asked for "
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
            candidates = sum(stats.rows for stats in self.stats.values())
            share = f"{self._accepted() / candidates:.0%} of {candidates:,} candidates accepted" if candidates else ""
            self.progress(min(self._accepted(), self.config.num_bridges), share)

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
        return sum(stats.accepted for stats in self.stats.values())

    def _why(self) -> str:
        residuals = [stats.residual_min for stats in self.stats.values() if stats.residual_min is not None]
        smallest = f"smallest residual {min(residuals):.3g}" if residuals else "no finite residual"
        reasons = sum((Counter(stats.reasons) for stats in self.stats.values()), Counter[str]())
        return f"{smallest}; " + ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())

    def _give_up_early(self) -> None:
        first = [self.stats.get(shard) for shard in range(min(self.config.patience, self.config.max_shards))]
        if all(stats is not None and stats.accepted == 0 for stats in first):
            rows = sum(stats.rows for stats in first if stats is not None)
            raise RunError(
                f"{self.path}: nothing can be stitched: none of the first {rows} candidates was accepted "
                f"({self._why()}); use a larger delta, another pairs.mode or a stitcher fitted for longer"
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
    create_buffer(path, meta)
    ledger = Ledger(path=path, config=config, progress=progress, stats=existing_stats(path))
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
    if not ledger.done:
        stitcher, index = Stitcher(bundle, stitch_config), SourceIndex(dataset, bundle, stitch_config)
        while not ledger.done:
            (shard,) = ledger.missing(1)
            candidates = make_shard(stitcher, index, seed, shard, config.pairs_per_shard)
            ledger.add(write_shard(ledger.path, shard, candidates_to_table(candidates, shard)))
    return ledger.finish()
