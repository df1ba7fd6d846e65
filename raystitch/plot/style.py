"""Colours and settings of every picture, and the axes that a picture is drawn on.

The report draws in the same colours and then replaces them by variables of its page, which follow light and dark.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raystitch.errors import UserError
from raystitch.io.files import atomic_path

INK = {
    "text": "#171c26",
    "muted": "#5b6676",
    "grid": "#dfe3ea",
    "wall": "#c9d0da",
    "original": "#7c8798",
    "joined": "#c77700",
    "stitched": "#1f63d6",
    "bad": "#c4504a",
    "surface": "#ffffff",
    "real": "#4b5a6e",
    "good": "#17845a",
    "weighted": "#8a63c9",
    "duplicated": "#a9714b",
}
"""Name -> colour; no two alike. These are the report's colours on a light page (``report/page.css``)."""
STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK["text"],
    "axes.edgecolor": INK["grid"],
    "axes.labelcolor": INK["muted"],
    "axes.titlecolor": INK["text"],
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": INK["muted"],
    "ytick.color": INK["muted"],
    "grid.color": INK["grid"],
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
}
"""Settings of matplotlib (``rcParams``) for a figure of ours."""
FORMATS = ("png", "svg")
DPI = 130


@contextmanager
def drawing(ax: Axes | None, size: tuple[float, float]) -> Iterator[Axes]:
    """Yield the axes to draw on: ``ax`` as it is, or those of a new pyplot figure of ``size`` in inches."""
    if ax is not None:
        yield ax
        return
    from matplotlib import pyplot as plt

    # Where matplotlib itself puts titles, so that one that the caller sets later replaces ours.
    with mpl.rc_context({**STYLE, "axes.titlelocation": "center"}):
        yield plt.subplots(figsize=size, layout="constrained")[1]


def picture_format(path: str | os.PathLike[str]) -> str:
    """Return ``png`` or ``svg``, the format that the end of the file's name asks for.

    Raises:
        UserError: for another one.
    """
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise UserError(f"{path}: a picture is a file that ends in .png or .svg")
    return kind


def save_picture(path: str | os.PathLike[str], draw: Callable[[Axes], Any], size: tuple[float, float]) -> None:
    """Draw on a figure of its own, without pyplot, and write it whole or not at all.

    Raises:
        UserError: when the file's name ends in neither .png nor .svg.
        StorageError: when it cannot be written.
    """
    kind = picture_format(path)
    with mpl.rc_context({**STYLE, "svg.hashsalt": Path(path).name}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else None)
