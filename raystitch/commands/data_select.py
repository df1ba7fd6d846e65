"""``raystitch data select``: a part of a dataset as a dataset of its own."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from raystitch.commands.options import (
    Subparsers,
    add_command,
    add_device,
    add_env,
    add_json,
    add_select,
    local_out,
    print_json,
    require_folder,
)
from raystitch.console import say
from raystitch.errors import UserError

if TYPE_CHECKING:
    from raystitch.data.episodes import EpisodeDataset, Floats
    from raystitch.data.selectors import Embed
    from raystitch.models.bundle import Bundle

CLEAN_STEPS = (
    "cut out steps whose residual by the judges of --stitcher is above this quantile of all (q99.9), or this number, "
    "and steps that jump; `jumps` for those alone"
)
TRIM = (
    "end an episode where its residuals add up to more than this quantile of whole episodes' sums (q90), or this number"
)


def register(actions: Subparsers) -> None:
    """Add the command."""
    select = add_command(
        actions,
        "select",
        _select,
        help="write the episodes of a selection, cleaned and trimmed if asked, as a new dataset",
        example="raystitch data select mujoco/hopper/medium-v0 --select best=0.5,clean --out local/hopper-best-v0",
    )
    select.add_argument("ref", metavar="REF", help="the dataset, which is not changed")
    select.add_argument("--out", required=True, metavar="REF2", help="Minari id, or a path ending in .hdf5, to write")
    select.add_argument("--overwrite", action="store_true", help="replace what --out names")
    add_select(select)
    select.add_argument("--clean-steps", type=_level, metavar="Q", help=CLEAN_STEPS)
    select.add_argument("--trim", type=_level, metavar="Q", help=TRIM)
    select.add_argument("--cut-connections", action="store_true", help="cut also what other states are reached over")
    select.add_argument("--stitcher", metavar="DIR", help="bundle whose judges, and whose embedding for diverse, count")
    add_device(select)
    add_env(select)
    add_json(select)


def _level(text: str) -> float | str:
    """``jumps``, a quantile such as q99.9, or a number."""
    from raystitch.models.calibration import check_threshold

    if text == "jumps":
        return text
    try:
        level = check_threshold(text, "level")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if level is None:
        raise argparse.ArgumentTypeError(f"must be a quantile such as q99.9 or a number, got {text}")
    return level


def _select(args: argparse.Namespace) -> None:
    from raystitch.data.ref import DatasetRef

    if args.trim == "jumps":
        raise UserError("--trim jumps: needs a quantile such as q90 or a number; --clean-steps takes jumps")
    _check_out(args)
    ref = DatasetRef(args.ref, env=args.env, select=args.select or "all")
    bundle = _bundle(args)
    selected = ref.load_selected() if bundle is None else ref.load_selected(embed=_embed_by(bundle))
    for line in selected.lines:
        say(line)
    dataset, cut = selected.dataset, None
    if args.clean_steps is not None or args.trim is not None:
        from raystitch.pipeline.trimming import cut_steps

        spare = not args.cut_connections
        cut = cut_steps(dataset, bundle, clean=args.clean_steps, trim=args.trim, spare_connections=spare)
        dataset = cut.dataset
        for line in cut.lines:
            say(line)
    written = _write(dataset, args.out, args.overwrite)
    if args.json:
        print_json({"out": written, "selection": selected.to_json(), "cut": None if cut is None else cut.to_json()})
    else:
        print(written)


def _bundle(args: argparse.Namespace) -> "Bundle | None":
    if args.stitcher is None:
        return None
    from raystitch.models.bundle import Bundle

    return Bundle.load(
        require_folder(args.stitcher, "a stitcher bundle (made by `raystitch fit`)", "stitcher.json"), args.device
    )


def _embed_by(bundle: "Bundle") -> "Embed":
    """Compare states in the bundle's temporal embedding."""
    from raystitch.models.embedding import embed

    def embedded(dataset: "EpisodeDataset") -> "Floats":
        bundle.check_dataset(dataset)
        return embed(bundle.embedding, dataset.observations)

    return embedded


def _check_out(args: argparse.Namespace) -> None:
    """Raises: UserError when ``--out`` is what is read, or exists and may not be replaced."""
    from raystitch.data.load import HDF5_SUFFIXES, parse_ref

    local_out(args.out)
    kind, name = parse_ref(args.out) if args.out.startswith(("minari:", "d4rl:")) else _kind(args.out)
    other = kind == "minari" and ":" in name
    if other or (kind == "d4rl" and not name.endswith(HDF5_SUFFIXES)):
        raise UserError(f"--out {args.out}: name a Minari id, or a path ending in .hdf5")
    if kind == parse_ref(args.ref)[0] and _place(kind, name, True) == _place(*parse_ref(args.ref), False):
        raise UserError(f"--out {args.out} is what is read; name another, the source is kept as it is")
    if kind == "d4rl" and Path(name).exists() and not args.overwrite:
        raise UserError(f"--out {name} exists already; name another, or add --overwrite")


def _kind(out: str) -> tuple[str, str]:
    from raystitch.data.load import HDF5_SUFFIXES

    return ("d4rl" if out.endswith(HDF5_SUFFIXES) else "minari"), out


def _place(kind: str, name: str, written: bool) -> str:
    """Return where a dataset is, or where it would be written: there an id without a version is its first one."""
    if kind != "minari":
        return str(Path(name).expanduser().resolve())
    from raystitch.data.minari_root import check_dataset_id, resolve, versioned
    from raystitch.data.spaces import split_keys

    dataset_id = check_dataset_id(split_keys(name)[0])
    return versioned(dataset_id) if written else resolve(dataset_id)


def _write(dataset: "EpisodeDataset", out: str, overwrite: bool) -> str:
    """Write a dataset and return its reference."""
    kind, name = _kind(out.removeprefix("minari:").removeprefix("d4rl:"))
    if kind == "minari":
        from raystitch.data.minari_io import write_minari

        return f"minari:{write_minari(dataset, name, overwrite=overwrite)}"
    from raystitch.data.d4rl import write_d4rl

    write_d4rl(dataset, name)
    return f"d4rl:{name}"
