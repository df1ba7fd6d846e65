"""One trial from data to returns: what ``raystitch train``, ``rs.train`` and the sweep run.

A trial's folder: ``config.json`` first, ``metrics.jsonl`` and ``checkpoint/`` while it trains, ``policy/``, and
``returns.json`` last: a trial is finished when that file is there.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Required, TypedDict, Unpack

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
from raystitch.trainers.loop import CHECKPOINT_SECONDS, Checkpoints, find_algorithm, train_policies, train_policy
from raystitch.trainers.policy import Policy
from raystitch.trainers.ratio import Ratio, parse_ratio

SCHEMA_VERSION = 1
CURVE_COLUMNS = ("target_return", "return_mean", "return_std", "success_rate", "score", "num_eval_episodes")

Log = Callable[[dict[str, Any]], None]
OnEval = Callable[[int, Mapping[int, EvalResult]], None]
"""(step, headline results by position of the trial) after an evaluation during training."""


class TrialSettings(TypedDict, total=False):
    """What the trials of a group have in common.

    Attributes:
        config: None for the published settings; evaluation: None for the defaults.
        bridges, joined: for ``data`` stitched and joined.
        env: evaluate here; None for the dataset's environment.
        memory_gib: training data above this size are mapped from files; no part of the trials' identity.
    """

    algo: Required[str]
    config: AlgorithmConfig | None
    evaluation: EvalConfig | None
    data: DataMode
    ratio: Ratio | str
    bridges: Bridges | None
    joined: Joins | None
    env: EnvSpec | None
    device: str
    memory_gib: float


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
    seed: int = 0,
    record: Mapping[str, Any] | None = None,
    log: Log | None = None,
    **settings: Unpack[TrialSettings],
) -> dict[str, Any]:
    """Trains, saves and evaluates one policy; returns the content of ``returns.json``.

    A finished folder is read and not repeated, an unfinished one goes on from its last checkpoint.

    Args:
        record: goes into ``config.json`` and so belongs to the trial's identity (delta, hashes, id).
        log: gets the rows of ``metrics.jsonl``.

    Raises:
        UserError: for wrong settings, no environment to evaluate in, or a folder of a trial with other settings.
        RunError: when the loss is not finite.
    """
    (result,) = run_trials(
        dataset,
        (out,),
        seeds=(seed,),
        records=None if record is None else (record,),
        log=None if log is None else lambda index, row: log(row),
        **settings,
    )
    if isinstance(result, RunError):
        raise result
    return result


def run_trials(
    dataset: EpisodeDataset,
    outs: Sequence[str | Path],
    *,
    seeds: Sequence[int],
    records: Sequence[Mapping[str, Any]] | None = None,
    log: Callable[[int, dict[str, Any]], None] | None = None,
    on_eval: OnEval | None = None,
    **settings: Unpack[TrialSettings],
) -> list[dict[str, Any] | RunError]:
    """Trials that differ in their seeds alone, trained side by side, each with its own folder as if it were alone.

    Finished folders are read and not repeated; unfinished ones go on from their checkpoints, those that stand at one
    step together.

    Args:
        outs, seeds, records: one per trial.
        log: gets the rows of ``metrics.jsonl`` with the trial's position.
        on_eval: called after every evaluation during training.

    Returns:
        The contents of ``returns.json``, or the error that ended a trial (loss not finite) while others went on.

    Raises:
        UserError: for wrong settings, no environment to evaluate in, or a folder of a trial with other settings.
    """
    cell = _Cell.of(dataset, **settings)
    records = records or [{}] * len(seeds)
    trials = [
        _Folder(Path(out), seed, cell.identity(dataset, seed, record))
        for out, seed, record in zip(outs, seeds, records, strict=True)
    ]
    results: dict[int, dict[str, Any] | RunError] = {}
    steps: dict[int, list[int]] = {}
    for index, trial in enumerate(trials):
        finished = trial.finished()
        if finished is not None:
            results[index] = finished
        else:
            steps.setdefault(trial.checkpoints.step(), []).append(index)
    if steps:
        check_env(cell.env, dataset.obs_dim, dataset.act_dim)
        data = cell.build(dataset)
        for group in steps.values():
            results.update(_train_group(cell, data, {index: trials[index] for index in group}, log, on_eval))
    return [results[index] for index in range(len(trials))]


def _train_group(
    cell: "_Cell",
    data: TrainData,
    trials: "Mapping[int, _Folder]",
    log: Callable[[int, dict[str, Any]], None] | None,
    on_eval: OnEval | None,
) -> dict[int, dict[str, Any] | RunError]:
    """Trials whose checkpoints stand at one step (or that have none), by position."""
    where = list(trials)
    metrics = [
        _Metrics(trial.prepare(), None if log is None else partial(log, index), trial.checkpoints.step())
        for index, trial in trials.items()
    ]

    def evaluate_now(step: int, policies: Mapping[int, Policy]) -> None:
        found: dict[int, EvalResult] = {}
        for at, policy in policies.items():
            # Other episodes than the reported ones, and other ones at every step.
            results = cell.evaluate(policy, cell.evaluation.every_episodes, trials[where[at]].seed, "curve", step)
            for result in results:
                metrics[at](_curve_row(step, result))
            found[where[at]] = results[0]
        if on_eval is not None:
            on_eval(step, found)

    policies = train_policies(
        data,
        cell.algo,
        cell.config,
        cell.ratio,
        [trial.seed for trial in trials.values()],
        log=lambda at, row: metrics[at].train_row(row),
        checkpoints=[trial.checkpoints for trial in trials.values()],
        every=cell.evaluation.every,
        on_every=evaluate_now,
        records=[{"data": cell.data, **trial.settings["record"]} for trial in trials.values()],
    )
    finished: dict[int, dict[str, Any] | RunError] = {}
    for (index, trial), policy, rows in zip(trials.items(), policies, metrics, strict=True):
        finished[index] = policy if isinstance(policy, RunError) else trial.finish(cell, policy, rows, len(trials))
    return finished


@dataclass(frozen=True, kw_only=True)
class _Cell:
    """What the trials of a group share."""

    algo: str
    config: AlgorithmConfig
    evaluation: EvalConfig
    data: DataMode
    ratio: Ratio
    bridges: Bridges | None
    joined: Joins | None
    env: EnvSpec
    device: str
    memory_gib: float

    @classmethod
    def of(cls, dataset: EpisodeDataset, **settings: Unpack[TrialSettings]) -> "_Cell":
        algo = settings["algo"]
        env = settings.get("env") or dataset.env
        if env is None:
            raise UserError(
                f"{dataset.name} does not say which environment it comes from; name one to evaluate in (--env)"
            )
        return cls(
            algo=algo,
            config=settings.get("config") or default_config(algo),
            evaluation=settings.get("evaluation") or EvalConfig(),
            data=settings.get("data", "original"),
            ratio=parse_ratio(settings.get("ratio", "1:0")),
            bridges=settings.get("bridges"),
            joined=settings.get("joined"),
            env=env,
            device=settings.get("device", "auto"),
            memory_gib=settings.get("memory_gib", MEMORY_GIB),
        )

    def identity(self, dataset: EpisodeDataset, seed: int, record: Mapping[str, Any]) -> dict[str, Any]:
        """The content of ``config.json``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "algo": self.algo,
            "data": self.data,
            "ratio": str(self.ratio),
            "seed": seed,
            "config": asdict(self.config),
            "evaluation": asdict(self.evaluation),
            "env": self.env.to_json(),
            "dataset": dataset.name,
            "dataset_fingerprint": dataset.fingerprint,
            "record": dict(record),
        }

    def build(self, dataset: EpisodeDataset) -> TrainData:
        return _build(
            dataset,
            self.algo,
            self.config,
            self.data,
            self.ratio,
            self.bridges,
            self.joined,
            self.device,
            self.memory_gib,
        )

    def evaluate(self, policy: Policy, num_episodes: int, seed: int, *purpose: str | int) -> list[EvalResult]:
        """One result per target return, the headline first; all see the same episodes."""
        targets: tuple[float | None, ...] = (self.evaluation.target_returns if policy.uses_target_return else ()) or (
            None,
        )
        episodes = derive_seed(seed, *purpose)
        return [
            evaluate(policy, self.env, num_episodes, self.evaluation.num_envs, episodes, target) for target in targets
        ]


