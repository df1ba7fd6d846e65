"""The Dockerfile: lint, what it copies, what it pins."""

import fnmatch
import re
import tomllib
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def lines(deploy: Path) -> list[str]:
    """Instructions, continued lines joined."""
    text = (deploy / "Dockerfile").read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_it_is_clean_and_short(check: ModuleType, deploy: Path) -> None:
    checker = check.Checker({}, check.KUBERNETES)
    checker.path(deploy / "Dockerfile")
    assert checker.report.problems == []
    assert checker.report.notes == []  # hadolint was there
    assert len((deploy / "Dockerfile").read_text().splitlines()) < 60


def test_the_linter_is_heard(check: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "Dockerfile"
    file.write_text("FROM python\nRUN cd /tmp\n")
    checker = check.Checker({}, check.KUBERNETES)
    checker.path(file)
    assert any("DL3006" in line for line in checker.report.problems)


def copied(deploy: Path) -> list[str]:
    """What comes from the build's context."""
    words = [line.split() for line in lines(deploy) if line.startswith("COPY ") and "--from=" not in line]
    return [source for _, *sources, _ in words for source in sources]


def test_what_it_copies_is_there_and_not_ignored(deploy: Path) -> None:
    ignored = (deploy / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    let_in = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    sources = copied(deploy)
    assert {"constraints.txt", "pyproject.toml", "raystitch", "tune_configs"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source in let_in, source
    assert let_in == set(sources)
    assert fnmatch.fnmatch("raystitch/data/__pycache__", "**/__pycache__")


def test_the_wheel_has_all_that_it_is_built_from(deploy: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {*wheel["packages"], *wheel["force-include"], project["project"]["readme"]} <= set(copied(deploy))
    assert "search" in project["project"]["optional-dependencies"]


def test_stages_exist_before_they_are_used(deploy: Path) -> None:
    known: set[str] = set()
    for line in lines(deploy):
        for used in re.findall(r"--from=(\S+)|from=([\w-]+),", line):
            assert next(filter(None, used)) in known, line
        if line.startswith("FROM "):
            base = line.split()[1]
            assert base in known or base == "python:${PYTHON}", line
            known.add(line.split()[3])
    assert known == {"dependencies", "wheel", "runtime", "serve", "raystitch"}


def test_it_runs_as_nobody_special_and_everything_is_pinned(deploy: Path) -> None:
    text = lines(deploy)
    after = text[text.index("FROM python:${PYTHON} AS runtime") :]
    assert "USER 1000" in after
    assert not any(line.startswith("USER") and line != "USER 1000" for line in after)
    assert any("PIP_CONSTRAINT=/src/constraints.txt" in line for line in text)
    for line in text:
        if "pip install" in line and "--no-index" not in line:
            position = text.index(line)
            assert any("PIP_CONSTRAINT" in before for before in text[:position]), line
