"""``raystitch validate``: bridges against the simulator."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raystitch.commands.options import (
    Subparsers,
    add_command,
    add_json,
    add_moved_dataset,
    buffer_dataset,
    count,
    print_json,
    require_folder,
)
from raystitch.console import number, table
from raystitch.files import read_json

if TYPE_CHECKING:
    from raystitch.buffer.reader import Buffer


def register(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "validate",
        _validate,
        help="compare bridges with the simulator",
        example="raystitch validate runs/demo/buffer --max-bridges 200",
    )
    parser.add_argument("buffer", metavar="BUFFER", help="folder of `raystitch augment`")
    add_moved_dataset(parser)
    parser.add_argument(
        "--stitcher", metavar="DIR", help="bundle, to compare with inverse-dynamics actions on real data"
    )
    parser.add_argument("--max-bridges", type=count, default=500, metavar="N", help="default: %(default)s")
    add_json(parser)


def _validate(args: argparse.Namespace) -> None:
    from raystitch.buffer.reader import open_buffer
    from raystitch.models.bundle import Bundle
    from raystitch.pipeline.validate import validate

    buffer = open_buffer(args.buffer)
    dataset = buffer_dataset(buffer, args.dataset)
    folder = _bundle_folder(args, buffer)
    bundle = Bundle.load(folder, "cpu") if folder is not None else None
    found = validate(buffer, dataset, bundle, max_bridges=args.max_bridges)
    if args.json:
        print_json(found)
        return
    _print(found)


def _bundle_folder(args: argparse.Namespace, buffer: "Buffer") -> Path | None:
    """``--stitcher``, else the folder beside the buffer in a run when its bundle is the buffer's."""
    if args.stitcher is not None:
        return require_folder(args.stitcher, "a stitcher bundle (made by `raystitch fit`)", "stitcher.json")
    beside = Path(args.buffer).absolute().parent / "stitcher"
    if not (beside / "stitcher.json").is_file():
        return None
    return beside if read_json(beside / "stitcher.json").get("hash") == buffer.meta.bundle_hash else None


SET_NAMES = {
    "accepted": "accepted bridges",
    "rejected": "rejected candidates",
    "real": "real data",
    "real_noise": "real data + noise",
    "real_inverse": "real data, inverse-dynamics actions",
}


def _print(found: dict[str, Any]) -> None:
    accepted, candidates = number(found["num_accepted"]), number(found["num_candidates"])
    print(f"{found['buffer']}: {accepted} accepted of {candidates} candidates, against {found['env']}")
    if found["unavailable"] is not None:
        print(f"simulator truth is unavailable: {found['unavailable']}")
        return
    print("squared distance to the simulator's next state, standardised units")
    headers = ("", "windows", "usable share", "step: median", "step: p90", "largest: median", "share < 0.5")
    rows = [
        [
            SET_NAMES[name],
            result["num_windows"],
            result["usable_share"],
            result["step_error"]["median"],
            result["step_error"]["p90"],
            result["largest_error"]["median"],
            result["largest_below"]["share"],
        ]
        for name, result in found["sets"].items()
    ]
    print(table(headers, rows))
    verdict = {True: "below", False: "not below", None: "not comparable with"}[found["below_noise"]]
    print(f"the median step of accepted bridges is {verdict} that of real data with noise {found['noise']}")
    if found["rank_correlation"] is not None:
        print(f"rank correlation of the judges' residual with the simulator's error: {found['rank_correlation']:.2f}")
    if found["real_accepted_share"] is not None:
        print(f"real windows with inverse-dynamics actions that delta accepts: {found['real_accepted_share']:.1%}")
