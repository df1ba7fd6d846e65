"""``raystitch study``: questions about a finished run or buffer."""

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raystitch.commands.options import (
    Subparsers,
    add_command,
    add_env,
    add_json,
    add_max_episode_steps,
    add_moved_dataset,
    buffer_dataset,
    bundle_beside,
    count,
    finite,
    opened_run,
    print_json,
    require_folder,
)
from raystitch.console import Progress
from raystitch.errors import UserError
from raystitch.io.files import read_json

if TYPE_CHECKING:
    from raystitch.buffer.reader import Buffer
    from raystitch.config import RunConfig
    from raystitch.pipeline.study.parts import StudyParts
    from raystitch.pipeline.study.recovery import RecoveryConfig
    from raystitch.pipeline.study.scaling import ScalingConfig

SCALING = ("fractions", "algo", "train_steps", "fit_steps", "num_bridges", "num_seeds")
"""Options that go with ``--scaling`` alone."""
RUN_MARKER, BUFFER_MARKER = "config.yaml", "buffer.json"


def register(subparsers: Subparsers) -> None:
    group = subparsers.add_parser(
        "study",
        help="ask what generated data do: generalise, explore or overfit",
        description="Ask what generated data do.",
        epilog="example: raystitch study generalise runs/demo",
    )
    actions = group.add_subparsers(metavar="QUESTION", required=True, dest="question")
    parser = add_command(
        actions,
        "generalise",
        _generalise,
        help="measure copying, coverage, recovery from poor states, overfitting; of a run, write them into its report",
        example="raystitch study generalise runs/demo --num-starts 50",
        resumes=True,
    )
    parser.add_argument("where", metavar="RUN|BUFFER", help="folder of `raystitch sweep` or of `raystitch augment`")
    parser.add_argument(
        "--num-starts",
        type=count,
        default=20,
        metavar="N",
        help="states of each part that every policy of a run begins in (default: %(default)s)",
    )
    add_max_episode_steps(parser)
    _add_scaling(parser)
    parser.add_argument("--stitcher", metavar="DIR", help="bundle of a buffer (default: the one beside it)")
    add_moved_dataset(parser)
    add_env(parser)
    add_json(parser)


def _add_scaling(parser: argparse.ArgumentParser) -> None:
    scaling = parser.add_argument_group("scaling", "also train on shares of the episodes of a run; takes long")
    scaling.add_argument(
        "--scaling", action="store_true", help="original, weighted, joined and stitched data at each share"
    )
    scaling.add_argument(
        "--fractions", type=shares, metavar="A,B,..", help="shares of the fitted episodes in %% (default: 5,10,25,100)"
    )
    scaling.add_argument("--algo", metavar="A", help="default: the first of the run's grid")
    scaling.add_argument("--train-steps", type=count, metavar="N", help="of a policy (default: the run's)")
    scaling.add_argument("--fit-steps", type=count, metavar="N", help="of each model, at most (default: the run's)")
    scaling.add_argument("--num-bridges", type=count, metavar="N", help="at every share (default: the run's)")
    scaling.add_argument("--num-seeds", type=count, metavar="N", help="default: the run's")


def shares(text: str) -> tuple[float, ...]:
    """Percentages above 0 and up to 100, separated by commas, as shares."""
    values = [finite(part) for part in text.split(",")]
    if not all(0 < value <= 100 for value in values):
        raise argparse.ArgumentTypeError(f"must be percentages above 0 and up to 100, got {text}")
    return tuple(sorted({value / 100 for value in values}))


def _generalise(args: argparse.Namespace) -> None:
    found = _study_run(args) if _is_run(args.where) else _study_buffer(args)
    if args.json:
        print_json(found)
        return
    from raystitch.report.generalise import facts, verdict_lines

    print(f"{found['buffer']}, from {found['dataset']}")
    for line in [*facts(found), *verdict_lines(found)]:
        print(f"* {line}")


