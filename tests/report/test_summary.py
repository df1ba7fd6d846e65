from typing import Any

from raystitch.report.summary import RETURN, SCORE, SUCCESS, summarise
from raystitch.report.table import ALGORITHMS, algorithm_name
from raystitch.report.verdict import verdicts
from raystitch.trainers.config import ALGORITHM_CONFIGS


def row(
    algo: str, data: str, seed: int, success: float | None, ratio: str = "1:1", delta: str | None = None, **more: Any
) -> dict[str, Any]:
    base = {
        "trial_id": f"{algo}-{data}-{ratio}-{delta}-{seed}",
        "algo": algo,
        "data": data,
        "ratio": "1:0" if data == "original" else ratio,
        "delta": delta,
        "seed": seed,
        "target_return": None,
        "headline": True,
        "status": "ok",
        "error": None,
        "success_rate": success,
        "score": None,
        "return_mean": success,
    }
    return base | more


def grid(original: float, joined: float, stitched: float) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for seed, wiggle in enumerate((-0.02, 0.0, 0.02)):
        rows.append(row("dt", "stitched", seed, stitched + wiggle, delta="q99"))
        rows.append(row("dt", "original", seed, original - wiggle))
        rows.append(row("dt", "joined", seed, joined + wiggle))
    return rows


def answer(rows: list[dict[str, Any]], headline: tuple[str, str | None] = ("1:1", "q99")) -> str:
    return verdicts(summarise(rows, headline))[0].answer


def facts(rows: list[dict[str, Any]], headline: tuple[str, str | None] = ("1:1", "q99")) -> str:
    found = verdicts(summarise(rows, headline))[0]
    return " ".join([*found.facts, *found.budget])


def cell(data: str, level: float, spread: float = 0.0, **more: Any) -> list[dict[str, Any]]:
    """Five seeds around a level."""
    wiggles = (-1.0, -0.5, 0.0, 0.5, 1.0)
    return [row("dt", data, seed, level + spread * wiggle, **more) for seed, wiggle in enumerate(wiggles)]


def test_lines_are_ordered_and_compared() -> None:
    summary = summarise(grid(0.1, 0.3, 0.9), ("1:1", "q99"))
    assert [line.data for line in summary.lines] == ["original", "joined", "stitched"]
    over = summary.lines[-1].over
    assert list(over) == ["original data", "joined 1:1"]
    assert over["original data"].difference.value > 0.7
    assert abs(over["joined 1:1"].difference.value - 0.6) < 1e-9
    assert [list(line.over) for line in summary.lines[:2]] == [[], ["original data"]]
    assert [at.improvement.value for at in over.values()] == [1.0, 1.0]


def test_stitched_data_are_compared_with_every_baseline() -> None:
    rows = [*cell("original", 0.1), *cell("weighted", 0.2), *cell("duplicated", 0.1), *cell("joined", 0.3)]
    rows += [
        *cell("joined", 0.3, ratio="1:3"),
        *cell("stitched", 0.9, delta="q99"),
        *cell("stitched", 0.5, delta="off"),
    ]
    rows += cell("stitched", 0.6, delta="off", ratio="1:3")
    summary = summarise(rows, ("1:1", "q99"))
    chosen = summary.chosen("dt")
    assert chosen is not None
    assert sorted(chosen.over) == sorted(
        ["original data", "weighted 1:1", "duplicated 1:1", "joined 1:1", "joined 1:3", "no qualification"]
    )
    assert abs(chosen.over["no qualification"].difference.value - 0.4) < 1e-9  # at the same ratio
    assert "no qualification" not in summary.find("dt", "stitched")[1].over
    said = facts(rows)
    assert "So it beats every baseline." in said
    assert "real fragments joined without a bridge (1:3) (+60" in said
    assert "Qualification at delta q99 is needed (without it 50 %" in said


def test_verdicts_say_what_the_numbers_say() -> None:
    assert answer(grid(0.1, 0.3, 0.9)) == "stitching helped (3 seeds)"
    assert "not shown to be what helped" in answer(grid(0.1, 0.9, 0.9))
    assert answer(grid(0.9, 0.3, 0.2)) == "stitching did harm (3 seeds)"
    assert answer(grid(0.5, 0.5, 0.5)) == "no clear gain (3 seeds)"
    assert answer([item for item in grid(0.1, 0.3, 0.9) if item["seed"] == 0]) == "one seed decides nothing"
    assert "no verdict" in answer(grid(0.1, 0.3, 0.9), ("1:1", "off"))
    assert "no other baseline" in answer([*cell("original", 0.1), *cell("stitched", 0.9, delta="q99")])
    assert "Baselines not in this run: weighted, duplicated." in facts(grid(0.1, 0.3, 0.9))


def test_qualification_and_budget_are_answered_from_the_numbers() -> None:
    rows = [*cell("original", 0.5, 0.1), *cell("stitched", 0.55, -0.1, delta="q99")]
    assert "is open: there is no result at ratio 1:1 with delta off" in facts(rows)
    assert "would take about 81 seeds against the original data (+5)" in facts(rows)
    assert "makes no clear difference (without it 55 %" in facts([*rows, *cell("stitched", 0.55, 0.1, delta="off")])
    two = [item for item in rows if item["seed"] < 2]
    assert "Two seeds cannot tell anything apart" in facts(two)
    noisy = [item | {"return_std": 0.5, "num_eval_episodes": 10} for item in rows]
    assert "more episodes would narrow the interval" in facts(noisy)
    assert "even the largest possible difference" in facts(
        [*cell("original", 0.5, 0.5), *cell("stitched", 0.5, -0.5, delta="q99")]
    )


