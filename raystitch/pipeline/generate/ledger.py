"""The ledger of a generation: the shards that exist, those to make next, and when there are enough."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from raystitch.buffer.config import AugmentConfig
from raystitch.buffer.meta import read_meta
from raystitch.buffer.rounds import close_round, current_round, finish, sound_rounds
from raystitch.buffer.schema import SCHEMA_VERSION, ClosedRound
from raystitch.buffer.shard_file import SHARDS, ShardStats, write_failed
from raystitch.buffer.survey import remove_damaged, survey
from raystitch.errors import RunError
from raystitch.io.storage import Storage
from raystitch.pipeline.generate.knowledge import Knowledge
from raystitch.pipeline.generate.progress import AugmentProgress, OnAugmentProgress, Rate
from raystitch.pipeline.generate.tally import Tally
from raystitch.stitching.config import StitchConfig
from raystitch.stitching.pairs import Known
from raystitch.stitching.values import StateValues

GONE = "shards that were there are gone, removed by another run on this buffer; what is missing is made again"

MOST_ROUNDS = 64
"""Rounds after which ``chain_rounds: auto`` brings the bridges that are still wanted, whatever is new."""
EMPTY_SHARDS, SHORT_ROUND = 6, 10
"""A round of ``auto`` ends without its bridges if its first so many shards hold none, or so many times the shards that
would do if every pair were accepted hold too few."""


@dataclass(frozen=True, kw_only=True)
class AugmentSummary:
    """The contents of a finished generation.

    ``new_shards``, ``new_bridges``, ``retries`` and ``seconds`` are of this call alone; ``reasons`` counts the
    candidates that this call saw, in the last round, by why they were rejected.
    """

    uri: str
    num_accepted: int
    num_candidates: int
    num_shards: int
    new_shards: int
    seconds: float
    new_bridges: int = 0
    retries: int = 0
    failed_shards: tuple[int, ...] = ()
    reasons: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def by_reason(self) -> list[tuple[str, int]]:
        """``reasons``, the most frequent first."""
        return sorted(self.reasons.items(), key=lambda item: -item[1])

    def __str__(self) -> str:
        rate = f", {self.new_bridges / self.seconds:,.0f} bridges/s" if self.new_bridges and self.seconds > 0 else ""
        without = f"; without the failed shards {_listed(self.failed_shards)}" if self.failed_shards else ""
        return (
            f"{self.uri}: {self.num_accepted:,} accepted of {self.num_candidates:,} candidates in "
            f"{self.num_shards:,} shards ({self.new_shards:,} new, {self.seconds:.0f} s{rate}){without}"
        )


@dataclass(kw_only=True)
class Ledger:
    """The shards of a buffer that exist, its closed rounds, and what the round at hand lacks.

    Attributes:
        stitch: how bridges are made, with what was ``auto`` decided.
        size: observation and action size, of the empty shards that stand for failed ones.
        schema_version: of the shards: the one that the buffer was begun with.
        knowledge: what the rounds have found; None is nothing.
        rounds: the closed rounds.
        tally: what the shards of the round at hand hold.
        failures: shards of the round at hand that failed and are not there: how often, and why the last time.
    """

    path: str
    config: AugmentConfig
    stitch: StitchConfig = field(default_factory=StitchConfig)
    knowledge: Knowledge | None = None
    size: tuple[int, int] = (0, 0)
    schema_version: int = SCHEMA_VERSION
    progress: OnAugmentProgress | None = None
    rounds: tuple[ClosedRound, ...] = ()
    tally: Tally = field(default_factory=Tally)
    failures: dict[int, tuple[int, str]] = field(default_factory=dict[int, tuple[int, str]])
    skipped: list[int] = field(default_factory=list[int])
    new_shards: int = 0
    new_bridges: int = 0
    retries: int = 0
    started: float = field(default_factory=time.monotonic)
    _rate: Rate = field(default_factory=Rate)

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
    def is_last_round(self) -> bool:
        """True if the round at hand ends the generation: it brings all bridges that are still wanted."""
        if self.config.chain_rounds != "auto":
            return self.chain_round == self.config.chain_rounds
        at_most = self._still_wanted <= self.config.bridges_per_round or self.chain_round == MOST_ROUNDS
        return at_most or (isinstance(self.known, StateValues) and self.known.is_settled)

    @property
    def wanted(self) -> int:
        """Accepted bridges that the round at hand has to bring."""
        if self.config.chain_rounds != "auto":
            return self.config.round_bridges(self.chain_round)
        return self._still_wanted if self.is_last_round else self.config.bridges_per_round

    @property
    def _still_wanted(self) -> int:
        """Accepted bridges that are wanted beside those of the closed rounds."""
        return max(1, self.config.num_bridges - sum(closed.num_accepted for closed in self.rounds))

    @property
    def round_done(self) -> bool:
        return self._full or self._short_end is not None

    @property
    def _full(self) -> bool:
        """True if the round at hand holds what it has to bring."""
        return self.tally.enough(self.wanted) and self._short_end is None

    @property
    def _may_end_short(self) -> bool:
        """True if the round at hand may bring less than it should: of ``auto``, while value still travels. The next
        one then knows more, and once nothing new comes gains count over the records."""
        may = self.config.chain_rounds == "auto" and 0 < self.chain_round < MOST_ROUNDS
        return may and isinstance(self.known, StateValues) and not self.known.is_settled

    @property
    def _most_end(self) -> int:
        """The shard before which a round ends that may bring less: what was tried by then has gained too little."""
        full = -(-self.config.bridges_per_round // self.config.pairs_per_shard)
        return self.first_shard + SHORT_ROUND * full

    @property
    def _short_end(self) -> int | None:
        """The shard before which the round at hand ends with less than it should bring; None where it does not.

        It depends on the first shards alone, not on those that were made after them meanwhile, nor in which order.
        """
        if not self._may_end_short:
            return None
        empty = self.first_shard + EMPTY_SHARDS
        if self.tally.held_before(empty) == 0:
            return empty
        held = self.tally.held_before(self._most_end)
        return self._most_end if held is not None and held < self.wanted else None

    @property
    def only_failures_missing(self) -> bool:
        """True if the round would have enough once the shards that failed were there, whatever they hold."""
        return self.tally.prefix_end(self.wanted, self.failures) is not None

    @property
    def done(self) -> bool:
        return self.is_last_round and self._full

    def discard_damaged(self) -> None:
        """Names and removes damaged files, and takes stock of the rest: what is not there is made again.

        Shards of the round at hand that failed before are made again too, unless the run may do without them.
        """
        found = survey(self.path)
        for name, why in found.damaged.items():
            self.note(f"{Storage(self.path).where(f'{SHARDS}/{name}')} is damaged ({why}): it is made again")
        remove_damaged(self.path, found)
        self.rounds = sound_rounds(found.stats, read_meta(Storage(self.path)).rounds)
        there = [s for s in current_round(found.stats, self.rounds).values() if not s.error or self.config.skip_failed]
        self.tally = Tally(self.first_shard, there)
        self.failures.clear()
        self.skipped = [s.shard for s in found.stats.values() if s.error and s.shard < self.first_shard]
        self.skipped += [s.shard for s in there if s.error]

    def open_rounds(self) -> Iterator[int]:
        """Yields the rounds that lack shards, and closes each; it has to be filled before the next is asked for."""
        while not self.done:
            if not self.round_done:
                yield self.chain_round
                assert self.round_done
            short = self._short_end
            if short is not None or not self.is_last_round:
                if short is not None:
                    tried, held = short - self.first_shard, self.tally.held_before(short)
                    self.note(
                        f"round {self.chain_round + 1} ends after {tried} shards with {held} of {self.wanted} bridges"
                    )
                if close_round(self.path, self.rounds, self.wanted, short) is None:
                    self.note(f"{self.path}: {GONE}")
                self.discard_damaged()
                self._say_reach(self.first_shard)
                self.report()

    def _say_reach(self, num_shards: int, *, finished: bool = False) -> None:
        """Says what the bridges so far lead to."""
        known = self.knowledge
        found = None if known is None or not num_shards else known.measure(self.rounds, num_shards, finished=finished)
        if found is not None:
            self.note(str(found))

    @property
    def known(self) -> Known:
        """The knowledge by which the round at hand selects its pairs; None is the dataset alone."""
        return None if self.knowledge is None else self.knowledge.after(self.rounds)

    def next_shards(self, count: int) -> list[int]:
        """Chooses up to ``count`` shards to make next, never none while the round lacks some; those that failed are
        tried again once nothing else is missing, or no other shard is left.

        With ``skip_failed``, shards that failed too often are written as empty ones here.

        Raises:
            RunError: when a shard failed too often, ``max_shards`` shards were not enough, or the first ``patience``
                hold nothing.
        """
        self._give_up_early()
        again = sorted(shard for shard, (times, _) in self.failures.items() if times <= self.config.max_retries)
        first, known = self.first_shard, self.failures.keys() | self.tally.accepted_of.keys()
        limit = self.config.shard_limit(self.chain_round)
        if self._may_end_short:
            limit = min(limit, self._most_end - first)
        missing = [s for s in range(first, first + limit) if s not in known][:count]
        if self.failures and (self.only_failures_missing or not missing):
            if again:
                self.retries += len(again)
                return again[:count]
            self._write_failed_as_empty()
            if self.round_done:
                return []
        if not missing:
            raise RunError(
                f"{self.path}: {limit} shards of {self.config.pairs_per_shard} pairs hold {self.tally.accepted} "
                f"accepted bridges, not the {self.wanted} asked for{self._of_round()} ({self._why()}); ask for fewer, "
                "use a larger delta or raise augment.max_shards"
            )
        return missing

    def expected(self) -> int:
        """Estimate how many more shards the round at hand needs."""
        per_shard = self.tally.accepted / len(self.tally) if self.tally.accepted else self.config.pairs_per_shard / 2
        return max(1, round((self.wanted - self.tally.accepted) / per_shard))

    def add(self, stats: ShardStats) -> None:
        """Takes note of a shard that was written.

        Raises:
            RunError: when the first ``patience`` shards hold no accepted bridge.
        """
        self.failures.pop(stats.shard, None)
        if self.tally.add(stats):
            self.new_shards += 1
            self.new_bridges += stats.accepted
        self.report()
        self._give_up_early()

    def fail(self, shard: int, why: str) -> None:
        """Takes note of a shard that could not be made.

        Raises:
            RunError: when nothing but failures came so far.
        """
        if shard in self.tally:
            return
        times = self.failures.get(shard, (0, ""))[0] + 1
        self.failures[shard] = times, why
        what_next = "it is tried again" if times <= self.config.max_retries else "that was the last try"
        self.note(f"shard {shard} failed ({why}); {what_next}, the others go on")
        if len(self.failures) >= self.config.patience and not len(self.tally):
            raise RunError(f"{self.path}: the first {len(self.failures)} shards all failed: {why}")

    def report(self) -> None:
        if self.progress is not None:
            self.progress(self._state())

    def note(self, message: str) -> None:
        """Says that something happened that the user should know."""
        if self.progress is not None:
            self.progress(self._state("note", message))

    def finish(self) -> AugmentSummary | None:
        """Trims the buffer to the smallest prefix that is enough; None where shards are gone that were there."""
        complete = finish(self.path, self.config.num_bridges)
        if complete is None:
            self.discard_damaged()
            self.note(f"{self.path}: {GONE}")
            return None
        known = self.knowledge
        if known is not None and not known.is_told(self.chain_round + 1, complete.num_accepted):
            self._say_reach(complete.num_shards, finished=True)
        return AugmentSummary(
            uri=self.path,
            num_accepted=complete.num_accepted,
            num_candidates=complete.num_candidates,
            num_shards=complete.num_shards,
            new_shards=self.new_shards,
            seconds=time.monotonic() - self.started,
            new_bridges=self.new_bridges,
            retries=self.retries,
            failed_shards=tuple(sorted(shard for shard in self.skipped if shard < complete.num_shards)),
            reasons=dict(self.tally.reasons),
        )

    def _state(self, event: str = "progress", message: str = "") -> AugmentProgress:
        if self.config.chain_rounds == "auto":
            total, before = self.config.num_bridges, self.config.num_bridges - self._still_wanted
        else:
            rounds = [self.config.round_bridges(r) for r in range(self.config.chain_rounds + 1)]
            total, before = sum(rounds), sum(rounds[: self.chain_round])
        accepted = before + min(self.tally.accepted, self.wanted)
        rate = self._rate.at(accepted)
        return AugmentProgress(
            event=event,
            message=message,
            accepted=accepted,
            wanted=total,
            shards=len(self.tally),
            candidates=self.tally.candidates,
            reasons=dict(self.tally.reasons),
            failed_shards=len(self.failures) + len(self.skipped),
            chain_round=self.chain_round,
            seconds=time.monotonic() - self.started,
            bridges_per_second=rate,
            seconds_left=None if rate is None else (total - accepted) / rate,
        )

    def _write_failed_as_empty(self) -> None:
        """Writes the failed shards that the round needs as empty ones, or gives up naming them."""
        end = self.tally.prefix_end(self.wanted, self.failures)
        needed = {shard: why for shard, (_, why) in sorted(self.failures.items()) if end is None or shard < end}
        if not self.config.skip_failed:
            shard, why = next(iter(needed.items()))
            times = self.failures[shard][0]
            raise RunError(
                f"{self.path}: shard {_listed(tuple(needed))} failed {times} times ({why}); the other "
                f"{len(self.tally)} are there. Run again to try {'it' if len(needed) == 1 else 'them'} once more, or "
                f"do without with augment.skip_failed=true"
            )
        for shard, why in needed.items():
            self.add(write_failed(self.path, shard, *self.size, self.manifest, why, self.schema_version))
            self.skipped.append(shard)
            self.note(f"shard {shard} is recorded as empty ({why})")

    def _of_round(self) -> str:
        return f" in chain round {self.chain_round}" if self.config.chain_rounds else ""

    def _why(self) -> str:
        residual = self.tally.residual_min
        smallest = "no finite residual" if residual is None else f"smallest residual {residual:.3g}"
        counts = ", ".join(f"{reason} {count}" for reason, count in self.tally.reasons.most_common())
        near = "" if self.stitch.pairs.seam_max is None else ", or none is as near as pairs.seam_max asks: raise it"
        if not counts and isinstance(self.known, StateValues):
            return (
                "no pair promises more than is known from its source, or none is as novel as pairs.novelty asks"
                f"{near}; are all rewards or values alike?"
            )
        return f"{smallest}; {counts or f'no two trajectories without an episode in common{near}'}"

    def _give_up_early(self) -> None:
        if self._may_end_short:
            return
        first, tally = self.first_shard, self.tally
        patience = min(self.config.patience, self.config.shard_limit(self.chain_round))
        if tally.accepted == 0 and all(first + n in tally for n in range(patience)):
            fixed = self.rounds and self.config.chain_rounds != "auto"
            fewer = ", fewer chain rounds" if fixed else ""
            raise RunError(
                f"{self.path}: nothing can be stitched{self._of_round()}: none of the first {tally.candidates} "
                f"candidates was accepted ({self._why()}); use a larger delta, another pairs.mode{fewer} or a "
                "stitcher fitted longer"
            )


def _listed(shards: tuple[int, ...], most: int = 8) -> str:
    """``3, 5 and 7``, not all of them where there are many."""
    shown = [str(shard) for shard in shards[:most]]
    if len(shards) > most:
        return f"{', '.join(shown)} and {len(shards) - most} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
