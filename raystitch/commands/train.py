"""``raystitch train`` and ``raystitch evaluate``: one policy, and its returns."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from raystitch.commands.options import (
    REFERENCE,
    Subparsers,
    add_command,
    add_config,
    add_delta,
    add_device,
    add_json,
    add_max_episode_steps,
    add_select,
    check_out,
    count,
    environment,
    finite,
    is_run_config,
    open_dataset,
    print_json,
    require_folder,
    stage_config,
    whole,
)
from raystitch.console import Progress, say, table
from raystitch.errors import UserError, check_choice
from raystitch.io.config_file import parse_config, read_value
from raystitch.shaping.config import ReturnName, RewardName, ShapingConfig, WeightName
from raystitch.trainers.config import ALGORITHM_CONFIGS, MEMORY_GIB, DataMode, EvalConfig
from raystitch.trainers.shaped import ShapingRules, check_shaping, settle

if TYPE_CHECKING:
    from raystitch.buffer.reader import Buffer
    from raystitch.config import LoggerName
    from raystitch.data.episodes import EpisodeDataset
    from raystitch.envs.spec import EnvSpec
    from raystitch.pipeline.trials.trial import InputHashes


HOOKS = {
    "weights": (WeightName, "weights of the augmented part's episodes, without --buffer of the original data again"),
    "rewards": (RewardName, "rule for the rewards of the data"),
    "returns": (ReturnName, "rule for the returns-to-go that a Decision Transformer reads"),
}


def register(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "train",
        _train,
        help="train one policy on a dataset, alone or mixed with bridges",
        example="raystitch train demo:pointmaze --algo dt --buffer runs/demo/buffer --ratio 1:1 --out policy-run",
        resumes=True,
    )
    parser.add_argument("ref", metavar="REF", help=REFERENCE)
    parser.add_argument("--algo", required=True, choices=tuple(ALGORITHM_CONFIGS))
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="the trial's folder or URI: metrics, policy, returns"
    )
    parser.add_argument("--buffer", metavar="BUFFER", help="folder of `raystitch augment`")
    parser.add_argument(
        "--ratio",
        metavar="A:B",
        help="original : augmented in every batch (default: 1:1 with --buffer, 0:1 with --weights alone, else 1:0)",
    )
    add_delta(parser)
    parser.add_argument("--seed", type=whole, default=0, metavar="S", help="default: %(default)s")
    parser.add_argument(
        "--env", metavar="ENV_ID", help="environment to evaluate in (default: the dataset's); package:ID imports it"
    )
    add_select(parser)
    parser.add_argument("--num-episodes", type=count, metavar="N", help="evaluation episodes (default: 50)")
    add_max_episode_steps(parser)
    _add_shaping(parser)
    parser.add_argument(
        "--memory-gib",
        type=_gib,
        metavar="G",
        help="training data above this size are mapped from files in $RAYSTITCH_CACHE (default: 1)",
    )
    parser.add_argument(
        "--target-return",
        type=finite,
        metavar="R",
        help="return asked of a Decision Transformer (default: the largest in the original data)",
    )
    parser.add_argument(
        "--logging", metavar="NAME,..", default="", help="logs for other tools: csv, tensorboard, wandb, mlflow"
    )
    add_config(parser, "algorithms.ALGO")
    add_device(parser)
    add_json(parser)


def register_evaluate(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "evaluate",
        _evaluate,
        help="run a saved policy in its environment",
        example="raystitch evaluate policy-run/policy --num-episodes 100 --json",
    )
    parser.add_argument("policy", metavar="POLICY_DIR", help="a trial's folder, or the policy/ in it")
    parser.add_argument(
        "--env", metavar="ENV_ID", help="environment (default: the one of the training data); package:ID imports it"
    )
    parser.add_argument("--num-episodes", type=count, default=50, metavar="N", help="default: %(default)s")
    add_max_episode_steps(parser)
    parser.add_argument("--seed", type=whole, default=0, metavar="S", help="of the resets (default: %(default)s)")
    parser.add_argument(
        "--target-return",
        type=_target,
        metavar="R",
        help="return asked of a Decision Transformer; max, at every step what the training data promise, of one that "
        "was trained with prompt: max or both (default: max with prompt: max, else the largest in the original data)",
    )
    add_device(parser)
    add_json(parser)


def _target(text: str) -> float | str:
    """Read a return, or ``max``."""
    return text if text == "max" else finite(text)


def _add_shaping(parser: argparse.ArgumentParser) -> None:
    for hook, (names, what) in HOOKS.items():
        known = ", ".join(get_args(names))
        parser.add_argument(f"--{hook}", metavar="RULE", help=f"{what}: {known}; with settings '{{name: RULE, ..}}'")


def _shaping(args: argparse.Namespace) -> ShapingConfig:
    """Return the rules of the options, each a name or a mapping as in a line of a grid."""
    given: dict[str, Any] = {}
    for hook in HOOKS:
        text = getattr(args, hook)
        try:
            given |= {} if text is None else {hook: read_value(text)}
        except UserError as error:
            raise UserError(f"--{hook}: {error}") from error
    return parse_config(given, ShapingRules, {(hook,): "--" for hook in HOOKS}).shaping


def _gib(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text} is not a size >= 0")
    return value


def _loggers(text: str, out: Path | str) -> "tuple[LoggerName, ...]":
    """Return the loggers that ``--logging`` names, checked to work in the trial's folder."""
    from raystitch.pipeline.trials.loggers import LOGGERS, check_loggers

    asked = [name.strip() for name in text.split(",") if name.strip()]
    for name in asked:
        check_choice("--logging", name, LOGGERS)
    names: tuple[LoggerName, ...] = tuple(name for name in LOGGERS if name in asked)
    if isinstance(out, Path):
        check_loggers(names, out)
    elif names:
        raise UserError(f"--logging {text}: logs are written into a folder, {out} is none; leave it out")
    return names


