"""``raystitch data``: make, import, inspect and select datasets."""

import argparse
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raystitch.commands import data_select
from raystitch.commands.options import (
    REFERENCE,
    Subparsers,
    add_command,
    add_env,
    add_json,
    add_select,
    count,
    local_out,
    print_json,
    require_folder,
    whole,
)
from raystitch.console import Progress, duration, number, say, table
from raystitch.errors import UserError

if TYPE_CHECKING:
    from raystitch.data.checks import Problem
    from raystitch.data.episodes import EpisodeDataset
    from raystitch.data.potential import Potential
    from raystitch.envs.spec import EnvSpec


def register(subparsers: Subparsers) -> None:
    group = subparsers.add_parser(
        "data",
        help="make, import, inspect and select datasets",
        description="Make, import, inspect and select datasets.",
        epilog="example: raystitch data inspect demo:pointmaze",
    )
    actions = group.add_subparsers(metavar="ACTION", required=True, dest="action")

    make = add_command(
        actions,
        "make",
        _make,
        help="make a dataset in a simulator, as a local Minari dataset or, for a benchmark, as its file",
        example="raystitch data make pointmaze --num-steps 20000 --seed 1 --id local/maze-v0",
    )
    make.add_argument(
        "name",
        metavar="NAME",
        help="pointmaze, pointmaze-gap-{0,0.25,0.5,1,1.5}, qdt-toy, maze2d-{umaze,medium,large}, "
        "ogbench-pointmaze-{medium,large,giant,teleport}-stitch",
    )
    make.add_argument("--num-steps", type=count, metavar="N", help="transitions, about (default: NAME's usual number)")
    make.add_argument(
        "--num-episodes", type=count, metavar="N", help="episodes of 200 steps of ogbench-* (default: 5000)"
    )
    make.add_argument("--seed", type=whole, default=0, metavar="S", help="default: %(default)s")
    make.add_argument("--id", metavar="ID", help="Minari id to write (default: raystitch/NAME-vSEED)")
    make.add_argument("--out", metavar="FILE", help=".npz file to write for ogbench-*")
    make.add_argument("--overwrite", action="store_true", help="replace a local dataset of that id, or the file")

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
        example="raystitch data inspect minari:mujoco/hopper/medium-v0 --json",
    )
    inspect.add_argument("ref", metavar="REF", help=REFERENCE)
    add_env(inspect)
    add_select(inspect)
    add_json(inspect)
    inspect.add_argument(
        "--potential",
        action="store_true",
        help="also say what weighting, joining and stitching promise at most (a minute for 200,000 transitions)",
    )
    inspect.add_argument("--stitcher", metavar="DIR", help="bundle whose discount --potential takes (default: 0.99)")
    inspect.add_argument("--buffer", metavar="BUFFER", help="buffer whose accepted bridges --potential adds")
    data_select.register(actions)


def _described(env: "EnvSpec") -> str:
    limit = "no time limit" if env.max_episode_steps is None else f"{number(env.max_episode_steps)} steps"
    return f"{env}, {limit}"


def _make(args: argparse.Namespace) -> None:
    from raystitch.data.made import MAKERS
    from raystitch.data.ogbench_oracle import MAZES

    stitch = {f"ogbench-pointmaze-{maze}-stitch": maze for maze in MAZES}
    if args.name not in (*MAKERS, *stitch):
        raise UserError(f"no dataset to make is called {args.name!r}; there are: {', '.join((*MAKERS, *stitch))}")
    others = ("out", "num_episodes") if args.name in MAKERS else ("id", "num_steps")
    for option in others:
        if getattr(args, option) is not None:
            raise UserError(
                f"--{option.replace('_', '-')} is not an option of {args.name}; see raystitch data make --help"
            )
    if args.name in MAKERS:
        _make_minari(args)
    else:
        _make_stitch(args, stitch[args.name])


def _make_minari(args: argparse.Namespace) -> None:
    from raystitch.data.made import make_dataset
    from raystitch.data.minari_io import new_id, write_minari

    # Minari's ids have no dots.
    named = args.id or f"raystitch/{args.name.replace('.', '-')}-v{args.seed}"
    dataset_id = new_id(named, args.overwrite)  # before minutes of work
    started = time.monotonic()
    dataset = make_dataset(args.name, args.num_steps, args.seed)
    write_minari(dataset, dataset_id, overwrite=args.overwrite)
    _wrote(dataset, dataset_id, started)


