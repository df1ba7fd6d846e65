from typing import Any

from raystitch.report.summary import summarise


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


def test_lines_are_ordered_and_compared() -> None:
    summary = summarise(grid(0.1, 0.3, 0.9), ("1:1", "q99"))
    assert [line.data for line in summary.lines] == ["original", "joined", "stitched"]
    stitched = summary.lines[-1]
    assert stitched.over_original is not None
    assert stitched.over_joined is not None
    assert stitched.over_original.value > 0.7
    assert abs(stitched.over_joined.value - 0.6) < 1e-9
    assert summary.lines[0].over_original is None
    assert [line.improvement for line in summary.lines] == [None, 1.0, 1.0]


def test_verdicts_say_what_the_numbers_say() -> None:
    assert "stitching helped (3 seeds)" in summarise(grid(0.1, 0.3, 0.9), ("1:1", "q99")).verdicts[0]
    assert "not shown to be what helped" in summarise(grid(0.1, 0.9, 0.9), ("1:1", "q99")).verdicts[0]
    assert "stitching did harm" in summarise(grid(0.9, 0.3, 0.2), ("1:1", "q99")).verdicts[0]
    assert "no clear gain" in summarise(grid(0.5, 0.5, 0.5), ("1:1", "q99")).verdicts[0]
    one = [item for item in grid(0.1, 0.3, 0.9) if item["seed"] == 0]
    assert "one seed decides nothing" in summarise(one, ("1:1", "q99")).verdicts[0]
    assert "no verdict" in summarise(grid(0.1, 0.3, 0.9), ("1:1", "off")).verdicts[0]


def test_failed_trials_are_counted_and_other_targets_left_out() -> None:
    rows = grid(0.1, 0.3, 0.9)
    rows.append(row("dt", "stitched", 3, None, delta="q99", status="failed", error="out of memory", return_mean=None))
    rows.append(row("dt", "stitched", 0, 0.0, delta="q99", headline=False, target_return=0.5))
    line = summarise(rows, ("1:1", "q99")).lines[-1]
    assert line.num_failed == 1
    assert sorted(line.values) == [0, 1, 2]
    assert min(line.values.values()) > 0.8


def test_score_and_return_are_used_where_success_is_not_defined() -> None:
    rows = [row("td3bc", "original", 0, None, score=40.0, return_mean=1300.0)]
    assert summarise(rows, ("", None)).metric.column == "score"
    rows = [row("td3bc", "original", 0, None, return_mean=1300.0)]
    assert summarise(rows, ("", None)).metric.column == "return_mean"
    assert "not trained on stitched data" in summarise(rows, ("", None)).verdicts[0]
