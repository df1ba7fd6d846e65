"""``augment`` on Ray Data: shard numbers -> sampler actors -> qualifier actors that write -> rows of statistics."""

import contextlib
import io
import json
import logging
import math
import os
import re
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError

from raystitch.buffer.config import AugmentConfig
from raystitch.buffer.schema import candidates_to_table
from raystitch.buffer.writer import ShardStats, write_shard
from raystitch.cluster.runtime import ensure_ray
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.load import load_dataset
from raystitch.errors import RunError, UserError
from raystitch.models.bundle import Bundle
from raystitch.pipeline.augment import propose_shard, source_index
from raystitch.pipeline.ledger import AugmentSummary, Ledger, Progress, open_ledger
from raystitch.stitching.candidates import Candidates
from raystitch.stitching.chain import Trajectories
from raystitch.stitching.config import StitchConfig
from raystitch.stitching.pairs import SourceIndex
from raystitch.stitching.stitcher import Stitcher

WAVE = 256
"""Shards handed to one execution; each is a block of one row, so they are made in order."""

Batch = dict[str, np.ndarray[Any, Any]]
Pool = tuple[EpisodeDataset, Trajectories | None]
"""The dataset, and in a chain round the trajectories that pairs are selected from."""

PoolRef = list["ray.ObjectRef[Pool]"]
"""One copy in the object store for all samplers; in a list, because Ray would resolve a bare reference for each."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What an actor needs in one round; small, the dataset travels through the object store."""

    bundle_dir: str
    stitch_config: StitchConfig
    device: str
    out: str
    seed: int
    pairs_per_shard: int
    chain_round: int = 0
    manifest: str = ""

    @cached_property
    def stitcher(self) -> Stitcher:
        return Stitcher(Bundle.load(self.bundle_dir, self.device), self.stitch_config)


class Sampler:
    """Shard numbers in, proposed candidates out."""

    def __init__(self, job: Job, pool: PoolRef) -> None:
        self.job, self._pool = job, pool

    @cached_property
    def source_index(self) -> SourceIndex:
        # Not in __init__, where an error would reach the user as a dead actor.
        dataset, chain = ray.get(self._pool[0])
        return source_index(dataset, self.job.stitcher.bundle, self.job.stitch_config, chain)

    def __call__(self, batch: Batch) -> Batch:
        job, (shard,) = self.job, batch["shard"].tolist()
        candidates, error = b"", ""
        try:
            candidates = pack(propose_shard(job.stitcher, self.source_index, job.seed, shard, job.pairs_per_shard))
        except (UserError, RunError) as raised:
            error = _as_row(raised)
        return {
            "shard": batch["shard"],
            "candidates": np.array([candidates], object),
            "error": np.array([error], object),
        }


class Qualifier:
    """Proposed candidates in, a shard on disk and a row of statistics out."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self, batch: Batch) -> Batch:
        (shard,), (error,) = batch["shard"].tolist(), batch["error"].tolist()
        stats = ""
        if not error:
            try:
                candidates = self.job.stitcher.qualify(unpack(batch["candidates"][0]))
                table = candidates_to_table(candidates, shard, self.job.chain_round)
                written = write_shard(self.job.out, shard, table, self.job.manifest)
                stats = json.dumps(asdict(written))
            except (UserError, RunError) as raised:
                error = _as_row(raised)
        return {"stats": np.array([stats], object), "error": np.array([error], object)}


def _as_row(error: UserError | RunError) -> str:
    """Our own errors travel as data: raised in an actor, Ray would print its traceback and lose its type."""
    return json.dumps([isinstance(error, UserError), str(error)])


def pack(candidates: Candidates) -> bytes:
    """Candidates as one value, so that a shard stays one row between the stages whatever Ray does with blocks."""
    sink = io.BytesIO()
    np.savez(sink, **{f.name: getattr(candidates, f.name) for f in fields(candidates)})
    return sink.getvalue()


def unpack(data: bytes) -> Candidates:
    """The inverse of ``pack``."""
    with np.load(io.BytesIO(data), allow_pickle=False) as columns:
        return Candidates(**{name: columns[name] for name in columns.files})


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one actor reserves."""

    num_cpus: float
    num_gpus: float


