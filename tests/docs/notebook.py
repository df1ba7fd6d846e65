"""Runs a notebook of the documentation without a Jupyter kernel: python -m tests.docs.notebook

That command runs docs/quickstart.ipynb and stores in it what its cells print and draw; the test compares. As in
Jupyter, a cell shows what it prints, the value of its last line unless that ends in a semicolon, and its figures.
"""

import ast
import base64
import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from matplotlib import pyplot as plt
from nbformat.notebooknode import NotebookNode

from tests.docs.pages import ROOT

NOTEBOOK = ROOT / "docs/quickstart.ipynb"
DPI = 80
VARIES = "varies"
"""Tag of cells whose numbers are the outcome of training: they differ a little from one kind of CPU to another."""


def read(path: Path = NOTEBOOK) -> NotebookNode:
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def run(notebook: NotebookNode) -> Iterator[list[NotebookNode]]:
    """Run the code cells in order, in one namespace; yield what each shows."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    plt.close("all")
    for cell in code_cells(notebook):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            value = _run_cell(cell.source, cell.id, namespace)
        shown = [nbformat.v4.new_output("stream", name="stdout", text=out.getvalue())] if out.getvalue() else []
        shown += [nbformat.v4.new_output("display_data", {"image/png": png}) for png in _figures()]
        if value is not None:
            data = {"text/plain": repr(value)}
            shown.append(nbformat.v4.new_output("execute_result", data, execution_count=None))
        yield shown


def _run_cell(source: str, name: str, namespace: dict[str, Any]) -> Any:
    """Run the statements of a cell and return the value of its last line, None where it shows none."""
    body = ast.parse(source).body
    shows = bool(body) and isinstance(body[-1], ast.Expr) and not source.rstrip().endswith(";")
    statements = body[:-1] if shows else body
    exec(compile(ast.Module(statements, []), name, "exec"), namespace)  # noqa: S102  # the repository's own notebook
    if not shows:
        return None
    assert isinstance(body[-1], ast.Expr)
    return eval(compile(ast.Expression(body[-1].value), name, "eval"), namespace)  # noqa: S307


def _figures() -> Iterator[str]:
    """Close all figures and yield them as PNG in base64."""
    for number in plt.get_fignums():
        file = io.BytesIO()
        plt.figure(number).savefig(file, format="png", dpi=DPI, metadata={"Software": None})
        yield base64.b64encode(file.getvalue()).decode()
    plt.close("all")


def main() -> None:
    notebook = read()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for count, (cell, shown) in enumerate(zip(code_cells(notebook), run(notebook), strict=True), start=1):
            cell.outputs, cell.execution_count = shown, count
            for output in shown:
                if output.output_type == "execute_result":
                    output.execution_count = count
    nbformat.validate(notebook)
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    os.environ["MPLBACKEND"] = "Agg"
    main()