def _train(args: argparse.Namespace) -> None:
    out = check_out(args.out)
    loggers = _loggers(args.logging, out)
    from raystitch.buffer.opening import open_buffer
    from raystitch.data.ref import DatasetRef
    from raystitch.io.storage import Storage
    from raystitch.pipeline.trials.checks import over_limit_notes
    from raystitch.pipeline.trials.inputs import open_bridges
    from raystitch.pipeline.trials.logs import trial_logs
    from raystitch.pipeline.trials.place import work_folder
    from raystitch.pipeline.trials.train import run_trial
    from raystitch.pipeline.trials.trial import LoadedInputs, Trial
    from raystitch.trainers.ratio import parse_ratio

    shaping = _shaping(args)
    is_weighted = "weights" in shaping.changed() and not args.buffer
    asked = args.ratio or ("1:1" if args.buffer else "0:1" if is_weighted else "1:0")
    ratio = parse_ratio(asked)
    if ratio.augmented and not (args.buffer or is_weighted):
        raise UserError(f"--ratio {ratio} asks for augmented data; name a buffer with --buffer, or use 1:0")
    config = stage_config(ALGORITHM_CONFIGS[args.algo], f"algorithms.{args.algo}", args.config, args.set)
    data: DataMode = "stitched" if args.buffer else "weighted" if is_weighted else "original"
    check_shaping(shaping, args.algo, config, data if ratio.augmented else "original")
    data, shaping = settle(data, asked, shaping)
    evaluation = _evaluation(args)
    dataset = open_dataset(args.ref, args.env, args.select)
    for note in over_limit_notes(dataset):
        say(f"note: {note}")
    buffer = open_buffer(args.buffer) if data == "stitched" else None
    bridges = None if buffer is None else open_bridges(dataset, buffer, args.delta)
    missing = _missing_env(dataset.env, evaluation)
    if missing:
        say(f"{missing}; the policy is trained and saved, and the same command evaluates it once that is mended")
    with work_folder(out) as folder, Progress() as progress:
        trial = Trial(
            folder=str(folder),
            dataset=DatasetRef(args.ref, env=args.env, select=args.select or "all"),
            algo=args.algo,
            config=config,
            evaluation=evaluation,
            data=data,
            shaping=shaping,
            ratio=asked,
            delta=None if buffer is None else "off" if args.delta is None else str(args.delta),
            seed=args.seed,
            inputs=None if buffer is None else _hashes(dataset, buffer),
            buffer=args.buffer,
            evaluate=not missing,
            device=args.device,
            memory_gib=MEMORY_GIB if args.memory_gib is None else args.memory_gib,
        )
        with trial_logs(loggers, folder, [trial], progress.note) as logs:

            def show(row: dict[str, Any]) -> None:
                if "loss" in row:
                    progress.update(args.algo, row["step"], row["total_steps"], f"loss {row['loss']:.4g}")
                logs.row(0, row)

            result = run_trial(trial, LoadedInputs(dataset=dataset, bridges=bridges), show)
            logs.result(0, result)
    if args.json:
        print_json(result)
        return
    if missing:
        print(f"not evaluated: {missing}")
    else:
        _print_evaluations(result["evaluations"])
    print(f"policy: {out / 'policy' if isinstance(out, Path) else Storage(out).below('policy')}")


