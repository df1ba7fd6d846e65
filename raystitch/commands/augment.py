"""``raystitch augment``: accepted bridges into a buffer, on Ray."""

import argparse
from dataclasses import replace

from raystitch.commands.options import (
    Subparsers,
    add_command,
    add_config,
    add_delta,
    add_device,
    add_env,
    add_preset,
    check_out,
    count,
    is_run_config,
    open_dataset,
    require_folder,
    stage_config,
    whole,
)
from raystitch.console import Progress
from raystitch.errors import UserError


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
        type=whole,
        metavar="R",
        help="further rounds that also join trajectories stitched before; N is the total (default: 0)",
    )
    parser.add_argument("--num-actors", type=count, metavar="A", help="sampler actors (default: 1)")
    parser.add_argument("--seed", type=whole, default=0, metavar="S", help="default: %(default)s")
    add_env(parser)
    add_delta(parser, default="configured")
    add_config(parser, "stitch")
    add_preset(parser)
    add_device(parser)
    parser.add_argument("--address", metavar="A", help="Ray cluster to use (default: this machine)")


def _augment(args: argparse.Namespace) -> None:
    out = args.out if "://" in args.out else check_out(args.out)
    stitcher = require_folder(args.stitcher, "a stitcher bundle (made by `raystitch fit`)", "stitcher.json")
    from raystitch.buffer.config import AugmentConfig
    from raystitch.cluster.augment import augment
    from raystitch.stitching.config import StitchConfig

    overrides = [
        *args.set,
        *([] if args.delta == "configured" else [f"qualify.delta={'off' if args.delta is None else args.delta}"]),
    ]
    stitch = stage_config(StitchConfig, "stitch", args.config, overrides, args.preset)
    sizes = stage_config(AugmentConfig, "augment", args.config, []) if is_run_config(args.config) else AugmentConfig()
    rounds = sizes.chain_rounds if args.chain_rounds is None else args.chain_rounds
    if rounds >= args.num_bridges:
        raise UserError(f"--chain-rounds {rounds} needs more than {rounds} --num-bridges, one for every round")
    config = replace(
        sizes,
        num_bridges=args.num_bridges,
        num_actors=args.num_actors or sizes.num_actors,
        chain_rounds=rounds,
    )
    dataset = open_dataset(args.ref, args.env)
    with Progress() as progress:
        summary = augment(
            dataset,
            stitcher,
            out=out,
            stitch_config=stitch,
            config=config,
            seed=args.seed,
            device=args.device,
            address=args.address,
            progress=lambda accepted, note: progress.update("augment", accepted, args.num_bridges, note),
        )
    print(summary)
