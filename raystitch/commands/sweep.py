"""``raystitch sweep`` and ``raystitch report``: the whole pipeline, and its page again."""

import argparse

from raystitch.commands.options import Subparsers, add_command, require_folder


def register(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "sweep",
        _sweep,
        help="run the whole pipeline: data, fit, augment, train a grid, validate, report",
        example="raystitch sweep tune_configs/demo.yaml --out runs/demo --set seeds=[0,1]",
        resumes=True,
    )
    parser.add_argument(
        "config",
        nargs="?",
        default="demo",
        metavar="CONFIG",
        help="YAML file, or the name of one in tune_configs/ (default: %(default)s)",
    )
    parser.add_argument("--out", metavar="URI", help="run folder (default: runs/NAME, or $RAYSTITCH_RUNS/NAME)")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="override a key; repeatable")
    parser.add_argument("--address", metavar="A", help="Ray cluster to use (default: this machine)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and an estimate of its cost, then stop")


def register_report(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "report",
        _report,
        help="write report.html of a run again, from its files alone",
        example="raystitch report runs/demo",
    )
    parser.add_argument("folder", metavar="RUN_DIR", help="folder of a sweep")


def _sweep(args: argparse.Namespace) -> None:
    from raystitch.config import load_run_config

    config = load_run_config(args.config, args.set)
    from raystitch.cluster.sweep import run_sweep

    run_sweep(config, args.out, address=args.address, dry_run=args.dry_run)


def _report(args: argparse.Namespace) -> None:
    run = require_folder(args.folder, "a run of `raystitch sweep`", "results.parquet")
    from raystitch.report.page import build_report

    print(build_report(run))
