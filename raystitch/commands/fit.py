"""``raystitch fit``: a stitcher bundle from a dataset."""

import argparse

from raystitch.commands.options import (
    REFERENCE,
    Subparsers,
    add_command,
    add_config,
    add_device,
    add_env,
    add_preset,
    add_select,
    check_out,
    open_dataset,
    stage_config,
)
from raystitch.console import Progress, duration


def register(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "fit",
        _fit,
        help="fit the stitching models on a dataset and write a stitcher bundle",
        example="raystitch fit demo:pointmaze --out stitcher --set diffusion.train_steps=2000",
        resumes=True,
    )
    parser.add_argument("ref", metavar="REF", help=REFERENCE)
    parser.add_argument("--out", required=True, metavar="DIR", help="bundle's folder or URI; an unfinished one goes on")
    add_env(parser)
    add_select(parser)
    add_config(parser, "fit")
    add_preset(parser)
    add_device(parser)


def _fit(args: argparse.Namespace) -> None:
    out = check_out(args.out)
    from raystitch.models.config import FitConfig
    from raystitch.models.fit import FitProgress, fit_bundle
    from raystitch.pipeline.trials.place import work_folder

    config = stage_config(FitConfig, "fit", args.config, args.set, args.preset)
    dataset = open_dataset(args.ref, args.env, args.select)
    with work_folder(out) as folder, Progress() as progress:

        def show(at: FitProgress) -> None:
            note = f"loss {at.loss:.4g}, {duration(at.seconds_left)} left"
            progress.update(at.part, at.step, at.total_steps, note)

        bundle = fit_bundle(dataset, config, folder, device=args.device, progress=show)
    print(f"{out}: {bundle.hash}")
