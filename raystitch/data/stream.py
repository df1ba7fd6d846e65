"""Episodes that come in pieces, so that files larger than memory can be written.

Legend: E episodes, N their transitions, A action size.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from raystitch.data.episodes import Bools, EpisodeDataset, Floats, Ints
from raystitch.envs.spec import EnvSpec

Piece = tuple[EpisodeDataset, Bools | None]
"""Some episodes, and for each of their transitions whether it was generated (None when the stream does not know)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EpisodeStream:
    """E episodes to come: their sizes, and a way to get them piece by piece.

    Attributes:
        lengths: int64 [E], transitions of each. final_observed: bool [E].
        action_low, action_high: float32 [A].
        pieces: yields all episodes in order.
        marks: True if the pieces say which transitions were generated.
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
        """Bytes of observations, actions and rewards together."""
        states = self.num_transitions + self.num_episodes
        return 4 * (states * self.obs_dim + self.num_transitions * (self.act_dim + 1))

    @classmethod
    def of(cls, dataset: EpisodeDataset) -> "EpisodeStream":
        """Return a dataset in memory as a stream of one piece."""
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
    """Return a dataset or a stream as a stream."""
    return EpisodeStream.of(episodes) if isinstance(episodes, EpisodeDataset) else episodes
