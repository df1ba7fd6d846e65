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
from raystitch.pipeline.generate.ledger import AugmentSummary, open_ledger
from raystitch.pipeline.generate.progress import OnAugmentProgress
from raystitch.seeding import numpy_rng
from raystitch.stitching.candidates import Candidates
from raystitch.stitching.chain import Trajectories
from raystitch.stitching.config import StitchConfig
from raystitch.stitching.pairs import SourceIndex
from raystitch.stitching.stitcher import Stitcher


def shard_seeds(root_seed: int, shard: int, pairs_per_shard: int) -> Ints:
    """One seed per pair of a shard, int64 [pairs_per_shard]."""
    return numpy_rng(root_seed, "shard", shard).integers(0, 2**63 - 1, pairs_per_shard, np.int64)


def propose_shard(
    stitcher: Stitcher, source_index: SourceIndex, root_seed: int, shard: int, pairs_per_shard: int
) -> Candidates:
    """Return the candidates of a shard before qualification; a pure function of its arguments.

    They refer to episodes by their numbers in the whole dataset, also where pairs are selected from a part. In a chain
    round they refer to real episodes and bridges, and pairs that would pass through the same real episode twice (a
    source for which no target was left) are dropped.
    """
    seeds, chain = shard_seeds(root_seed, shard, pairs_per_shard), source_index.chain
    pairs = source_index.select(seeds)
    if chain is None:
        return _numbered(stitcher.propose(pairs, seeds), source_index.pools.dataset)
    kept = np.flatnonzero(~chain.loops(pairs))
    return chain.refer(stitcher.propose(pairs.take(kept), seeds[kept]))


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
    dataset: EpisodeDataset, bundle: Bundle, config: StitchConfig, chain: Trajectories | None
) -> SourceIndex:
    """Pair selection for a round: over the dataset, or over the trajectories of a chain round."""
    return SourceIndex(dataset if chain is None else chain.dataset, bundle, config, chain=chain)


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
    while True:
        for chain_round in ledger.open_rounds():
            stitcher = Stitcher(bundle, stitch_config)
            index = source_index(dataset, bundle, stitch_config, ledger.trajectories(dataset))
            while not ledger.round_done:
                (shard,) = ledger.next_shards(1)
                candidates = make_shard(stitcher, index, seed, shard, config.pairs_per_shard)
                table = candidates_to_table(candidates, shard, chain_round, ledger.schema_version)
                ledger.add(write_shard(ledger.path, shard, table, ledger.manifest))
        summary = ledger.finish()
        if summary is not None:
            return summary
