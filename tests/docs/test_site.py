"""The documentation as a site: what is in it, how its pages begin and end, and, where mkdocs is installed, the site."""

import dataclasses
import html
import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from markdown_it import MarkdownIt

import raystitch
import raystitch.client
from raystitch import errors
from raystitch.buffer.config import AugmentConfig
from raystitch.config import RunConfig
from raystitch.endpoint.config import EndpointConfig
from tests.docs.pages import PAGES, REFERENCE, ROOT, load_module

CONFIG = ROOT / "docs/site/mkdocs.yml"
OURS = [page for page in (*PAGES, *REFERENCE) if page.is_relative_to(ROOT / "docs")]


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    return load_module(ROOT / "docs/site/hooks.py")


def in_nav(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        for part in entry.values() if isinstance(entry, dict) else [entry]:
            yield from [part] if isinstance(part, str) else in_nav(part)


def test_every_page_is_in_the_navigation_once(hooks: ModuleType) -> None:
    nav = list(in_nav(yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["nav"]))
    pages = [named(page) for page in OURS]
    pages += [path for path in hooks.outside(pages) if path.endswith(".md")]
    assert sorted(nav) == sorted(hooks.place(page) for page in pages)


@pytest.mark.parametrize("page", OURS, ids=named)
def test_a_page_says_for_whom_it_is_and_where_to_go_next(page: Path) -> None:
    title, first, *_, last = page.read_text(encoding="utf-8").strip().split("\n\n")
    assert title.startswith("# ")
    assert re.match(r"For [a-z]", first), "say in the first line for whom the page is"
    (last,) = last.splitlines()
    assert last.startswith("Next: "), "say in the last line where to go next"
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", last)]
    assert targets, "the last line links to no page"
    assert page.name not in targets


def test_no_two_pages_begin_or_end_alike() -> None:
    paragraphs = [page.read_text(encoding="utf-8").strip().split("\n\n") for page in OURS]
    for lines in ([text[1].splitlines()[0] for text in paragraphs], [text[-1] for text in paragraphs]):
        assert len(set(lines)) == len(lines)


def test_links_lead_to_what_is_on_the_site(hooks: ModuleType) -> None:
    """Whether a file is there and has the heading is asked of the pages as they are, in test_commands.py."""
    pages = [named(page) for page in OURS]
    outside = hooks.outside(pages)
    files = [named(file) for file in (ROOT / "docs").rglob("*") if file.is_file()]
    places = {hooks.place(path) for path in (*files, *outside)}
    for page in (*pages, *(path for path in outside if path.endswith(".md"))):
        text = hooks.moved((ROOT / page).read_text(encoding="utf-8"), page)
        here = Path(hooks.place(page)).parent
        for target in hooks.LINK.findall(text):
            there = (ROOT / here / target).resolve().relative_to(ROOT).as_posix()
            assert there in places, f"{page}: {target}"


@pytest.mark.parametrize(
    ("source", "link", "moved"),
    [
        ("docs/jobs.md", "../deploy/README.md#ingress", "repository/deploy/README.md#ingress"),
        ("docs/jobs.md", "../deploy/", "repository/deploy/README.md"),
        ("docs/jobs.md", "sweep.md#below", "sweep.md#below"),
        ("docs/jobs.md", "https://example.org/README.md", "https://example.org/README.md"),
        ("docs/site/reference/errors.md", "../../data.md", "../data.md"),
        ("deploy/README.md", "../docs/jobs.md", "../../jobs.md"),
        ("README.md", "LICENSE", "LICENSE"),
        ("README.md", "docs/pictures/bridge.svg", "../pictures/bridge.svg"),
    ],
)
def test_a_link_is_turned_to_the_files_place_on_the_site(hooks: ModuleType, source: str, link: str, moved: str) -> None:
    assert hooks.moved(f"see [this]({link}), ![it]({link})", source) == f"see [this]({moved}), ![it]({moved})"


def test_a_link_that_shows_the_name_of_a_page_shows_its_title_on_the_site(hooks: ModuleType) -> None:
    text = "[../docs/sweep.md](../docs/sweep.md), [sweep](../docs/sweep.md), [check.py](check.py)"
    assert hooks.moved(text, "deploy/README.md") == (
        "[A sweep](../../sweep.md), [sweep](../../sweep.md), [check.py](check.py)"
    )


def entries() -> list[str]:
    """The names that the reference has an entry for."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in REFERENCE)
    return re.findall(r"^::: (\S+)$", text, re.MULTILINE)


def resolved(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def settings_below(kind: type) -> Iterator[type]:
    """The dataclass and those that its fields hold."""
    waiting: list[Any] = [kind]
    while waiting:
        part = waiting.pop()
        if inspect.isclass(part) and dataclasses.is_dataclass(part):
            yield part
            waiting += typing.get_type_hints(part).values()
        else:
            waiting += typing.get_args(part)


def test_the_reference_has_every_public_name_setting_and_error() -> None:
    names = entries()
    assert len(set(names)) == len(names)
    public = {f"raystitch.{name}" for name in raystitch.__all__ if name != "__version__"}
    public |= {f"raystitch.client.{name}" for name in raystitch.client.__all__}
    assert public - set(names) == set()
    objects = [resolved(name) for name in names]
    wanted = {kind for config in (RunConfig, AugmentConfig, EndpointConfig) for kind in settings_below(config)}
    wanted |= {value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, Exception)}
    assert {kind.__qualname__ for kind in wanted if kind not in objects} == set()
    assert all(inspect.getdoc(value) for value in objects if inspect.isclass(value) or inspect.isfunction(value))


class Page(HTMLParser):
    """A page of the site: what a browser loads with it, where it links to, its anchors, and how often tags occur."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.loaded, self.links, self.anchors = list[str](), list[str](), set[str]()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors.add(found.get("id", ""))
        if tag == "a":
            self.links.append(found.get("href", ""))
        elif tag != "link" or found.get("rel") not in ("canonical", "prev", "next"):
            self.loaded += [found[name] for name in ("src", "href", "data", "srcset") if name in found]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of ``make docs``, built anew."""
    for name in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        try:
            missing = importlib.util.find_spec(name) is None
        except ModuleNotFoundError:
            missing = True
        if missing:
            pytest.skip("the site needs raystitch[docs]; `make docs` installs it")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(CONFIG)]
    done = subprocess.run([*command, "--site-dir", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def built(site: Path) -> dict[Path, Page]:
    return {file: Page(file) for file in sorted(site.rglob("*.html")) if file.name != "404.html"}


@pytest.mark.slow
def test_the_site_has_every_page_and_loads_nothing_from_a_network(
    site: Path, built: dict[Path, Page], hooks: ModuleType
) -> None:
    for page in OURS:
        path = Path(hooks.place(named(page)))
        assert site / path.with_name("index.html" if path.name == "README.md" else f"{path.stem}.html") in built
    for file, page in built.items():
        assert [url for url in page.loaded if urlsplit(url).netloc] == [], file
        assert [url for url in page.loaded if not (file.parent / urlsplit(url).path).exists()] == [], file
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?(https?:)?//", style.read_text(encoding="utf-8")), style


@pytest.mark.slow
def test_links_of_the_site_lead_somewhere(built: dict[Path, Page]) -> None:
    for file, page in built.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            there = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            assert there.exists(), f"{file}: {link}"
            if parts.fragment and there in built:
                assert unquote(parts.fragment) in built[there].anchors, f"{file}: {link}"


def bare(text: str) -> str:
    """The text of some HTML, without spaces and the links beside headings."""
    return re.sub(r"\s+|¶", "", html.unescape(re.sub(r"<[^>]+>", "", text)))


@pytest.mark.slow
@pytest.mark.parametrize("page", [*PAGES, ROOT / "SECURITY.md", ROOT / "deploy/README.md"], ids=named)
def test_a_page_reads_as_it_does_on_github(site: Path, hooks: ModuleType, page: Path) -> None:
    """Two dialects of Markdown are at work, which differ in lists, tables and what they take for HTML."""
    path = Path(hooks.place(named(page)))
    built = site / path.with_name("index.html" if path.name == "README.md" else f"{path.stem}.html")
    (here,) = re.findall(r"<article.*</article>", built.read_text(encoding="utf-8"), re.DOTALL)
    text = hooks.moved(page.read_text(encoding="utf-8"), named(page))
    there = MarkdownIt("commonmark").enable("table").render(text)
    assert bare(here) == bare(there)
    for tag in ("h1", "h2", "h3", "li", "tr", "pre", "img", "strong"):
        assert len(re.findall(f"<{tag}[ >]", here)) == len(re.findall(f"<{tag}[ >]", there)), tag


@pytest.mark.slow
def test_the_reference_shows_every_name(site: Path, built: dict[Path, Page]) -> None:
    anchors = set[str]().union(*(page.anchors for page in built.values()))
    assert [name for name in entries() if name not in anchors] == []
    training, fitting = (
        re.sub(r"<[^>]+>|\s+", "", (site / f"reference/{name}.html").read_text(encoding="utf-8"))
        for name in ("training", "fitting")
    )
    assert "noise_clip:float=0.5" in training  # in the signature
    assert "noise_clipfloatofthesmoothedtargetaction" in training  # a line of its own in the table
    assert "reward:HeadConfig=HeadConfig(num_layers=3)" in fitting  # not the function that makes it