@dataclass(frozen=True)
class _Folder:
    """The folder of one trial."""

    out: Path
    seed: int
    settings: Mapping[str, Any]

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(path=self.out / "checkpoint" / "state.pt", seconds=CHECKPOINT_SECONDS)

    def finished(self) -> dict[str, Any] | None:
        """The result of a finished trial with these settings, None when there is work to do.

        Raises:
            UserError: when the folder holds a trial with other settings.
        """
        if not (self.out / "config.json").is_file():
            return None
        differing = differences(read_json(self.out / "config.json"), json.loads(json.dumps(self.settings)))
        if differing:
            raise UserError(
                f"{self.out} holds a trial with other settings: {', '.join(differing)}; choose another folder or "
                "delete this one"
            )
        return read_json(self.out / "returns.json") if (self.out / "returns.json").is_file() else None

    def prepare(self) -> Path:
        """Writes ``config.json``; returns the path of the metrics."""
        write_json(self.out / "config.json", self.settings)
        return self.out / "metrics.jsonl"

    def finish(self, cell: _Cell, policy: Policy, metrics: "_Metrics", num_stacked: int) -> dict[str, Any]:
        """Saves and evaluates the policy; ``returns.json`` is written last."""
        policy.save(self.out / "policy")
        results = cell.evaluate(policy, cell.evaluation.num_episodes, self.seed, "evaluation")
        for result in results:
            metrics(_curve_row(cell.config.train_steps, result))
        returns = {
            "schema_version": SCHEMA_VERSION,
            "status": "ok",
            "train_steps": cell.config.train_steps,
            "train_seconds": metrics.train_seconds,
            "num_stacked": num_stacked,
            "evaluations": [{"headline": index == 0, **result.to_json()} for index, result in enumerate(results)],
        }
        write_json(self.out / "returns.json", returns)
        shutil.rmtree(self.checkpoints.path.parent, ignore_errors=True)
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
        uniform_over=config.uniform_over,
        top_fraction=getattr(config, "top_fraction", 1.0),
        device=device,
        memory_gib=memory_gib,
    )
    built.require(ratio)
    return built


def _curve_row(step: int, result: EvalResult) -> dict[str, Any]:
    row = result.to_json()
    return {"kind": "eval", "step": step, **{name: row[name] for name in CURVE_COLUMNS}}


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
