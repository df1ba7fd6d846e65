"""``raystitch data``: make, import and inspect datasets."""

import argparse
import time
import warnings
from typing import TYPE_CHECKING, Any

from raystitch.commands.options import Subparsers, add_command, add_env, add_json, count, print_json, whole
from raystitch.console import duration, number, say, table

if TYPE_CHECKING:
    from raystitch.envs.spec import EnvSpec


def register(subparsers: Subparsers) -> None:
    group = subparsers.add_parser(
        "data",
        help="make, import and inspect datasets",
        description="Make, import and inspect datasets.",
        epilog="example: raystitch data inspect demo:pointmaze",
    )
    actions = group.add_subparsers(metavar="ACTION", required=True, dest="action")

    make = add_command(
        actions,
        "make",
        _make,
        help="make the demo dataset as a local Minari dataset",
        example="raystitch data make pointmaze --num-steps 20000 --seed 1 --id local/maze-v0",
    )
    make.add_argument("name", metavar="NAME", help="pointmaze")
    make.add_argument("--num-steps", type=count, metavar="N", help="transitions, about (default: the demo's)")
    make.add_argument("--seed", type=whole, default=0, metavar="S", help="default: %(default)s")
    make.add_argument("--id", metavar="ID", help="Minari id to write (default: raystitch/NAME-vSEED)")
    make.add_argument("--overwrite", action="store_true", help="replace a local dataset of that id")

    importer = add_command(
        actions,
        "import",
        _import,
        help="turn an HDF5 file in the D4RL layout into a local Minari dataset",
        example="raystitch data import hopper.hdf5 --id local/hopper-v0 --env Hopper-v5",
    )
    importer.add_argument("file", metavar="FILE", help="HDF5 file with observations, actions, rewards, terminals, ...")
    importer.add_argument("--id", required=True, metavar="ID", help="Minari id to write, such as local/hopper-v0")
    importer.add_argument("--env", metavar="ENV_ID", help="Gymnasium id of the environment, for evaluation")
    importer.add_argument("--overwrite", action="store_true", help="replace a local dataset of that id")

    inspect = add_command(
        actions,
        "inspect",
        _inspect,
        help="print spaces, episodes, returns and the problems found",
        example="raystitch data inspect d4rl:hopper.hdf5 --json",
    )
    inspect.add_argument("ref", metavar="REF", help="minari:ID, d4rl:FILE.hdf5 or demo:pointmaze")
    add_env(inspect)
    add_json(inspect)


def _described(env: "EnvSpec") -> str:
    limit = "no time limit" if env.max_episode_steps is None else f"{number(env.max_episode_steps)} steps"
    return f"{env}, {limit}"


def _make(args: argparse.Namespace) -> None:
    from raystitch.data.demo import DEFAULT_NUM_STEPS, make_pointmaze
    from raystitch.data.minari_io import write_minari
    from raystitch.errors import UserError

    if args.name != "pointmaze":
        raise UserError(f"no demo dataset is called {args.name!r}; there is: pointmaze")
    started = time.monotonic()
    dataset = make_pointmaze(num_steps=args.num_steps or DEFAULT_NUM_STEPS, seed=args.seed)
    dataset_id = write_minari(dataset, args.id or f"raystitch/{args.name}-v{args.seed}", overwrite=args.overwrite)
    _wrote(dataset, dataset_id, started)


def _import(args: argparse.Namespace) -> None:
    from raystitch.data.d4rl import read_d4rl
    from raystitch.data.minari_io import write_minari

    started = time.monotonic()
    dataset = read_d4rl(args.file.removeprefix("d4rl:"), env_id=args.env)
    for problem in dataset.found:
        say(f"note: {problem['message']}")
    dataset_id = write_minari(dataset, args.id, overwrite=args.overwrite)
    _wrote(dataset, dataset_id, started)


def _wrote(dataset: Any, dataset_id: str, started: float) -> None:
    say(f"{dataset.num_transitions:,} transitions in {duration(time.monotonic() - started)}")
    print(f"minari:{dataset_id}")


def _inspect(args: argparse.Namespace) -> None:
    from raystitch.data.inspect import inspect
    from raystitch.data.load import DatasetWarning, load_dataset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DatasetWarning)  # it is among the problems
        dataset = load_dataset(args.ref, env_id=args.env, allow_nan=True)
    found = inspect(dataset)
    if args.json:
        print_json(found)
        return
    print(f"{found['name']}: {number(found['num_episodes'])} episodes, {number(found['num_transitions'])} transitions")
    print(f"environment: {dataset.env or 'unknown (name it with --env ENV_ID)'}")
    if dataset.env is not None and dataset.env.evaluation is not None:
        print(f"evaluated in: {_described(dataset.env.evaluation)}")
    print(f"observation {found['obs_dim']}, action {found['act_dim']}, both float32")
    rows = [[what, *(found[what][key] for key in ("min", "mean", "max"))] for what in ("lengths", "returns")]
    print(table(["", "min", "mean", "max"], rows))
    print(f"ends: {number(found['terminated'])} terminated, {number(found['truncated'])} truncated")
    print(f"actions at their bounds: {found['action_saturated_share']:.1%}")
    problems = found["problems"]
    print("problems: none" if not problems else "problems:")
    for problem in problems:
        print(f"  {problem['kind']}: {problem['message']}")
