"""``raystitch status``: how far a run is, from its folder alone, whoever works on it and wherever."""

import argparse
import contextlib
import json
import time

from raystitch.commands.options import Subparsers, add_command, finite
from raystitch.errors import UserError

LEAST_SECONDS = 0.5


def register(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "status",
        _status,
        help="say how far a run is: stages, bridges, trials, time left, its driver; only reads files",
        example="raystitch status runs/demo --watch 5",
    )
    parser.add_argument("folder", metavar="RUN_DIR", help="folder or URI of a sweep, at work or not")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON; with --watch a line each time")
    form.add_argument("--prometheus", action="store_true", help="print Prometheus text, for node_exporter's textfiles")
    parser.add_argument(
        "--watch", type=_interval, metavar="SECONDS", help="look again every SECONDS, until the run is finished"
    )


def _interval(text: str) -> float:
    value = finite(text)
    if value < LEAST_SECONDS:
        raise argparse.ArgumentTypeError(f"must be at least {LEAST_SECONDS:g}, got {text}")
    return value


def _status(args: argparse.Namespace) -> None:
    if args.watch is not None and args.prometheus:
        raise UserError(
            "--watch redraws a terminal; write --prometheus into a file with a timer instead (docs/watching.md)"
        )
    from raystitch.pipeline.status.status import read_status

    if args.watch is not None:
        with contextlib.suppress(KeyboardInterrupt):  # the usual way to leave it
            _watch(args.folder, args.watch, args.json)
        return
    status = read_status(args.folder)
    if args.json:
        from raystitch.commands.options import print_json

        print_json(status.to_json())
    elif args.prometheus:
        from raystitch.pipeline.status.prometheus import status_metrics

        print(status_metrics(status), end="")
    else:
        from raystitch.pipeline.status.shown import print_status

        print_status(status)


def _watch(folder: str, seconds: float, as_json: bool) -> None:
    from rich.console import Console
    from rich.live import Live

    from raystitch.pipeline.status.shown import print_status, status_text
    from raystitch.pipeline.status.status import read_status

    status, console = read_status(folder), Console(highlight=False)
    if as_json or not console.is_terminal:
        while True:
            if as_json:
                print(json.dumps(status.to_json()), flush=True)
            else:
                print_status(status)
                print(flush=True)
            if status.state == "finished":
                return
            time.sleep(seconds)
            status = read_status(folder)
    with Live(status_text(status), console=console, auto_refresh=False) as live:
        while status.state != "finished":
            time.sleep(seconds)
            status = read_status(folder)
            live.update(status_text(status), refresh=True)
