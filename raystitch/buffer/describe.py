"""What ``raystitch buffer info`` prints: from the columns of one number per candidate alone, the steps stay on disk."""

import os
from dataclasses import asdict
from typing import Any

import numpy as np

from raystitch.buffer.reader import AtDelta, open_buffer
from raystitch.buffer.survey import survey
from raystitch.data.episodes import Floats


def describe(uri: str | os.PathLike[str], delta: AtDelta = "generation") -> dict[str, Any]:
    """Plain data for JSON; of a buffer that is unfinished or damaged what there is of it.

    Returns:
        ``buffer, complete, shards, files, bytes`` (on disk), ``missing`` (numbers of shards that a finished buffer
        lacks), ``damaged`` (file -> what is wrong with it, as far as opening shows; ``verify`` looks at every byte),
        ``failed`` (shard -> why it could not be made), ``candidates, accepted, transitions, delta, reasons`` (counts),
        ``rounds`` (list of ``RoundCounts``), ``residual_median, gap_mean`` (of the accepted; None without any),
        ``dataset, bundle, seed, gamma, stitch, augment``.

    Raises:
        UserError: when it is not a buffer.
    """
    found = survey(uri, thorough=False)
    buffer = open_buffer(uri, allow_partial=True, without=found.damaged)
    meta = buffer.meta
    rows = buffer.accepted_rows(delta)
    gap, residual = buffer.column("gap")[rows], buffer.column("residual_max")[rows]
    wanted = range(meta.complete.num_shards) if meta.complete is not None else range(0)
    return {
        "buffer": os.fspath(uri),
        "complete": meta.complete is not None,
        "shards": len(buffer.stats),
        "files": buffer.num_files,
        "bytes": buffer.num_bytes,
        "missing": [shard for shard in wanted if shard not in buffer.stats],
        "damaged": found.damaged,
        "failed": {shard: stats.error for shard, stats in buffer.stats.items() if stats.error},
        "candidates": buffer.num_candidates,
        "accepted": len(rows),
        "transitions": int((gap + 1).sum()),
        "delta": meta.stitch.qualify.delta if delta == "generation" else delta,
        "reasons": buffer.reasons(delta),
        "rounds": [asdict(counts) for counts in buffer.rounds(delta)],
        "residual_median": _median(residual),
        "gap_mean": float(gap.mean()) if len(gap) else None,
        "dataset": meta.dataset_name,
        "bundle": meta.bundle_hash,
        "seed": meta.seed,
        "gamma": meta.gamma,
        "stitch": asdict(meta.stitch),
        "augment": asdict(meta.augment),
    }


def _median(values: Floats) -> float | None:
    return float(np.median(values)) if len(values) else None
