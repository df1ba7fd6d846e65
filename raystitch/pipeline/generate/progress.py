"""The progress of a generation, as shown on a terminal, written as JSON lines and exported as metrics."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from raystitch.console import duration

WINDOW_SECONDS = 60.0
"""The rate is that of the last minute: actors that came or went show soon."""


@dataclass(frozen=True, kw_only=True)
class AugmentProgress:
    """The state of a generation.

    Attributes:
        event: ``progress``, or ``note``: something happened that ``message`` tells (a shard failed, was damaged, ..).
        accepted, wanted: bridges of all rounds; ``accepted`` never counts more than a round has to bring.
        shards, candidates, reasons: of the round at hand; ``reasons`` counts candidates by why they were rejected, or
            ``ok``.
        failed_shards: shards that failed and have not been made since.
        bridges_per_second, seconds_left: None while no rate is known.
    """

    event: str = "progress"
    message: str = ""
    accepted: int
    wanted: int
    shards: int
    candidates: int
    reasons: Mapping[str, int] = field(default_factory=dict[str, int])
    failed_shards: int = 0
    chain_round: int = 0
    seconds: float = 0.0
    bridges_per_second: float | None = None
    seconds_left: float | None = None

    @property
    def accepted_share(self) -> float | None:
        """Accepted candidates of all, of the round at hand."""
        return self.reasons.get("ok", 0) / self.candidates if self.candidates else None

    def to_json(self) -> dict[str, Any]:
        """Plain data with numbers rounded to what they are worth."""
        digits = {"seconds": 1, "bridges_per_second": 1, "seconds_left": 0, "accepted_share": 4}
        value = {**asdict(self), "accepted_share": self.accepted_share, "reasons": dict(self.reasons)}
        if not self.message:
            del value["message"]
        return {k: round(v, digits[k]) if k in digits and v is not None else v for k, v in value.items()}

    @property
    def text(self) -> str:
        """One line for people, without the numbers that a progress bar shows."""
        parts = [f"{self.shards:,} shards"]
        if self.accepted_share is not None:
            rejected = sorted(((n, reason) for reason, n in self.reasons.items() if reason != "ok"), reverse=True)
            why = ", ".join(f"{reason} {n / self.candidates:.0%}" for n, reason in rejected[:3])
            parts.append(f"{self.accepted_share:.0%} accepted" + (f" ({why})" if why else ""))
        if self.bridges_per_second is not None:
            parts.append(f"{self.bridges_per_second:,.0f}/s")
        if self.seconds_left is not None:
            parts.append(f"{duration(self.seconds_left)} left")
        if self.failed_shards:
            parts.append(f"{self.failed_shards} failed")
        if self.chain_round:
            parts.append(f"chain round {self.chain_round}")
        return ", ".join(parts)


OnAugmentProgress = Callable[[AugmentProgress], None]


class Rate:
    """Bridges per second over the last ``WINDOW_SECONDS``."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def at(self, accepted: int) -> float | None:
        """Takes note of a count and returns the rate; None before two different moments are known."""
        now = time.monotonic()
        self._seen.append((now, accepted))
        while len(self._seen) > 2 and now - self._seen[1][0] > WINDOW_SECONDS:
            self._seen.popleft()
        first, before = self._seen[0]
        seconds = now - first
        return (accepted - before) / seconds if seconds > 0 and accepted > before else None
