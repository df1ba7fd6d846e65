"""docs/quickstart.ipynb runs from top to bottom, and what is stored in it is what its cells print and draw."""

import base64
import io
import re
from pathlib import Path

import matplotlib.image as mpimg
import nbformat
import numpy as np
import pytest
from nbformat.notebooknode import NotebookNode
from numpy.typing import NDArray

from tests.docs.notebook import NOTEBOOK, VARIES, code_cells, read, run

AGAIN = "run `python -m tests.docs.notebook`"
MAX_PICTURE, MAX_FILE = 60_000, 300_000


def varies(cell: NotebookNode) -> bool:
    return VARIES in cell.metadata.get("tags", [])


def texts(outputs: list[NotebookNode], *, masked: bool) -> list[str]:
    """What a cell prints and its value; ``masked``: every number as #."""
    found = [output.get("text") or output.get("data", {}).get("text/plain") for output in outputs]
    return [re.sub(r"-?\d[\d,.]*", "#", text) if masked else text for text in found if text]


def pictures(outputs: list[NotebookNode]) -> list[bytes]:
    found = [output.get("data", {}).get("image/png") for output in outputs]
    return [base64.b64decode(png) for png in found if png]


def pixels(png: bytes) -> NDArray[np.float32]:
    return mpimg.imread(io.BytesIO(png), format="png")


def test_it_is_a_small_valid_notebook() -> None:
    notebook = read()
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), AGAIN
    stored = [png for cell in cells for png in pictures(cell.outputs)]
    assert len(stored) >= 4
    assert max(map(len, stored)) <= MAX_PICTURE
    assert NOTEBOOK.stat().st_size <= MAX_FILE


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a minute of one core that does nothing else
def test_every_cell_shows_what_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers that training brings may differ from one CPU to another; words, shapes and recorded data may not."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYSTITCH_CACHE", str(tmp_path / "cache"))
    notebook = read()
    for cell, shown in zip(code_cells(notebook), run(notebook), strict=True):
        where = f"cell {cell.id}: {AGAIN}"
        assert texts(shown, masked=varies(cell)) == texts(cell.outputs, masked=varies(cell)), where
        drawn, stored = ([pixels(png) for png in pictures(outputs)] for outputs in (shown, cell.outputs))
        assert [picture.shape for picture in drawn] == [picture.shape for picture in stored], where
        for new, old in zip(drawn, stored, strict=True):
            assert varies(cell) or np.abs(new - old).mean() < 0.005, where
    assert list(tmp_path.iterdir()) == []
