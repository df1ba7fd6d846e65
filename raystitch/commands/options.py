"""Arguments that several commands share, types that check themselves, and helpers for their output."""

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from raystitch.console import say
from raystitch.errors import UserError

if TYPE_CHECKING:
    from raystitch.buffer.reader import Buffer
    from raystitch.data.episodes import EpisodeDataset
    from raystitch.envs.spec import EnvSpec
    from raystitch.pipeline.trials.place import RunPlace

T = TypeVar("T")

RESUMABLE = "interrupted; run the same command again to continue"

ADDRESS = (
    "Ray cluster to use: HOST:PORT, auto for the one on this machine, local for a Ray of this command's own (default: "
    "$RAY_ADDRESS, which `ray job submit` sets, else local)"
)

REFERENCE = "minari:mujoco/hopper/medium-v0, d4rl:FILE.hdf5, ogbench:FILE.npz or demo:pointmaze"

Subparsers = Any
"""The result of ``ArgumentParser.add_subparsers``; argparse gives the type no public name."""

Command = Callable[[argparse.Namespace], None]


def add_command(
    subparsers: Subparsers, name: str, run: Command, *, help: str, example: str, resumes: bool = False
) -> argparse.ArgumentParser:
    """Add a command with a description and an example at the end of its ``--help``."""
    parser = subparsers.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".", epilog=example)
    parser.epilog = f"example: {example}"
    parser.set_defaults(run=run, **({"on_interrupt": RESUMABLE} if resumes else {}))
    return parser


def add_max_episode_steps(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-episode-steps",
        type=count,
        metavar="N",
        help="end every evaluation episode after N steps (default: the environment's own limit)",
    )


def finite(text: str) -> float:
    """A number that is neither NaN nor infinite."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, got {text}")
    return value


def count(text: str) -> int:
    """A whole number of at least 1."""
    value = whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def whole(text: str) -> int:
    """A whole number of at least 0, also as ``1e5`` or ``100_000``."""
    try:
        value = float(text.replace("_", ""))
        if not value.is_integer() or value < 0:
            raise ValueError
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"must be a whole number >= 0, got {text!r}") from None
    return int(value)


def add_delta(parser: argparse.ArgumentParser, default: Literal["generation", "configured"] = "generation") -> None:
    """Add ``--delta``; ``default`` stands for the buffer's or the configuration's own value."""

    def delta(text: str) -> float | str | None:
        from raystitch.models.calibration import check_delta

        if text == default:
            return text
        try:
            return check_delta(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    text = (
        "largest residual of an accepted bridge: a number, a quantile such as q99, auto, or off (default: %(default)s)"
    )
    parser.add_argument("--delta", type=delta, default=default, metavar="D", help=text)


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON on stdout and nothing else there")


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", metavar="D", help="auto, cpu or cuda[:N] (default: %(default)s)")


def add_env(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--env", metavar="ENV_ID", help="environment, in place of the one that the data record; package:ID imports it"
    )


def add_select(parser: argparse.ArgumentParser, default: str = "all") -> None:
    """Add ``--select``; ``default`` says in ``--help`` which episodes are meant without it."""
    text = "episodes to take, in order: best=0.5, worst=0.3, returns=[100,2000], episodes=[0,5-9] or =FILE, clean, "
    parser.add_argument(
        "--select", metavar="S", help=f"{text}diverse=200; best=0.5,clean for both (default: {default})"
    )


def open_dataset(ref: str, env_id: str | None = None, select: str | None = None) -> "EpisodeDataset":
    """Open the dataset that a user names; ``env_id`` and ``select`` are the user's ``--env`` and ``--select``.

    Prints what was selected, and doubts about the dataset.
    """
    from raystitch.data.ref import DatasetRef
    from raystitch.pipeline.trials.checks import suitable_notes

    selected = DatasetRef(ref, env=env_id, select=select or "all").load_selected()
    for note in (*selected.lines, *suitable_notes(selected.dataset)):
        say(f"note: {note}")
    return selected.dataset


def add_moved_dataset(parser: argparse.ArgumentParser) -> None:
    """Add ``--dataset`` and ``--select`` of a command that is given a buffer."""
    parser.add_argument("--dataset", metavar="REF", help="where the dataset is now (default: where it was)")
    add_select(parser, default="those that the buffer was made from")


def buffer_dataset(
    buffer: "Buffer", ref: str | None, env_id: str | None = None, select: str | None = None
) -> "EpisodeDataset":
    """Open the dataset that a buffer's bridges refer to; the user names ``ref``, ``env_id`` and ``select``.

    Without ``select``, the buffer's record says which part it was made from.
    """
    from raystitch.buffer.episodes import on_dataset
    from raystitch.data.ref import DatasetRef

    meta = buffer.meta
    part = select or meta.select or "all"
    try:
        if ref is not None:
            dataset = DatasetRef(ref, env=env_id, select=part).load(meta.env)
        else:
            dataset = DatasetRef(meta.dataset_name, env=env_id, select=part).load_recorded(meta.env)
    except UserError as error:
        if ref is not None:
            raise
        raise UserError(f"{error} (the buffer's dataset; if it moved, name it with --dataset REF)") from error
    on_dataset(buffer, dataset)
    return dataset


def environment(env_id: str | None) -> "EnvSpec | None":
    """Return the environment of ``--env``, None when none is named."""
    if env_id is None:
        return None
    from raystitch.envs.make import spec_from_id

    return spec_from_id(env_id)


def add_config(parser: argparse.ArgumentParser, section: str) -> None:
    """Add ``--config`` and ``--set`` of a command that is one stage of a run."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        help=f"YAML file of these settings, or of a whole run (see tune_configs/), whose `{section}` is used",
    )
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="override a setting; repeatable")


