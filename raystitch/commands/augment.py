"""``raystitch augment``: accepted bridges into a buffer, on Ray."""

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from types import TracebackType
from typing import TYPE_CHECKING

from raystitch.commands.options import (
    ADDRESS,
    Subparsers,
    add_command,
    add_config,
    add_delta,
    add_device,
    add_env,
    add_json,
    add_preset,
    add_select,
    check_out,
    count,
    is_run_config,
    open_dataset,
    print_json,
    require_folder,
    stage_config,
    whole,
)
from raystitch.console import Progress, say
from raystitch.errors import UserError

if TYPE_CHECKING:
    from raystitch.buffer.config import AugmentConfig
    from raystitch.pipeline.generate.progress import AugmentProgress

INTERVAL_SECONDS = 10.0
"""Seconds between two lines of progress where stderr is not a terminal."""


def register(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "augment",
        _augment,
        help="generate bridges between trajectories of a dataset until enough are accepted",
        example="raystitch augment demo:pointmaze --stitcher stitcher --out buffer --num-bridges 2000",
        resumes=True,
    )
    parser.add_argument("ref", metavar="REF", help="the dataset that the stitcher was fitted on")
    parser.add_argument("--stitcher", required=True, metavar="DIR", help="bundle of `raystitch fit`")
    parser.add_argument("--out", required=True, metavar="BUFFER", help="buffer folder; an existing one is continued")
    parser.add_argument(
        "--num-bridges",
        required=True,
        type=count,
        metavar="N",
        help="accepted bridges wanted, rounded up to whole shards",
    )
    parser.add_argument(
        "--chain-rounds",
        type=_rounds,
        metavar="R|auto",
        help="further rounds, which build on what the ones before have found; auto: until one brings nothing new; N is "
        "the total of all (default: auto; 0 with pairs.split=return)",
    )
    parser.add_argument(
        "--num-actors",
        type=_actors,
        metavar="A",
        help="proposer actors, or MIN:MAX to add them while work waits (default: one per GPU, else per CPU)",
    )
    parser.add_argument("--seed", type=whole, default=0, metavar="S", help="default: %(default)s")
    add_env(parser)
    add_select(parser)
    add_delta(parser, default="configured")
    add_config(parser, "stitch")
    parser.add_argument("--skip-failed", action="store_true", help="finish without shards that fail again and again")
    add_json(parser)
    add_preset(parser)
    add_device(parser)
    parser.add_argument("--address", metavar="A", help=ADDRESS)


def _actors(text: str) -> tuple[int | None, int]:
    """Read ``8`` or ``1:8`` as (least or None, most)."""
    least, _, most = text.rpartition(":")
    if least and count(least) > count(most):
        raise argparse.ArgumentTypeError(f"must be MIN:MAX with MIN <= MAX, got {text}")
    return (count(least) if least else None), count(most)


def _rounds(text: str) -> int | str:
    """Read ``2`` or ``auto``."""
    if text == "auto":
        return text
    try:
        return whole(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 0 or auto, got {text!r}") from None


def _augment(args: argparse.Namespace) -> None:
    out = args.out if "://" in args.out else check_out(args.out)
    stitcher = require_folder(args.stitcher, "a stitcher bundle (made by `raystitch fit`)", "stitcher.json")
    from raystitch.cluster.augment import augment
    from raystitch.stitching.config import StitchConfig

    # --set a.b=c means stitch.a.b, as in the commands of other stages; --set augment.a=b is a setting of this one.
    of_stitch, of_augment = list[str](), list[str]()
    for override in args.set:
        mine = override.startswith("augment.")
        (of_augment if mine else of_stitch).append(override.removeprefix("augment."))
    if args.delta != "configured":
        of_stitch.append(f"qualify.delta={'off' if args.delta is None else args.delta}")
    stitch = stage_config(StitchConfig, "stitch", args.config, of_stitch, args.preset)
    config = _sizes(args, of_augment)
    dataset = open_dataset(args.ref, args.env, args.select)
    with AugmentConsole() as console:
        summary = augment(
            dataset,
            stitcher,
            out=out,
            stitch_config=stitch,
            config=config,
            seed=args.seed,
            device=args.device,
            address=args.address,
            progress=console.show,
        )
    if args.json:
        print_json(asdict(summary))
    else:
        print(summary)
        if summary.reasons:
            print("candidates: " + ", ".join(f"{reason} {count:,}" for reason, count in summary.by_reason))


def _sizes(args: argparse.Namespace, overrides: list[str]) -> "AugmentConfig":
    from raystitch.buffer.config import AugmentConfig

    run_config = args.config if is_run_config(args.config) else None
    # The overrides include the number of bridges, because rounds are checked against it.
    overrides = [f"num_bridges={args.num_bridges}", *overrides]
    if args.chain_rounds is not None:
        if args.chain_rounds != "auto" and args.chain_rounds >= args.num_bridges:
            raise UserError(
                f"--chain-rounds {args.chain_rounds} needs more than {args.chain_rounds} --num-bridges, one for every "
                "round"
            )
        overrides.append(f"chain_rounds={args.chain_rounds}")
    if args.num_actors is not None:
        least, most = args.num_actors
        overrides += [f"num_actors={most}", f"min_actors={'null' if least is None else least}"]
    if args.skip_failed:
        overrides.append("skip_failed=true")
    return stage_config(AugmentConfig, "augment", run_config, overrides)


class AugmentConsole:
    """``show`` is the progress callback of ``augment``; used as a context manager.

    Elsewhere than on a terminal every line is a JSON object (``AugmentProgress.to_json``): the first state, one every
    ten seconds, every note at once, and the last state.
    """

    def __init__(self) -> None:
        self._bar = Progress() if sys.stderr.isatty() else None
        self._last = float("-inf")
        self._unsaid: AugmentProgress | None = None

    def __enter__(self) -> "AugmentConsole":
        if self._bar is not None:
            self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.__exit__(kind, error, trace)
        elif self._unsaid is not None:
            say(json.dumps(self._unsaid.to_json()))

    def show(self, at: "AugmentProgress") -> None:
        """Show the state, or the note that it carries."""
        if self._bar is not None:
            if at.event == "note":
                self._bar.note(at.message)
            self._bar.update("augment", at.accepted, at.wanted, at.text)
            return
        now = time.monotonic()
        if at.event == "note":
            say(json.dumps(at.to_json()))
            self._unsaid = replace(at, event="progress", message="")  # a note is no state: the last line is one
        elif now - self._last >= INTERVAL_SECONDS:
            say(json.dumps(at.to_json()))
            self._unsaid, self._last = None, now
        else:
            self._unsaid = at
