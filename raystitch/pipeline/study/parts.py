"""The two parts of a dataset that a study compares, and the bridges that know one of them alone.

Legend: E episodes, R states, D active dimensions, B bridges.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from raystitch.buffer.bridges import References
from raystitch.buffer.reader import Buffer
from raystitch.data.episodes import Bools, EpisodeDataset, Floats, Ints
from raystitch.data.normalise import Normalizer
from raystitch.data.select import holdout_split
from raystitch.errors import UserError
from raystitch.models.batches import recorded_stops
from raystitch.models.bundle import Bundle
from raystitch.pipeline.validate.windows import bridge_windows
from raystitch.seeding import derive_seed

MIN_EPISODES = 4
OWN_FRACTION = 0.2
"""Share of the episodes held out where no bundle says which ones were."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StudyParts:
    """A dataset in two parts.

    Attributes:
        train, held_out: int64, episodes that the models were fitted on and episodes that they never saw.
        known: False where no bundle says so and the split is the study's own.
        normalizer: the bundle's, else the dataset's.
    """

    dataset: EpisodeDataset
    train: Ints
    held_out: Ints
    normalizer: Normalizer
    known: bool

    @classmethod
    def of(cls, dataset: EpisodeDataset, bundle: Bundle | None, seed: int) -> "StudyParts":
        """Return the parts of ``dataset``.

        Raises:
            UserError: when there are too few episodes, or the bundle was fitted on other ones.
        """
        if dataset.num_episodes < MIN_EPISODES:
            raise UserError(
                f"{dataset.name} has {dataset.num_episodes} episodes; a part of them is held out and compared with the "
                f"rest, which takes at least {MIN_EPISODES}"
            )
        if bundle is None:
            train, held_out = holdout_split(dataset.num_episodes, OWN_FRACTION, derive_seed(seed, "study"))
            return cls(
                dataset=dataset,
                train=train,
                held_out=held_out,
                normalizer=Normalizer.fit(dataset.observations),
                known=False,
            )
        if bundle.dataset_fingerprint != dataset.fingerprint:
            raise UserError(
                f"the stitcher was fitted on another dataset or selection than {dataset.name}, so it is not known "
                "which of these episodes it held out; give that dataset"
            )
        config = bundle.config
        train, held_out = holdout_split(
            dataset.num_episodes, config.holdout_fraction, derive_seed(config.seed, "holdout")
        )
        return cls(dataset=dataset, train=train, held_out=held_out, normalizer=bundle.normalizer, known=True)

    @property
    def _recorded(self) -> Ints:
        """Recorded states per episode, int64 [E]."""
        return recorded_stops(self.dataset) - self.dataset.obs_offsets[:-1]

    def num_states(self, episodes: Ints) -> int:
        """Return how many states of ``episodes`` are recorded."""
        return int(self._recorded[episodes].sum())

    def states(self, episodes: Ints, most: int, rng: np.random.Generator) -> "StatePoints":
        """Draw at most ``most`` of the recorded states of ``episodes``."""
        counts = self._recorded[episodes]
        before = np.cumsum(counts) - counts
        drawn = np.sort(rng.permutation(int(counts.sum()))[:most])
        at = np.searchsorted(before, drawn, side="right") - 1
        rows = self.dataset.obs_offsets[episodes[at]] + drawn - before[at]
        return StatePoints(self.encode(self.dataset.observations[rows]), episodes[at])

    def encode(self, observations: Floats) -> Floats:
        """Return states in standardised units without constant dimensions, float32 [R, D]."""
        return np.ascontiguousarray(self.normalizer.encode(observations)[:, self.normalizer.active])

    def to_json(self) -> dict[str, Any]:
        """Return the key ``split`` of generalise.json."""
        return {
            "num_train": len(self.train),
            "num_held_out": len(self.held_out),
            "known": self.known,
        }


@dataclass(frozen=True, eq=False)
class StatePoints:
    """States as points: ``points`` float32 [R, D], ``episode`` int64 [R] or [R, 2], the episodes they belong to."""

    points: Floats
    episode: Ints

    def __len__(self) -> int:
        return len(self.points)

    def take(self, rows: Ints | Bools) -> "StatePoints":
        """Return the given states."""
        return StatePoints(self.points[rows], self.episode[rows])


def inside(references: References, train: Ints) -> Bools:
    """Mark the bridges that lead from a training episode into one and are built on such bridges alone, bool [B]."""
    ok = np.isin(references.source_episode, train) & np.isin(references.target_episode, train)
    if references.is_chained:
        parents = references.parent_positions()
        for chain_round in range(1, int(references.chain_round.max()) + 1):
            rows = np.flatnonzero(references.chain_round == chain_round)
            for parent in parents:
                named = rows[parent[rows] >= 0]
                ok[named] &= ok[parent[named]]
    return ok


def inside_rows(buffer: Buffer, level: float | str, train: Ints) -> tuple[Ints, int]:
    """Return the buffer's rows of bridges that are ``inside`` when it is read at ``level``, and how many all are."""
    references = buffer.mapped(level).all_references
    return references.rows[inside(references, train)], len(references)


def generated_states(buffer: Buffer, rows: Ints, parts: StudyParts) -> tuple[StatePoints, Ints]:
    """Return the generated states of candidates, each with the two episodes of its bridge, and its row, int64 [R]."""
    bridges = buffer.take(rows)
    windows = bridge_windows(bridges)
    generated = windows.step < windows.gap[windows.window]
    bridge = windows.window[generated]
    own = np.stack([bridges.source_episode, bridges.target_episode], axis=1)
    return StatePoints(parts.encode(windows.next_observations[generated]), own[bridge]), bridges.rows[bridge]


def skipped(reason: str) -> Mapping[str, Any]:
    """Return a part of generalise.json that could not be measured."""
    return {"skipped": reason}
