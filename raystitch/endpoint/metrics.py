"""Counters of an endpoint; ``raystitch.cluster.serve.metrics`` exports them as Prometheus metrics."""

import logging
from collections.abc import Iterable, Sequence
from typing import Protocol

logger = logging.getLogger(__name__)


class Recorder(Protocol):
    """Records events; called from the event loop and from the sampler's thread."""

    def answered(self, outcome: str, seconds: float) -> None:
        """A request of ``/v1/stitch`` was answered: ``accepted``, ``rejected`` or the status code of its error."""
        ...

    def queued(self, seconds: float) -> None:
        """A request waited ``seconds`` for its turn."""
        ...

    def called(self, requests: int, candidates: int, seconds: float) -> None:
        """One call of the sampler."""
        ...

    def judged(self, reasons: Iterable[str], residuals: Iterable[float]) -> None:
        """A request's candidates: why they were rejected (or ``ok``), and their largest residuals."""
        ...

    def refused(self, reason: str) -> None:
        """A request was turned away at the door: ``host``, ``no_token``, ``wrong_token``, ``wrong_tokens`` (too many
        of them), ``token_limit``."""
        ...

    def let_in(self, token: str) -> None:
        """A request showed a valid token of this name."""
        ...

    def fault(self, error: BaseException, request_ids: Sequence[str]) -> None:
        """A fault of ours happened while these requests were worked on."""
        ...


class NoRecorder:
    """Counts nothing; logs faults."""

    def answered(self, outcome: str, seconds: float) -> None: ...

    def queued(self, seconds: float) -> None: ...

    def called(self, requests: int, candidates: int, seconds: float) -> None: ...

    def judged(self, reasons: Iterable[str], residuals: Iterable[float]) -> None: ...

    def refused(self, reason: str) -> None: ...

    def let_in(self, token: str) -> None: ...

    def fault(self, error: BaseException, request_ids: Sequence[str]) -> None:
        logger.error("requests %s failed", ", ".join(request_ids), exc_info=error)
