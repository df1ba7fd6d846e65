"""Cells to whose data something was done are lines of their own, named, and compared with those without it."""

from typing import Any

from raystitch.report.results import heat_maps
from raystitch.report.summary import summarise
from raystitch.report.verdict import verdicts
from tests.report.test_summary import row

AW = "weights aw 0.1"


def cell(data: str, level: float, delta: str | None = None, shaping: str = "", **more: Any) -> list[dict[str, Any]]:
    return [
        row("dt", data, seed, level + wiggle, delta=delta, shaping=shaping, **more)
        for seed, wiggle in enumerate((-0.02, 0.0, 0.02))
    ]


ROWS = [
    *cell("stitched", 0.6, "q99", AW),
    *cell("stitched", 0.5, "off", AW),
    *cell("stitched", 0.9, "q99"),
    *cell("original", 0.1),
    *cell("original", 0.2, shaping="rewards zero"),
    *cell("weighted", 0.3, ratio="0:1", shaping=AW),
    *cell("weighted", 0.25),
]


def test_cells_that_differ_in_shaping_are_lines_of_their_own() -> None:
    summary = summarise(ROWS, ("1:1", "q99", ""))
    assert [line.label for line in summary.lines] == [
        "original data",
        "original data, rewards zero",
        "weighted 1:1",
        f"weighted 0:1, {AW}",
        "stitched 1:1, delta q99",
        f"stitched 1:1, delta q99, {AW}",
        f"stitched 1:1, delta off, {AW}",
    ]
    assert [len(line.values) for line in summary.lines] == [3] * 7


def test_each_is_compared_with_what_it_would_be_without() -> None:
    lines = {line.label: line for line in summarise(ROWS, ("1:1", "q99")).lines}
    assert list(lines["original data, rewards zero"].over) == ["original data"]
    assert list(lines[f"weighted 0:1, {AW}"].over) == ["original data"]
    baselines = ["original data", "original data, rewards zero", "weighted 1:1", f"weighted 0:1, {AW}"]
    assert list(lines["stitched 1:1, delta q99"].over) == baselines
    assert list(lines[f"stitched 1:1, delta q99, {AW}"].over) == [*baselines, "unshaped", "no qualification"]


def test_the_verdict_is_about_the_cell_as_it_is_unless_another_is_named() -> None:
    plain, shaped = summarise(ROWS, ("1:1", "q99")), summarise(ROWS, ("1:1", "q99", AW))
    chosen, other = plain.chosen("dt"), shaped.chosen("dt")
    assert chosen is not None and other is not None
    assert (chosen.shaping, other.shaping) == ("", AW)
    said = " ".join([verdicts(plain)[0].answer, *verdicts(plain)[0].facts])
    assert "stitching helped" in said
    assert f"the original data weighted by return (0:1, {AW}) (+60" in said
    assert "the original data (rewards zero) (+70" in said
    found = verdicts(shaped)[0]
    assert "stitching helped" in found.answer  # that the weights did harm does not tell against the bridges
    assert f"stitched data (1:1, delta q99, {AW})" in found.facts[0]
    lost = verdicts(summarise(ROWS, ("1:1", "q90", AW)))[0].answer
    assert f"ratio 1:1 and delta q90 with {AW}" in lost


def test_maps_of_ratio_and_delta_do_not_mix_them() -> None:
    page = heat_maps(summarise(ROWS, ("1:1", "q99")))
    first, second = page.split("<h3>")[1:]
    assert "90 %" in first and "60 %" not in first
    assert f", {AW}</h3>" in second and "60 %" in second and "50 %" in second
    alone = [item for item in ROWS if item["delta"] != "off"]
    assert heat_maps(summarise(alone, ("1:1", "q99"))).count("<h3>") == 1
