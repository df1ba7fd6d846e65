"""Bridges and whole stitched episodes of a buffer piece by piece, for files of any size.

Legend: B bridges, E episodes, N transitions.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from raystitch.buffer.bridges import CHUNK_TRANSITIONS, Bridges, References, chunk_bounds
from raystitch.buffer.episodes import bridge_episodes, rebuild
from raystitch.buffer.runs import BLOCK, stitched_runs
from raystitch.data.episodes import Bools, EpisodeDataset, Ints
from raystitch.data.stream import EpisodeStream, Piece
from raystitch.errors import UserError


def _common(dataset: EpisodeDataset) -> dict[str, Any]:
    names = ("obs_dim", "act_dim", "action_low", "action_high", "env")
    return {"marks": True, **{name: getattr(dataset, name) for name in names}}


def lone_stream(
    dataset: EpisodeDataset, bridges: Bridges, max_transitions: int = CHUNK_TRANSITIONS
) -> tuple[EpisodeStream, int]:
    """Every bridge as an episode of its own (see ``bridge_episodes``), and how many transitions were generated: all."""

    def pieces() -> Iterator[Piece]:
        for chunk in bridges.chunks(max_transitions):
            lone = bridge_episodes(dataset, chunk)
            yield lone.episodes, lone.is_synthetic

    stream = EpisodeStream(
        name=f"bridges of {dataset.name}",
        lengths=bridges.all_references.gap + 1,
        final_observed=np.ones(len(bridges), np.bool_),
        pieces=pieces,
        **_common(dataset),
    )
    return stream, stream.num_transitions


def stitched_stream(
    dataset: EpisodeDataset,
    bridges: Bridges,
    ratio: tuple[float, float] | None = None,
    max_transitions: int = CHUNK_TRANSITIONS,
) -> tuple[EpisodeStream, int]:
    """Whole stitched episodes, cut at the environment's time limit, and how many of their transitions were generated.

    A source that is left at the time limit gives no episode: there is no room for its bridge. A chained bridge counts
    its parents' generated transitions too, for they are in its episode.

    Args:
        ratio: original : synthetic transitions. The dataset comes first, then as many stitched episodes, in the
            buffer's order, as come nearest to it. None: all stitched episodes and no dataset.

    Raises:
        UserError: for a ratio that is not one, or when there are too few bridges for it.
    """
    if ratio is not None and (min(ratio) < 0 or max(ratio) == 0 or not np.isfinite(ratio).all()):
        raise UserError(f"ratio {ratio[0]:g}:{ratio[1]:g}: both parts must be >= 0 and one of them positive")
    references = bridges.all_references
    limit = dataset.env.max_episode_steps if dataset.env is not None else None
    lengths, synthetic, final_observed = _outcome(dataset, references, limit)
    rows = np.arange(len(references))
    if limit is not None:
        rows = np.flatnonzero(references.source_step < limit)
        if len(rows) == 0:
            raise UserError(
                f"every bridge starts at the time limit of {limit} steps, so no stitched episode holds one; export "
                "--what bridges, or augment with stitch.pairs.source_cut=any"
            )
    with_dataset = ratio is not None and ratio[0] > 0
    if ratio is not None and with_dataset:
        rows = rows[: _count(dataset, synthetic[rows], ratio)]

    def pieces() -> Iterator[Piece]:
        if with_dataset:
            yield dataset, np.zeros(dataset.num_transitions, np.bool_)
        for begin, end in pairwise(chunk_bounds(lengths[rows], max_transitions).tolist()):
            needed = references.with_ancestors(rows[begin:end])
            chunk = bridges.take_positions(needed)
            stitched = rebuild(dataset, chunk, np.searchsorted(needed, rows[begin:end]), limit)
            yield stitched.episodes, stitched.is_synthetic

    ahead = dataset.num_episodes if with_dataset else 0
    stream = EpisodeStream(
        name=dataset.name if with_dataset else f"stitched from {dataset.name}",
        lengths=np.concatenate([dataset.lengths[:ahead], lengths[rows]]),
        final_observed=np.concatenate([dataset.final_observed[:ahead], final_observed[rows]]),
        pieces=pieces,
        **_common(dataset),
    )
    return stream, int(synthetic[rows].sum())


def _outcome(dataset: EpisodeDataset, references: References, limit: int | None) -> tuple[Ints, Ints, Bools]:
    """Of every bridge's stitched episode: transitions, generated ones among them, and whether its end was recorded."""
    runs = stitched_runs(dataset, references)[0]
    count = len(references)
    lengths, synthetic, cut = np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros(count, np.bool_)
    for first in range(0, count, BLOCK):
        here = slice(first, first + BLOCK)
        block = runs.take(np.arange(first, min(first + BLOCK, count)))
        kept = block if limit is None else block.head(limit)
        lengths[here] = kept.total
        synthetic[here] = (kept.length * (kept.start >= dataset.num_transitions)).sum(1)
        cut[here] = block.total > lengths[here]
    return lengths, synthetic, dataset.final_observed[references.target_episode] | cut


def _count(dataset: EpisodeDataset, synthetic: Ints, ratio: tuple[float, float]) -> int:
    """How many episodes with so many generated transitions each come nearest to ``ratio``."""
    original, augmented = ratio
    wanted = dataset.num_transitions * augmented / original
    so_far = np.concatenate([[0], np.cumsum(synthetic)])
    available = int(so_far[-1])
    if wanted > available + 0.5:
        raise UserError(
            f"ratio {original:g}:{augmented:g} needs {wanted:.0f} synthetic transitions, but the {len(synthetic)} "
            f"bridges at this delta hold {available:.0f}; the most is 1:{available / dataset.num_transitions:.3g}"
        )
    return int(np.abs(so_far - wanted).argmin())
