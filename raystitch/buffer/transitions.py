"""Single transitions of a buffer in any order, gathered from the mapped files.

Random rows of a file that is larger than the caches cost a miss each, and a few rows from each of many files a call
each; so many draws are sorted by where they lie, fetched file by file, and put back into their order afterwards.
Legend: B bridges, T their transitions, D draws, O observation size, A action size.
"""

from collections.abc import Iterator
from typing import Any, Literal, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

from raystitch.buffer.schema import BufferMeta
from raystitch.data.episodes import Bools, Floats, Ints
from raystitch.seeding import numpy_rng

Over = Literal["transitions", "bridges"]


class StepBatch(TypedDict):
    """``observation, next_observation`` float32 [D, O], ``action`` [D, A], ``reward`` [D], ``terminated`` bool [D]:
    always False, for a seam is neither terminal nor a time-out."""

    observation: Floats
    action: Floats
    reward: Floats
    next_observation: Floats
    terminated: Bools


class MappedFiles(Protocol):
    """Steps of candidates in mapped files: an open buffer.

    Attributes:
        file_starts: int64 [F + 1], first row of each of F files, and the number of candidates.
    """

    uri: str
    meta: BufferMeta
    file_starts: Ints

    def steps(self, number: int) -> tuple[Floats, Floats, Floats]:
        """Observations, actions and rewards of all candidates of a file."""
        ...

    def step_starts(self, number: int) -> Ints:
        """First transition of each candidate of a file and, last, their number."""
        ...


class Transitions:
    """The T transitions of B candidates, numbered in the order of the rows; 20 bytes per bridge in memory."""

    def __init__(self, buffer: MappedFiles, rows: Ints) -> None:
        """``rows``: int64 [B], ascending."""
        self.buffer, self.rows = buffer, rows
        cuts = np.searchsorted(rows, buffer.file_starts)
        self._files = np.flatnonzero(np.diff(cuts)).tolist()
        # Where in its file's steps a bridge begins, and its row there (observations have one more row per bridge).
        self._begin = np.zeros(len(rows), np.int64)
        self._local = np.zeros(len(rows), np.int32)
        lengths = np.zeros(len(rows), np.int32)
        for number in self._files:
            here = slice(cuts[number], cuts[number + 1])
            local = rows[here] - buffer.file_starts[number]
            starts = buffer.step_starts(number)
            self._begin[here], self._local[here] = starts[local], local
            lengths[here] = starts[local + 1] - starts[local]
        self._offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths, out=self._offsets[1:])
        self._file_offsets = self._offsets[cuts[[*self._files, -1]]] if self._files else np.zeros(1, np.int64)

    def __len__(self) -> int:
        return int(self._offsets[-1])

    @property
    def num_bridges(self) -> int:
        return len(self.rows)

    def at(self, index: Ints) -> StepBatch:
        """The transitions with these numbers (int64 [D], any order, any number of times).

        Raises:
            IndexError: for a number that is not in -T..T - 1.
            UserError: when a file that holds one of them is damaged.
        """
        index = np.asarray(index, np.int64)
        if len(index) and not (-len(self) <= index.min() and index.max() < len(self)):
            raise IndexError(f"transitions are numbered 0..{len(self) - 1}, got {index.min()}..{index.max()}")
        index = np.where(index < 0, index + len(self), index)
        order = np.argsort(index)
        place = np.empty(len(index), np.int64)
        place[order] = np.arange(len(index))
        return self._gather(index[order], place)

    def _gather(self, index: Ints, place: Ints) -> StepBatch:
        """Transitions ``index`` (ascending), the one at ``place[d]`` in row d of the result."""
        bridge = np.searchsorted(self._offsets, index, side="right") - 1
        step = index - self._offsets[bridge] + self._begin[bridge]
        state = step + self._local[bridge]
        cuts = np.searchsorted(index, self._file_offsets).tolist()
        meta, count = self.buffer.meta, len(index)
        observation, next_observation = np.empty((2, count, meta.obs_dim), np.float32)
        action, reward = np.empty((count, meta.act_dim), np.float32), np.empty(count, np.float32)
        following = state + 1
        for number, begin, end in zip(self._files, cuts[:-1], cuts[1:], strict=True):
            if begin < end:
                states, moves, earned = self.buffer.steps(number)
                _fetch(states, state[begin:end], observation[begin:end])
                _fetch(states, following[begin:end], next_observation[begin:end])
                _fetch(moves, step[begin:end], action[begin:end])
                _fetch(earned, step[begin:end], reward[begin:end])
        return StepBatch(
            observation=observation.take(place, 0, mode="clip"),
            action=action.take(place, 0, mode="clip"),
            reward=reward.take(place, 0, mode="clip"),
            next_observation=next_observation.take(place, 0, mode="clip"),
            terminated=np.zeros(count, np.bool_),
        )

    def batches(
        self,
        batch_size: int,
        seed: int,
        *,
        num_batches: int | None = None,
        start: int = 0,
        over: Over = "transitions",
        window: int = 64,
    ) -> Iterator[StepBatch]:
        """Independent draws with replacement, every transition as likely as any other.

        The same seed, batch size and window give the same batches, however the buffer's files are split or merged.

        Args:
            num_batches: None for no end.
            start: number of the first batch: where a loop that was interrupted goes on.
            over: ``bridges`` draws a bridge first, each as likely, and then one of its transitions.
            window: batches that are fetched together. Memory is window x batch_size transitions, twice.

        Raises:
            ValueError: for sizes below 1, or when there is nothing to draw from.
            UserError: when a file is damaged.
        """
        for name, value, least in (("batch_size", batch_size, 1), ("window", window, 1), ("start", start, 0)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {name}={value}")
        if not len(self):
            raise ValueError(f"{self.buffer.uri} holds no transition at this delta to draw")
        return self._batches(batch_size, seed, num_batches, start, over, window)

    def _batches(
        self, batch_size: int, seed: int, num_batches: int | None, start: int, over: Over, window: int
    ) -> Iterator[StepBatch]:
        end = None if num_batches is None else start + num_batches
        number = start
        while end is None or number < end:
            block = number // window
            rng = numpy_rng(seed, "batches", block)
            index = np.sort(self._draw(window * batch_size, over, rng))
            # The draws are exchangeable, so a random order of the sorted ones is as good as their own.
            place = rng.permutation(len(index))
            last = (block + 1) * window if end is None else min((block + 1) * window, end)
            cut = slice((number - block * window) * batch_size, (last - block * window) * batch_size)
            fetched: Any = self._gather(index, place[cut])
            for first in range(0, (last - number) * batch_size, batch_size):
                yield StepBatch(**{name: column[first : first + batch_size] for name, column in fetched.items()})
            number = last

    def _draw(self, count: int, over: Over, rng: np.random.Generator) -> Ints:
        if over == "transitions":
            return rng.integers(0, len(self), count)
        bridge = rng.integers(0, self.num_bridges, count)
        return rng.integers(self._offsets[bridge], self._offsets[bridge + 1])


def _fetch(source: NDArray[np.float32], index: Ints, out: NDArray[np.float32]) -> None:
    # mode="raise" would go through a temporary; the index is in range by construction.
    source.take(index, 0, out=out, mode="clip")
