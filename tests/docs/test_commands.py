"""Commands in the documentation are ones that the command line takes; what it links to is there."""

import argparse
import dataclasses
import re
import shlex
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from raystitch.buffer.config import AugmentConfig
from raystitch.cli import build_parser
from raystitch.commands.options import stage_config
from raystitch.config import RunConfig, load_run_config
from raystitch.endpoint.config import EndpointConfig
from raystitch.errors import UserError
from raystitch.io.config_file import load_config
from raystitch.models.config import FitConfig
from raystitch.stitching.config import StitchConfig
from raystitch.trainers.config import ALGORITHM_CONFIGS
from tests.docs.pages import PAGES, REFERENCE, ROOT, blocks

SPANS = re.compile(r"(?<!`)`(raystitch(?: [^`\n]+)+)`(?!`)")
NUMBERS = {"N": "10", "S": "0", "D": "q99", "R": "1", "P": "8000", "G": "1", "A:B": "1:1", "MIN:MAX": "1:2"}
PLACEHOLDERS = ("a.b=c", "key=value", "KEY=VALUE", "NAME=VALUE")


@dataclass(frozen=True)
class Command:
    """What follows ``raystitch``; ``mentioned`` in the running text, where required arguments may be left out."""

    page: Path
    line: int
    words: tuple[str, ...]
    mentioned: bool

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}: raystitch {' '.join(self.words)}"


def written(page: Path) -> Iterator[tuple[int, str, bool]]:
    """Lines of blocks, continued ones joined, and code in the running text that begins with raystitch."""
    for block in blocks(page):
        if block.language in ("", "sh", "bash"):
            text = re.sub(r"\\\n\s*", " ", block.text)
            yield from ((block.line + number, line, False) for number, line in enumerate(text.splitlines()))
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines()):
        yield from ((number + 1, found[1].replace("\\|", "|"), True) for found in SPANS.finditer(line))


def commands(page: Path) -> Iterator[Command]:
    for line, text, mentioned in written(page):
        command = re.sub(r"^(\$ )?(ray job submit .*?-- )?(\w+=\S+ )*(\.venv/bin/)?", "", text.strip())
        for start, prefix in (
            (r"python3? -m raystitch\.sweep\b", ("sweep",)),
            (r"python3? -m raystitch\.cli\b", ()),
            (r"raystitch\b(?![./:-])", ()),
        ):
            found = re.match(start, command)
            if found:
                yield Command(page, line, (*prefix, *shlex.split(command[found.end() :], comments=True)), mentioned)
                break


ALL = [command for page in PAGES for command in commands(page)]


def test_there_are_commands_to_check() -> None:
    assert len(ALL) > 70
    assert sum(not command.mentioned for command in ALL) > 25


@pytest.mark.parametrize("command", ALL, ids=lambda command: command.where)
def test_the_command_line_takes_it(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    """A form, ``fit REF [--preset fast|balanced]``, is filled in; where it says ``...`` something may be missing."""
    form = [word for word in map(bare, command.words) if word != "..."]
    words = [
        NUMBERS.get(word, word) if index and form[index - 1].startswith("-") else word
        for index, word in enumerate(each.partition("|")[0] for each in form)
    ]
    partial = command.mentioned or len(form) < len(command.words)
    parser = build_parser()
    status, args = 0, argparse.Namespace(command=None)
    try:
        args = parser.parse_args(words)
    except SystemExit as ended:
        status = ended.code
    error = capsys.readouterr().err
    missing = re.search(r"arguments are required|expected one argument", error)
    assert status == 0 or (partial and missing), f"{command.where}: {error}"
    settings(args)
    for word, names in zip(command.words, walked(parser, command.words), strict=False):
        assert set(bare(word).split("|")) <= names, command.where
    last = deepest(parser, words)
    assert [word for word in words if word.startswith("--") and word not in last._option_string_actions] == []


def bare(word: str) -> str:
    """Without the brackets of what may be left out; those of a list stay."""
    word = word.removeprefix("[NAME=]")
    word = word[1:] if word.count("[") > word.count("]") or word.startswith("[") else word
    return word[:-1] if word.count("]") > word.count("[") else word


def walked(parser: argparse.ArgumentParser, words: tuple[str, ...]) -> Iterator[set[str]]:
    """The subcommands that there are for each of the first words."""
    for word in words:
        if not subcommands(parser):
            return
        yield set(subcommands(parser))
        parser = subcommands(parser)[bare(word).partition("|")[0]]


def deepest(parser: argparse.ArgumentParser, words: list[str]) -> argparse.ArgumentParser:
    for word in words:
        if word in subcommands(parser):
            parser = subcommands(parser)[word]
    return parser


def subcommands(parser: argparse.ArgumentParser) -> dict[str, Any]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def settings(args: argparse.Namespace) -> None:
    """Applies ``--set`` and the configuration's name as the command does, without running it."""
    overrides = [override for override in getattr(args, "set", []) if override not in PLACEHOLDERS]
    if args.command == "sweep":
        load_run_config("demo" if args.config in (None, "CONFIG") else args.config, overrides)
    elif args.command == "fit":
        stage_config(FitConfig, "fit", args.config, overrides, args.preset)
    elif args.command == "augment":
        mine = [override.removeprefix("augment.") for override in overrides if override.startswith("augment.")]
        stage_config(AugmentConfig, "augment", None, mine)
        others = [override for override in overrides if not override.startswith("augment.")]
        stage_config(StitchConfig, "stitch", args.config, others, args.preset)
    elif args.command == "serve":
        load_config(None, EndpointConfig, overrides)
    elif args.command == "train":
        load_config(None, ALGORITHM_CONFIGS[args.algo], overrides)


SETTING = re.compile(r"`(?:--set )?((?:[a-z_]+\.)+[a-z_]+)(?:[:=][^`]*)?`")
STARTS = (
    *("fit", "stitch", "augment", "algorithms", "resources", "evaluation", "validation", "search"),
    *("diffusion", "dynamics", "inverse", "embedding", "pairs", "gap", "sampler", "guidance", "repair", "qualify"),
    *("limits", "batching"),
)
CONFIGS = (RunConfig, FitConfig, StitchConfig, AugmentConfig, EndpointConfig)


def settings_named(page: Path) -> Iterator[str]:
    for found in SETTING.finditer(page.read_text(encoding="utf-8")):
        if found[1].partition(".")[0] in STARTS and not found[1].endswith((".json", ".yaml")):
            yield found[1]


def known(key: str) -> bool:
    """Whether some command has this setting."""

    def below(kind: Any, parts: list[str]) -> bool:
        if not parts:
            return True
        hints = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
        return parts[0] in hints and below(hints[parts[0]], parts[1:])

    return any(below(kind, key.split(".")) for kind in CONFIGS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_that_the_text_names_exist(page: Path) -> None:
    assert [key for key in settings_named(page) if not known(key)] == []


def test_the_check_of_settings_can_fail() -> None:
    assert known("stitch.pairs.mode")
    assert not known("stitch.pairs.modes")
    with pytest.raises(UserError):
        load_run_config("demo", ["stitch.pairs.modes=1"])


def headings(page: Path) -> set[str]:
    """Anchors as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in found}


LINKED = (*PAGES, ROOT / "SECURITY.md", ROOT / "deploy/README.md", *REFERENCE)


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        if anchor:
            assert anchor in headings(file), target


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {name for name in pages if f"({name})" not in index} == set()