def actor_shares(cluster: Mapping[str, float], num_actors: int, num_qualifiers: int) -> tuple[Share, Share]:
    """The reservations of one sampler and one qualifier, so that all of them fit at once.

    With GPUs, samplers share three quarters of each and qualifiers the rest. A CPU stays free for Ray Data's own tasks
    where there is more than one.
    """
    cpus, gpus = cluster.get("CPU", 0.0), int(cluster.get("GPU", 0.0))
    budget = max(cpus - 1.0, cpus / 2)

    def cpu_share(share: float, actors: int) -> float:
        return min(1.0, math.floor(1000 * budget * share / actors) / 1000)

    def gpu_share(share: float, actors: int) -> float:
        return math.floor(1000 * share / math.ceil(actors / gpus)) / 1000 if gpus else 0.0

    return (
        Share(num_cpus=cpu_share(0.6, num_actors), num_gpus=gpu_share(0.75, num_actors)),
        Share(num_cpus=cpu_share(0.3, num_qualifiers), num_gpus=gpu_share(0.25, num_qualifiers)),
    )


def augment(
    dataset: EpisodeDataset | str,
    bundle_dir: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    stitch_config: StitchConfig | None = None,
    config: AugmentConfig | None = None,
    seed: int = 0,
    device: str = "auto",
    address: str | None = None,
    progress: Progress | None = None,
) -> AugmentSummary:
    """Fills a buffer with ``config.num_bridges`` accepted bridges; takes up one started with the same settings.

    Args:
        dataset: the trajectories or a dataset reference.
        address: a Ray cluster; None starts a local Ray (see ``ensure_ray``).

    Raises:
        UserError: another dataset than the bundle's, nothing to leave or enter, or ``out`` holds something else.
        RunError: when too little is accepted, the buffer cannot be written or Ray fails.
    """
    stitch_config, config = stitch_config or StitchConfig(), config or AugmentConfig()
    trajectories = load_dataset(dataset) if isinstance(dataset, str) else dataset
    bundle = Bundle.load(bundle_dir, "cpu")
    ledger = open_ledger(trajectories, bundle, stitch_config, config, out, seed, progress)
    if not ledger.done:
        job = Job(
            bundle_dir=str(Path(bundle_dir).absolute()),
            stitch_config=stitch_config,
            device=device,
            out=ledger.path,
            seed=seed,
            pairs_per_shard=config.pairs_per_shard,
        )
        with ensure_ray(address):
            for chain_round in ledger.open_rounds():
                round_job = replace(job, chain_round=chain_round, manifest=ledger.manifest)
                shared: PoolRef = [ray.put((trajectories, ledger.trajectories(trajectories)))]
                while not ledger.round_done:
                    _wave(round_job, shared, ledger)
    return ledger.finish()


def _wave(job: Job, shared: PoolRef, ledger: Ledger) -> None:
    """One execution over the next missing shards of a round; ends it as soon as there are enough."""
    try:
        # Closed here also after an error, whose traceback would keep it alive past Ray's own end.
        with contextlib.closing(_stream(job, shared, ledger.missing(WAVE), ledger.config)) as rows:
            for stats in rows:
                ledger.add(stats)
                if ledger.round_done:
                    return
    except RayError as error:
        raise _in_our_words(error) from error


def _stream(job: Job, shared: PoolRef, shards: list[int], config: AugmentConfig) -> Generator[ShardStats, None, None]:
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = config.no_progress_timeout
    sampler, qualifier = actor_shares(ray.cluster_resources(), config.num_actors, config.num_qualifiers)
    pipeline = (
        ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
        .map_batches(
            Sampler,
            batch_size=1,
            compute=ActorPoolStrategy(size=min(config.num_actors, len(shards))),
            fn_constructor_args=(job, shared),
            num_cpus=sampler.num_cpus,
            num_gpus=sampler.num_gpus,
        )
        .map_batches(
            Qualifier,
            batch_size=1,
            compute=ActorPoolStrategy(size=min(config.num_qualifiers, len(shards))),
            fn_constructor_args=(job,),
            num_cpus=qualifier.num_cpus,
            num_gpus=qualifier.num_gpus,
        )
    )
    for row in pipeline.iter_rows():
        if row["error"]:
            is_users, message = json.loads(row["error"])
            raise UserError(message) if is_users else RunError(message)
        yield ShardStats(**json.loads(row["stats"]))


def _in_our_words(error: RayError) -> RunError:
    """One line about an error that is not ours: the exception that the text of Ray's own begins with."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raised = [line for line in lines if re.match(r"(?!ray\.)[\w.]*(Error|Exception|Interrupt)\b", line)]
    return RunError(f"augment failed in Ray: {next(iter(raised or lines[-1:]), type(error).__name__)}")
