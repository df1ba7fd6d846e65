"""What the site has beside the pages of docs/: pages and files of the repository that they link to, and the reference.

A link keeps the form that works in the repository; here it is turned to the file's place on the site.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PIPE = re.compile(r"`[^`\n]*\\\|[^`\n]*`")
LINK = re.compile(r'(?:(?<=\]\()|(?<= src=")|(?<= srcset="))(?![a-z]+:|#)([^)\s#"]+)')
"""Files that a page names: in links and pictures of Markdown, and in pictures of HTML."""
TOP: tuple[str, ...] = ("README.md", "CHANGELOG.md")
"""Pages that are on the site whether a page links to them or not."""


def place(path: str) -> str:
    """Return where a file of the repository is on the site, both as paths from the root."""
    for folder, there in (("docs/site/", ""), ("docs/", "")):
        if path.startswith(folder):
            return there + path.removeprefix(folder)
    return f"repository/{path}"


def linked(text: str, source: str) -> Iterator[tuple[str, str]]:
    """The links of a page to other files: as they are written, and the file's path from the root.

    A folder stands for its README.md.
    """
    for target in LINK.findall(text):
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        yield target, f"{path}/README.md" if (ROOT / path).is_dir() else path


def moved(text: str, source: str) -> str:
    """Return the text of a page with its links as they are on the site, and titles where links show a page's name."""
    here = posixpath.dirname(place(source))
    files = dict(linked(text, source))
    for target, path in files.items():
        if path.endswith(".md") and (ROOT / path).is_file():
            text = text.replace(f"[{target}](", f"[{title(path)}](")
    return LINK.sub(lambda link: posixpath.relpath(place(files[link[0]]), here or "."), text)


def title(page: str) -> str:
    """Return the first heading of a page."""
    return (ROOT / page).read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def outside(pages: list[str]) -> list[str]:
    """Return the files outside docs/ that pages link to, and those to which these link."""
    found, waiting = dict.fromkeys(TOP), [*pages, *TOP]
    while waiting:
        page = waiting.pop()
        for _, path in linked((ROOT / page).read_text(encoding="utf-8"), page):
            if not path.startswith("docs/") and path not in found and (ROOT / path).is_file():
                found[path] = None
                waiting += [path] if path.endswith(".md") else []
    return list(found)


def reference() -> list[str]:
    """Return the pages of the reference."""
    return sorted(file.relative_to(ROOT).as_posix() for file in (ROOT / "docs/site/reference").glob("*.md"))


def on_config(config: Any) -> None:
    """Name headings as GitHub does, so that links to them work in both places."""
    from pymdownx.slugs import slugify

    config.mdx_configs["toc"]["slugify"] = slugify(case="lower")


def on_files(files: Any, config: Any) -> None:
    """Add what is not in docs/."""
    from mkdocs.structure.files import File

    pages = [Path(file.abs_src_path).relative_to(ROOT).as_posix() for file in files.documentation_pages()]
    for path in [*reference(), *outside([*pages, *reference()])]:
        files.append(File.generated(config, place(path), abs_src_path=str(ROOT / path)))
    worker = ROOT / "docs/site/iframe-worker.js"
    files.append(File.generated(config, "assets/iframe-worker.js", abs_src_path=str(worker)))


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn the links of a page to their places on the site; pipes in code need no backslash there, also in tables."""
    text = moved(markdown, Path(page.file.abs_src_path).relative_to(ROOT).as_posix())
    return PIPE.sub(lambda code: code[0].replace("\\|", "|"), text)
