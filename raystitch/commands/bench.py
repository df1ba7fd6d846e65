"""``raystitch bench``: speed on this machine, next to the machine's own limits."""

import argparse
import json

from raystitch.commands.options import Subparsers, add_command, add_env, count, open_dataset, require_folder
from raystitch.console import say, table
from raystitch.errors import UserError


def register(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "bench",
        _bench,
        help="measure speed on this machine, next to the machine's own limits",
        example="raystitch bench engine --dataset d4rl:hopper.hdf5 --env Hopper-v5 --stitcher stitcher --json",
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="engine, fit, augment, trainers, serve, data, sweep, chaos (default: all but the last two)",
    )
    parser.add_argument(
        "--dataset", metavar="REF", help="engine, fit, serve: measure on this dataset (default: random walks)"
    )
    add_env(parser)
    parser.add_argument(
        "--stitcher", metavar="DIR", help="engine, serve: a bundle fitted on --dataset (default: barely fitted)"
    )
    parser.add_argument("--num-pairs", type=count, metavar="N", help="engine: pairs stitched at once (default: 512)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON per benchmark on stdout")


def _bench(args: argparse.Namespace) -> None:
    from raystitch.bench import TAKE_OPTIONS, check_names, run_benchmark
    from raystitch.bench.synthetic import BenchOptions

    names = check_names(args.names)
    given = [name for name in ("dataset", "env", "stitcher", "num_pairs") if getattr(args, name) is not None]
    if given and not set(names) & set(TAKE_OPTIONS):
        option = f"--{given[0].replace('_', '-')}"
        raise UserError(f"{option} is for the benchmark engine; {', '.join(names)} always take made-up data")
    if args.dataset is None and (args.stitcher or args.env):
        raise UserError("--stitcher and --env need --dataset REF, the dataset that the stitcher was fitted on")
    stitcher = args.stitcher
    if stitcher is not None:
        stitcher = require_folder(stitcher, "a stitcher bundle (made by `raystitch fit`)", "stitcher.json")
    options = BenchOptions(
        dataset=None if args.dataset is None else open_dataset(args.dataset, args.env),
        stitcher=stitcher,
        **({} if args.num_pairs is None else {"num_pairs": args.num_pairs}),
    )
    for name in names:
        say(f"measuring {name} ...")
        result = run_benchmark(name, options)
        if args.json:
            print(json.dumps(result, allow_nan=False), flush=True)
            continue
        limit = ", ".join(f"{key} {value:.4g}" for key, value in result["limit"].items())
        machine = result["machine"]
        print(f"{name} on {machine['cpu']}, {machine['cpus']} CPUs, {machine['torch_threads']} threads; limit: {limit}")
        rows = [[row["what"], row["value"], row["unit"], row["ratio"], row["ratio_to"]] for row in result["rows"]]
        print(table(["what", "value", "unit", "ratio", "to"], rows), flush=True)
