"""Trials of a sweep from paths alone: any process that sees the run's folder can run them."""

import os
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from raystitch.buffer.reader import Buffer, open_buffer
from raystitch.config import AlgorithmConfigs, RunConfig
from raystitch.console import say
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.load import load_dataset
from raystitch.errors import RunError
from raystitch.io.lease import leased
from raystitch.models.bundle import Bundle
from raystitch.pipeline.generate.augment import shard_seeds
from raystitch.pipeline.trials.plan import Inputs, Trial, finished
from raystitch.pipeline.trials.train import OnEval, run_trials
from raystitch.stitching.candidates import Pairs
from raystitch.stitching.config import StitchConfig
from raystitch.stitching.pairs import SourceIndex
from raystitch.trainers.config import MEMORY_GIB, EvalConfig

ERROR_FILE = "error.txt"
LOCK_FILE = ".lock"


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


def sweep_job(config: RunConfig, folder: str | Path, inputs: Inputs) -> SweepJob:
    """What the trials of a run share, from its configuration."""
    resources = config.resources
    return SweepJob(
        folder=str(folder),
        dataset=config.dataset,
        d4rl_env=config.env,
        inputs=inputs,
        algorithms=config.algorithms,
        evaluation=config.evaluation,
        stitch=config.stitch,
        num_pairs=config.augment.num_bridges,
        pairs_per_shard=config.augment.pairs_per_shard,
        seed=config.seed,
        device="cuda" if resources.trial_gpus > 0 else "cpu",
        threads=max(1, int(resources.trial_cpus)),
        memory_gib=resources.memory_gib,
    )


def run_planned(
    trials: Sequence[Trial],
    job: SweepJob,
    *,
    into: str = "trials",
    log: Callable[[int, dict[str, Any]], None] | None = None,
    on_eval: OnEval | None = None,
    note: Callable[[str], None] = say,
) -> list[dict[str, Any] | RunError]:
    """Trains and evaluates trials of one cell together; returns the content of each one's ``returns.json``.

    Finished trials are read. A trial that fails alone has its error in the list and in its ``error.txt``. A failure of
    all of them is raised and leaves its trace in the ``error.txt`` of the unfinished ones. Data and buffer stay open
    between the calls of a process.

    Every trial's folder is leased meanwhile: a worker of a killed driver that is not dead yet and one of the next
    driver never write to the same folder, and one that was lost with its machine is waited for no longer than a lease.

    Args:
        into: folder of the run that holds the trials' folders.
        log: gets (place in ``trials``, row of metrics.jsonl). on_eval: gets (step, result per trial) during training.
        note: gets a line for every damaged file that a trial does without.

    Raises:
        RunError: when the dataset is not the one the run began with.
    """
    import torch

    if job.threads is not None:
        torch.set_num_threads(job.threads)
    outs = [Path(job.folder) / into / trial.trial_id for trial in trials]
    with ExitStack() as stack:
        # In one order everywhere, so that two processes cannot wait for each other.
        leases = [stack.enter_context(leased(out / LOCK_FILE)) for out in sorted(outs)]

        def watched(index: int, row: dict[str, Any]) -> None:
            for lease in leases:
                lease.check()
            if log is not None:
                log(index, row)

        for out in outs:
            (out / ERROR_FILE).unlink(missing_ok=True)
        try:
            results = _run(trials, outs, job, watched, on_eval, note)
        except Exception:
            for out in outs:
                if finished(out) is None:
                    (out / ERROR_FILE).write_text(traceback.format_exc(), encoding="utf-8")
            raise
        for out, result in zip(outs, results, strict=True):
            if isinstance(result, RunError):
                (out / ERROR_FILE).write_text(f"{type(result).__name__}: {result}\n", encoding="utf-8")
        return results


def error_of(trial_dir: Path) -> str | None:
    """The last line of a failed trial's ``error.txt``, None where it left none."""
    trace = trial_dir / ERROR_FILE
    lines = trace.read_text(encoding="utf-8").split("\n") if trace.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), None)


def _run(
    trials: Sequence[Trial],
    outs: Sequence[Path],
    job: SweepJob,
    log: Callable[[int, dict[str, Any]], None],
    on_eval: OnEval | None,
    note: Callable[[str], None],
) -> list[dict[str, Any] | RunError]:
    dataset = _dataset(job.dataset, job.d4rl_env)
    if dataset.fingerprint != job.inputs.dataset:
        raise RunError(f"{job.dataset} changed while the run was going on; start it again")
    cell = trials[0]
    return run_trials(
        dataset,
        outs,
        seeds=[trial.seed for trial in trials],
        records=[{"trial_id": trial.trial_id, "delta": trial.delta, **_hashes(trial, job.inputs)} for trial in trials],
        algo=cell.algo,
        config=getattr(job.algorithms, cell.algo),
        evaluation=job.evaluation,
        data=cell.data,
        ratio=cell.ratio,
        bridges=_buffer(job).mapped(cell.delta) if cell.data == "stitched" else None,
        joined=_joined(job) if cell.data == "joined" else None,
        device=job.device,
        memory_gib=job.memory_gib,
        log=log,
        on_eval=on_eval,
        note=note,
    )


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
