"""``raystitch completion``: a script that lets the shell complete commands, options and files."""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from raystitch.commands.options import Subparsers, add_command

SHELLS = ("bash", "zsh", "fish")
FOLDERS = ("DIR", "[NAME=]DIR", "BUFFER", "URI", "RUN_DIR", "POLICY_DIR")
FILES = ("FILE", "CONFIG", "REF", "X")
"""Metavars of arguments that are completed as folders and as files."""


Build = Callable[[], argparse.ArgumentParser]


def register(subparsers: Subparsers, build: Build) -> None:
    """Add the command; ``build`` makes the parser of the whole command line."""
    parser = add_command(
        subparsers,
        "completion",
        partial(_completion, build=build),
        help="print a script by which a shell completes commands, options and files",
        example='eval "$(raystitch completion bash)"',
    )
    parser.epilog = (
        f"{parser.epilog}\n\nThat line goes into ~/.bashrc; with zsh into ~/.zshrc, after compinit. For fish: "
        "raystitch completion fish > ~/.config/fish/completions/raystitch.fish"
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))


def _completion(args: argparse.Namespace, build: Build) -> None:
    import shtab

    print(shtab.complete(_completing(build()), args.shell))


def _completing(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The parser with the attributes that shtab reads: ``complete`` for files and folders, ``choices`` for names."""
    import shtab

    from raystitch.presets import PRESETS

    names = {"--preset": tuple(PRESETS), "--device": ("auto", "cpu", "cuda"), "--chain-rounds": ("auto",)}
    for action in _actions(parser):
        kind = shtab.DIRECTORY if action.metavar in FOLDERS else shtab.FILE if action.metavar in FILES else None
        if kind is not None:
            found: Any = action  # shtab's own attribute
            found.complete = kind
        for option in action.option_strings:
            action.choices = names.get(option, action.choices)
    return parser


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The arguments of a parser and of all commands below it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)
        else:
            yield action
