"""``raystitch completion``: what bash itself completes with the script, and that every shell's knows every option."""

import argparse
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raystitch.cli import build_parser, main
from raystitch.commands.completion import SHELLS

COMPLETE = r"""
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
spec=$(complete -p raystitch); function=${spec#*-F }
${function%% *} raystitch "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}" 2>/dev/null
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["completion", "bash"]) == 0
    path = tmp_path / "completion.bash"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    return path


def completed(script: Path, folder: Path, *words: str) -> list[str]:
    """What bash proposes for the last of the words."""
    call = ["bash", "--norc", "-c", COMPLETE, "bash", str(script), "raystitch", *words]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True, check=True)
    return sorted(done.stdout.split())


def options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The long options and subcommands of a parser, without dashes."""
    for action in parser._actions:
        yield from (option[2:] for option in action.option_strings if option.startswith("--"))
        if isinstance(action, argparse._SubParsersAction):
            choices: dict[str, Any] = action.choices
            for name, below in choices.items():
                yield name
                yield from options(below)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_options_names_and_files(script: Path, tmp_path: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "mine.hdf5").touch()
    (tmp_path / "mined").mkdir()
    expected = {
        ("sw",): ["sweep"],
        ("se",): ["serve"],
        ("buffer", ""): ["compact", "info", "show", "verify"],
        ("sweep", "--d"): ["--dry-run"],
        ("augment", "demo:pointmaze", "--num"): ["--num-actors", "--num-bridges"],
        ("train", "demo:pointmaze", "--algo", "t"): ["td3bc"],
        ("fit", "demo:pointmaze", "--preset", "b"): ["balanced"],
        ("sweep", "mi"): ["mine.hdf5", "mine.yaml", "mined"],
        ("data", "inspect", "mine.h"): ["mine.hdf5"],
        ("fit", "mine.hdf5", "--out", "mi"): ["mined"],
        ("buffer", "info", "mi"): ["mined"],
        ("sweep", "--config-that-is-not"): [],
    }
    found = {words: [each.rstrip("/") for each in completed(script, tmp_path, *words)] for words in expected}
    assert found == expected


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_knows_every_command_and_option(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    words = set(re.findall(r"[\w-]+", capsys.readouterr().out))
    words |= {word.removeprefix("--") for word in words}
    assert {option for option in options(build_parser()) if option not in words} == set()


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh")
def test_zsh_can_read_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "zsh"]) == 0
    (tmp_path / "_raystitch").write_text(capsys.readouterr().out, encoding="utf-8")
    subprocess.run(["zsh", "-n", tmp_path / "_raystitch"], check=True)