def add_preset(parser: argparse.ArgumentParser) -> None:
    """Add ``--preset`` beside ``add_config``'s options; see ``stage_config``."""
    text = "named settings instead of --config: fast (the defaults), balanced or diffstitch; --set changes them further"
    parser.add_argument("--preset", metavar="NAME", help=text)


def is_run_config(name: str | None) -> bool:
    """Return True if ``--config`` names the file of a whole run, not of one stage."""
    if name is None:
        return False
    import yaml

    from raystitch.config import find_config

    try:
        content = yaml.safe_load(find_config(name).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return False  # reading it as a configuration reports the error and its place
    return isinstance(content, dict) and "dataset" in content


def stage_config(
    kind: type[T], section: str, name: str | None, overrides: Sequence[str], preset: str | None = None
) -> T:
    """Return the settings of one stage from its own file, from its ``section`` of a run's file, or from a preset.

    Raises:
        UserError: naming file, line, key and value; both a file and a preset.
    """
    from raystitch.config import find_config, load_run_config
    from raystitch.io.config_file import load_config

    if preset is not None:
        from raystitch.presets import find_preset

        if name is not None:
            raise UserError(
                f"--preset {preset} and --config {name} exclude each other; drop one (--set goes with either)"
            )
        return load_config(None, kind, overrides, preset=getattr(find_preset(preset), section))
    if name is None or not is_run_config(name):
        return load_config(None if name is None else find_config(name), kind, overrides)
    value: Any = load_run_config(name, [f"{section}.{override}" for override in overrides])
    for part in section.split("."):
        value = getattr(value, part)
    return value


def print_json(value: Any) -> None:
    """Print strict JSON: a NaN or infinity is null."""
    print(json.dumps(_finite(value), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if hasattr(value, "tolist"):
        return _finite(value.tolist())
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def check_out(path: str) -> Path | str:
    """Return a folder to write into, or a URI as it is, checked before hours of work and not after them.

    Raises:
        UserError: when it is a file, or it (or the nearest folder above it that exists) cannot be written; when the
            store of a URI refuses.
    """
    from raystitch.io.files import is_remote
    from raystitch.io.stage import checked_uri

    if is_remote(path):
        from raystitch.io.storage import Storage

        Storage(uri := checked_uri(path)).require_bucket()
        return uri
    out = Path(path).expanduser()
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {path} is a file; name a folder")
    above = out.absolute()
    while not above.exists():
        above = above.parent
    if not above.is_dir():
        raise UserError(f"--out {path} cannot be made: {above} is a file")
    try:
        tempfile.TemporaryFile(dir=above).close()
    except OSError as error:
        raise UserError(f"--out {path} cannot be written: {above}: {error.strerror}; choose another folder") from error
    return out


def local_out(path: str) -> str:
    """Return the path of what a command can write on this machine alone.

    Raises:
        UserError: for a URI.
    """
    from raystitch.io.files import is_remote

    if is_remote(path):
        raise UserError(f"--out {path}: this is written on this machine only; give a path, and copy it from there")
    return path


def require_folder(path: str, what: str, marker: str) -> Path:
    """Return an existing folder that holds the file ``marker``; of a URI a local copy.

    Args:
        marker: where ``path`` may be a URI, a file that is written last and tells the hashes of all others.

    Raises:
        UserError: otherwise, saying which of the two is missing.
    """
    from raystitch.io.files import is_remote
    from raystitch.io.stage import local_copy

    if is_remote(path):
        return local_copy(path, marker, what)
    folder = Path(path).expanduser()
    if not folder.exists():
        raise UserError(f"{path} does not exist; expected {what}")
    if not (folder / marker).is_file():
        raise UserError(f"{path} is not {what}: it has no {marker}")
    return folder


def bundle_beside(buffer: "Buffer") -> Path | None:
    """Return the bundle beside a buffer in its run, None where there is none or another; of a URI a local copy."""
    from raystitch.io.files import is_remote, read_json
    from raystitch.io.stage import local_copy
    from raystitch.io.storage import Storage

    path, mark, query = buffer.uri.partition("?")
    if is_remote(path):
        run = Storage(f"{path.rstrip('/').rpartition('/')[0]}{mark}{query}")
        if not run.exists("stitcher/stitcher.json"):
            return None
        beside = local_copy(run.below("stitcher"), "stitcher.json", "a stitcher bundle")
    else:
        beside = Path(buffer.uri).absolute().parent / "stitcher"
        if not (beside / "stitcher.json").is_file():
            return None
    return beside if read_json(beside / "stitcher.json").get("hash") == buffer.meta.bundle_hash else None


@contextmanager
def opened_run(path: str, marker: str, study: bool = False) -> Iterator["RunPlace"]:
    """Open the run that a user names by its folder or URI, to read it and to add to it.

    Args:
        marker: a file that it has. study: bring a run's policies and buffer along, which a report does without.

    Raises:
        UserError: when it is no run.
    """
    from raystitch.io.files import is_remote
    from raystitch.pipeline.trials.place import RunPlace, of_report, of_study, reading

    if not is_remote(path):
        yield RunPlace(folder=require_folder(path, "a run of `raystitch sweep`", marker))
        return
    with reading(path, marker, of_study if study else of_report) as place:
        yield place
