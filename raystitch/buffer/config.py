"""Settings of ``raystitch augment``; torch-free."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How much is generated, in which units of work and by how many actors.

    Attributes:
        num_bridges: accepted bridges wanted; the buffer is the smallest prefix of shards that holds them.
        pairs_per_shard: pairs of one shard, the unit of work. The only setting here that changes what is generated.
        num_actors, num_qualifiers: Ray actors that propose, and that judge and write.
        max_shards: give up when this many shards do not hold ``num_bridges``.
        patience: give up when the first this many shards hold no accepted bridge at all.
        no_progress_timeout: seconds without a finished step after which Ray Data gives up; one shard must fit in it.
    """

    num_bridges: int = 20000
    pairs_per_shard: int = 512
    num_actors: int = 1
    num_qualifiers: int = 1
    max_shards: int = 1000
    patience: int = 6
    no_progress_timeout: float = 600.0

    def __post_init__(self) -> None:
        for name in ("num_bridges", "pairs_per_shard", "num_actors", "num_qualifiers", "max_shards", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {name}={getattr(self, name)}")
        if not self.no_progress_timeout > 0:
            raise ValueError(
                f"no_progress_timeout must be positive, got no_progress_timeout={self.no_progress_timeout}"
            )
