"""The two kinds of actors of ``augment``: proposers propose a shard, qualifiers judge and write it.

Each is a few lines around functions that run without Ray. A shard stays one row between the stages. Errors travel as
data: if an actor raised them, Ray would print a traceback, lose their type and stop all other shards.
"""

import io
import json
import os
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.actor import ActorHandle

from raystitch.buffer.schema import SCHEMA_VERSION, candidates_to_table
from raystitch.buffer.shard_file import SHARDS, ShardStats, part_name, read_stats, write_shard
from raystitch.data.episodes import EpisodeDataset
from raystitch.errors import RunError, StorageError, UserError
from raystitch.io.storage import Storage
from raystitch.models.bundle import PARTS, STITCHER_FILE, Bundle
from raystitch.pipeline.generate.augment import propose_shard, source_index
from raystitch.stitching.candidates import Candidates
from raystitch.stitching.config import StitchConfig
from raystitch.stitching.pairs import Known, SourceIndex
from raystitch.stitching.stitcher import Stitcher

Batch = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Shared:
    """The data that every actor of a round needs, once in the object store whatever the number of actors.

    Attributes:
        bundle: the files of the bundle, so that its folder need not be on shared storage.
        known: what the rounds before have found.
    """

    bundle: Mapping[str, bytes]
    dataset: EpisodeDataset
    known: Known


MAX_STARTS = 4
"""Times that one kind of actor may start on a shard in one execution. Ray Data would restart it without end when actors
die, and the shard may be what kills them (out of memory, a fault in a driver)."""


class Starts:
    """Counts how often work was started; runs in an actor of its own, which outlives the ones that do the work."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def count(self, what: str) -> int:
        """Count a start and return the number so far."""
        self._counts[what] += 1
        return self._counts[what]


def start_counter() -> ActorHandle:
    """Start the ``Starts`` actor of one execution."""
    actor: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Starts)
    return actor.remote()


SharedRef = list["ray.ObjectRef[Shared]"]
"""In a list, because Ray would resolve a bare reference for each actor."""


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """The work of one kind of actor in one round.

    Attributes:
        device: ``auto`` takes the GPU that the actor was given. threads: torch threads on the CPU.
    """

    stitch_config: StitchConfig
    device: str
    threads: int
    out: str
    seed: int
    pairs_per_shard: int
    chain_round: int = 0
    manifest: str = ""
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a shard.

    Attributes:
        stats: of the shard that exists now. made: this actor made it, rather than found it.
        error: why there is none. kind: ``user`` and ``storage`` errors concern every shard, ``shard`` this one.
        propose_seconds, qualify_seconds: wall clock.
    """

    shard: int
    stats: ShardStats | None = None
    made: bool = True
    error: str = ""
    kind: str = ""
    propose_seconds: float = 0.0
    qualify_seconds: float = 0.0

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Outcome":
        value = json.loads(text)
        return cls(**{**value, "stats": None if value["stats"] is None else ShardStats(**value["stats"])})

    def as_exception(self) -> UserError | RunError:
        """The exception that the driver raises if ``kind`` concerns every shard."""
        return {"user": UserError, "storage": StorageError}.get(self.kind, RunError)(self.error)


def bundle_files(folder: str | os.PathLike[str]) -> dict[str, bytes]:
    """The files of a bundle, name -> content."""
    return {name: Path(folder, name).read_bytes() for name in (STITCHER_FILE, *(f"{p}.safetensors" for p in PARTS))}


def load_bundle(files: Mapping[str, bytes], device: str) -> Bundle:
    """Load a bundle from its files."""
    with tempfile.TemporaryDirectory(prefix="raystitch-") as folder:
        for name, content in files.items():
            Path(folder, name).write_bytes(content)
        return Bundle.load(folder, device)


class _Actor:
    def __init__(self, job: ShardJob, shared: SharedRef, starts: ActorHandle) -> None:
        self.job, self._ref, self._starts = job, shared, starts

    def start(self, shard: int) -> None:
        """Count a start on this shard.

        Raises:
            RunError: it was started too often: its actors died.
        """
        count: Any = ray.get(self._starts.count.remote(f"{type(self).__name__} {shard}"))
        if count > MAX_STARTS:
            raise RunError(f"its worker process died {MAX_STARTS} times: killed, or out of memory")

    # Not in __init__, where an error would reach the user as a dead actor.
    @cached_property
    def shared(self) -> Shared:
        return ray.get(self._ref[0])

    @cached_property
    def stitcher(self) -> Stitcher:
        torch.set_num_threads(self.job.threads)
        return Stitcher(load_bundle(self.shared.bundle, self.job.device), self.job.stitch_config)


