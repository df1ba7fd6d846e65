"""One trial from data to returns: what ``raystitch train``, ``rs.train`` and the sweep run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Required, TypedDict, Unpack

from raystitch.buffer.bridges import Bridges
from raystitch.buffer.episodes import Joins, on_dataset
from raystitch.buffer.reader import Buffer, MappedBridges, open_buffer
from raystitch.console import say
from raystitch.data.episodes import EpisodeDataset
from raystitch.envs.spec import EnvSpec
from raystitch.errors import DamagedError, RunError, UserError
from raystitch.pipeline.trials.checks import check_evaluation, environment_of
from raystitch.pipeline.trials.trial_folder import SCHEMA_VERSION, Log, TrialFolder, TrialMetrics
from raystitch.seeding import derive_seed
from raystitch.trainers.batches import TrainData
from raystitch.trainers.config import ALGORITHM_CONFIGS, MEMORY_GIB, AlgorithmConfig, DataMode, DataSpec, EvalConfig
from raystitch.trainers.data import build_data
from raystitch.trainers.evaluate import EvalResult, evaluate
from raystitch.trainers.loop import train_policies, train_policy
from raystitch.trainers.policy import Policy
from raystitch.trainers.ratio import Ratio, parse_ratio
from raystitch.trainers.registry import find_algorithm, load_policy

OnEval = Callable[[int, Mapping[int, EvalResult]], None]
"""(step, headline results by position of the trial) after an evaluation during training."""


class TrialSettings(TypedDict, total=False):
    """What the trials of a group have in common.

    Attributes:
        config: None for the published settings; evaluation: None for the defaults.
        bridges, joined: for ``data`` stitched and joined.
        env: evaluate here; None for the dataset's environment.
        memory_gib: training data above this size are mapped from files; no part of the trials' identity.
        evaluate: False where the environment is not installed: policies are trained and saved, ``returns.json`` says
            "not evaluated", and the same call with True evaluates them without training again.
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
    evaluate: bool


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
        algo: ``td3bc``, ``iql``, ``dt`` or ``bc``; config: its settings, None for the published ones.
        buffer: an open one or its URI; needed where the ratio asks for augmented rows.
        ratio: original : augmented in every batch.
        delta: a number, a quantile such as ``q99``, or ``off``; None for what the buffer was made with.
        seed: of the networks, the batches and all noise.
        device: ``auto`` (a GPU where there is one), ``cpu``, ``cuda[:N]``.
        memory_gib: training data above this size are mapped from files in the cache folder instead of held in memory.
        log: gets a dict with ``step`` and the losses now and then.

    Returns:
        The policy after the last step; ``act`` takes raw observations [B, O] and gives actions [B, A] within bounds.

    Raises:
        UserError: for an unknown algorithm, a ratio without bridges to serve it, a buffer of another dataset.
        RunError: when the loss is not finite.

    Example:
        >>> policy = rs.train(dataset, "td3bc", buffer="buffer", ratio="3:1", delta="off", config=small, device="cpu")
        >>> policy.act(dataset.observations[:5]).shape
        (5, 2)
        >>> rs.train(dataset, "td3bc", ratio="1:1", config=small)
        Traceback (most recent call last):
        raystitch.errors.UserError: ...
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
    return on_dataset(opened, dataset).mapped(delta)


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
    note: Callable[[str], None] = say,
    **settings: Unpack[TrialSettings],
) -> list[dict[str, Any] | RunError]:
    """Trials that differ in their seeds alone, trained side by side, each with its own folder as if it were alone.

    Finished folders are read and not repeated; unfinished ones go on from their checkpoints, those that stand at one
    step together.

    Args:
        outs, seeds, records: one per trial.
        log: gets the rows of ``metrics.jsonl`` with the trial's position.
        on_eval: called after every evaluation during training.
        note: gets a line for every damaged file that a trial does without.

    Returns:
        The contents of ``returns.json``, or the error that ended a trial (loss not finite) while others went on.

    Raises:
        UserError: for wrong settings, no environment to evaluate in, or a folder of a trial with other settings.
    """
    cell = _Cell.of(dataset, **settings)
    records = records or [{}] * len(seeds)
    trials = [
        TrialFolder(Path(out), seed, cell.identity(dataset, seed, record), note)
        for out, seed, record in zip(outs, seeds, records, strict=True)
    ]
    results: dict[int, dict[str, Any] | RunError] = {}
    steps: dict[int, list[int]] = {}
    for index, trial in enumerate(trials):
        finished = trial.finished()
        if finished is not None and not finished["evaluations"] and cell.enabled:
            finished = _evaluate_later(cell, trial, finished)
        if finished is not None:
            results[index] = finished
        else:
            steps.setdefault(trial.checkpoints.step(), []).append(index)
    if steps:
        if cell.enabled:
            check_evaluation(dataset, cell.evaluation, cell.env)
        data = cell.build(dataset)
        for group in steps.values():
            results.update(_train_group(cell, data, {index: trials[index] for index in group}, log, on_eval))
    return [results[index] for index in range(len(trials))]


