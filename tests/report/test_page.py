import html
import io
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from raystitch.errors import UserError
from raystitch.io.files import read_json, write_json
from raystitch.plot.style import INK
from raystitch.report.files import read_run
from raystitch.report.page import STYLE_FILE, build_report
from raystitch.report.summary import summarise
from raystitch.report.terminal import WIDTH, print_summary
from tests.report.conftest import without_pictures

SEARCH = {
    "algorithm": "optuna",
    "scheduler": "asha",
    "seeds": [100, 101],
    "trials": [
        {"ratio": "4:1", "delta": "q90", "value": 20.0, "num_seeds": 2, "status": "stopped", "step": 450},
        {"ratio": "1:1", "delta": "q99", "value": 71.2, "num_seeds": 2, "status": "ok", "step": 1500},
        {"ratio": "1:3", "delta": "off", "value": None, "num_seeds": 2, "status": "failed", "step": None},
    ],
    "chosen": {"ratio": "1:1", "delta": "q99"},
}


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
    drawn = page[page.index("</style>") :]
    assert not re.findall(r"#[0-9a-f]{6}", drawn), "a figure's colour was not replaced by the page's variable"
    assert page.count("<svg") - page.count('class="forest"') == 11
    assert set(re.findall(r"var\(--(\w+)\)", page)) <= set(re.findall(r"--(\w+):", page))


def test_plots_have_the_colours_of_the_page_in_daylight() -> None:
    """Each colour is replaced here by the variable of its name, so no two may be alike."""
    light = STYLE_FILE.read_text(encoding="utf-8").partition("@media")[0]
    variables = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", light))
    assert {name: variables[name] for name in INK} == INK
    assert len(set(INK.values())) == len(INK)


def test_a_whole_grid_is_compared_and_nothing_is_hidden(full_run: Path) -> None:
    write_json(full_run / "search.json", SEARCH)
    page = html.unescape(build_report(full_run).read_text())
    for title in (
        "Against every baseline",
        "Best checkpoint instead of last",
        "Every seed",
        "Stopped trials",
        "Search",
    ):
        assert f"<h2>{title}</h2>" in page
    for name in ("original data", "weighted 1:1", "duplicated 1:1", "joined 1:1", "no qualification"):
        assert f"<th>over {name}</th>" in page
    assert "This page makes 23 other comparisons" in page
    for row in pq.read_table(full_run / "results.parquet", columns=["trial_id"]).to_pylist():
        command = f"raystitch sweep --rerun {row['trial_id']} --out {full_run}"
        assert page.count(f">{command}</code>") == 1
    assert "1 failed</span>" in page
    assert "the chosen cell was trained again on fresh seeds" in page
    assert "r = 1:1, delta = q99 (chosen)" in page
    assert "3600 (headline)" in page and "<td>1800</td>" in page
    assert set(re.findall(r"var\(--(\w+)\)", page)) <= set(re.findall(r"--(\w+):", page))


def test_trials_that_a_search_chose_by_are_not_reported_as_scores(full_run: Path) -> None:
    rows = pq.read_table(full_run / "results.parquet").to_pylist()
    chosen = next(row for row in rows if row["data"] == "stitched" and row["delta"] == "q99" and row["headline"])
    lucky = chosen | {"trial_id": "lucky", "seed": 100, "score": 999.0}
    pq.write_table(pa.Table.from_pylist([*rows, lucky]), full_run / "results.parquet")
    assert 100 in _headline_seeds(full_run)
    write_json(full_run / "search.json", SEARCH)
    assert 100 not in _headline_seeds(full_run)
    config = (full_run / "config.yaml").read_text()
    (full_run / "config.yaml").write_text(f"{config}search: {{algorithm: none}}\n")
    assert 100 in _headline_seeds(full_run), "what an earlier search left has no say"
    (full_run / "config.yaml").write_text(config)
    assert "100 (search)" in build_report(without_pictures(full_run)).read_text()


def _headline_seeds(folder: Path) -> set[int]:
    run = read_run(folder)
    line = summarise(run.final_rows, run.headline).chosen("dt")
    assert line is not None
    return set(line.values)


def test_page_is_built_from_what_there_is(run_folder: Path) -> None:
    for name in ("figures", "trials"):
        shutil.rmtree(run_folder / name)
    for name in ("environment.json", "validate.json"):
        (run_folder / name).unlink(missing_ok=True)
    page = build_report(run_folder).read_text()
    assert "Results" in page
    assert "Learning curves" not in page