def _hashes(dataset: "EpisodeDataset", buffer: "Buffer") -> "InputHashes":
    from raystitch.pipeline.trials.trial import InputHashes

    return InputHashes(dataset=dataset.fingerprint, bundle=buffer.meta.bundle_hash, buffer=buffer.hash)


def _evaluation(args: argparse.Namespace) -> EvalConfig:
    """Return the settings of the evaluation: the run's where ``--config`` names one, with what the options say."""
    evaluation = stage_config(EvalConfig, "evaluation", args.config, []) if is_run_config(args.config) else EvalConfig()
    if args.num_episodes is not None:
        evaluation = replace(evaluation, num_episodes=args.num_episodes)
    if args.target_return is not None:
        evaluation = replace(evaluation, target_returns=(args.target_return,))
    if args.max_episode_steps is not None:
        evaluation = replace(evaluation, max_episode_steps=args.max_episode_steps)
    return evaluation


def _missing_env(env: "EnvSpec | None", evaluation: EvalConfig) -> str | None:
    """Return the reason why the environment cannot be made here; None when it can, or when none is known."""
    from raystitch.envs.make import make_env

    if env is None:
        return None
    try:
        make_env(env.for_evaluation(evaluation.max_episode_steps)).close()
    except UserError as error:
        return str(error)
    return None


def _evaluate(args: argparse.Namespace) -> None:
    args.policy = _policy_of(args.policy)
    folder = require_folder(args.policy, "a saved policy (the policy/ folder of a trial)", "policy.json")
    from raystitch.trainers.evaluate import evaluate
    from raystitch.trainers.registry import load_policy

    policy = load_policy(folder, args.device)
    env = environment(args.env) or policy.meta.env
    if env is None:
        raise UserError(f"{args.policy} does not say which environment it was trained for; name one with --env ENV_ID")
    if args.target_return is not None and not policy.uses_target_return:
        raise UserError(f"--target-return: {policy.meta.algo} does not ask for a return; leave it out")
    env = env.for_evaluation(args.max_episode_steps)
    result = evaluate(policy, env, args.num_episodes, seed=args.seed, target_return=args.target_return)
    if args.json:
        print_json({"policy": args.policy, "env": env.env_id, "seed": args.seed, **result.to_json()})
        return
    _print_evaluations([result.to_json()])


def _policy_of(where: str) -> str:
    """Return the policy of a trial's folder, or the folder itself."""
    from raystitch.io.files import is_remote
    from raystitch.io.storage import Storage

    if is_remote(where):
        storage = Storage(where)
        return storage.below("policy") if storage.exists("policy/policy.json") else where
    nested = Path(where) / "policy"
    return str(nested) if (nested / "policy.json").is_file() else where


def _print_evaluations(evaluations: list[dict[str, Any]]) -> None:
    columns = ("target_return", "return_mean", "return_std", "success_rate", "score", "num_eval_episodes")
    shown = [{**result, "target_return": result.get("prompt") or result["target_return"]} for result in evaluations]
    print(table(columns, [[result[column] for column in columns] for result in shown]))
