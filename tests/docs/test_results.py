"""The pictures of docs/results.md are those that the kept rows give, and its tables say what they say."""

from types import ModuleType

import pytest

from raystitch.report.table import read_rows
from tests.docs.pages import ROOT, load_module

FOLDER = ROOT / "docs/results"


@pytest.fixture(scope="module")
def draw() -> ModuleType:
    return load_module(FOLDER / "draw.py")


def test_the_pictures_are_those_of_the_rows(draw: ModuleType) -> None:
    for name, drawn in (
        ("gap", draw.picture(draw.gap, draw.GAP_SIZE, draw.GAP_TITLE)),
        ("ratio-delta-maze", draw.picture(draw.ratio_delta, draw.RATIO_DELTA_SIZE, draw.RATIO_DELTA_TITLE)),
    ):
        assert (FOLDER / f"{name}.svg").read_text(encoding="utf-8") == drawn, "run docs/results/draw.py"


def test_the_tables_of_the_page_are_those_of_the_rows(draw: ModuleType) -> None:
    page = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    for table in [*map(draw.returns_table, draw.BEST), *map(draw.ogbench_table, draw.OGBENCH)]:
        for line in table.splitlines():
            assert line in page
    for table in map(draw.ogbench_table, draw.OGBENCH):
        assert page.count(table.splitlines()[0]) == 1, "a table of earlier rows is left"
    for line in [*draw.gap_tables().splitlines(), *draw.ratio_delta_tables().splitlines()]:
        starts = ("| original data", "| QDT", "| weighted", "| joined", "| stitched", "| success, %", "| the same of")
        some = set(line.split(" | ")[1:]) - {"–", "– |"}
        if line.startswith(starts) and some and not line.startswith("| original data | –"):  # IQL's is told in words
            assert line.replace("|  |", "| |") in page


SEEDS = {
    "gap-*": range(10, 15),
    "auto-gap-*": range(10, 15),
    "confirm-*": range(30, 35),
    "ratio-*": range(20, 23),
    "capped-*": range(10, 15),
    "hopper-medium": range(10, 15),
    "ogbench-*": range(3),
}


@pytest.mark.parametrize("names", SEEDS)
def test_every_kept_file_holds_finished_trials_of_the_study_s_seeds(names: str) -> None:
    files = sorted(FOLDER.glob(f"{names}.parquet"))
    assert files
    for file in files:
        rows = read_rows(file)
        assert {row["status"] for row in rows} == {"ok"}
        assert {row["seed"] for row in rows} == set(SEEDS[names])
        assert file.stat().st_size < 50_000
