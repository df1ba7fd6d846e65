"""``raystitch bench``: speed on this machine, next to the machine's own limits."""

import argparse
import json

from raystitch.commands.options import Subparsers, add_command
from raystitch.console import say, table


def register(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "bench",
        _bench,
        help="measure speed on this machine, next to the machine's own limits",
        example="raystitch bench engine trainers --json",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="engine, augment, trainers, data (default: all)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON per benchmark on stdout")


def _bench(args: argparse.Namespace) -> None:
    from raystitch.bench import check_names, run_benchmark

    for name in check_names(args.names):
        say(f"measuring {name} ...")
        result = run_benchmark(name)
        if args.json:
            print(json.dumps(result, allow_nan=False), flush=True)
            continue
        limit = ", ".join(f"{key} {value:.4g}" for key, value in result["limit"].items())
        machine = result["machine"]
        print(f"{name} on {machine['cpu']}, {machine['cpus']} CPUs, {machine['torch_threads']} threads; limit: {limit}")
        rows = [[row["what"], row["value"], row["unit"], row["ratio"], row["ratio_to"]] for row in result["rows"]]
        print(table(["what", "value", "unit", "ratio", "to"], rows), flush=True)
