"""A buffer's bridges with the rewards that a ``RewardConfig`` gives them; what is stored stays as it is."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from raystitch.buffer.bridges import CHUNK_TRANSITIONS, Bridges, BridgeSet, References
from raystitch.data.episodes import Floats, Ints
from raystitch.shaping.config import RECORDED, RewardConfig
from raystitch.shaping.rewards import StoredSteps, apply_rewards, generated_steps


def stored_steps(bridges: BridgeSet) -> StoredSteps:
    """Return the steps of the bridges with every number that their buffer keeps about each."""
    return generated_steps(bridges.rewards, bridges.gap, _known(bridges, "residual"), _known(bridges, "spread"))


def _known(bridges: BridgeSet, name: str) -> Floats | None:
    """Return a column of steps; None where the buffer's schema does not keep it."""
    return getattr(bridges, name, None)


def shape_bridges(bridges: Bridges, config: RewardConfig) -> Bridges:
    """Return the bridges with the rewards of ``config``; the bridges themselves where those are the recorded ones."""
    return bridges if config == RECORDED else ShapedBridges(bridges=bridges, config=config)


@dataclass(frozen=True, kw_only=True, eq=False)
class ShapedBridges:
    """Bridges whose rewards are computed as they are read; a ``Bridges``."""

    bridges: Bridges
    config: RewardConfig

    def __len__(self) -> int:
        return len(self.bridges)

    @property
    def all_references(self) -> References:
        """References of every bridge, in order."""
        return self.bridges.all_references

    @property
    def content(self) -> str:
        """A digest of the bridges and of what their rewards follow from."""
        return hashlib.sha256(f"{self.bridges.content} {self.config}".encode()).hexdigest()

    def chunks(self, max_transitions: int = CHUNK_TRANSITIONS) -> Iterator[BridgeSet]:
        """Yield all bridges in pieces, in order."""
        return map(self._shaped, self.bridges.chunks(max_transitions))

    def take_positions(self, positions: Ints) -> BridgeSet:
        """Return the bridges at ascending positions, in memory."""
        return self._shaped(self.bridges.take_positions(positions))

    def _shaped(self, bridges: BridgeSet) -> BridgeSet:
        return replace(bridges, rewards=apply_rewards(self.config, stored_steps(bridges)))
