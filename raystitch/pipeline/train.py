"""One trial from data to returns: what ``raystitch train``, ``rs.train`` and the sweep run.

A trial's folder: ``config.json`` first, ``metrics.jsonl`` and ``checkpoint/`` while it trains, ``policy/``, and
``returns.json`` last: a trial is finished when that file is there.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raystitch.buffer.bridges import Bridges
from raystitch.buffer.episodes import Joins
from raystitch.buffer.reader import Buffer, MappedBridges, open_buffer
from raystitch.data.episodes import EpisodeDataset
from raystitch.envs.spec import EnvSpec
from raystitch.errors import RunError, UserError
from raystitch.files import atomic_path, differences, read_json, write_json
from raystitch.seeding import derive_seed
from raystitch.trainers.batches import TrainData
from raystitch.trainers.config import ALGORITHM_CONFIGS, MEMORY_GIB, AlgorithmConfig, DataMode, EvalConfig
from raystitch.trainers.data import build_data
from raystitch.trainers.evaluate import EvalResult, check_env, evaluate
from raystitch.trainers.loop import CHECKPOINT_SECONDS, Checkpoints, find_algorithm, train_policy
from raystitch.trainers.policy import Policy
from raystitch.trainers.ratio import Ratio, parse_ratio

SCHEMA_VERSION = 1
CURVE_COLUMNS = ("target_return", "return_mean", "return_std", "success_rate", "score", "num_eval_episodes")

Log = Callable[[dict[str, Any]], None]


def default_config(algo: str) -> AlgorithmConfig:
    """The published settings of an algorithm.

    Raises:
        UserError: for an unknown one.
    """
    if algo not in ALGORITHM_CONFIGS:
        raise UserError(f"algo={algo!r} is not one of {', '.join(ALGORITHM_CONFIGS)}")
    return ALGORITHM_CONFIGS[algo]()


def train(
    dataset: EpisodeDataset,
    algo: str,
    buffer: Buffer | str | Path | None = None,
    ratio: Ratio | str = "1:0",
    delta: float | str | None = None,
    seed: int = 0,
    config: AlgorithmConfig | None = None,
    *,
    device: str = "auto",
    memory_gib: float = MEMORY_GIB,
    log: Log | None = None,
) -> Policy:
    """Trains a policy on a dataset, alone or mixed with the bridges of a buffer; writes nothing.

    Args:
        ratio: original : augmented in every batch.
        delta: a number, a quantile such as ``q99``, or ``off``; None for what the buffer was made with.
        memory_gib: training data above this size are mapped from files in the cache folder instead of held in memory.

    Raises:
        UserError: for an unknown algorithm, a ratio without bridges to serve it, a buffer of another dataset.
    """
    config = config or default_config(algo)
    ratio = parse_ratio(ratio)
    at = "generation" if delta is None else delta
    bridges = open_bridges(dataset, buffer, at) if buffer is not None and ratio.augmented else None
    mode = "stitched" if buffer is not None else "original"
    data = _build(dataset, algo, config, mode, ratio, bridges, None, device, memory_gib)
    return train_policy(data, algo, config, ratio, seed, log=log)


def open_bridges(dataset: EpisodeDataset, buffer: Buffer | str | Path, delta: float | str | None) -> MappedBridges:
    """The bridges of a buffer that pass ``delta``, left in the mapped files.

    Raises:
        UserError: when the buffer cannot be read or was made from another dataset.
    """
    opened = buffer if isinstance(buffer, Buffer) else open_buffer(str(buffer))
    if opened.meta.dataset_fingerprint != dataset.fingerprint:
        raise UserError(
            f"{opened.uri} holds bridges between the episodes of {opened.meta.dataset_name}, not of {dataset.name}; "
            "train on that dataset, or augment this one"
        )
    return opened.mapped(delta)


def run_trial(
    dataset: EpisodeDataset,
    out: str | Path,
    *,
    algo: str,
    config: AlgorithmConfig | None = None,
    evaluation: EvalConfig | None = None,
    data: DataMode = "original",
    ratio: Ratio | str = "1:0",
    bridges: Bridges | None = None,
    joined: Joins | None = None,
    seed: int = 0,
    env: EnvSpec | None = None,
    record: Mapping[str, Any] | None = None,
    device: str = "auto",
    memory_gib: float = MEMORY_GIB,
    log: Log | None = None,
) -> dict[str, Any]:
    """Trains, saves and evaluates one policy; returns the content of ``returns.json``.

    A finished folder is read and not repeated, an unfinished one goes on from its last checkpoint.

    Args:
        env: evaluate here; None for the dataset's environment.
        record: goes into ``config.json`` and so belongs to the trial's identity (delta, hashes, id).
        memory_gib: training data above this size are mapped from files; no part of the trial's identity.
        log: gets the rows of ``metrics.jsonl``.

    Raises:
        UserError: for wrong settings, no environment to evaluate in, or a folder of a trial with other settings.
        RunError: when the loss is not finite.
    """
    out, ratio = Path(out), parse_ratio(ratio)
    config, evaluation = config or default_config(algo), evaluation or EvalConfig()
    env = env or dataset.env
    if env is None:
        raise UserError(f"{dataset.name} does not say which environment it comes from; name one to evaluate in (--env)")
    settings = {
        "schema_version": SCHEMA_VERSION,
        "algo": algo,
        "data": data,
        "ratio": str(ratio),
        "seed": seed,
        "config": asdict(config),
        "evaluation": asdict(evaluation),
        "env": env.to_json(),
        "dataset": dataset.name,
        "dataset_fingerprint": dataset.fingerprint,
        "record": dict(record or {}),
    }
    finished = _finished(out, settings)
    if finished is not None:
        return finished
    check_env(env, dataset.obs_dim, dataset.act_dim)
    train_data = _build(dataset, algo, config, data, ratio, bridges, joined, device, memory_gib)
    write_json(out / "config.json", settings)
    checkpoints = Checkpoints(path=out / "checkpoint" / "state.pt", seconds=CHECKPOINT_SECONDS)
    metrics = _Metrics(out / "metrics.jsonl", log, checkpoints.step())

    def evaluate_now(step: int, policy: Policy) -> None:
        # Other episodes than the reported ones, and other ones at every step.
        seed_now = derive_seed(seed, "curve", step)
        for result in _evaluations(policy, env, evaluation, evaluation.every_episodes, seed_now):
            metrics(_curve_row(step, result))

    policy = train_policy(
        train_data,
        algo,
        config,
        ratio,
        seed,
        log=metrics.train_row,
        checkpoints=checkpoints,
        every=evaluation.every,
        on_every=evaluate_now,
        record={"data": data, **settings["record"]},
    )
    policy.save(out / "policy")
    results = _evaluations(policy, env, evaluation, evaluation.num_episodes, derive_seed(seed, "evaluation"))
    for result in results:
        metrics(_curve_row(config.train_steps, result))
    returns = {
        "schema_version": SCHEMA_VERSION,
        "status": "ok",
        "train_steps": config.train_steps,
        "train_seconds": metrics.train_seconds,
        "evaluations": [{"headline": index == 0, **result.to_json()} for index, result in enumerate(results)],
    }
    write_json(out / "returns.json", returns)
    shutil.rmtree(checkpoints.path.parent, ignore_errors=True)
    return returns


def _build(
    dataset: EpisodeDataset,
    algo: str,
    config: AlgorithmConfig,
    data: DataMode,
    ratio: Ratio,
    bridges: Bridges | None,
    joined: Joins | None,
    device: str,
    memory_gib: float,
) -> TrainData:
    algorithm = find_algorithm(algo)
    if not isinstance(config, ALGORITHM_CONFIGS[algo]):
        raise UserError(f"algo={algo} takes a {ALGORITHM_CONFIGS[algo].__name__}, got a {type(config).__name__}")
    ratio.counts(config.batch_size)
    built = build_data(
        dataset,
        algorithm.kind,
        data if ratio.augmented else "original",
        bridges=bridges,
        joined=joined,
        synthetic=getattr(config, "synthetic", "episodes"),
        top_fraction=getattr(config, "top_fraction", 1.0),
        device=device,
        memory_gib=memory_gib,
    )
    built.require(ratio)
    return built


def _evaluations(
    policy: Policy, env: EnvSpec, evaluation: EvalConfig, num_episodes: int, seed: int
) -> list[EvalResult]:
    """One result per target return, the headline first; all see the same episodes."""
    targets: tuple[float | None, ...] = (evaluation.target_returns if policy.uses_target_return else ()) or (None,)
    return [evaluate(policy, env, num_episodes, evaluation.num_envs, seed, target) for target in targets]


def _curve_row(step: int, result: EvalResult) -> dict[str, Any]:
    row = result.to_json()
    return {"kind": "eval", "step": step, **{name: row[name] for name in CURVE_COLUMNS}}


def _finished(out: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The result of a finished trial with these settings, None when there is work to do.

    Raises:
        UserError: when the folder holds a trial with other settings.
    """
    if not (out / "config.json").is_file():
        return None
    differing = differences(read_json(out / "config.json"), json.loads(json.dumps(settings)))
    if differing:
        raise UserError(
            f"{out} holds a trial with other settings: {', '.join(differing)}; choose another folder or delete this one"
        )
    return read_json(out / "returns.json") if (out / "returns.json").is_file() else None


class _Metrics:
    """Appends rows to ``metrics.jsonl`` and hands them on."""

    def __init__(self, path: Path, log: Log | None, resumed_step: int) -> None:
        """Rows after ``resumed_step`` are dropped: they are about to be made again."""
        self.path, self.log, self.train_seconds = path, log, 0.0
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= resumed_step]
        with atomic_path(path) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def __call__(self, row: dict[str, Any]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {error.strerror or error}") from error
        if self.log is not None:
            self.log(row)

    def train_row(self, row: dict[str, Any]) -> None:
        self.train_seconds = row["seconds"]
        self({"kind": "train", **row})