class Proposer(_Actor):
    """The actor that takes shard numbers and returns proposed candidates."""

    @cached_property
    def source_index(self) -> SourceIndex:
        shared = self.shared
        return source_index(shared.dataset, self.stitcher.bundle, self.job.stitch_config, shared.known)

    def propose(self, shard: int) -> Candidates:
        """The candidates of a shard, not yet judged."""
        return propose_shard(self.stitcher, self.source_index, self.job.seed, shard, self.job.pairs_per_shard)

    def __call__(self, batch: Batch) -> Batch:
        job, (shard,) = self.job, batch["shard"].tolist()
        candidates, outcome = b"", Outcome(shard=shard)
        try:
            there = _there_already(job, shard)
            if there is not None:
                outcome = Outcome(shard=shard, stats=there, made=False)
            else:
                self.start(shard)
                _, began = self.source_index, time.perf_counter()  # loading it is part of the start
                candidates = pack(self.propose(shard))
                outcome = Outcome(shard=shard, propose_seconds=time.perf_counter() - began)
        except Exception as raised:
            outcome = _failed(shard, raised)
        return {"outcome": np.array([outcome.to_json()], object), "candidates": np.array([candidates], object)}


class Qualifier(_Actor):
    """The actor that takes proposed candidates, writes a shard and returns its outcome."""

    def __call__(self, batch: Batch) -> Batch:
        (text,), (packed,) = batch["outcome"].tolist(), batch["candidates"].tolist()
        outcome, job = Outcome.from_json(text), self.job
        if packed:
            try:
                self.start(outcome.shard)
                stitcher, began = self.stitcher, time.perf_counter()
                stats = _judge(job, outcome.shard, stitcher, unpack(packed))
                outcome = replace(outcome, stats=stats, qualify_seconds=time.perf_counter() - began)
            except Exception as raised:
                outcome = _failed(outcome.shard, raised)
        return {"outcome": np.array([outcome.to_json()], object)}


def make_here(job: ShardJob, shard: int, stitcher: Stitcher, index: SourceIndex) -> Outcome:
    """Propose, judge and write a shard in this process."""
    began = time.perf_counter()
    try:
        there = _there_already(job, shard)
        if there is not None:
            return Outcome(shard=shard, stats=there, made=False)
        candidates = propose_shard(stitcher, index, job.seed, shard, job.pairs_per_shard)
        proposed = time.perf_counter()
        stats = _judge(job, shard, stitcher, candidates)
    except Exception as raised:
        return _failed(shard, raised)
    return Outcome(
        shard=shard, stats=stats, propose_seconds=proposed - began, qualify_seconds=time.perf_counter() - proposed
    )


def _judge(job: ShardJob, shard: int, stitcher: Stitcher, candidates: Candidates) -> ShardStats:
    """Judge proposed candidates and write the shard."""
    table = candidates_to_table(stitcher.qualify(candidates), shard, job.chain_round, job.schema_version)
    return write_shard(job.out, shard, table, job.manifest)


def _there_already(job: ShardJob, shard: int) -> ShardStats | None:
    """Return the shard's stats if another driver on the same buffer has made it meanwhile."""
    storage, name = Storage(job.out), part_name(shard)
    if not storage.exists(f"{SHARDS}/{name}"):
        return None
    try:
        (stats,) = read_stats(storage, name)
    except (ValueError, FileNotFoundError):
        return None
    return stats if (stats.shard, stats.manifest, stats.error) == (shard, job.manifest, "") else None


def _failed(shard: int, error: Exception) -> Outcome:
    """Turn an error into an outcome: our own as it is, others with their place, and a traceback in the actor's log."""
    if isinstance(error, UserError | RunError):
        kind = {UserError: "user", StorageError: "storage"}.get(type(error), "shard")
        return Outcome(shard=shard, error=str(error), kind=kind)
    traceback.print_exception(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    first = (str(error).strip().splitlines() or [""])[0][:300]
    return Outcome(shard=shard, error=f"{type(error).__name__}: {first}{where}", kind="shard")


def pack(candidates: Candidates) -> bytes:
    """Pack candidates into one value: a shard stays one row between the stages, whatever Ray does with blocks."""
    sink = io.BytesIO()
    np.savez(sink, **{f.name: getattr(candidates, f.name) for f in fields(candidates)})
    return sink.getvalue()


def unpack(data: bytes) -> Candidates:
    """Undo ``pack``."""
    with np.load(io.BytesIO(data), allow_pickle=False) as columns:
        return Candidates(**{name: columns[name] for name in columns.files})
