"""One trial from data to returns: what ``raystitch train``, ``rs.train`` and the sweep run."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from raystitch.buffer.reader import Buffer
from raystitch.console import say
from raystitch.data.episodes import EpisodeDataset
from raystitch.errors import DamagedError, RunError, UserError
from raystitch.pipeline.trials.checks import check_evaluation
from raystitch.pipeline.trials.inputs import open_bridges
from raystitch.pipeline.trials.trial import LoadedInputs, Trial, shaping_entry
from raystitch.pipeline.trials.trial_folder import SCHEMA_VERSION, TrialFolder, TrialMetrics
from raystitch.seeding import derive_seed
from raystitch.shaping.config import ShapingConfig
from raystitch.trainers.batches import TrainData
from raystitch.trainers.config import (
    ALGORITHM_CONFIGS,
    MEMORY_GIB,
    AlgorithmConfig,
    DataSpec,
    settings_json,
)
from raystitch.trainers.data import build_data
from raystitch.trainers.evaluate import EvalResult, SharedEnvs, evaluate
from raystitch.trainers.loop import Log, train_policies, train_policy
from raystitch.trainers.policy import Policy
from raystitch.trainers.ratio import Ratio, parse_ratio
from raystitch.trainers.registry import find_algorithm, load_policy
from raystitch.trainers.shaped import check_asked, check_shaping

OnEval = Callable[[int, Mapping[int, EvalResult]], None]
"""(step, headline results by position of the trial) after an evaluation during training."""


def train(
    dataset: EpisodeDataset,
    algo: str,
    buffer: Buffer | str | Path | None = None,
    ratio: Ratio | str = "1:0",
    delta: float | str | None = None,
    seed: int = 0,
    config: AlgorithmConfig | None = None,
    *,
    shaping: ShapingConfig | None = None,
    device: str = "auto",
    memory_gib: float = MEMORY_GIB,
    log: Log | None = None,
) -> Policy:
    """Train a policy on a dataset, alone or mixed with the bridges of a buffer; writes nothing.

    Args:
        algo: ``td3bc``, ``iql``, ``dt`` or ``bc``.
        config: the settings of the algorithm, None for the published ones.
        buffer: an open one or its URI; needed where the ratio asks for augmented rows.
        ratio: original : augmented in every batch.
        delta: a number, a quantile such as ``q99``, ``auto`` or ``off``; None for what the buffer was made with.
        seed: of the networks, the batches and all noise.
        shaping: weights of the augmented part, rewards, returns-to-go; None for the data as they are. Weights without a
            buffer weigh the original data again as the augmented part, so ratio 0:1 is weighted data alone.
        device: ``auto`` (a GPU where there is one), ``cpu``, ``cuda[:N]``.
        memory_gib: training data above this size are mapped from files in the cache folder instead of held in memory.
        log: gets a dict with ``step`` and the losses now and then.

    Returns:
        The policy after the last step; ``act`` takes raw observations [B, O] and gives actions [B, A] within bounds.

    Raises:
        UserError: for an unknown algorithm, a ratio without bridges to serve it, a buffer of another dataset, a
            shaping that would change nothing.
        RunError: when the loss is not finite.

    Examples:
        >>> policy = rs.train(dataset, "td3bc", buffer="buffer", ratio="3:1", delta="off", config=small, device="cpu")
        >>> policy.act(dataset.observations[:5]).shape
        (5, 2)
        >>> rs.train(dataset, "td3bc", ratio="1:1", config=small)
        Traceback (most recent call last):
        raystitch.errors.UserError: ...
    """
    shares, shaping = parse_ratio(ratio), shaping or ShapingConfig()
    at = "generation" if delta is None else delta
    bridges = open_bridges(dataset, buffer, at) if buffer is not None and shares.augmented else None
    trial = Trial(
        algo=algo,
        config=config,
        data="stitched" if buffer is not None else "weighted" if "weights" in shaping.changed() else "original",
        ratio=ratio if isinstance(ratio, str) else f"{float(ratio.original)!r}:{float(ratio.augmented)!r}",
        seed=seed,
        shaping=shaping,
        device=device,
        memory_gib=memory_gib,
    )
    data = training_data(trial, LoadedInputs(dataset=dataset, bridges=bridges))
    return train_policy(data, algo, trial.settings, shares, seed, log=log)


def run_trial(trial: Trial, inputs: LoadedInputs, log: Log | None = None) -> dict[str, Any]:
    """Train, save and evaluate one policy; return the content of ``returns.json``.

    A finished folder is read and not repeated, an unfinished one goes on from its last checkpoint.

    Args:
        log: gets the rows of ``metrics.jsonl``.

    Raises:
        UserError: for wrong settings, no environment to evaluate in, or a folder of a trial with other settings.
        RunError: when the loss is not finite.
    """
    (result,) = run_trials((trial,), inputs, log=None if log is None else lambda index, row: log(row))
    if isinstance(result, RunError):
        raise result
    return result


def run_trials(
    trials: Sequence[Trial],
    inputs: LoadedInputs,
    *,
    log: Callable[[int, dict[str, Any]], None] | None = None,
    on_eval: OnEval | None = None,
    note: Callable[[str], None] = say,
) -> list[dict[str, Any] | RunError]:
    """Train trials that differ in their seeds alone side by side, each with its own folder as if it were alone.

    Finished folders are read and not repeated; unfinished ones go on from their checkpoints, those that stand at one
    step together.

    Args:
        trials: of one cell; what they share is read from the first.
        log: gets the rows of ``metrics.jsonl`` with the trial's position.
        on_eval: called after every evaluation during training.
        note: gets a line for every damaged file that a trial does without.

    Returns:
        The contents of ``returns.json``, or the error that ended a trial (loss not finite) while others went on.

    Raises:
        UserError: for wrong settings, no environment to evaluate in, or a folder of a trial with other settings.
    """
    shared = trials[0]
    folders = [TrialFolder(Path(trial.folder), trial.seed, trial_settings(trial, inputs), note) for trial in trials]
    with SharedEnvs(inputs.environment.for_evaluation(shared.evaluation.max_episode_steps)) as envs:
        results = _run_group(shared, inputs, folders, envs, log, on_eval)
    return [results[index] for index in range(len(folders))]


def _run_group(
    shared: Trial,
    inputs: LoadedInputs,
    folders: Sequence[TrialFolder],
    envs: SharedEnvs,
    log: Callable[[int, dict[str, Any]], None] | None,
    on_eval: OnEval | None,
) -> dict[int, dict[str, Any] | RunError]:
    """Return the results by position; train and evaluate what is not finished."""
    results: dict[int, dict[str, Any] | RunError] = {}
    steps: dict[int, list[int]] = {}
    for index, folder in enumerate(folders):
        found = folder.take_up()
        if found is not None and not found["evaluations"] and shared.evaluate:
            found = _evaluate_later(shared, envs, folder, found)
        if found is not None:
            results[index] = found
        else:
            steps.setdefault(folder.checkpoints.step(), []).append(index)
    if steps:
        if shared.evaluation.target_returns == "auto":
            raise UserError(
                "evaluation.target_returns: auto is read from the buffer of a run of `raystitch sweep`; give numbers "
                "(--target-return)"
            )
        if shared.evaluate:
            check_evaluation(inputs.dataset, shared.evaluation, inputs.environment)
        data = training_data(shared, inputs)
        for group in steps.values():
            results.update(_train_group(shared, envs, data, {at: folders[at] for at in group}, log, on_eval))
    return results


def trial_settings(trial: Trial, inputs: LoadedInputs) -> dict[str, Any]:
    """Return the content of ``config.json``."""
    return {
        "schema_version": SCHEMA_VERSION,
        "algo": trial.algo,
        "data": trial.data,
        "ratio": str(parse_ratio(trial.ratio)),
        "seed": trial.seed,
        "config": settings_json(trial.settings),
        **shaping_entry(trial.shaping),
        "evaluation": trial.evaluation.to_json(),
        "env": inputs.environment.to_json(),
        "dataset": inputs.dataset.name,
        "dataset_fingerprint": inputs.dataset.fingerprint,
        "record": trial.record,
    }


def _train_group(
    shared: Trial,
    envs: SharedEnvs,
    data: TrainData,
    folders: Mapping[int, TrialFolder],
    log: Callable[[int, dict[str, Any]], None] | None,
    on_eval: OnEval | None,
) -> dict[int, dict[str, Any] | RunError]:
    """Train trials whose checkpoints stand at one step (or that have none); folders and results by position."""
    where = list(folders)
    metrics = [
        TrialMetrics(folder.journal, None if log is None else partial(log, index)) for index, folder in folders.items()
    ]
    for folder in folders.values():
        folder.prepare()
        folder.journal.cut(folder.checkpoints.extent())  # the rows after it are about to be made again

    def evaluate_now(step: int, policies: Mapping[int, Policy]) -> None:
        found: dict[int, EvalResult] = {}
        for at, policy in policies.items():
            # Other episodes than the reported ones, and other ones at every step.
            seed = derive_seed(folders[where[at]].seed, "curve", step)
            with metrics[at].evaluating():
                results = _evaluate(shared, envs, policy, shared.evaluation.every_episodes, seed)
            for result in results:
                metrics[at].evaluated(step, result)
            found[where[at]] = results[0]
        if on_eval is not None:
            on_eval(step, found)

    policies = train_policies(
        data,
        shared.algo,
        shared.settings,
        parse_ratio(shared.ratio),
        [folder.seed for folder in folders.values()],
        log=lambda at, row: metrics[at].train_row(row),
        checkpoints=[folder.checkpoints for folder in folders.values()],
        every=shared.evaluation.every if shared.evaluate else 0,
        on_every=evaluate_now,
        records=[
            {"data": shared.data, **shaping_entry(shared.shaping), **folder.settings["record"]}
            for folder in folders.values()
        ],
    )
    return _finish_group(shared, envs, folders, policies, metrics)


def _finish_group(
    shared: Trial,
    envs: SharedEnvs,
    folders: Mapping[int, TrialFolder],
    policies: Sequence[Policy | RunError],
    metrics: Sequence[TrialMetrics],
) -> dict[int, dict[str, Any] | RunError]:
    """Save the policies of a group, all of them before the first is evaluated."""
    results: dict[int, dict[str, Any] | RunError] = {}
    for (index, folder), policy, rows in zip(folders.items(), policies, metrics, strict=True):
        if isinstance(policy, RunError):
            results[index] = policy
            continue
        # Training is done even if the evaluation fails: the same call then only evaluates.
        policy.save(folder.out / "policy")
        results[index] = folder.finish([], rows, shared.settings.train_steps, len(folders), shared.threads)
    if shared.evaluate:
        for (index, folder), policy, rows in zip(folders.items(), policies, metrics, strict=True):
            if isinstance(policy, Policy):
                results[index] = _evaluated(shared, envs, folder, policy, rows, len(folders))
    return results


def _evaluate_later(
    shared: Trial, envs: SharedEnvs, folder: TrialFolder, found: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Evaluate a policy that was saved without its evaluation; None where it has to be trained again."""
    try:
        policy = load_policy(folder.out / "policy", shared.device)
        if "metrics" in found:  # not in those of older versions
            folder.journal.rewind(found["metrics"])  # without what an interrupted call appended
    except DamagedError as error:
        folder.redo(str(error))
        return None
    metrics = TrialMetrics(folder.journal, None)
    metrics.train_seconds = found["train_seconds"]
    metrics.eval_seconds = found.get("eval_seconds", 0.0)
    return _evaluated(shared, envs, folder, policy, metrics, found["num_stacked"])


