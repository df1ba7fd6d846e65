"""The ``raystitch`` command: parses arguments, runs one command, turns errors into one line and an exit status.

Exit status: 0 done, 2 wrong usage or input, 1 failure at run time, 3 a sweep with failed trials, 130 interrupted.
"""

import argparse
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from raystitch.commands import COMMANDS, completion
from raystitch.errors import RunError, TrialsFailed, UserError

PACKAGE = Path(__file__).parent


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(**kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


class _Version(argparse._VersionAction):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from raystitch import __version__

        print(f"raystitch {__version__}")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; imports nothing heavy."""
    parser = Parser(
        prog="raystitch",
        description="Trajectory stitching for offline reinforcement learning.",
        epilog="example: raystitch sweep demo --dry-run\n\nRAYSTITCH_RUNS moves the folder that sweeps write to.",
    )
    parser.add_argument("--version", action=_Version, help="print the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, dest="command")
    for register in COMMANDS:
        register(commands)
    completion.register(commands, build_parser)
    return parser


def _warn(message: Warning | str, category: type[Warning], filename: str, *_: object) -> None:
    """Print our own warnings as a line. Warnings of libraries are for developers and stay silent."""
    if Path(filename).is_relative_to(PACKAGE):
        _report("warning", message)


def _report(name: str, message: object) -> None:
    line = " ".join(str(message).split())
    print(f"{name}: {line}", file=sys.stderr, flush=True)


def _unexpected(name: str, error: BaseException) -> int:
    """Report a fault of ours: one line for the user, the traceback in a file for the bug report."""
    if os.environ.get("RAYSTITCH_DEBUG"):
        traceback.print_exception(error)
        return 1
    with tempfile.NamedTemporaryFile("w", prefix="raystitch-", suffix=".log", delete=False, encoding="utf-8") as log:
        traceback.print_exception(error, file=log)
    first = (str(error).strip().splitlines() or [""])[0][:300]
    _report(name, f"unexpected {type(error).__name__}: {first} (traceback in {log.name})")
    return 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's) and return the exit status."""
    args = build_parser().parse_args(argv)
    name = f"raystitch {args.command}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.showwarning = _warn
            args.run(args)
    except UserError as error:
        _report(name, error)
        return 2
    except TrialsFailed as error:
        _report(name, error)
        return 3
    except RunError as error:
        _report(name, error)
        return 1
    except KeyboardInterrupt:
        _report(name, getattr(args, "on_interrupt", "interrupted"))
        return 130
    except BrokenPipeError:
        # The reader of our output is gone (`raystitch ... | head`), so there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _report(name, f"{where}{error.strerror or error}")
        return 1
    except MemoryError as error:
        _report(name, f"out of memory: {error}" if str(error) else "out of memory")
        return 1
    except Exception as error:
        return _unexpected(name, error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
