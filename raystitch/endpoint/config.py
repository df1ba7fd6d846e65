"""Settings of the endpoint; torch-free."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from raystitch.stitching.config import StitchConfig

DEFAULT_MODEL = "default"


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """What one request may ask for.

    Attributes:
        max_body_bytes: of a request's body, before and after it is decompressed.
        max_steps: states of one trajectory. max_candidates: of one request.
        deadline_seconds: from the last byte of the request to the answer; a request may ask for less.
        body_seconds: a body must have arrived by then.
    """

    max_body_bytes: int = 32 * 2**20
    max_steps: int = 10_000
    max_candidates: int = 256
    deadline_seconds: float = 30.0
    body_seconds: float = 10.0

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "max_candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {name}={getattr(self, name)}")
        if self.max_steps < 2:
            raise ValueError(f"max_steps must be at least 2, got max_steps={self.max_steps}")
        for name in ("deadline_seconds", "body_seconds"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive, got {name}={getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class BatchingConfig:
    """How requests are put together into one call of the sampler.

    Attributes:
        max_candidates: of one call; a single request may have more.
        wait_seconds: how long a call that could start waits for requests that are being received, or for as many as
            the call before had; a single client is not kept waiting.
        max_queued_candidates: of requests that wait or are computed, per replica; beyond, 429.
        max_receiving: requests whose bodies are read at the same time, per replica; beyond, 429.
    """

    max_candidates: int = 256
    wait_seconds: float = 0.01
    max_queued_candidates: int = 4096
    max_receiving: int = 128

    def __post_init__(self) -> None:
        for name in ("max_candidates", "max_queued_candidates", "max_receiving"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {name}={getattr(self, name)}")
        if not 0 <= self.wait_seconds <= 1:
            raise ValueError(f"wait_seconds must be in [0, 1], got wait_seconds={self.wait_seconds}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One bundle by a name.

    Attributes:
        stitcher: its folder. dataset: reference of the trajectories that the studio offers; None for none.
        env: environment, in place of the one that the dataset records.
    """

    stitcher: str
    dataset: str | None = None
    env: str | None = None

    def __post_init__(self) -> None:
        if not self.stitcher:
            raise ValueError("stitcher must name a folder, got ''")


@dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """One endpoint.

    Attributes:
        models: name -> bundle; requests that name none get ``default``.
        stitch: how bridges are made and judged; a request's ``delta`` replaces ``stitch.qualify.delta``.
        device: ``auto``, ``cpu`` or ``cuda[:N]``. num_threads: of torch, on the CPU; None: the replica's CPUs.
        cors_origins: origins of web pages that may call; none by default.
        reload: any other value than before makes all replicas read the bundles again.
    """

    models: Mapping[str, ModelConfig] = field(default_factory=dict[str, ModelConfig])
    stitch: StitchConfig = field(default_factory=StitchConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    device: str = "auto"
    num_threads: int | None = None
    cors_origins: tuple[str, ...] = ()
    reload: int | str = 0

    def __post_init__(self) -> None:
        for name in self.models:
            if not name or not all(letter.isalnum() or letter in "-_." for letter in name) or len(name) > 64:
                raise ValueError(f"a model's name is made of letters, digits, '-', '_' and '.', got {name!r}")
        if self.num_threads is not None and self.num_threads < 1:
            raise ValueError(f"num_threads must be at least 1, got num_threads={self.num_threads}")
