"""The beginning of a generation: a buffer with its settings, or the one that is there."""

import os

from raystitch.buffer.config import AugmentConfig
from raystitch.buffer.meta import META_FILE, create_buffer
from raystitch.buffer.schema import LACKS, BufferMeta
from raystitch.data.episodes import EpisodeDataset
from raystitch.envs.starts import start_observations
from raystitch.io.storage import Storage
from raystitch.models.bundle import Bundle
from raystitch.pipeline.generate.knowledge import Knowledge
from raystitch.pipeline.generate.ledger import Ledger
from raystitch.pipeline.generate.progress import OnAugmentProgress
from raystitch.stitching.config import StitchConfig
from raystitch.stitching.stitcher import Stitcher

LAST_WINS = "this store has no conditional writes: let one run at a time work on the buffer; nothing is removed from it"


def planned_meta(
    dataset: EpisodeDataset, bundle: Bundle, stitch_config: StitchConfig, config: AugmentConfig, seed: int
) -> BufferMeta:
    """Return the contents of ``buffer.json`` for a new buffer.

    Raises:
        UserError: another dataset than the bundle's, or settings that do not suit it.
    """
    bundle.check_dataset(dataset)
    stitch_config = stitch_config.for_dataset(dataset)
    config.check(stitch_config.pairs)
    Stitcher(bundle, stitch_config)  # refuses what does not fit before anything is written
    return BufferMeta(
        gamma=bundle.gamma,
        bundle_hash=bundle.hash,
        dataset_name=dataset.name,
        dataset_fingerprint=dataset.fingerprint,
        selected_from=None if dataset.selected_from is None else dataset.whole_fingerprint,
        select=None if dataset.selected_from is None else dataset.selected_from.select,
        obs_dim=dataset.obs_dim,
        act_dim=dataset.act_dim,
        action_low=tuple(bundle.action_low.tolist()),
        action_high=tuple(bundle.action_high.tolist()),
        env=bundle.env,
        calibration=bundle.calibration.to_json(),
        stitch=stitch_config,
        augment=config.resolved(stitch_config.pairs.split == "value"),
        seed=seed,
        starts=_starts(dataset, stitch_config),
    )


def _starts(dataset: EpisodeDataset, config: StitchConfig) -> tuple[tuple[float, ...], ...] | None:
    """Return states in which the task starts, where pairs are split by value and the environment can be asked."""
    if config.pairs.split != "value" or dataset.env is None:
        return None
    found = start_observations(dataset.env, dataset.obs_dim)
    return None if found is None else tuple(tuple(row) for row in found.tolist())


def open_ledger(
    dataset: EpisodeDataset,
    bundle: Bundle,
    stitch_config: StitchConfig,
    config: AugmentConfig,
    out: str | os.PathLike[str],
    seed: int,
    progress: OnAugmentProgress | None,
) -> Ledger:
    """Starts a buffer at ``out`` or takes up the one that is there.

    Raises:
        UserError: another dataset than the bundle's, settings that do not suit it, or ``out`` holds something else.
    """
    bundle.calibration.check([stitch_config.qualify.delta])
    meta = planned_meta(dataset, bundle, stitch_config, config, seed)
    storage = Storage(out)
    path = storage.uri if storage.local is None else str(storage.local)
    began = create_buffer(path, meta)
    version = began.schema_version
    knowledge = Knowledge(
        path=path,
        dataset=dataset,
        bundle=bundle,
        pairs=meta.stitch.pairs,
        augment=meta.augment,
        starts=began.starts_array,
    )
    ledger = Ledger(
        path=path,
        config=meta.augment,
        knowledge=knowledge,
        size=(dataset.obs_dim, dataset.act_dim),
        schema_version=version,
        progress=progress,
    )
    if why := storage.unguarded(META_FILE):
        ledger.note(f"{storage.where()}: {LAST_WINS} ({why})")
    if version in LACKS:
        ledger.note(f"{storage.where()} goes on in {LACKS[version]}; a new --out holds them")
    if stitch_config.pairs.split == "auto":
        ledger.note(stitch_config.pairs.split_text(meta.stitch.pairs))
    ledger.discard_damaged()
    ledger.report()
    return ledger
