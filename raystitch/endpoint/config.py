"""Settings of the endpoint; torch-free."""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from raystitch.stitching.config import StitchConfig

DEFAULT_MODEL = "default"
_HOST = re.compile(r"\*|(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """Limits of one request.

    Attributes:
        max_body_bytes: of a request's body, before and after it is decompressed.
        max_steps: states of one trajectory. max_candidates: of one request.
        deadline_seconds: from the last byte of the request to the answer; a request may ask for less.
        body_seconds: a body must have arrived by then.
        min_body_rate: bytes per second that a body must arrive with, after its first two seconds.
        hung_after: a call of the sampler that takes longer than so many times ``deadline_seconds`` counts as hung: the
            replica says that it is unhealthy and is replaced.
    """

    max_body_bytes: int = 32 * 2**20
    max_steps: int = 10_000
    max_candidates: int = 256
    deadline_seconds: float = 30.0
    body_seconds: float = 10.0
    min_body_rate: int = 16 * 1024
    hung_after: float = 1.5

    @property
    def longest_call(self) -> float:
        """Seconds after which a call of the sampler counts as hung."""
        return self.hung_after * self.deadline_seconds

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "max_candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {name}={getattr(self, name)}")
        if self.max_steps < 2:
            raise ValueError(f"max_steps must be at least 2, got max_steps={self.max_steps}")
        for name in ("deadline_seconds", "body_seconds"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive, got {name}={getattr(self, name)}")
        if self.min_body_rate < 0:
            raise ValueError(f"min_body_rate must not be negative, got min_body_rate={self.min_body_rate}")
        if not 1 <= self.hung_after < float("inf"):
            raise ValueError(f"hung_after must be at least 1, got hung_after={self.hung_after}")


@dataclass(frozen=True, kw_only=True)
class BatchingConfig:
    """How requests are put together into one call of the sampler.

    Attributes:
        max_candidates: of one call; a single request may have more.
        wait_seconds: how long a call that could start waits for requests that are being received, or for as many as
            the call before had; a single client is not kept waiting.
        max_queued_candidates: of requests that wait or are computed, per replica; beyond, 429.
        max_receiving: requests whose bodies are read at the same time, per replica; beyond, 429.
        max_requests: that are not answered yet, per replica; beyond, 429. Lower than what Serve gives a replica at
            once, or requests would wait in Serve's queue, where no deadline counts.
        max_held_bytes: of requests that are received or wait, per replica; beyond, 429.
        max_client_bytes: of those, from one client (by its token's name, else its address); beyond, 429.
    """

    max_candidates: int = 256
    wait_seconds: float = 0.01
    max_queued_candidates: int = 4096
    max_receiving: int = 128
    max_requests: int = 384
    max_held_bytes: int = 256 * 2**20
    max_client_bytes: int = 128 * 2**20

    def __post_init__(self) -> None:
        sizes = ("max_requests", "max_held_bytes", "max_client_bytes")
        for name in ("max_candidates", "max_queued_candidates", "max_receiving", *sizes):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {name}={getattr(self, name)}")
        if not 0 <= self.wait_seconds <= 1:
            raise ValueError(f"wait_seconds must be in [0, 1], got wait_seconds={self.wait_seconds}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One bundle by a name.

    Attributes:
        stitcher: its folder, or a URI. dataset: reference of the trajectories that the studio offers; None for none.
        env: environment, in place of the one that the dataset records.
    """

    stitcher: str
    dataset: str | None = None
    env: str | None = None

    def __post_init__(self) -> None:
        if not self.stitcher:
            raise ValueError("stitcher must name a folder, got ''")


@dataclass(frozen=True, kw_only=True)
class TokenLimitConfig:
    """Limits of the tokens of one name at one replica; None: no limit.

    Attributes:
        requests_per_second: on average, with as many at once. max_ongoing: requests at the same time.
    """

    requests_per_second: float | None = None
    max_ongoing: int | None = None

    def __post_init__(self) -> None:
        if self.requests_per_second is not None and not 0 < self.requests_per_second < float("inf"):
            raise ValueError(
                f"requests_per_second must be positive, got requests_per_second={self.requests_per_second}"
            )
        if self.max_ongoing is not None and self.max_ongoing < 1:
            raise ValueError(f"max_ongoing must be at least 1, got max_ongoing={self.max_ongoing}")


@dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """One endpoint.

    Attributes:
        models: name -> bundle; requests that name none get ``default``.
        stitch: how bridges are made and judged; a request's ``delta`` replaces ``stitch.qualify.delta``.
        device: ``auto``, ``cpu`` or ``cuda[:N]``. num_threads: of torch, on the CPU; None: the replica's CPUs.
        cors_origins: origins of web pages that may call; none by default.
        allowed_hosts: names that requests may call this endpoint by, besides ``localhost`` and addresses: ``NAME``,
            ``*.NAME`` for all below it, ``*`` for any.
        trusted_proxies: addresses or networks whose ``X-Forwarded-For`` says who the client is.
        token_limits: by a token's name; those of ``default`` hold for every name without any.
        wrong_tokens_per_minute: from one client; beyond, 429 whatever it shows. 0: any number.
        reload: any other value than before makes all replicas read the bundles again.
    """

    models: Mapping[str, ModelConfig] = field(default_factory=dict[str, ModelConfig])
    stitch: StitchConfig = field(default_factory=StitchConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    device: str = "auto"
    num_threads: int | None = None
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    token_limits: Mapping[str, TokenLimitConfig] = field(default_factory=dict[str, TokenLimitConfig])
    wrong_tokens_per_minute: float = 10.0
    reload: int | str = 0

    @property
    def trusted_networks(self) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
        """``trusted_proxies`` as networks."""
        return [ipaddress.ip_network(network, strict=False) for network in self.trusted_proxies]

    def __post_init__(self) -> None:
        for name in self.models:
            if not name or not all(letter.isalnum() or letter in "-_." for letter in name) or len(name) > 64:
                raise ValueError(f"a model's name is made of letters, digits, '-', '_' and '.', got {name!r}")
        if self.num_threads is not None and self.num_threads < 1:
            raise ValueError(f"num_threads must be at least 1, got num_threads={self.num_threads}")
        for host in self.allowed_hosts:
            if not _HOST.fullmatch(host):
                raise ValueError(f"allowed_hosts: a name such as stitch.example.org, *.example.org or *, got {host!r}")
        try:
            _ = self.trusted_networks
        except ValueError as error:
            raise ValueError(f"trusted_proxies: addresses or networks such as 10.0.0.0/8: {error}") from None
        if not 0 <= self.wrong_tokens_per_minute < float("inf"):
            number = self.wrong_tokens_per_minute
            raise ValueError(f"wrong_tokens_per_minute must be at least 0, got wrong_tokens_per_minute={number}")