def test_the_best_checkpoint_and_rising_curves_come_from_the_metrics() -> None:
    rows = [*cell("original", 0.5, 0.01), *cell("stitched", 0.7, 0.01, delta="q99")]
    metrics = {
        item["trial_id"]: [
            {"kind": "eval", "step": step, "success_rate": item["success_rate"] + more, "target_return": target}
            for step, more in ((100, -0.3), (200, 0.1), (300, -0.2), (400, 0.0))
            for target in (1.0, 0.5)
        ]
        for item in rows
    }
    summary = summarise(rows, ("1:1", "q99"), metrics)
    line = summary.lines[-1]
    assert line.selection is not None
    assert abs(line.selection.value - 0.1) < 1e-9
    assert line.values[4] == 0.7 + 0.01
    budget = " ".join(verdicts(summary)[0].budget)
    assert "stitched 1:1, delta q99 (+20 points) and original data (+20 points). More steps" in budget
    assert summarise(rows, ("1:1", "q99"), {}).lines[-1].selection is None


def test_the_best_cell_is_named_but_not_reported_as_the_answer() -> None:
    rows = [*cell("original", 0.5), *cell("stitched", 0.7, delta="q99"), *cell("stitched", 0.9, delta="q50")]
    assert "Highest of 2 stitched cells: stitched 1:1, delta q50 (90 %); picking it" in facts(rows)
    assert "Highest" not in facts(rows, ("1:1", "q50"))


def test_a_run_without_any_result_says_so() -> None:
    rows = [row("dt", "stitched", seed, None, delta="q99", status="failed", error="nan") for seed in range(3)]
    assert "no finished trial" in answer(rows)
    assert facts(rows) == "Failed trials, missing above: stitched 1:1, delta q99: 3 of 3."


def test_other_cells_than_the_headline_pay_for_their_number() -> None:
    rows = cell("original", 0.5, 0.0)
    for number in range(20):
        lucky = [0.02, 0.03, 0.01, 0.02, 0.04] if number == 0 else [0.01, -0.02, 0.02, -0.01, 0.0]
        rows += [row("dt", "stitched", seed, 0.5 + at, delta=f"0.{number + 10}") for seed, at in enumerate(lucky)]
    as_headline = summarise(rows, ("1:1", "0.10")).lines[1].over_original
    among_others = summarise(rows, ("1:1", "0.11"))
    at = among_others.lines[1].over_original
    assert as_headline is not None and at is not None
    assert (as_headline.difference.sign, as_headline.adjusted) == (1, None)
    assert at.difference.sign == 0
    assert at.p_value is not None and at.adjusted is not None
    assert abs(at.adjusted - 19 * at.p_value) < 1e-12
    assert among_others.num_adjusted == 19


def test_stopped_trials_have_no_final_score() -> None:
    rows = [*cell("original", 0.5), *cell("stitched", 0.9, delta="q99")[:4]]
    rows.append(row("dt", "stitched", 4, 0.1, delta="q99", status="stopped"))
    rows += [row("dt", "stitched", seed, 0.99, delta="q50", status="stopped") for seed in range(3)]
    lines = summarise(rows, ("1:1", "q99")).lines
    assert [(line.label, len(line.values), line.num_stopped) for line in lines] == [
        ("original data", 5, 0),
        ("stitched 1:1, delta q99", 4, 1),
    ]


def test_failed_trials_are_counted_and_other_targets_left_out() -> None:
    rows = grid(0.1, 0.3, 0.9)
    rows.append(row("dt", "stitched", 3, None, delta="q99", status="failed", error="out of memory", return_mean=None))
    rows.append(row("dt", "stitched", 0, 0.0, delta="q99", headline=False, target_return=0.5))
    line = summarise(rows, ("1:1", "q99")).lines[-1]
    assert "Failed trials, missing above: stitched 1:1, delta q99: 1 of 4." in facts(rows)
    assert line.num_failed == 1
    assert sorted(line.values) == [0, 1, 2]
    assert min(line.values.values()) > 0.8


def test_the_score_is_the_metric_where_it_is_known_and_the_rest_is_shown_beside_it() -> None:
    rows = [row("td3bc", "original", 0, 0.4, score=40.0, return_mean=1300.0)]
    summary = summarise(rows, ("", None))
    assert [measure.column for measure in summary.measures] == ["score", "success_rate", "return_mean"]
    rows = [row("td3bc", "original", 0, None, return_mean=1300.0)]
    assert [measure.column for measure in summarise(rows, ("", None)).measures] == ["return_mean"]
    assert "not trained on stitched data" in answer(rows)


def test_every_algorithm_has_a_name() -> None:
    assert ALGORITHM_CONFIGS.keys() <= ALGORITHMS.keys()
    assert algorithm_name("iql") == "IQL"


def test_numbers_are_shown_without_false_digits() -> None:
    assert [RETURN.show(value) for value in (0.71234, 12.345, 1300.6, -20.27)] == ["0.712", "12.3", "1,301", "-20.3"]
    assert [SCORE.show(-0.04), SUCCESS.show(0.705)] == ["0.0", "70 %"]
