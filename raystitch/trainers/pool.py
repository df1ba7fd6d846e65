"""The transitions that trainers draw from: the dataset's and then the bridges', in memory or in files.

Both kinds are filled by the same code from the same pieces, so they hold the same bits. Files are written once for all
trials that read the same bridges and are mapped, so the trials of a machine share its page cache.
Legend: P observation rows, N transitions, O observation size, A action size.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raystitch.buffer.bridges import CHUNK_TRANSITIONS, Bridges
from raystitch.data.episodes import EpisodeDataset, Floats
from raystitch.data.normalise import Normalizer
from raystitch.data.returns import returns_to_go
from raystitch.io.cache import Scratch
from raystitch.io.files import require_space
from raystitch.shaping.returns import PooledEpisodes
from raystitch.trainers.segments import Segments

VERSION = 1
"""Version of the files; part of their name."""

Columns = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class TransitionPool:
    """Standardised transitions on the CPU, the dataset's and then the bridges'.

    Attributes:
        observations: float32 [P, O]; obs_row: int64 [N], row of s_t, s_{t+1} is the next row.
        actions: float32 [N, A], in [-1, 1]; rewards, dones: float32 [N].
        rtg: float32 [N], raw return-to-go within the dataset episode or the bridge.
    """

    observations: Tensor
    obs_row: Tensor
    actions: Tensor
    rewards: Tensor
    dones: Tensor
    rtg: Tensor

    def episodes(self, segments: Segments, values: Floats | None = None) -> PooledEpisodes:
        """Return episodes of this pool for the hook on returns-to-go, with V of its observations [P] where the rule
        reads it; nothing is copied."""
        return PooledEpisodes(
            start=segments.start,
            length=segments.length,
            rewards=self.rewards.numpy(),
            dones=self.dones.numpy(),
            rest=self.rtg.numpy(),
            observations=self.observations.numpy(),
            obs_row=self.obs_row.numpy(),
            values=values,
        )


def _layout(dataset: EpisodeDataset, bridges: Bridges | None) -> dict[str, tuple[tuple[int, ...], type[np.generic]]]:
    """Return the shape and type of every column."""
    count, states = dataset.num_transitions, len(dataset.observations)
    if bridges is not None:
        generated = bridges.all_references.num_transitions
        count, states = count + generated, states + generated + len(bridges)
    return {
        "observations": ((states, dataset.obs_dim), np.float32),
        "obs_row": ((count,), np.int64),
        "actions": ((count, dataset.act_dim), np.float32),
        "rewards": ((count,), np.float32),
        "dones": ((count,), np.float32),
        "rtg": ((count,), np.float32),
    }


def pool_bytes(dataset: EpisodeDataset, bridges: Bridges | None) -> int:
    """Return the size of the pool."""
    return sum(_bytes(shape, kind) for shape, kind in _layout(dataset, bridges).values())


def _bytes(shape: tuple[int, ...], kind: type[np.generic]) -> int:
    return int(np.prod(shape)) * np.dtype(kind).itemsize


def build_pool(
    dataset: EpisodeDataset, bridges: Bridges | None, normalizer: Normalizer, memory: float, scratch: Scratch | None
) -> TransitionPool:
    """Build the pool, in memory up to ``memory`` bytes and otherwise in files.

    Args:
        dataset, bridges: with the rewards that count, see ``shape_dataset`` and ``shape_bridges``.
        scratch: where the files are kept; None for the user's cache folder.

    Raises:
        RunError: when the disk is too full for the files.
        UserError: when a shard of the buffer is damaged.
    """
    layout = _layout(dataset, bridges)
    if pool_bytes(dataset, bridges) <= memory:
        return _in_memory(layout, _pieces(dataset, bridges, normalizer))
    return _in_files(dataset, bridges, normalizer, scratch or Scratch("pools"))


def _in_memory(
    layout: Mapping[str, tuple[tuple[int, ...], type[np.generic]]], pieces: Iterator[Columns]
) -> TransitionPool:
    arrays = {name: np.empty(shape, kind) for name, (shape, kind) in layout.items()}
    filled = dict.fromkeys(arrays, 0)
    for piece in pieces:
        for name, values in piece.items():
            arrays[name][filled[name] : filled[name] + len(values)] = values
            filled[name] += len(values)
    assert all(filled[name] == len(array) for name, array in arrays.items())
    return TransitionPool(**{name: torch.from_numpy(array) for name, array in arrays.items()})


def _in_files(
    dataset: EpisodeDataset, bridges: Bridges | None, normalizer: Normalizer, scratch: Scratch
) -> TransitionPool:
    layout = _layout(dataset, bridges)

    def write(folder: Path) -> None:
        require_space(folder, pool_bytes(dataset, bridges))
        with ExitStack() as stack:
            files: dict[str, IO[bytes]] = {
                name: stack.enter_context((folder / f"{name}.bin").open("wb")) for name in layout
            }
            for piece in _pieces(dataset, bridges, normalizer):
                for name, values in piece.items():
                    values.astype(layout[name][1], copy=False).tofile(files[name])
        for name, (shape, kind) in layout.items():
            assert (folder / f"{name}.bin").stat().st_size == _bytes(shape, kind)

    content = "" if bridges is None else bridges.content
    name = hashlib.sha256(f"{VERSION} {dataset.scaling_fingerprint} {content}".encode()).hexdigest()[:32]
    folder = scratch.folder(name, write)
    return TransitionPool(
        **{name: _mapped(folder / f"{name}.bin", shape, kind) for name, (shape, kind) in layout.items()}
    )


def _mapped(path: Path, shape: tuple[int, ...], kind: type[np.generic]) -> Tensor:
    """Return a tensor over a file; private, so that nothing written to it would reach the file."""
    dtype = torch.int64 if kind is np.int64 else torch.float32
    count = int(np.prod(shape))
    if not count:
        return torch.zeros(shape, dtype=dtype)
    return torch.from_file(os.fspath(path), shared=False, size=count, dtype=dtype).view(shape)


def _pieces(dataset: EpisodeDataset, bridges: Bridges | None, normalizer: Normalizer) -> Iterator[Columns]:
    """Yield the content of the columns, piece by piece; a column's pieces come in order."""
    half_range = np.maximum((dataset.action_high - dataset.action_low) / 2, 1e-8)
    centre = (dataset.action_high + dataset.action_low) / 2

    def scaled(actions: Floats) -> Floats:
        return ((actions - centre) / half_range).astype(np.float32)

    for begin in range(0, len(dataset.observations), CHUNK_TRANSITIONS):
        yield {"observations": normalizer.encode(dataset.observations[begin : begin + CHUNK_TRANSITIONS])}
    for begin in range(0, dataset.num_transitions, CHUNK_TRANSITIONS):
        here = slice(begin, begin + CHUNK_TRANSITIONS)
        yield {"obs_row": dataset.obs_index[here], "actions": scaled(dataset.actions[here])}
    yield {
        "rewards": dataset.rewards,
        "dones": dataset.transition_terminal.astype(np.float32),
        "rtg": returns_to_go(dataset.rewards, dataset.offsets),
    }
    states = len(dataset.observations)
    for chunk in () if bridges is None else bridges.chunks(CHUNK_TRANSITIONS):
        yield {
            "observations": normalizer.encode(chunk.observations),
            "obs_row": states + chunk.obs_index,
            "actions": scaled(chunk.actions),
            "rewards": chunk.rewards,
            "dones": np.zeros(chunk.num_transitions, np.float32),
            "rtg": returns_to_go(chunk.rewards, chunk.offsets),
        }
        states += len(chunk.observations)
