"""``raystitch completion``: a script that lets the shell complete commands, options and files."""

import argparse
from collections.abc import Iterator
from typing import Any

from raystitch.commands.options import Subparsers, add_command

SHELLS = ("bash", "zsh", "fish")
FOLDERS = ("DIR", "[NAME=]DIR", "BUFFER", "URI", "RUN_DIR", "POLICY_DIR")
FILES = ("FILE", "CONFIG", "REF", "X")
"""Metavars of arguments that are completed as folders and as files."""


def register(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "completion",
        _completion,
        help="print a script by which a shell completes commands, options and files",
        example='eval "$(raystitch completion bash)"',
    )
    parser.epilog = (
        f"{parser.epilog}\n\nThat line goes into ~/.bashrc; with zsh into ~/.zshrc, after compinit. For fish: "
        "raystitch completion fish > ~/.config/fish/completions/raystitch.fish"
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))


def _completion(args: argparse.Namespace) -> None:
    import shtab

    print(shtab.complete(completing_parser(), args.shell))


def completing_parser() -> argparse.ArgumentParser:
    """The whole command line with what shtab reads: ``complete`` of files and folders, ``choices`` of names."""
    import shtab

    from raystitch.commands import COMMANDS
    from raystitch.presets import PRESETS

    parser = argparse.ArgumentParser(prog="raystitch")
    parser.add_argument("--version", action="version", help="print the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command")
    for add in COMMANDS:
        add(commands)
    names = {"--preset": tuple(PRESETS), "--device": ("auto", "cpu", "cuda")}
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
