"""Episodes that come in pieces, so that files can be written of more than fits into memory.

Legend: E episodes, N their transitions, A action size.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from raystitch.data.episodes import Bools, EpisodeDataset, Floats, Ints
from raystitch.envs.spec import EnvSpec

Piece = tuple[EpisodeDataset, Bools | None]
"""Some episodes, and for each of their transitions whether it was generated (None where the stream does not say)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EpisodeStream:
    """What is known of E episodes before the first of them, and a way to get them.

    Attributes:
        lengths: int64 [E], transitions of each. final_observed: bool [E].
        action_low, action_high: float32 [A].
        pieces: yields all episodes in order.
        marks: whether the pieces say which transitions were generated.
    """

    name: str
    lengths: Ints
    final_observed: Bools
    obs_dim: int
    act_dim: int
    action_low: Floats
    action_high: Floats
    env: EnvSpec | None
    pieces: Callable[[], Iterator[Piece]]
    marks: bool = False

    @property
    def num_episodes(self) -> int:
        return len(self.lengths)

    @cached_property
    def num_transitions(self) -> int:
        return int(self.lengths.sum())

    @property
    def num_bytes(self) -> int:
        """Of observations, actions and rewards."""
        states = self.num_transitions + self.num_episodes
        return 4 * (states * self.obs_dim + self.num_transitions * (self.act_dim + 1))

    @classmethod
    def of(cls, dataset: EpisodeDataset) -> "EpisodeStream":
        """A dataset that is in memory, in one piece."""
        return cls(
            name=dataset.name,
            lengths=dataset.lengths,
            final_observed=dataset.final_observed,
            obs_dim=dataset.obs_dim,
            act_dim=dataset.act_dim,
            action_low=dataset.action_low,
            action_high=dataset.action_high,
            env=dataset.env,
            pieces=lambda: iter([(dataset, None)]),
        )


def stream_of(episodes: "EpisodeDataset | EpisodeStream") -> EpisodeStream:
    """Either as a stream."""
    return EpisodeStream.of(episodes) if isinstance(episodes, EpisodeDataset) else episodes
