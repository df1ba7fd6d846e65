import io
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from raystitch.errors import UserError
from raystitch.files import write_json
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
    assert page.count("<svg") - page.count('class="forest"') == 7
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
    assert re.search(r"stitched 1:1, delta q99 +\d\d\.\d +\d\d\.\d \.\. \d\d\.\d", text)
    assert "(1 failed)" in text
    assert "Decision Transformer: success rate" in text


def test_simulator_truth_may_be_unavailable(run_folder: Path) -> None:
    write_json(run_folder / "validate.json", {"unavailable": "the state cannot be rebuilt <here>", "sets": {}})
    assert "Unavailable: the state cannot be rebuilt &lt;here&gt;." in build_report(run_folder).read_text()


def test_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run with results: it has no config\.yaml"):
        build_report(tmp_path)


def test_damaged_results_are_named(run_folder: Path) -> None:
    (run_folder / "results.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(UserError, match="holds a damaged file"):
        build_report(run_folder)
