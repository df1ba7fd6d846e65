"""One trial of a sweep from paths alone: any process that sees the run's folder can run it."""

import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from raystitch.buffer.reader import Buffer, open_buffer
from raystitch.config import AlgorithmConfigs
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.load import load_dataset
from raystitch.errors import RunError
from raystitch.models.bundle import Bundle
from raystitch.pipeline.augment import shard_seeds
from raystitch.pipeline.sweep_plan import RETURNS_FILE, Inputs, Trial, finished
from raystitch.pipeline.train import run_trial
from raystitch.stitching.candidates import Pairs
from raystitch.stitching.config import StitchConfig
from raystitch.stitching.pairs import SourceIndex
from raystitch.trainers.config import MEMORY_GIB, EvalConfig

ERROR_FILE = "error.txt"


@dataclass(frozen=True, kw_only=True)
class SweepJob:
    """What the trials of one run share; plain data and paths.

    Attributes:
        folder: of the run. dataset: its reference; env: where to evaluate, None for the dataset's own.
        num_pairs, pairs_per_shard, seed: of the ``joined`` baseline, as many and drawn as for generation.
        device: of training; threads: torch threads, None to leave them.
        memory_gib: training data of a trial above this size are mapped from files.
    """

    folder: str
    dataset: str
    d4rl_env: str | None
    inputs: Inputs
    algorithms: AlgorithmConfigs
    evaluation: EvalConfig
    stitch: StitchConfig
    num_pairs: int
    pairs_per_shard: int
    seed: int
    device: str = "cpu"
    threads: int | None = 1
    memory_gib: float = MEMORY_GIB


def run_planned(trial: Trial, job: SweepJob, log: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
    """Trains and evaluates one trial; returns the content of its ``returns.json``.

    Data and buffer stay open between the trials of a process. A failure leaves its trace in ``error.txt``.

    Raises:
        RunError: when the dataset is not the one the run began with.
    """
    import torch

    if job.threads is not None:
        torch.set_num_threads(job.threads)
    out = Path(job.folder) / "trials" / trial.trial_id
    (out / ERROR_FILE).unlink(missing_ok=True)
    if finished(out) is None:
        (out / RETURNS_FILE).unlink(missing_ok=True)  # damaged from outside: it is written whole or not at all
    try:
        dataset = _dataset(job.dataset, job.d4rl_env)
        if dataset.fingerprint != job.inputs.dataset:
            raise RunError(f"{job.dataset} changed while the run was going on; start it again")
        return run_trial(
            dataset,
            out,
            algo=trial.algo,
            config=getattr(job.algorithms, trial.algo),
            evaluation=job.evaluation,
            data=trial.data,
            ratio=trial.ratio,
            bridges=_buffer(job).mapped(trial.delta) if trial.data == "stitched" else None,
            joined=_joined(job) if trial.data == "joined" else None,
            seed=trial.seed,
            record={"trial_id": trial.trial_id, "delta": trial.delta, **_hashes(trial, job.inputs)},
            device=job.device,
            memory_gib=job.memory_gib,
            log=log,
        )
    except Exception:
        out.mkdir(parents=True, exist_ok=True)
        (out / ERROR_FILE).write_text(traceback.format_exc(), encoding="utf-8")
        raise


def _hashes(trial: Trial, inputs: Inputs) -> dict[str, str]:
    used = {"original": (), "joined": ("bundle",), "stitched": ("bundle", "buffer")}.get(trial.data, ())
    return {name: getattr(inputs, name) for name in used}


@lru_cache(maxsize=1)
def _dataset(ref: str, d4rl_env: str | None) -> EpisodeDataset:
    return load_dataset(ref, env_id=d4rl_env)


@lru_cache(maxsize=1)
def _open_buffer(path: str) -> Buffer:
    return open_buffer(path)


def _buffer(job: SweepJob) -> Buffer:
    return _open_buffer(os.path.join(job.folder, "buffer"))


@lru_cache(maxsize=1)
def _joined(job: SweepJob) -> Pairs:
    """Nearest real pairs with the seeds of generation, shard by shard because ``max_target_reuse`` counts per shard."""
    bundle = Bundle.load(Path(job.folder) / "stitcher", device="cpu")
    index = SourceIndex(_dataset(job.dataset, job.d4rl_env), bundle, job.stitch)
    shards: list[Pairs] = []
    for first in range(0, job.num_pairs, job.pairs_per_shard):
        count = min(job.pairs_per_shard, job.num_pairs - first)
        seeds = shard_seeds(job.seed, first // job.pairs_per_shard, job.pairs_per_shard)
        shards.append(index.nearest(seeds[:count]))
    return Pairs.concatenate(shards)