def _make_stitch(args: argparse.Namespace, maze: str) -> None:
    from raystitch.data.ogbench_oracle import DEFAULT_NUM_EPISODES, make_stitch, write_npz
    from raystitch.errors import UserError

    if args.out is None:
        raise UserError(f"{args.name} becomes a file: say which, such as --out pointmaze-{maze}-stitch-v0.npz")
    if not local_out(args.out).endswith(".npz"):
        raise UserError(f"--out {args.out}: OGBench's files end in .npz, by which they are known; name it so")
    if Path(args.out).exists() and not args.overwrite:
        raise UserError(f"{args.out} exists; --overwrite replaces it")
    started = time.monotonic()
    with Progress() as progress:
        update = partial(progress.update, "episodes")
        arrays = make_stitch(maze, args.num_episodes or DEFAULT_NUM_EPISODES, args.seed, update)
    write_npz(arrays, args.out)
    say(f"{len(arrays['terminals']):,} rows in {duration(time.monotonic() - started)}")
    say(f"its rewards come from a task, such as --env ogbench:pointmaze-{maze}-singletask-task1-v0")
    print(f"ogbench:{args.out}")


def _import(args: argparse.Namespace) -> None:
    from raystitch.data.d4rl import read_d4rl
    from raystitch.data.minari_io import new_id, write_minari

    dataset_id = new_id(args.id, args.overwrite)  # before minutes of reading
    started = time.monotonic()
    dataset = read_d4rl(args.file.removeprefix("d4rl:"), env_id=args.env)
    for problem in dataset.found:
        say(f"note: {problem['message']}")
    write_minari(dataset, dataset_id, overwrite=args.overwrite)
    _wrote(dataset, dataset_id, started)


def _wrote(dataset: Any, dataset_id: str, started: float) -> None:
    say(f"{dataset.num_transitions:,} transitions in {duration(time.monotonic() - started)}")
    print(f"minari:{dataset_id}")


def _inspect(args: argparse.Namespace) -> None:
    from raystitch.data.inspect import inspect
    from raystitch.data.load import DatasetWarning, load_dataset
    from raystitch.data.select import choose_episodes

    if (args.stitcher or args.buffer) and not args.potential:
        raise UserError("--stitcher and --buffer are for --potential; add that, or leave them out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DatasetWarning)  # it is among the problems
        whole_dataset = load_dataset(args.ref, env_id=args.env, allow_nan=True)
    selected = choose_episodes(whole_dataset, args.select or "all")
    dataset = selected.dataset
    found = inspect(dataset)
    if args.select is not None:
        found["selection"] = selected.to_json()
    potential = _potential(args, dataset) if args.potential else None
    if potential is not None:
        found["potential"] = potential.to_json()
    if args.json:
        print_json(found)
        return
    for line in selected.lines:
        print(line)
    print(f"{found['name']}: {number(found['num_episodes'])} episodes, {number(found['num_transitions'])} transitions")
    print(f"environment: {dataset.env or 'unknown (name it with --env ENV_ID)'}")
    if dataset.env is not None and dataset.env.evaluation is not None:
        print(f"evaluated in: {_described(dataset.env.evaluation)}")
    print(f"observation {found['obs_dim']}, action {found['act_dim']}, both float32")
    rows = [[what, *(found[what][key] for key in ("min", "mean", "max"))] for what in ("lengths", "returns")]
    print(table(["", "min", "mean", "max"], rows))
    print(f"ends: {number(found['terminated'])} terminated, {number(found['truncated'])} truncated")
    print(f"actions at their bounds: {found['action_saturated_share']:.1%}")
    _print_problems(found["problems"])
    if potential is not None:
        _print_potential(potential)


def _print_problems(problems: Sequence["Problem"]) -> None:
    print("problems: none" if not problems else "problems:")
    for problem in problems:
        print(f"  {problem['kind']}: {problem['message']}")


def _potential(args: argparse.Namespace, dataset: "EpisodeDataset") -> "Potential":
    from raystitch.pipeline.potential import potential_with

    gamma = buffer = None
    if args.stitcher is not None:
        from raystitch.models.bundle import Bundle

        bundle = Bundle.load(
            require_folder(args.stitcher, "a stitcher bundle (made by `raystitch fit`)", "stitcher.json"), "cpu"
        )
        bundle.check_dataset(dataset)
        gamma = bundle.gamma
    if args.buffer is not None:
        from raystitch.buffer.episodes import on_dataset
        from raystitch.buffer.opening import open_buffer

        buffer = on_dataset(open_buffer(args.buffer), dataset)
    return potential_with(dataset, gamma, buffer)


def _print_potential(found: "Potential") -> None:
    from raystitch.data.potential import POTENTIALS, promise_text

    print(
        f"\nroom for weighting: RPSV {found.rpsv:,.4g}; returns {found.return_mean:,.1f}, best {found.return_best:,.1f}"
    )
    values = [(label, getattr(found, key)) for label, key in POTENTIALS]
    rows = [[label, promise_text(value)] for label, value in values if value is not None]
    starts = "where the task starts" if found.task_starts else "the recorded starts"
    print(table([f"mean discounted return from {starts} (gamma {found.gamma:g})", "at most"], rows))
    for line in found.text:
        print(line)
