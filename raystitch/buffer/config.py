"""Settings of ``raystitch augment``; torch-free."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from raystitch.errors import UserError
from raystitch.stitching.config import PairConfig


@dataclass(frozen=True, kw_only=True)
class ActorConfig:
    """The resources that one actor of a pool reserves. None is worked out from the cluster, so that all actors fit.

    Attributes:
        num_cpus: a fraction, or a whole number from 1 on; an actor computes with as many threads (at least one).
        num_gpus: a fraction shares a GPU; 0 computes on the CPU.
        resources: custom resources of the cluster's nodes, such as ``{"accelerator_type:T4": 0.01}``.
    """

    num_cpus: float | None = None
    num_gpus: float | None = None
    resources: Mapping[str, float] = field(default_factory=dict[str, float])

    def __post_init__(self) -> None:
        asked = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus, **self.resources}
        for name, value in asked.items():
            if value is not None and not (0 <= value <= 1 or (value > 1 and float(value).is_integer())):
                raise ValueError(f"{name} must be in 0..1 or a whole number, got {name}={value}")
        if self.num_cpus == 0:
            raise ValueError("num_cpus must be positive, got num_cpus=0")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """The amount that is generated, its units of work, and the number of actors.

    Attributes:
        num_bridges: accepted bridges wanted; the buffer is the smallest prefix of shards that holds them. With chain
            rounds the total of all of them: each gets the same number and the first what is over.
        pairs_per_shard: pairs of one shard, the unit of work. Without chain rounds the only setting here that changes
            what is generated.
        chain_rounds: further rounds that build on what the ones before have found. ``auto``, where pairs are split by
            value: rounds until one brings nothing new, at most 64; where they are split by return: none. A round of
            ``auto`` that cannot bring its bridges ends without them.
        bridges_per_round: of ``chain_rounds: auto``; what is still wanted when nothing new comes is one last round.
        chain_pool: where pairs are split by return: stitched trajectories that a chain round has to choose from, at
            most; they lie in memory.
        num_actors: Ray actors that propose, at most; None: one per GPU, or per CPU where there is no GPU.
        min_actors: start with this many and add more while shards wait for one; None: all of them at once.
        num_qualifiers: Ray actors that judge and write, at most; None: one per six proposers.
        proposer, qualifier: what one actor of each kind reserves.
        max_retries: times a shard that failed is tried again before the run does without it.
        skip_failed: record a shard that failed for good as an empty one, so that the buffer can be finished without
            it; otherwise the run ends with an error that names it, once all others are there.
        max_shards: give up when this many shards of a round do not hold the bridges it has to bring; None: fifty
            times as many as would do if every pair were accepted, and at least 1,000.
        patience: give up when the first this many shards of a round hold no accepted bridge at all (and it is not one
            that may end without).
        no_progress_timeout: seconds without a finished step after which Ray Data gives up; one shard must fit in it,
            and so must the wait for nodes that a cluster adds on demand.
    """

    RENAMED: ClassVar[Mapping[str, str]] = {"sampler": "proposer"}
    """Keys of earlier versions, which the reader of a configuration names in its error."""

    num_bridges: int = 20000
    pairs_per_shard: int = 512
    chain_rounds: int | Literal["auto"] = "auto"
    bridges_per_round: int = 1000
    chain_pool: int = 2000
    num_actors: int | None = None
    min_actors: int | None = None
    num_qualifiers: int | None = None
    proposer: ActorConfig = field(default_factory=ActorConfig)
    qualifier: ActorConfig = field(default_factory=ActorConfig)
    max_retries: int = 2
    skip_failed: bool = False
    max_shards: int | None = None
    patience: int = 6
    no_progress_timeout: float = 600.0

    def __post_init__(self) -> None:
        for name in (
            "num_bridges",
            "pairs_per_shard",
            "bridges_per_round",
            "chain_pool",
            "num_actors",
            "min_actors",
            "num_qualifiers",
            "max_shards",
            "patience",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {name}={value}")
        if self.min_actors is not None and self.num_actors is not None and self.min_actors > self.num_actors:
            raise ValueError(
                f"min_actors must not be above num_actors={self.num_actors}, got min_actors={self.min_actors}"
            )
        if self.max_retries < 0:
            raise ValueError(f"max_retries must be >= 0, got max_retries={self.max_retries}")
        if self.chain_rounds != "auto" and not 0 <= self.chain_rounds < self.num_bridges:
            raise ValueError(
                f"chain_rounds must be in 0..num_bridges - 1 = {self.num_bridges - 1}, got "
                f"chain_rounds={self.chain_rounds}"
            )
        if not self.no_progress_timeout > 0:
            raise ValueError(
                f"no_progress_timeout must be positive, got no_progress_timeout={self.no_progress_timeout}"
            )

    def check(self, pairs: PairConfig) -> None:
        """Refuse settings of pairs that do nothing with these.

        Raises:
            UserError: for curiosity without a second round.
        """
        if pairs.curiosity and self.chain_rounds == 0:
            raise UserError(
                f"pairs.curiosity={pairs.curiosity} is about what earlier rounds entered, and augment.chain_rounds=0 "
                "is a single round; let chain_rounds be auto or at least 1"
            )

    def resolved(self, by_value: bool) -> "AugmentConfig":
        """Return these settings for pairs split by value or by return: ``auto`` is no chain round with the latter."""
        return replace(self, chain_rounds=0) if self.chain_rounds == "auto" and not by_value else self

    def round_bridges(self, chain_round: int) -> int:
        """Accepted bridges that a round has to bring, at most where ``chain_rounds`` is ``auto``."""
        if self.chain_rounds == "auto":
            return min(self.num_bridges, self.bridges_per_round)
        return bridges_of_round(self.num_bridges, self.chain_rounds, chain_round)

    def shard_limit(self, chain_round: int) -> int:
        """Shards of a round after which it is given up."""
        if self.max_shards is not None:
            return self.max_shards
        return max(1000, 50 * -(-self.round_bridges(chain_round) // self.pairs_per_shard))


def bridges_of_round(num_bridges: int, chain_rounds: int, chain_round: int) -> int:
    """The share of one round: all rounds alike, the first also has what is over."""
    share, over = divmod(num_bridges, chain_rounds + 1)
    return share + (over if chain_round == 0 else 0)
