import html
import io
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from raystitch.errors import UserError
from raystitch.files import read_json, write_json
from raystitch.report.page import build_report
from raystitch.report.terminal import print_summary


def test_page_is_whole_and_self_contained(run_folder: Path) -> None:
    page = build_report(run_folder).read_text()
    for title in (
        "Did stitching help?",
        "Results",
        "Ratio and delta",
        "Returns asked for",
        "Learning curves",
        "Real and bridged trajectories",
        "Bridges",
        "Simulator truth",
        "Failed trials",
        "Configuration and versions",
    ):
        assert f"<h2>{title}</h2>" in page
    assert "stitching helped (3 seeds)" in page
    assert "the loss became nan at step 7 &lt;of td3bc&gt;" in page
    assert not re.search(r"(src|href)=\"http|@import|<script|url\(http", page)
    assert "#0a0b0" not in page, "a figure's colour was not replaced by the page's variable"
    assert page.count("<svg") - page.count('class="forest"') == 11
    assert set(re.findall(r"var\(--(\w+)\)", page)) <= set(re.findall(r"--(\w+):", page))


def test_page_is_built_from_what_there_is(run_folder: Path) -> None:
    for name in ("figures", "trials"):
        shutil.rmtree(run_folder / name)
    for name in ("environment.json", "validate.json"):
        (run_folder / name).unlink(missing_ok=True)
    page = build_report(run_folder).read_text()
    assert "Results" in page
    assert "Learning curves" not in page


def test_same_files_give_the_same_page(run_folder: Path) -> None:
    first = build_report(run_folder).read_bytes()
    assert build_report(run_folder).read_bytes() == first


def test_terminal_table_says_the_same(run_folder: Path) -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    print_summary(run_folder, console)
    text = console.export_text()
    assert re.search(r"stitched 1:1, delta q99 \* +\d\d +\d\d \.\. \d\d +\d\d +0\.\d+ +\+\d\d", text)
    assert "(1 failed)" in text
    assert "Decision Transformer (*): stitching helped (3 seeds)." in text
    assert "Success rate with stitched data (1:1, delta q99)" in text


def test_simulator_truth_says_what_was_measured(run_folder: Path) -> None:
    text = html.unescape(re.sub(r"<svg.*?</svg>|<[^>]+>", " ", build_report(run_folder).read_text(), flags=re.S))
    for words in (
        "68 % of 7,550 first attempts are accepted; repair rescues 260 more pairs.",
        "largest simulator error: 0.88 [0.85, 0.91], over 300 first attempts",
        "Delta accepts 99 % of real held-out windows",
        "0.2 (median; mean squared L2 per state) from the nearest real window of the same length, 0.25 when",
        "6 % of the bridges are nearer to real data than 5 % of real windows are.",
        "near to 41 % of the held-out windows",
    ):
        assert words in text
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", build_report(run_folder).read_text())
    at = cells.index("judges&#x27; spread")
    assert cells[at : at + 7] == ["judges&#x27; spread", "off; tried: q99", "100", "90", "80", "0.9", "0.06"]
    assert "off; tried: on" in cells


def test_simulator_truth_may_be_unavailable(run_folder: Path) -> None:
    validation = read_json(run_folder / "validate.json")
    for row in validation["calibration"]:
        row["simulator"] = None
    for row in validation["criteria"]:
        row["removed"] = row["kept"] = None
    unknown = dict.fromkeys(("rank_correlation", "points", "below_noise"))
    validation |= {"unavailable": "the state cannot be rebuilt <here>", "sets": {}, **unknown}
    write_json(run_folder / "validate.json", validation)
    page = build_report(run_folder).read_text()
    assert "Unavailable: the state cannot be rebuilt &lt;here&gt;." in page
    assert "What each criterion does" in page
    assert "Novelty:" in page
    assert page.count("<svg") - page.count('class="forest"') == 6  # delta's shares are still drawn


def test_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run with results: it has no config\.yaml"):
        build_report(tmp_path)


def test_damaged_results_are_named(run_folder: Path) -> None:
    (run_folder / "results.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(UserError, match="holds a damaged file"):
        build_report(run_folder)
