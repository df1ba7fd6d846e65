"""The report of a run that is not finished: what is missing is said, and nothing is claimed that it could change."""

from html import unescape
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from raystitch.io.files import write_json
from raystitch.report.cost import TrialCost, cost_section
from raystitch.report.page import build_report
from raystitch.report.summary import summarise
from raystitch.report.table import UNFINISHED, PartialResults, read_rows
from raystitch.report.terminal import print_summary
from raystitch.report.verdict import verdicts
from tests.report.conftest import without_pictures

HEADLINE = ("1:1", "q99")


def partial(run: Path, *cells: tuple[str, str, str | None], seeds: int = 1) -> PartialResults:
    """The run as it was before the last ``seeds`` seeds of some cells were finished."""
    rows: list[dict[str, Any]] = []
    for row in read_rows(run / "results.parquet"):
        if (row["algo"], row["data"], row["delta"]) in cells and row["seed"] >= 5 - seeds:
            row |= dict.fromkeys(("success_rate", "score", "return_mean", "return_std", "num_eval_episodes"))
            row |= {"status": UNFINISHED, "train_steps": None, "train_seconds": None}
        rows.append(row)
    return PartialResults(rows=rows, missing=["60 of 70 trials are finished.", "Validation has not begun."])


def answers(run: Path, found: PartialResults | None) -> dict[str, str]:
    rows = read_rows(run / "results.parquet") if found is None else found.rows
    return {one.algo: one.answer for one in verdicts(summarise(rows, HEADLINE))}


def test_no_verdict_is_given_that_missing_trials_could_change(full_run: Path) -> None:
    whole = answers(full_run, None)
    assert whole["dt"] == "stitching helped (5 seeds)"
    for cell in (("dt", "stitched", "q99"), ("dt", "joined", None), ("dt", "stitched", "off")):
        got = answers(full_run, partial(full_run, cell))
        assert got["dt"] == "no verdict yet: 1 trial that decides it has no result"
        assert got["td3bc"] == whole["td3bc"]
    without = answers(full_run, partial(full_run, ("dt", "stitched", "q99"), seeds=5))
    assert without["dt"] == "no verdict yet: 5 trials that decide it have no result"
    other = answers(full_run, partial(full_run, ("dt", "stitched", "q90")))
    assert other["dt"] == whole["dt"]  # another cell decides nothing about the headline


def test_nothing_is_clear_while_seeds_are_missing(full_run: Path) -> None:
    summary = summarise(partial(full_run, ("dt", "original", None)).rows, HEADLINE)
    lines = [line for line in summary.lines if line.algo == "dt" and line.data == "stitched"]
    assert all(line.over["original data"].difference.sign == 0 for line in lines)
    assert any(line.over["joined 1:1"].difference.sign > 0 for line in lines)


def test_the_page_and_the_terminal_say_first_what_is_missing(full_run: Path) -> None:
    found = partial(full_run, ("dt", "stitched", "q99"), ("dt", "joined", None))
    (full_run / "results.parquet").unlink()
    page = unescape(build_report(without_pictures(full_run), found).read_text())
    assert page.index("This run is not finished") < page.index("Did stitching help?")
    for text in ("60 of 70 trials are finished.", "Validation has not begun.", "no verdict yet", "1 unfinished"):
        assert text in page
    assert "today" not in page[: page.index("Did stitching help?")]  # when an earlier grid was finished
    said = StringIO()
    print_summary(full_run, Console(file=said, width=120), found)
    assert said.getvalue().index("This run is not finished.") < said.getvalue().index("no verdict yet")


def test_a_run_without_any_result_has_a_page(full_run: Path) -> None:
    cells = {(row["algo"], row["data"], row["delta"]) for row in read_rows(full_run / "results.parquet")}
    found = partial(full_run, *cells, seeds=5)
    found = PartialResults(rows=[row for row in found.rows if row["status"] == UNFINISHED], missing=found.missing)
    page = build_report(without_pictures(full_run), found).read_text()
    assert "no verdict yet" in page
    print_summary(full_run, Console(file=StringIO()), found)
    nothing = build_report(full_run, PartialResults(rows=[], missing=["0 of 70 trials are finished."])).read_text()
    assert "0 of 70 trials are finished." in nothing


def test_what_a_run_cost_is_in_its_report(run_folder: Path) -> None:
    assert "<h2>Cost</h2>" not in build_report(without_pictures(run_folder)).read_text()
    for row in read_rows(run_folder / "results.parquet"):
        if row["status"] == "ok":
            cost = {"train_seconds": 1800.0, "eval_seconds": 1800.0, "threads": 2, "evaluations": [1]}
            write_json(run_folder / "trials" / row["trial_id"] / "returns.json", cost)
    times = {"began": 0, "ended": 1, "seconds": 3600, "core_seconds": 7200, "gpu_seconds": 0}
    write_json(run_folder / "progress.json", {"schema_version": 1, "stages": {"fit": times}, "now": {}})
    page = build_report(run_folder).read_text()
    assert "<h2>Cost</h2>" in page
    assert ">56<" in page  # 27 trials of 2 core-hours each, and the fit's 2
    assert ">54<" in page


@pytest.mark.parametrize("progress", [{}, {"stages": []}, {"stages": {"fit": 3, "augment": {"seconds": "x"}}}])
def test_a_damaged_progress_file_costs_a_row_of_the_table(progress: dict[str, Any]) -> None:
    row = {"trial_id": "a", "algo": "dt", "data": "original", "ratio": "1:0", "delta": None, "shaping": ""}
    old = TrialCost.of({"train_seconds": 7200.0}, 1.0)
    assert old is not None
    body = cost_section([row], {"a": old}, progress, gpus=0.5)
    assert "DT, original data" in body and ">2<" in body and ">1<" in body
    assert TrialCost.of({"train_seconds": None}, 1.0) is None
    assert cost_section([row], {}, progress, 0.0) == "" or "augment" in progress.get("stages", {})
