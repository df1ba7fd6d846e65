"""``raystitch sweep`` and ``raystitch report``: the whole pipeline, and its page again."""

import argparse
from typing import TYPE_CHECKING, Any

from raystitch.commands.options import ADDRESS, Subparsers, add_command, opened_run
from raystitch.console import Progress, table
from raystitch.errors import UserError

if TYPE_CHECKING:
    from raystitch.pipeline.trials.like import ImaginedCluster
    from raystitch.pipeline.trials.place import RunPlace


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
        metavar="CONFIG",
        help="YAML file, or the name of one in tune_configs/ (default: demo)",
    )
    parser.add_argument(
        "--out",
        metavar="URI",
        help="run folder, or a URI such as s3://bucket/runs/name (default: runs/NAME, or $RAYSTITCH_RUNS/NAME)",
    )
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="override a key; repeatable")
    parser.add_argument("--address", metavar="A", help=ADDRESS)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="run every check that could refuse the sweep, print the plan and what it will take, then stop",
    )
    parser.add_argument(
        "--like",
        type=_cluster,
        metavar="NODES",
        help='with --dry-run: plan for a cluster that is not at hand, such as "4x(16 CPU, 1 GPU)" or '
        '"1x(8 CPU)+4x(16 CPU, 1 GPU, 64 GiB)"',
    )
    parser.add_argument(
        "--allow-failed",
        action="store_true",
        help="exit with 0 although trials failed, instead of with 3 (with 1 all the same when all of them did)",
    )
    parser.add_argument(
        "--rerun", metavar="TRIAL_ID", help="repeat one trial of the run in --out, alone, and compare the results"
    )


def _cluster(text: str) -> "ImaginedCluster":
    from raystitch.pipeline.trials.like import parse_cluster

    try:
        return parse_cluster(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def register_report(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "report",
        _report,
        help="write report.html of a run from its files alone, also while the run is not finished",
        example="raystitch report runs/demo",
    )
    parser.add_argument("folder", metavar="RUN_DIR", help="folder or URI of a sweep")


def _sweep(args: argparse.Namespace) -> None:
    if args.rerun is not None:
        _rerun(args)
        return
    if args.like is not None and (not args.dry_run or args.address):
        raise UserError("--like plans for a cluster that is not at hand: give it with --dry-run and without --address")
    from raystitch.config import load_run_config

    config = load_run_config(args.config or "demo", args.set)
    from raystitch.cluster.sweep import run_sweep

    run_sweep(
        config,
        args.out,
        address=args.address,
        dry_run=args.dry_run,
        allow_failed=args.allow_failed,
        like=args.like,
    )


def _rerun(args: argparse.Namespace) -> None:
    if args.out is None:
        raise UserError(f"--rerun {args.rerun}: name the run with --out RUN_DIR")
    named = [override.removeprefix("env=") for override in args.set if override.startswith("env=")]
    if args.config or len(args.set) > len(named) or args.address or args.dry_run or args.allow_failed or args.like:
        raise UserError(
            "--rerun takes everything from the run in --out; leave out CONFIG, --set (all but env=), --address, "
            "--dry-run, --like and --allow-failed"
        )
    with opened_run(args.out, "config.yaml", study=True) as place:
        _repeat(args.rerun, named[-1] if named else None, place)


def _repeat(trial_id: str, env_id: str | None, place: "RunPlace") -> None:
    """Repeat a trial, and print both results."""
    from raystitch.pipeline.trials.rerun import rerun

    with Progress() as progress:

        def show(row: dict[str, Any]) -> None:
            if "loss" in row:
                progress.update("train", row["step"], row["total_steps"], f"loss {row['loss']:.4g}")

        found = rerun(place.folder, trial_id, show, env_id)
    columns = ("target_return", "stored", "repeated", "apart")
    print(f"{found.trial.trial_id}: {found.trial.label}")
    print(table(columns, [[row[column] for column in columns] for row in found.rows()]))
    if found.stored is None:
        print("the run has no result of this trial to compare with")
    elif found.equal:
        print("equal: every episode returned the same")
    else:
        print("not equal: seeds trained together sum in another order than one alone, and simulators amplify rounding")
    print(f"repeated in {place.told(str(found.folder))}")


def _report(args: argparse.Namespace) -> None:
    from raystitch.pipeline.status.partial import partial_results

    with opened_run(args.folder, "config.yaml") as place:
        partial = partial_results(place.uri, place.folder)
        from raystitch.report.page import build_report
        from raystitch.report.terminal import print_summary

        page = build_report(place.folder, partial)
        print_summary(place.folder, partial=partial)
    print(f"\n{place.told(str(page))}")
