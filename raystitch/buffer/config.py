"""Settings of ``raystitch augment``; torch-free."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How much is generated, in which units of work and by how many actors.

    Attributes:
        num_bridges: accepted bridges wanted; the buffer is the smallest prefix of shards that holds them. With chain
            rounds the total of all of them: each gets the same number and the first what is over.
        pairs_per_shard: pairs of one shard, the unit of work. Without chain rounds the only setting here that changes
            what is generated.
        chain_rounds: further rounds in which stitched trajectories are sources and targets too.
        chain_pool: stitched trajectories that a chain round has to choose from, at most; they lie in memory.
        num_actors, num_qualifiers: Ray actors that propose, and that judge and write.
        max_shards: give up when this many shards of a round do not hold the bridges it has to bring.
        patience: give up when the first this many shards of a round hold no accepted bridge at all.
        no_progress_timeout: seconds without a finished step after which Ray Data gives up; one shard must fit in it.
    """

    num_bridges: int = 20000
    pairs_per_shard: int = 512
    chain_rounds: int = 0
    chain_pool: int = 2000
    num_actors: int = 1
    num_qualifiers: int = 1
    max_shards: int = 1000
    patience: int = 6
    no_progress_timeout: float = 600.0

    def __post_init__(self) -> None:
        for name in (
            "num_bridges",
            "pairs_per_shard",
            "chain_pool",
            "num_actors",
            "num_qualifiers",
            "max_shards",
            "patience",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {name}={getattr(self, name)}")
        if not 0 <= self.chain_rounds < self.num_bridges:
            raise ValueError(
                f"chain_rounds must be in 0..num_bridges - 1 = {self.num_bridges - 1}, got "
                f"chain_rounds={self.chain_rounds}"
            )
        if not self.no_progress_timeout > 0:
            raise ValueError(
                f"no_progress_timeout must be positive, got no_progress_timeout={self.no_progress_timeout}"
            )

    def round_bridges(self, chain_round: int) -> int:
        """Accepted bridges that a round has to bring."""
        return bridges_of_round(self.num_bridges, self.chain_rounds, chain_round)


def bridges_of_round(num_bridges: int, chain_rounds: int, chain_round: int) -> int:
    """The share of one round: all rounds alike, the first also has what is over."""
    share, over = divmod(num_bridges, chain_rounds + 1)
    return share + (over if chain_round == 0 else 0)