def _evaluated(
    shared: Trial, envs: SharedEnvs, folder: TrialFolder, policy: Policy, rows: TrialMetrics, stacked: int
) -> dict[str, Any]:
    """Complete the folder of a policy that was trained and saved.

    Raises:
        RunError: when the evaluation fails; says where the policy is.
    """
    try:
        seed = derive_seed(folder.seed, "evaluation")
        with rows.evaluating():
            results = _evaluate(shared, envs, policy, shared.evaluation.num_episodes, seed)
    except RunError as error:
        raise RunError(f"{error}; the policy is saved in {folder.out / 'policy'}") from error
    return folder.finish(results, rows, shared.settings.train_steps, stacked, shared.threads)


def _evaluate(shared: Trial, envs: SharedEnvs, policy: Policy, num_episodes: int, seed: int) -> list[EvalResult]:
    """Return one result per target return, the headline first, then what is asked beside; all see the same episodes."""
    evaluation = shared.evaluation
    assert evaluation.target_returns != "auto", "the run resolves it before it plans its trials"
    named = evaluation.target_returns if policy.uses_target_return else ()
    asked = (*(named or (None,)), *policy.asked_beside)
    return [evaluate(policy, envs, num_episodes, evaluation.num_envs, seed, target) for target in asked]


def training_data(trial: Trial, inputs: LoadedInputs) -> TrainData:
    """Build the training data of a trial.

    Raises:
        UserError: for settings of another algorithm or that do not fit together, or a ratio that these inputs or the
            batch cannot serve.
    """
    algorithm = find_algorithm(trial.algo)
    config, ratio, wanted = trial.settings, parse_ratio(trial.ratio), ALGORITHM_CONFIGS[trial.algo]
    if not isinstance(config, wanted):
        raise UserError(f"algo={trial.algo} takes a {wanted.__name__}, got a {type(config).__name__}")
    check_asked(config, trial.evaluation)
    ratio.counts(config.batch_size)
    needs = config.data_needs()
    data = trial.data if ratio.augmented else "original"
    check_shaping(trial.shaping, trial.algo, config, data)
    spec = DataSpec(
        kind=algorithm.kind,
        data=data,
        synthetic=needs.synthetic,
        uniform_over=needs.uniform_over,
        top_fraction=needs.top_fraction,
        prefix=needs.prefix,
        decoupled=needs.decoupled,
        shaping=trial.shaping,
        device=trial.device,
        memory_gib=trial.memory_gib,
    )
    built = build_data(inputs.dataset, spec, bridges=inputs.bridges, joined=inputs.joined)
    built.require(ratio)
    return built