def _is_run(where: str) -> bool:
    """Return True for the folder of a run, False for a buffer.

    Raises:
        UserError: when it is neither.
    """
    from raystitch.io.files import is_remote
    from raystitch.io.storage import Storage

    if is_remote(where):
        storage = Storage(where)
        if storage.exists(BUFFER_MARKER) or storage.exists(RUN_MARKER):
            return not storage.exists(BUFFER_MARKER)
        raise UserError(
            f"{storage.where()} is neither a run of `raystitch sweep` (it has no {RUN_MARKER}) nor a buffer (no "
            f"{BUFFER_MARKER})"
        )
    folder = Path(where).expanduser()
    if (folder / BUFFER_MARKER).is_file():
        return False
    if not folder.exists():
        raise UserError(f"{where} does not exist; expected a run of `raystitch sweep` or a buffer")
    if not (folder / RUN_MARKER).is_file():
        raise UserError(
            f"{where} is neither a run of `raystitch sweep` (it has no {RUN_MARKER}) nor a buffer (no {BUFFER_MARKER})"
        )
    return True


def _study_buffer(args: argparse.Namespace) -> dict[str, Any]:
    from raystitch.buffer.opening import open_buffer
    from raystitch.models.bundle import Bundle
    from raystitch.pipeline.study.generalise import study_buffer

    of_runs = [name for name in ("max_episode_steps", "scaling", *SCALING) if getattr(args, name) not in (None, False)]
    if of_runs:
        raise UserError(
            f"--{of_runs[0].replace('_', '-')} goes with a run of `raystitch sweep`; {args.where} is a buffer"
        )
    buffer = open_buffer(args.where)
    dataset = buffer_dataset(buffer, args.dataset, args.env, args.select)
    folder = _bundle_folder(args, buffer)
    return study_buffer(buffer, dataset, None if folder is None else Bundle.load(folder, "cpu"))


def _bundle_folder(args: argparse.Namespace, buffer: "Buffer") -> Path | None:
    """``--stitcher``, else the folder beside the buffer when its bundle is the buffer's.

    Raises:
        UserError: when ``--stitcher`` is no bundle, or another one than the buffer was made with.
    """
    if args.stitcher is not None:
        named = require_folder(args.stitcher, "a stitcher bundle (made by `raystitch fit`)", "stitcher.json")
        if read_json(named / "stitcher.json").get("hash") != buffer.meta.bundle_hash:
            raise UserError(f"--stitcher {args.stitcher} is not the bundle that {args.where} was made with")
        return named
    return bundle_beside(buffer)


def _study_run(args: argparse.Namespace) -> dict[str, Any]:
    """Study a run and write that into its report."""
    of_buffers = [name for name in ("stitcher", "select") if getattr(args, name) is not None]
    if of_buffers:
        raise UserError(f"--{of_buffers[0]} goes with a buffer; a run has its own")
    with opened_run(args.where, RUN_MARKER, study=True) as place:
        found = _study_folder(args, place.folder)
        return {**found, "buffer": place.told(found["buffer"])}


def _study_folder(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from raystitch.pipeline.study.generalise import open_run, study_run
    from raystitch.pipeline.study.recovery import RecoveryConfig
    from raystitch.report.page import build_report

    opened = open_run(folder, args.dataset, args.env)
    limit = args.max_episode_steps or opened.config.evaluation.max_episode_steps
    recovery = RecoveryConfig(num_starts=args.num_starts, max_episode_steps=limit)
    asked = _asked_scaling(args, opened.config, recovery)
    with Progress() as progress:

        def scale(parts: "StudyParts") -> Mapping[str, Any]:
            from raystitch.pipeline.study.scaling import measure_scaling

            assert asked is not None
            say = partial(progress.update, "scaling")
            return measure_scaling(opened.config, parts, asked, opened.folder, opened.buffer.meta.seed, say)

        found = study_run(
            opened.folder,
            opened.dataset,
            opened.bundle,
            opened.buffer,
            recovery=recovery,
            scale=None if asked is None else scale,
            progress=partial(progress.update, "policies"),
        )
    build_report(opened.folder)
    return found


def _asked_scaling(args: argparse.Namespace, config: "RunConfig", recovery: "RecoveryConfig") -> "ScalingConfig | None":
    """Return the settings of ``--scaling``, None without it.

    Raises:
        UserError: for an option that goes with it alone.
    """
    named = {name: getattr(args, name) for name in SCALING if getattr(args, name) is not None}
    if not args.scaling:
        if named:
            raise UserError(f"--{next(iter(named)).replace('_', '-')} goes with --scaling")
        return None
    from raystitch.pipeline.study.scaling import scaling_config

    return scaling_config(config, recovery, **named)
