"""A cluster that is not at hand, as a user writes it: ``1x(8 CPU)+4x(16 CPU, 1 GPU)``."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from raystitch.errors import UserError

EXAMPLE = '"4x(16 CPU, 1 GPU)", "2x(64 CPU, 256 GiB)" or "1x(8 CPU)+4x(16 CPU, 1 GPU)"'
MEMORY = "memory"
"""Ray's name for a node's memory, in bytes."""
MOST_NODES = 10_000
_NODES = re.compile(r"\s*(\d+)\s*[xX*]\s*\(([^()]*)\)\s*")
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(CPU|GPU|GiB)s?\s*", re.IGNORECASE)
_NAMES = {"cpu": "CPU", "gpu": "GPU", "gib": MEMORY}


@dataclass(frozen=True)
class ImaginedCluster:
    """Nodes as they were written: ``CPU``, ``GPU`` and, in bytes and where it was said, ``memory`` of each."""

    text: str
    nodes: Sequence[Mapping[str, float]]

    @cached_property
    def cpus(self) -> float:
        return sum(node["CPU"] for node in self.nodes)

    @cached_property
    def gpus(self) -> float:
        return sum(node["GPU"] for node in self.nodes)

    def room(self, need: Mapping[str, float]) -> int:
        """Return how many of a need all nodes have room for at once; memory counts where a node says what it has."""
        asked = {name: amount for name, amount in need.items() if amount}
        return sum(
            min((int(node[name] / amount + 1e-9) for name, amount in asked.items() if name in node), default=0)
            for node in self.nodes
        )

    def __str__(self) -> str:
        gpus = f", {self.gpus:g} GPU{'s' * (self.gpus != 1)}" if self.gpus else ""
        return f"{len(self.nodes)} node{'s' * (len(self.nodes) != 1)}, {self.cpus:g} CPUs{gpus}"


def parse_cluster(text: str) -> ImaginedCluster:
    """Read a cluster.

    Raises:
        UserError: for anything else than ``COUNTx(N CPU, N GPU, N GiB)`` and sums of it; says what is wrong.
    """
    nodes: list[Mapping[str, float]] = []
    for part in text.split("+"):
        match = _NODES.fullmatch(part)
        if match is None:
            raise UserError(f"{part.strip()!r} is no number of nodes such as 4x(16 CPU, 1 GPU); write {EXAMPLE}")
        count, node = int(match[1]), _node(match[2], part.strip())
        if not 0 < count <= MOST_NODES:
            raise UserError(f"{part.strip()!r} has {count} nodes; write 1 to {MOST_NODES:,} of them, as in {EXAMPLE}")
        nodes += [node] * count
    return ImaginedCluster(text, nodes)


def _node(inside: str, part: str) -> Mapping[str, float]:
    node: dict[str, float] = {}
    for item in inside.split(","):
        match = _AMOUNT.fullmatch(item)
        if match is None:
            raise UserError(f"{item.strip()!r} in {part!r} is neither N CPU, N GPU nor N GiB; write {EXAMPLE}")
        name = _NAMES[match[2].lower()]
        if name in node:
            raise UserError(f"{part!r} says {match[2]} twice; write {EXAMPLE}")
        node[name] = float(match[1]) * (2**30 if name == MEMORY else 1)
    if node.get("CPU", 0.0) < 1:
        raise UserError(f"{part!r} has no CPU, and every node needs at least 1; write {EXAMPLE}")
    return {"GPU": 0.0, **node}
