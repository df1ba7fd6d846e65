"""Which shards of a buffer exist, which are missing, when a round and when the buffer has enough."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from raystitch.buffer.chain import chained_trajectories
from raystitch.buffer.config import AugmentConfig
from raystitch.buffer.reader import open_buffer
from raystitch.buffer.rounds import close_round, current_round, finish, prefix_length, sound_rounds
from raystitch.buffer.schema import BufferMeta, ClosedRound
from raystitch.buffer.storage import Storage
from raystitch.buffer.writer import ShardStats, create_buffer, existing_stats, read_meta
from raystitch.data.episodes import EpisodeDataset
from raystitch.errors import RunError
from raystitch.models.bundle import Bundle
from raystitch.stitching.chain import Trajectories
from raystitch.stitching.config import StitchConfig
from raystitch.stitching.stitcher import Stitcher

Progress = Callable[[int, str], None]
"""Called with the accepted bridges so far and a note."""


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
        counts = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        return f"{smallest}; {counts or 'no two trajectories without an episode in common'}"

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
        UserError: another dataset than the bundle's, settings that do not suit it, or ``out`` holds something else.
    """
    bundle.check_dataset(dataset)
    Stitcher(bundle, stitch_config)  # refuses what does not fit before anything is written
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
