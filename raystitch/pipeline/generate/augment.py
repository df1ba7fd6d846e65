"""Generation of a buffer from a dataset and a bundle: the content of a shard. ``ledger`` says which are needed.

``augment_local`` does it in one process; ``raystitch.cluster.augment`` spreads the same functions over Ray actors.
"""

import os
from dataclasses import replace

import numpy as np

from raystitch.buffer.config import AugmentConfig
from raystitch.buffer.schema import candidates_to_table
from raystitch.buffer.shard_file import write_shard
from raystitch.data.episodes import EpisodeDataset, Ints
from raystitch.models.bundle import Bundle
from raystitch.pipeline.generate.ledger import AugmentSummary
from raystitch.pipeline.generate.opening import open_ledger
from raystitch.pipeline.generate.progress import OnAugmentProgress
from raystitch.seeding import numpy_rng
from raystitch.stitching.candidates import Candidates
from raystitch.stitching.config import StitchConfig
from raystitch.stitching.pairs import Known, SourceIndex
from raystitch.stitching.stitcher import Stitcher
from raystitch.stitching.values import StateValues


def shard_seeds(root_seed: int, shard: int, pairs_per_shard: int) -> Ints:
    """One seed per pair of a shard, int64 [pairs_per_shard]."""
    return numpy_rng(root_seed, "shard", shard).integers(0, 2**63 - 1, pairs_per_shard, np.int64)


def propose_shard(
    stitcher: Stitcher, source_index: SourceIndex, root_seed: int, shard: int, pairs_per_shard: int
) -> Candidates:
    """Return the candidates of a shard before qualification; a pure function of its arguments.

    They refer to episodes by their numbers in the whole dataset, also where pairs are selected from a part, and in a
    chain round to bridges. Pairs that are not ``worthwhile`` are dropped.
    """
    seeds = shard_seeds(root_seed, shard, pairs_per_shard)
    pairs = source_index.select(seeds)
    kept = np.flatnonzero(source_index.worthwhile(pairs))
    candidates, known = stitcher.propose(pairs.take(kept), seeds[kept]), source_index.known
    return _numbered(candidates, source_index.pools.dataset) if known is None else known.refer(candidates)


def _numbered(candidates: Candidates, dataset: EpisodeDataset) -> Candidates:
    """Return candidates between rows of ``dataset`` as references to the episodes of the whole."""
    if dataset.selected_from is None:
        return candidates
    source, target = (dataset.episode_numbers[at] for at in (candidates.source_episode, candidates.target_episode))
    return replace(candidates, source_episode=source, target_episode=target)


def make_shard(
    stitcher: Stitcher, source_index: SourceIndex, root_seed: int, shard: int, pairs_per_shard: int
) -> Candidates:
    """The qualified candidates of a shard; a pure function of its arguments."""
    return stitcher.qualify(propose_shard(stitcher, source_index, root_seed, shard, pairs_per_shard))


def source_index(
    dataset: EpisodeDataset,
    bundle: Bundle,
    config: StitchConfig,
    known: Known,
    before: SourceIndex | None = None,
) -> SourceIndex:
    """Pair selection for a round: over the dataset, by what its states are worth, or over trajectories of earlier
    rounds.

    Args:
        before: of an earlier round, whose search trees are kept where they are the same.
    """
    if isinstance(known, StateValues):
        if before is not None and isinstance(before.known, StateValues):
            return before.with_values(known)
        return SourceIndex(dataset, bundle, config, state_values=known)
    return SourceIndex(dataset if known is None else known.dataset, bundle, config, chain=known)


def augment_local(
    dataset: EpisodeDataset,
    bundle: Bundle,
    stitch_config: StitchConfig | None = None,
    config: AugmentConfig | None = None,
    *,
    out: str | os.PathLike[str],
    seed: int = 0,
    progress: OnAugmentProgress | None = None,
) -> AugmentSummary:
    """Fills a buffer in this process, shard by shard; takes up a buffer that was started with the same settings.

    Raises:
        UserError: another dataset than the bundle's, nothing to leave or enter, or ``out`` holds something else.
        RunError: when too little is accepted or the buffer cannot be written.
    """
    stitch_config, config = stitch_config or StitchConfig(), config or AugmentConfig()
    ledger = open_ledger(dataset, bundle, stitch_config, config, out, seed, progress)
    stitch_config = ledger.stitch
    index: SourceIndex | None = None
    while True:
        for chain_round in ledger.open_rounds():
            stitcher = Stitcher(bundle, stitch_config)
            index = source_index(dataset, bundle, stitch_config, ledger.known, index)
            while not ledger.round_done:
                (shard,) = ledger.next_shards(1)
                candidates = make_shard(stitcher, index, seed, shard, config.pairs_per_shard)
                table = candidates_to_table(candidates, shard, chain_round, ledger.schema_version)
                ledger.add(write_shard(ledger.path, shard, table, ledger.manifest))
        summary = ledger.finish()
        if summary is not None:
            return summary
