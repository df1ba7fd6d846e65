"""The Python of the documentation runs and prints what it says."""

import doctest
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest

import raystitch as rs
from tests.docs.pages import ROOT, blocks, run_python


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_session_of_the_api_page(folder: Path) -> None:
    assert run_python(ROOT / "docs/api.md", {}) >= 6
