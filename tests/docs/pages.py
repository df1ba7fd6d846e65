"""What the documentation's tests share: the parts of a Markdown page, and running its Python."""

import contextlib
import importlib.util
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]
_DOCS = sorted((ROOT / "docs").glob("*.md")) + sorted((ROOT / "docs").glob("*/README.md"))
PAGES = (ROOT / "README.md", *_DOCS, ROOT / "CHANGELOG.md")
REFERENCE = sorted((ROOT / "docs/site/reference").glob("*.md"))
"""Pages of the site alone, which `make docs` fills from docstrings."""


def load_module(path: Path) -> ModuleType:
    """Import a file that lies in no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Block:
    """A block of code: its language (indented blocks have none), text and first line."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    """Fenced and indented blocks, in order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        fence = re.match(r"( *)```(\w*)", lines[at])
        if fence:
            end = next(i for i in range(at + 1, len(lines)) if lines[i].strip() == "```")
            text = "\n".join(line.removeprefix(fence[1]) for line in lines[at + 1 : end])
            yield Block(fence[2] or "text", text + "\n", at + 2)
            at = end + 1
        elif lines[at].startswith("    ") and (at == 0 or not lines[at - 1].strip()):
            end = at
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            yield Block("", "\n".join(line[4:] for line in lines[at:end]).rstrip() + "\n", at + 1)
            at = end
        else:
            at += 1


def run_python(page: Path, namespace: dict[str, Any]) -> int:
    """Runs the Python blocks of a page one after another; a ``text`` block right after one is what it prints.

    Returns:
        How many outputs were compared.
    """
    compared, printed = 0, None
    for block in blocks(page):
        if block.language == "python":
            out = io.StringIO()
            code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
            with contextlib.redirect_stdout(out):
                exec(code, namespace)  # noqa: S102  # the repository's own page
            printed = out.getvalue()
        elif block.language == "text" and printed is not None:
            assert printed == block.text, f"{page}:{block.line}"
            compared, printed = compared + 1, None
        else:
            printed = None
    return compared
