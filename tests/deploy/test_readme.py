"""The operator's guide: what it names exists, and its commands are ones that the tools know."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from raystitch.cli import build_parser

ROOT = Path(__file__).parents[2]
Overlay = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def commands(deploy: Path) -> list[list[str]]:
    """Words of every command line of an indented block."""
    blocks = re.findall(r"^    (\S.*)$", (deploy / "README.md").read_text(), re.MULTILINE)
    found = [shlex.split(line) for line in blocks]
    assert len(found) > 40
    return found


def starting(commands: list[list[str]], *names: str) -> Iterator[list[str]]:
    """The rest of commands that begin with these words; what is run in a pod or as a job counts too."""
    for words in commands:
        for at in range(len(words)):
            before = words[at - 1] if at else "--"
            if tuple(words[at : at + len(names)]) == names and before in ("--", "python -m"):
                yield words[at + len(names) :]


def test_every_command_of_raystitch_is_understood(commands: list[list[str]]) -> None:
    parser = build_parser()
    asked = [*starting(commands, "raystitch")]
    asked += [["sweep", *rest] for rest in starting(commands, "python", "-m", "raystitch.sweep")]
    # The image's entry point is raystitch.
    asked += [words[index + 1 :] for words, index in images(commands)]
    assert len(asked) >= 7
    for words in asked:
        if words != ["--version"]:
            parser.parse_args(words)


def images(commands: list[list[str]]) -> Iterator[tuple[list[str], int]]:
    for words in commands:
        if words[:2] == ["docker", "run"]:
            yield words, next(index for index, word in enumerate(words) if re.search(r"raystitch:\w+$", word))


def test_every_option_of_ray_and_serve_exists(commands: list[list[str]]) -> None:
    from ray.scripts.scripts import cli as ray_cli
    from ray.serve.scripts import cli as serve_cli

    def check(group: click.Command, words: list[str]) -> None:
        command = group
        while isinstance(command, click.Group):
            name = words[0]
            assert name in command.commands, words
            command, words = command.commands[name], words[1:]
        known = {option for parameter in command.params for option in parameter.opts}
        for word in words:
            if word == "--":
                break
            if word.startswith("-"):
                assert word.partition("=")[0] in known, (command.name, word)

    ray = [words[1:] for words in commands if words[0] == "ray"]
    serve = [
        shlex.split(part)[1:]
        for words in ray
        if words[0] == "exec"
        for part in words[-1].split("&&")
        if "serve " in part
    ]
    assert len(ray) > 8
    assert serve
    for words in ray:
        check(ray_cli, words)
    for words in serve:
        check(serve_cli, words)


def test_files_and_links_exist(deploy: Path, commands: list[list[str]]) -> None:
    text = (deploy / "README.md").read_text()
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", text):
        assert (deploy / target).exists(), target
    for target in re.findall(r"\]\(#([^)]+)\)", text):
        headings = {
            re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-")
            for line in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        }
        assert target in headings, target
    for words in commands:
        for word in words:
            if word.startswith("deploy/"):
                assert (ROOT / word).exists(), word
    for name in re.findall(r"`((?:kuberay|components)/[\w./-]+|[\w-]+\.(?:yaml|json|py))`", text):
        found = [deploy / name, deploy / "kuberay" / name, *deploy.rglob(name)]
        assert any(path.exists() for path in found), name


def test_objects_that_it_names_are_made(deploy: Path, commands: list[list[str]], overlay: Overlay) -> None:
    parts = {found["metadata"]["labels"]["app.kubernetes.io/component"] for found in overlay.values()}
    secrets = set()
    for words in commands:
        if words[0] != "kubectl":
            continue
        for word in words:
            for selected in re.findall(r"component in \(([^)]*)\)", word):
                assert {part.strip() for part in selected.split(",")} <= parts, words
        for kind in ("RayJob", "RayService"):
            if kind.lower() in words:
                assert f"{kind}/{words[words.index(kind.lower()) + 1]}" in overlay, words
        if words[3:6] == ["create", "secret", "generic"]:
            secrets.add((words[6], words[7].partition("=")[2].partition("=")[0]))
    written = yaml.safe_load_all((deploy / "kuberay/secrets.example.yaml").read_text())
    assert secrets == {(one["metadata"]["name"], *one["stringData"]) for one in written}
    cluster = overlay["RayCluster/raystitch"]["spec"]
    assert cluster["authOptions"]["secretName"] in {name for name, _ in secrets}
