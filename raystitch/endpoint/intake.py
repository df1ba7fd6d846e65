"""The bytes of requests that are received or wait, limited in total and for each client."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from raystitch.endpoint.config import BatchingConfig
from raystitch.endpoint.problems import busy

_RETRY_SECONDS = 2


class Intake:
    """Counts the bytes that are held now. It belongs to one event loop, so it needs no lock.

    Attributes:
        total: bytes of all requests.
    """

    def __init__(self) -> None:
        self.total = 0
        self._clients: Counter[str] = Counter()

    @contextmanager
    def hold(self, client: str, config: BatchingConfig) -> "Iterator[Held]":
        """Count one request's bytes until the block ends."""
        held = Held(self, client, config)
        try:
            yield held
        finally:
            held.settle(0)

    def of(self, client: str) -> int:
        """Bytes of one client's requests."""
        return self._clients[client]

    def change(self, client: str, count: int) -> None:
        self.total += count
        self._clients[client] += count
        if not self._clients[client]:
            del self._clients[client]


class Held:
    """The bytes of one request."""

    def __init__(self, intake: Intake, client: str, config: BatchingConfig) -> None:
        self._intake, self._client, self._config = intake, client, config
        self._count = 0

    def check(self, count: int) -> None:
        """Refuse ``count`` more bytes if they exceed a limit; a request that is alone is never refused.

        Raises:
            Problem: 429.
        """
        config, intake = self._config, self._intake
        bounds = (
            ("requests", intake.total, config.max_held_bytes),
            ("this client's requests", intake.of(self._client), config.max_client_bytes),
        )
        for whose, now, most in bounds:
            if now > self._count and now + count > most:
                raise busy(f"{now:,} bytes of {whose} are held already, at most {most:,}; try again", _RETRY_SECONDS)

    def grow(self, count: int) -> None:
        """Count ``count`` more bytes.

        Raises:
            Problem: 429.
        """
        self.check(count)
        self._change(count)

    def settle(self, count: int) -> None:
        """Set the bytes that the request takes from now on."""
        self._change(count - self._count)

    def _change(self, count: int) -> None:
        self._count += count
        self._intake.change(self._client, count)
