"""The page's section about what stitched episodes reach: from the run's files alone, before the results."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raystitch.buffer.reach_file import REACH_FILE, Reach, write_reach
from raystitch.report.files import read_run
from raystitch.report.page import build_report
from raystitch.report.reach import reach
from tests.report.conftest import without_pictures, write_run

TITLE = "<h2>What stitched episodes reach</h2>"
REACH = Reach(
    num_rounds=1,
    goal="goal",
    num_starts=64,
    share=0.53,
    own_share=0.0,
    promised=-275.0,
    own=-197.0,
    steps=276.0,
    longest_chain=2,
    num_sources=1381,
    num_targets=347,
    best_bridge="000001-0002-0",
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = write_run(tmp_path / "run")
    (folder / "buffer").mkdir()
    return folder


def section_of(run: Path) -> str:
    return reach(read_run(run))


def test_it_stands_before_the_results(run: Path) -> None:
    write_reach(run / "buffer", REACH)
    page = build_report(without_pictures(run)).read_text(encoding="utf-8")
    assert page.index(TITLE) < page.index("<h2>Results</h2>")


def test_every_round_is_in_a_table(run: Path) -> None:
    assert section_of(run) == ""
    for num_rounds in range(1, 21):
        write_reach(run / "buffer", replace(REACH, num_rounds=num_rounds, num_sources=1000 + num_rounds))
    page = section_of(run)
    assert "From 53 % of 64 start states a stitched episode reaches the goal (a recorded one from 0 %)" in page
    short, whole = page.split("<summary>All 20 rounds</summary>")
    assert [f"1,{n:03}" for n in range(1, 21) if f"1,{n:03}" in short] == [
        "1,001",
        "1,002",
        "1,004",
        "1,008",
        "1,016",
        "1,020",
    ]
    assert all(f"1,{n:03}" in whole for n in range(1, 21))


def test_a_share_of_nothing_says_what_to_change(run: Path) -> None:
    write_reach(run / "buffer", replace(REACH, share=0.0))
    page = section_of(run)
    assert '<p class="down">No stitched episode leads from a start state to the goal' in page
    assert "raise fit.gamma" in page


def test_damage_is_named(run: Path) -> None:
    (run / "buffer" / REACH_FILE).write_text("[{]")
    assert section_of(run) == ""
    assert ["reach.json is damaged" in note for note in read_run(run).notes] == [True]


def test_the_most_promising_episode_is_drawn_in_the_colours_of_both_themes(run: Path) -> None:
    write_reach(run / "buffer", REACH)
    points = np.linspace(0, 1, 12)
    parts = np.repeat(["record", "bridge", "record"], 4)
    columns = {"part": parts, "line": np.repeat([0, 1, 2], 4), "x": points, "y": points**2}
    pq.write_table(pa.table(columns), run / "figures/episode.parquet")
    pq.write_table(pa.table({"x": points, "y": 1 - points}), run / "figures/states.parquet")
    page = section_of(run)
    figure = page[page.index('aria-label="A stitched episode from the start"') :]
    figure = figure[: figure.index("</figure>")]
    assert "1 bridge between recorded parts" in figure
    for colour in ("stitched", "joined", "real"):
        assert f"var(--{colour})" in figure
    assert not re.findall(r"#[0-9a-f]{6}", figure)