def _train_group(
    cell: "_Cell",
    data: TrainData,
    trials: Mapping[int, TrialFolder],
    log: Callable[[int, dict[str, Any]], None] | None,
    on_eval: OnEval | None,
) -> dict[int, dict[str, Any] | RunError]:
    """Trials whose checkpoints stand at one step (or that have none), by position."""
    where = list(trials)
    metrics = [
        TrialMetrics(trial.journal, None if log is None else partial(log, index)) for index, trial in trials.items()
    ]
    for trial in trials.values():
        trial.prepare()
        trial.journal.cut(trial.checkpoints.extent())  # the rows after it are about to be made again

    def evaluate_now(step: int, policies: Mapping[int, Policy]) -> None:
        found: dict[int, EvalResult] = {}
        for at, policy in policies.items():
            # Other episodes than the reported ones, and other ones at every step.
            results = cell.evaluate(policy, cell.evaluation.every_episodes, trials[where[at]].seed, "curve", step)
            for result in results:
                metrics[at].evaluated(step, result)
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
        every=cell.evaluation.every if cell.enabled else 0,
        on_every=evaluate_now,
        records=[{"data": cell.data, **trial.settings["record"]} for trial in trials.values()],
    )
    finished: dict[int, dict[str, Any] | RunError] = {}
    for (index, trial), policy, rows in zip(trials.items(), policies, metrics, strict=True):
        if isinstance(policy, RunError):
            finished[index] = policy
            continue
        # Training is done even if the evaluation fails: the same call then only evaluates.
        policy.save(trial.out / "policy")
        finished[index] = trial.finish([], rows, cell.config.train_steps, len(trials))
    if cell.enabled:
        for (index, trial), policy, rows in zip(trials.items(), policies, metrics, strict=True):
            if isinstance(policy, Policy):
                finished[index] = _evaluated(cell, trial, policy, rows, len(trials))
    return finished


def _evaluate_later(cell: "_Cell", trial: TrialFolder, finished: Mapping[str, Any]) -> dict[str, Any] | None:
    """Evaluates a policy that was saved without its evaluation; None where it has to be trained again."""
    try:
        policy = load_policy(trial.out / "policy", cell.device)
        if "metrics" in finished:  # not in those of older versions
            trial.journal.rewind(finished["metrics"])  # without what an interrupted call appended
    except DamagedError as error:
        trial.redo(str(error))
        return None
    metrics = TrialMetrics(trial.journal, None)
    metrics.train_seconds = finished["train_seconds"]
    return _evaluated(cell, trial, policy, metrics, finished["num_stacked"])


def _evaluated(cell: "_Cell", trial: TrialFolder, policy: Policy, rows: TrialMetrics, stacked: int) -> dict[str, Any]:
    """Completes the folder of a policy that was trained and saved.

    Raises:
        RunError: when the evaluation fails; says where the policy is.
    """
    try:
        results = cell.evaluate(policy, cell.evaluation.num_episodes, trial.seed, "evaluation")
    except RunError as error:
        raise RunError(f"{error}; the policy is saved in {trial.out / 'policy'}") from error
    return trial.finish(results, rows, cell.config.train_steps, stacked)


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
    enabled: bool

    @classmethod
    def of(cls, dataset: EpisodeDataset, **settings: Unpack[TrialSettings]) -> "_Cell":
        algo = settings["algo"]
        return cls(
            algo=algo,
            config=settings.get("config") or default_config(algo),
            evaluation=settings.get("evaluation") or EvalConfig(),
            data=settings.get("data", "original"),
            ratio=parse_ratio(settings.get("ratio", "1:0")),
            bridges=settings.get("bridges"),
            joined=settings.get("joined"),
            env=environment_of(dataset, settings.get("env")),
            device=settings.get("device", "auto"),
            memory_gib=settings.get("memory_gib", MEMORY_GIB),
            enabled=settings.get("evaluate", True),
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
            "evaluation": self.evaluation.to_json(),
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
        env = self.env.for_evaluation(self.evaluation.max_episode_steps)
        return [evaluate(policy, env, num_episodes, self.evaluation.num_envs, episodes, target) for target in targets]


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
    needs = config.data_needs()
    spec = DataSpec(
        kind=algorithm.kind,
        data=data if ratio.augmented else "original",
        synthetic=needs.synthetic,
        uniform_over=needs.uniform_over,
        top_fraction=needs.top_fraction,
        device=device,
        memory_gib=memory_gib,
    )
    built = build_data(dataset, spec, bridges=bridges, joined=joined)
    built.require(ratio)
    return built
