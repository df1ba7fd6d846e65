"""The pictures of docs/concepts.md: the script that is kept makes the schemes as they are, and all can be read."""

import re
from types import ModuleType
from xml.etree import ElementTree as ET

import pytest

from tests.docs.pages import ROOT, load_module

FOLDER = ROOT / "docs/pictures"
NAMES = sorted(path.stem for path in FOLDER.glob("*.svg"))


@pytest.fixture(scope="module")
def make() -> ModuleType:
    return load_module(FOLDER / "make.py")


def test_the_schemes_are_what_the_script_makes(make: ModuleType) -> None:
    assert set(NAMES) == {*make.SCHEMES, "bridge", "residuals", "giant"}
    for name, draw in make.SCHEMES.items():
        assert (FOLDER / f"{name}.svg").read_text(encoding="utf-8") == draw(), f"run docs/pictures/make.py: {name}"


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_small_has_a_title_and_both_themes(name: str) -> None:
    text = (FOLDER / f"{name}.svg").read_text(encoding="utf-8")
    root = ET.fromstring(text)
    assert len(text) < (200_000 if name == "giant" else 40_000)  # that one shows 3,000 states
    assert root.findtext("{http://www.w3.org/2000/svg}title")
    assert "prefers-color-scheme: dark" in text
    assert 'class="ground"' in text
    assert not re.search(r"https?://(?!www\.w3\.org)", text)


def test_the_page_shows_all_of_them() -> None:
    page = (ROOT / "docs/concepts.md").read_text(encoding="utf-8")
    assert {f"pictures/{name}.svg" for name in NAMES} == set(re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page))
