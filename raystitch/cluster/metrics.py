"""The metrics of ``augment`` on Ray; every node's agent exports them as Prometheus text (see docs/cluster.md)."""

from ray.util.metrics import Counter, Gauge, Histogram

from raystitch.cluster.actors import Outcome
from raystitch.pipeline.generate.progress import AugmentProgress, OnAugmentProgress

SECONDS = [0.1, 0.3, 1, 3, 10, 30, 100, 300]
"""Boundaries of the histograms of times per shard."""


class AugmentMetrics:
    """Metrics of the driver, which learns of every shard exactly once; tagged with the buffer.

    ``raystitch_augment_shards_total`` (``outcome``: made, found, failed), ``.._candidates_total`` (``reason``),
    ``.._bridges_total``; gauges ``.._bridges_accepted``, ``.._bridges_wanted``, ``.._seconds_left``; histograms
    ``.._propose_seconds``, ``.._qualify_seconds`` per shard.
    """

    def __init__(self, buffer: str) -> None:
        self._tags = {"buffer": buffer}
        self._made: _Instruments | None = None

    def count(self, outcome: Outcome) -> None:
        """Count the outcome of a shard."""
        instruments = self._instruments()
        what = "failed" if outcome.stats is None else "made" if outcome.made else "found"
        instruments.shards.inc(1, {**self._tags, "outcome": what})
        if outcome.stats is None or not outcome.made:
            return
        for reason, count in outcome.stats.reasons.items():
            instruments.candidates.inc(count, {**self._tags, "reason": reason})
        if outcome.stats.accepted:
            instruments.bridges.inc(outcome.stats.accepted, self._tags)
        instruments.propose.observe(outcome.propose_seconds, self._tags)
        instruments.qualify.observe(outcome.qualify_seconds, self._tags)

    def watch(self, progress: OnAugmentProgress | None) -> OnAugmentProgress:
        """Return a progress callback that sets the gauges and then calls ``progress``."""

        def both(at: AugmentProgress) -> None:
            if self._made is not None:
                self._made.accepted.set(at.accepted, self._tags)
                self._made.wanted.set(at.wanted, self._tags)
                if at.seconds_left is not None:
                    self._made.seconds_left.set(at.seconds_left, self._tags)
            if progress is not None:
                progress(at)

        return both

    def _instruments(self) -> "_Instruments":
        """The instruments, made when first needed: Ray has to be connected."""
        if self._made is None:
            self._made = _Instruments()
        return self._made


class _Instruments:
    def __init__(self) -> None:
        prefix, keys = "raystitch_augment", ("buffer",)
        self.shards = Counter(f"{prefix}_shards", "shards made, found and failed", (*keys, "outcome"))
        self.candidates = Counter(f"{prefix}_candidates", "candidates by why they were rejected", (*keys, "reason"))
        self.bridges = Counter(f"{prefix}_bridges", "accepted bridges written", keys)
        self.accepted = Gauge(f"{prefix}_bridges_accepted", "accepted bridges in the buffer", keys)
        self.wanted = Gauge(f"{prefix}_bridges_wanted", "accepted bridges asked for", keys)
        self.seconds_left = Gauge(f"{prefix}_seconds_left", "estimated time to the end", keys)
        self.propose = Histogram(f"{prefix}_propose_seconds", "a shard's time in a proposer", SECONDS, keys)
        self.qualify = Histogram(f"{prefix}_qualify_seconds", "a shard's time in a qualifier", SECONDS, keys)
