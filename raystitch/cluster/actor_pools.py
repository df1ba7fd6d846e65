"""The pools of proposers and qualifiers: how many actors, and what each reserves.

Numbers that the user leaves open are worked out from the cluster.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.data import ActorPoolStrategy

from raystitch.buffer.config import ActorConfig, AugmentConfig

PROPOSERS_PER_QUALIFIER = 6
"""Judging and writing a shard takes about a sixth as long as proposing it (docs/engine.md)."""
PROPOSER_SHARE = 0.75
"""The proposers' share of the CPUs, and of a GPU that both kinds share."""

IN_FLIGHT = 2
"""Blocks of shards given to an actor at a time: it works on one while the other waits. With one alone, actors would
idle between blocks and pools would never grow."""

Node = Mapping[str, float]
"""The resources of one machine, as ``ray.nodes()`` lists them."""


@dataclass(frozen=True, kw_only=True)
class ActorPool:
    """A pool of ``min_size`` to ``max_size`` actors of one kind, and the resources that each reserves."""

    min_size: int
    max_size: int
    num_cpus: float
    num_gpus: float
    resources: Mapping[str, float]

    @property
    def sizes(self) -> str:
        """The size in words: ``4``, or ``1 to 4``."""
        return str(self.max_size) if self.min_size == self.max_size else f"{self.min_size} to {self.max_size}"

    @property
    def threads(self) -> int:
        """Torch threads of one actor."""
        return max(1, int(self.num_cpus))

    def device(self, asked: str) -> str:
        """Return the device of an actor: ``auto`` is the CPU if it reserves no GPU, whatever the machine has."""
        return "cpu" if asked == "auto" and self.num_gpus == 0 and not self.resources else asked

    def fits(self, node: Node) -> bool:
        """Return True if one actor fits on an idle node."""
        asked = {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.resources}
        return all(node.get(name, 0.0) >= amount for name, amount in asked.items())

    def __str__(self) -> str:
        asked = {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.resources}
        return ", ".join(f"{name} {amount:g}" for name, amount in asked.items() if amount)

    def options(self, num_inputs: int) -> dict[str, Any]:
        """Arguments of ``Dataset.map_batches``."""
        largest = max(1, min(self.max_size, num_inputs))
        return {
            "batch_size": 1,
            "compute": ActorPoolStrategy(
                min_size=min(self.min_size, largest), max_size=largest, max_tasks_in_flight_per_actor=IN_FLIGHT
            ),
            "num_cpus": self.num_cpus,
            "num_gpus": self.num_gpus,
            "resources": dict(self.resources),
        }


def plan_pools(nodes: Sequence[Node], config: AugmentConfig) -> tuple[ActorPool, ActorPool]:
    """Return the proposers' pool and the qualifiers' pool.

    Open numbers are chosen so that all actors fit at once and, if there are several CPUs, one stays free for Ray Data's
    own tasks. With GPUs, proposers share three quarters of each and qualifiers the rest.
    """
    cpus = sum(node.get("CPU", 0.0) for node in nodes)
    largest = max((node.get("CPU", 0.0) for node in nodes), default=1.0)
    gpus = math.floor(sum(node.get("GPU", 0.0) for node in nodes))
    free = max(cpus - 1.0, cpus / 2)
    proposer, qualifier = config.proposer, config.qualifier
    num_proposers = config.num_actors or _how_many(nodes, proposer, gpus, cpus, free)
    if config.min_actors is not None:
        num_proposers = max(num_proposers, config.min_actors)
    num_qualifiers = config.num_qualifiers or -(-num_proposers // PROPOSERS_PER_QUALIFIER)

    def shared_gpu(asked: float | None, share: float, actors: int) -> float:
        if asked is not None:
            return asked
        # If proposer.num_gpus is set, keep qualifiers on the CPU by default.
        if not gpus or proposer.num_gpus is not None:
            return 0.0
        return math.floor(1000 * share / math.ceil(actors / gpus)) / 1000

    def shared_cpu(asked: float | None, share: float, actors: int, most: float) -> float:
        if asked is not None:
            return asked
        part = min(free * share / actors, most)
        return float(int(part)) if part >= 1 else max(0.001, math.floor(1000 * part) / 1000)

    proposer_gpus = shared_gpu(proposer.num_gpus, PROPOSER_SHARE, num_proposers)
    return (
        ActorPool(
            min_size=num_proposers if config.min_actors is None else config.min_actors,
            max_size=num_proposers,
            num_cpus=shared_cpu(proposer.num_cpus, PROPOSER_SHARE, num_proposers, 1.0 if proposer_gpus else largest),
            num_gpus=proposer_gpus,
            resources=proposer.resources,
        ),
        ActorPool(
            min_size=1 if config.min_actors is not None else num_qualifiers,
            max_size=num_qualifiers,
            num_cpus=shared_cpu(qualifier.num_cpus, 1 - PROPOSER_SHARE, num_qualifiers, 1.0),
            num_gpus=shared_gpu(qualifier.num_gpus, 1 - PROPOSER_SHARE, num_qualifiers),
            resources=qualifier.resources,
        ),
    )


def _how_many(nodes: Sequence[Node], proposer: ActorConfig, gpus: int, cpus: float, free: float) -> int:
    """Return how many proposers fit: one per GPU or, without GPUs, one per CPU."""
    asked = {"CPU": proposer.num_cpus, "GPU": proposer.num_gpus, **proposer.resources}
    known = {name: amount for name, amount in asked.items() if amount}
    if known:
        room = {name: sum(node.get(name, 0.0) for node in nodes) for name in known}
        room["CPU"] = min(room.get("CPU", free), free)
        return max(1, min(math.floor(room[name] / amount + 1e-9) for name, amount in known.items()))
    return max(1, gpus if gpus and proposer.num_gpus is None else math.floor(cpus))
