"""The Dockerfile: lint, what it copies, what it pins."""

import fnmatch
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

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
    assert len((deploy / "Dockerfile").read_text().splitlines()) < 80


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
        assert list(ROOT.glob(source)), source
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
            assert base in known or base in ("python:${PYTHON}", "scratch"), line
            known.add(line.split()[3])
    assert known == {"dependencies", "wheel", "list", "sbom", "runtime", "serve", "raystitch"}


def test_it_runs_as_nobody_special_and_everything_is_pinned(deploy: Path) -> None:
    text = lines(deploy)
    after = text[text.index("FROM python:${PYTHON} AS runtime") :]
    assert "USER 1000" in after
    assert not any(line.startswith("USER") and line != "USER 1000" for line in after)
    assert any("PIP_CONSTRAINT=/src/constraints.txt" in line for line in text)
    for line in text:
        for command in re.findall(r"pip install [^;&]*", line):
            position = text.index(line)
            pinned = any("PIP_CONSTRAINT=/src" in before for before in text[:position])
            checked = "--no-index" in command or "--require-hashes" in command or re.search(r" [\w-]+==[\d.]+", command)
            # Torch alone: its hash is an argument. EXTRAS: versions alone.
            assert checked or "torch.txt" in command or (pinned and "$EXTRAS" in command), command


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_what_is_installed_has_hashes_and_the_pinned_versions(deploy: Path) -> None:
    pinned = {
        normal(name): version
        for name, version in re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    }
    text = (deploy / "requirements.txt").read_text()
    blocks = re.split(r"\n(?=\S)", text.strip())[1:]
    found = {}
    for block in blocks:
        line = re.match(r"([\w.-]+)(?:\[[\w,-]+\])?==(\S+) \\\n(?:    --hash=sha256:[0-9a-f]{64}(?: \\\n|$))+$", block)
        assert line, block
        found[normal(line[1])] = line[2]
    assert {name: pinned[name] for name in found} == found
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["search"]]
    needed = {normal(re.split(r"[^\w.-]", each)[0]) for each in asked}
    assert needed - found.keys() == {"torch"}, "run deploy/lock.py"


def test_cuda_comes_apart_and_nothing_strange_with_it(deploy: Path, lock: ModuleType) -> None:
    (cuda,) = deploy.glob("requirements-*.txt")
    assert f"TORCH={cuda.stem.partition('-')[2]}" in (deploy / "Dockerfile").read_text()
    found = {"ray": "ray==1 \\\n    --hash=sha256:a\n", "cuda-toolkit": "cuda-toolkit==13.0.3\n", "torch": "torch==2\n"}
    files = lock.split(found, "ray==1\ntorch==2\n")
    assert files.keys() == {"requirements.txt", "requirements-cu130.txt"}
    assert files["requirements.txt"].endswith("sha256:a\n") and "torch==" not in files["requirements.txt"]
    with pytest.raises(ValueError, match=r"not in constraints\.txt: odd"):
        lock.split({**found, "odd": "odd==1\n"}, "ray==1\ntorch==2\n")
