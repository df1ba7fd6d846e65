"""The beginning of a generation: a buffer with its settings, or the one that is there."""

import os
from dataclasses import replace

from raystitch.buffer.config import AugmentConfig
from raystitch.buffer.meta import META_FILE, check_buffer, create_buffer, read_meta
from raystitch.buffer.schema import LACKS, BufferMeta
from raystitch.data.episodes import EpisodeDataset
from raystitch.envs.starts import start_observations
from raystitch.io.storage import Storage
from raystitch.models.bundle import Bundle
from raystitch.models.calibration import SEAM, delta_text
from raystitch.pipeline.generate.knowledge import Knowledge, recorded_values
from raystitch.pipeline.generate.ledger import Ledger
from raystitch.pipeline.generate.pilot import run_pilot
from raystitch.pipeline.generate.progress import AugmentProgress, OnAugmentProgress
from raystitch.stitching.config import PairConfig, StitchConfig
from raystitch.stitching.stitcher import Stitcher

LAST_WINS = "this store has no conditional writes: let one run at a time work on the buffer; nothing is removed from it"


def planned_meta(
    dataset: EpisodeDataset, bundle: Bundle, stitch_config: StitchConfig, config: AugmentConfig, seed: int
) -> BufferMeta:
    """Return the contents of ``buffer.json`` for a new buffer; what a pilot decides is as the defaults have it.

    Raises:
        UserError: another dataset than the bundle's, or settings that do not suit it.
    """
    bundle.check_dataset(dataset)
    stitch_config = stitch_config.for_dataset(dataset)
    stitch_config = replace(stitch_config, pairs=stitch_config.pairs.piloted())
    config.check(stitch_config.pairs)
    Stitcher(bundle, stitch_config)  # refuses what does not fit before anything is written
    bundle.calibration.threshold(stitch_config.pairs.seam_max, bundle.calibration.gaps, SEAM)  # so does this
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


def pairs_of(storage: Storage, pairs: PairConfig) -> PairConfig:
    """Return settings of pairs with what a pilot decides as the buffer has it that is there; by default without one."""
    begun = read_meta(storage).stitch.pairs if pairs.needs_pilot and storage.exists(META_FILE) else None
    return pairs.piloted(begun)


def _piloted(
    meta: BufferMeta,
    dataset: EpisodeDataset,
    bundle: Bundle,
    asked: PairConfig,
    storage: Storage,
    progress: OnAugmentProgress | None,
) -> BufferMeta:
    """Return the settings of a buffer with what ``asked`` leaves to a pilot as the buffer has it that is there, else
    decided by a pilot.

    Raises:
        UserError: when ``storage`` holds something else, or the pilot finds no pair.
    """
    pairs = replace(meta.stitch.pairs, mode=asked.mode, seam_max=asked.seam_max)
    if not pairs.needs_pilot:
        return meta
    check_buffer(storage.uri, replace(meta, stitch=replace(meta.stitch, pairs=pairs_of(storage, pairs))))
    if not storage.exists(META_FILE):
        values = recorded_values(dataset, bundle, meta.starts_array) if pairs.split == "value" else None

        def note(message: str) -> None:
            if progress is not None:
                wanted = meta.augment.num_bridges
                nothing = AugmentProgress(accepted=0, wanted=wanted, shards=0, candidates=0)
                progress(replace(nothing, event="note", message=message))

        found = run_pilot(dataset, bundle, replace(meta.stitch, pairs=pairs), values, meta.seed, note)
        if not storage.exists(META_FILE):  # no other driver was faster
            settled = replace(pairs, mode=found[0].mode, seam_max=found[0].seam_max)
            return replace(meta, stitch=replace(meta.stitch, pairs=settled), pilot=found)
    return replace(meta, stitch=replace(meta.stitch, pairs=pairs_of(storage, pairs)))


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
    storage = Storage(out)
    path = storage.uri if storage.local is None else str(storage.local)
    meta = planned_meta(dataset, bundle, stitch_config, config, seed)
    meta = _piloted(meta, dataset, bundle, stitch_config.pairs, storage, progress)
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
        stitch=meta.stitch,
        knowledge=knowledge,
        size=(dataset.obs_dim, dataset.act_dim),
        schema_version=version,
        progress=progress,
    )
    ledger.discard_damaged()  # before any note: each says how much is there
    if why := storage.unguarded(META_FILE):
        ledger.note(f"{storage.where()}: {LAST_WINS} ({why})")
    if version in LACKS:
        ledger.note(f"{storage.where()} goes on in {LACKS[version]}; a new --out holds them")
    pairs = meta.stitch.pairs
    if stitch_config.pairs.needs_pilot and not meta.pilot:
        seam_max = delta_text(pairs.seam_max)
        ledger.note(f"pairs.mode={pairs.mode} and pairs.seam_max={seam_max}, as the buffer was begun")
    if stitch_config.pairs.split == "auto":
        ledger.note(stitch_config.pairs.split_text(meta.stitch.pairs))
    ledger.report()
    return ledger
