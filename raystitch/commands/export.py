"""``raystitch export``: bridges and stitched episodes for other tools."""

import argparse

from raystitch.commands.options import (
    Subparsers,
    add_command,
    add_delta,
    add_env,
    add_moved_dataset,
    buffer_dataset,
    local_out,
)
from raystitch.console import number, say
from raystitch.errors import UserError


def register(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "export",
        _export,
        help="write bridges or whole stitched episodes for other tools",
        example="raystitch export runs/demo/buffer --format minari --out local/stitched-v0 --what episodes",
    )
    parser.add_argument("buffer", metavar="BUFFER", help="folder of `raystitch augment`")
    parser.add_argument("--format", required=True, choices=("minari", "d4rl", "parquet"))
    parser.add_argument("--out", required=True, metavar="X", help="Minari id, or file to write")
    parser.add_argument(
        "--what",
        choices=("bridges", "episodes", "mixed"),
        default="episodes",
        help="lone bridges, whole stitched episodes, or those mixed with the original data (default: %(default)s)",
    )
    parser.add_argument("--ratio", metavar="A:B", help="original : augmented of `--what mixed` (default: 1:1)")
    add_delta(parser)
    add_moved_dataset(parser)
    add_env(parser)


def _export(args: argparse.Namespace) -> None:
    from raystitch.buffer.export import export
    from raystitch.buffer.opening import open_buffer
    from raystitch.data.spaces import layout_note
    from raystitch.trainers.ratio import parse_ratio

    local_out(args.out)
    if args.ratio is not None and args.what != "mixed":
        raise UserError(f"--ratio {args.ratio} is for --what mixed; add that or leave the ratio out")
    ratio = parse_ratio(args.ratio or "1:1")
    buffer = open_buffer(args.buffer)
    dataset = buffer_dataset(buffer, args.dataset, args.env, args.select)
    written = export(buffer, dataset, args.format, args.out, args.delta, args.what, (ratio.original, ratio.augmented))
    for note in layout_note(dataset.env):
        say(f"note: {note}")
    print(
        f"{args.out}: {number(written.num_episodes)} episodes, {number(written.num_transitions)} transitions, "
        f"{number(written.num_synthetic)} of them generated"
    )
