"""Bridges with the rewards of a rule, computed as they are read."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from raystitch.buffer.bridges import CHUNK_TRANSITIONS, Bridges, BridgeSet, MappedBridges, References
from raystitch.data.episodes import EpisodeDataset, Ints
from raystitch.shaping.config import RECORDED, RewardConfig
from raystitch.shaping.facts import DataFacts
from raystitch.shaping.rewards import StoredSteps, apply_rewards, ends_early, generated_steps


def stored_steps(bridges: BridgeSet, facts: DataFacts | None = None) -> StoredSteps:
    """Return the steps of the bridges with every number that is kept about each: in schema 2 the rewards alone."""
    of = bridges
    return generated_steps(of.rewards, of.gap, of.residual, of.spread, of.observations, facts)


def shape_bridges(bridges: Bridges, config: RewardConfig, dataset: EpisodeDataset | None = None) -> Bridges:
    """Return the bridges with the rewards of ``config``; the bridges themselves where those are the recorded ones.

    Args:
        dataset: as recorded; for rules that measure steps by it.
    """
    if config == RECORDED:
        return bridges
    facts = None if dataset is None else data_facts(dataset, bridges)
    return ShapedBridges(bridges=bridges, config=config, facts=facts)


def data_facts(dataset: EpisodeDataset, bridges: Bridges) -> DataFacts:
    """Return the numbers of the dataset, and, where the bridges are those of a buffer, of its calibration."""
    if not isinstance(bridges, MappedBridges):
        return DataFacts(dataset=dataset)
    calibration = bridges.buffer.calibration
    names = ("residual", "spread", "residual_sum", "spread_sum")
    known = [name for name in names if name in calibration.tables]
    limits = {name: calibration.threshold("q99", calibration.gaps, name) for name in known}
    return DataFacts(dataset=dataset, limits=limits, first_gap=int(calibration.gaps[0]))


@dataclass(frozen=True, kw_only=True, eq=False)
class ShapedBridges:
    """Bridges whose rewards are computed as they are read; a ``Bridges``."""

    bridges: Bridges
    config: RewardConfig
    facts: DataFacts | None = None

    def __len__(self) -> int:
        return len(self.bridges)

    @property
    def all_references(self) -> References:
        """References of every bridge, in order."""
        return self.bridges.all_references

    @property
    def content(self) -> str:
        """A digest of the bridges and of what their rewards follow from."""
        facts = self.facts
        measured = "" if facts is None else {name: limits.tolist() for name, limits in facts.limits.items()}
        of_data = "" if facts is None else facts.dataset.fingerprint
        return hashlib.sha256(f"{self.bridges.content} {self.config} {of_data} {measured}".encode()).hexdigest()

    def chunks(self, max_transitions: int = CHUNK_TRANSITIONS) -> Iterator[BridgeSet]:
        """Yield all bridges in pieces, in order."""
        return map(self._shaped, self.bridges.chunks(max_transitions))

    def take_positions(self, positions: Ints) -> BridgeSet:
        """Return the bridges at ascending positions, in memory."""
        return self._shaped(self.bridges.take_positions(positions))

    def ends(self) -> Ints:
        """Return the transitions of all bridges before which the rule ends episodes, ascending; for rules that end none
        nothing is read."""
        found: list[Ints] = []
        if self.config.name != "cut":
            return np.zeros(0, np.int64)
        before = 0
        for chunk in self.bridges.chunks():
            marked = ends_early(self.config, stored_steps(chunk, self.facts))
            if marked is not None:
                found.append(before + np.flatnonzero(marked))
            before += chunk.num_transitions
        return np.concatenate([np.zeros(0, np.int64), *found])

    def _shaped(self, bridges: BridgeSet) -> BridgeSet:
        return replace(bridges, rewards=apply_rewards(self.config, stored_steps(bridges, self.facts)))