def test_the_last_evaluation_alone_is_no_curve(run_folder: Path) -> None:
    for path in run_folder.glob("trials/*/metrics.jsonl"):
        rows = [line for line in path.read_text().splitlines() if '"eval"' not in line]
        path.write_text("".join(f"{line}\n" for line in rows))
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


def test_the_terminal_is_narrow_and_has_every_baseline(full_run: Path) -> None:
    console = Console(width=WIDTH, record=True, file=io.StringIO())
    print_summary(full_run, console)
    text = console.export_text()
    assert max(len(line) for line in text.splitlines()) <= WIDTH
    assert "…" not in text
    for words in (
        "weighted 1:1",
        "duplicated 1:1",
        "joined 1:1",
        "delta off",
        "raw return",
        "So it beats every baseline",
    ):
        assert words in text


def test_simulator_truth_says_what_was_measured(run_folder: Path) -> None:
    page = build_report(run_folder).read_text()
    text = html.unescape(re.sub(r"<svg.*?</svg>|<[^>]+>", " ", page, flags=re.S))
    for words in (
        "68 % of 7,550 first attempts are accepted; repair rescues 260 more pairs.",
        "largest simulator error: 0.88 [0.85, 0.91], over 300 first attempts",
        "Delta accepts 99 % of real held-out windows",
        "0.2 (median; mean squared L2 per state) from the nearest real window of the same length, 0.25 when",
        "6 % of the bridges are nearer to real data than 5 % of real windows are.",
        "near to 41 % of the held-out windows",
    ):
        assert words in text
    promise = "delta: auto is 0.0423 here and accepts 6,350 bridges of this buffer; it should keep 95 % of them truer"
    assert promise in page
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", page)
    at = cells.index("judges&#x27; spread")
    assert cells[at : at + 7] == ["judges&#x27; spread", "off; tried: q99", "100", "90", "80", "0.9", "0.06"]
    assert "off; tried: on" in cells


def test_simulator_truth_may_be_unavailable(run_folder: Path) -> None:
    validation = read_json(run_folder / "validate.json")
    unread = {**validation["auto"], "delta": None}
    validation["auto"] = {"level": "auto", "unavailable": "delta=auto: the judges err too much"}
    for row in validation["calibration"]:
        row["simulator"] = None
    for row in validation["criteria"]:
        row["removed"] = row["kept"] = None
    unknown = dict.fromkeys(("rank_correlation", "points", "below_noise"))
    validation |= {"unavailable": "the state cannot be rebuilt <here>", "sets": {}, **unknown}
    write_json(run_folder / "validate.json", validation)
    page = build_report(run_folder).read_text()
    write_json(run_folder / "validate.json", validation | {"auto": unread})
    shutil.rmtree(run_folder / "figures")
    assert "delta: auto: there are no candidates to read at it." in build_report(run_folder).read_text()
    assert "Unavailable: the state cannot be rebuilt &lt;here&gt;." in page
    assert "delta=auto: the judges err too much" in page
    assert "What each criterion does" in page
    assert "Novelty:" in page
    assert page.count("<svg") - page.count('class="forest"') == 6  # delta's shares are still drawn


def test_what_the_data_promise_comes_first(run_folder: Path) -> None:
    assert "Before training" not in build_report(without_pictures(run_folder)).read_text()
    text = ["worth trying first: joining", "optimistic: never <that> it will"]
    numbers = {"recorded": 10.0, "top": 12.5, "join_one": 1250.75, "bridge_one": None, "rpsv": 3.0}
    returns = {"return_mean": 1.0, "return_best": 2.0}
    write_json(run_folder / "potential.json", numbers | returns | {"text": text})
    page = build_report(run_folder).read_text()
    assert page.index("<h2>Before training</h2>") == page.index("<h2>")
    for said in ("Worth trying first: joining.", "1,250.8", "never &lt;that&gt; it will", "RPSV 3"):
        assert said in page
    assert "bridges, one" not in page


def test_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run with results: it has no config\.yaml"):
        build_report(tmp_path)


def test_damaged_results_are_named(run_folder: Path) -> None:
    (run_folder / "results.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(UserError, match=r"results\.parquet is damaged: .*`raystitch sweep` command makes it again"):
        build_report(run_folder)
