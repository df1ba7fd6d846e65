"""The section on a study: its verdict, its pictures, and what it says where something was not measured."""

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raystitch.io.files import write_json
from raystitch.pipeline.study.policies import compare_cells
from raystitch.report.generalise import draw, facts, verdict_lines
from raystitch.report.generalise_words import judge
from raystitch.report.page import build_report
from tests.report.conftest import without_pictures, write_run

ARMS = {"original": 30.0, "weighted": 40.0, "joined": 42.0, "stitched": 50.0}
DELTAS = {"q50": 0.49, "q75": 0.5, "q90": 0.52, "q99": 0.53, "q99.9": 0.55, "off": 0.61}


def rows_of(gain: float, usual_gain: float, seeds: int = 5) -> list[dict[str, Any]]:
    """Policies of two cells; stitched ones are better by the gains."""
    rng, rows = np.random.default_rng(0), list[dict[str, Any]]()
    for data, by, ratio, delta in (("original", 0.0, "1:0", None), ("stitched", 1.0, "1:1", "q99")):
        for seed in range(seeds):
            noise = rng.normal(0, 1, 3)
            cell = {"algo": "td3bc", "data": data, "ratio": ratio, "delta": delta, "shaping": "", "seed": seed}
            values = {
                "usual": 40 + by * usual_gain + noise[0],
                "held_out": 20 + by * gain + noise[1],
                "train": 25 + by * gain + noise[2],
            }
            rows.append({**cell, **values, "action_error": {"train": 0.1, "held_out": 0.12 + 0.01 * seed}})
    return rows


def study(
    copying: float = 0.53, gain: float = 0.0, usual_gain: float = 0.0, *, scaled: bool = False, seeds: int = 5
) -> dict[str, Any]:
    """The content of generalise.json with made-up numbers."""
    rows = rows_of(gain, usual_gain, seeds)
    compared = compare_cells(rows, ("1:1", "q99", ""))
    numbers = {"without": 0.5, "with": 0.52, "gain": 0.02, "far_states": 0.01, "far_bridges": 0.05}
    by_delta = [
        {
            "level": level,
            "num_bridges": 100,
            "num_states": 900,
            "copying": at,
            **numbers,
            "gain": 0.02 + 0.1 * (at - 0.5),
        }
        for level, at in DELTAS.items()
    ]
    states = dict.fromkeys(("source_episodes", "source_states", "target_episodes", "target_states"), 90)
    pair = {"train": 0.1, "held_out": 0.12, "ratio": 1.2}
    ranks = {"count": 9, "value": 0.7, "low": 0.6, "high": 0.8}
    found: dict[str, Any] = {
        "split": {"num_train": 90, "num_held_out": 10, "known": True, "num_bridges": 120, "num_inside": 100},
        "copying": {
            "value": copying,
            "low": copying - 0.04,
            "high": copying + 0.04,
            "reference": 0.5,
            "num_states": 900,
            "by_delta": by_delta,
        },
        "coverage": {**numbers, **states},
        "generator": {"action": pair, "dynamics": pair, "ranks": {"train": ranks, "held_out": ranks}},
        "policies": {
            "saw_held_out": True,
            "measure": "return_mean",
            "recovery": {"settings": {"num_starts": 20}, "return_below": 300.0},
            "rows": rows,
            "comparisons": compared,
        },
        "alone": {"skipped": "the grid has no stitched cell at ratio 0:1"},
        "scaling": {"skipped": "not measured yet"},
    }
    if scaled:
        curve = [{"step": step, "train": 1 / step, "held_out": 1.2 / step} for step in (100, 200, 300)]
        noise = np.random.default_rng(1)
        found["scaling"] = {
            "algo": "td3bc",
            "measure": "return_mean",
            "settings": {"train_steps": 300, "seeds": [0, 1, 2]},
            "notes": ["5 % joined: too few windows"],
            "rows": [
                {
                    "algo": "td3bc",
                    "fraction": fraction,
                    "arm": arm,
                    "usual": level * fraction**0.3 + noise.normal(),
                    "held_out": 0.5 * level * fraction**0.2 + noise.normal(),
                    "curve": curve,
                }
                for fraction in (0.05, 0.1, 0.25, 1.0)
                for arm, level in ARMS.items()
                for _ in range(3)
            ],
            "comparisons": compared,
        }
    return {**found, "verdicts": judge(found)}


@pytest.mark.parametrize(
    ("asked", "word", "reason"),
    [
        ({"copying": 0.85, "gain": 10}, "memorises", "G1 is 0.85"),
        ({"gain": 10, "scaled": True}, "generalises", "recovery from held-out"),
        ({"gain": 10}, "undecided", "--scaling"),
        ({"gain": 10, "copying": 0.65, "scaled": True}, "undecided", "not below 0.6"),
        ({"usual_gain": 10}, "resampling", "only the usual start"),
        ({}, "undecided", "neither"),
        ({"gain": -10}, "undecided", "neither"),
        ({"gain": 10, "scaled": True, "seeds": 2}, "undecided", "2 seeds"),
        ({"gain": 10, "scaled": True, "seeds": 1}, "undecided", "1 seed cannot"),
    ],
)
def test_the_verdict_follows_from_the_numbers(asked: dict[str, Any], word: str, reason: str) -> None:
    (verdict,) = study(**asked)["verdicts"]
    assert verdict["word"] == word
    assert reason in verdict["reason"]


def test_cells_are_compared_by_seed_with_the_original_data_as_they_are() -> None:
    rows = rows_of(10, 0)
    shaped = [{**row, "shaping": "rewards zero", "held_out": 1e6} for row in rows]
    (found,) = compare_cells([*rows, *shaped], ("1:1", "q99"))
    assert found["cell"] == "stitched 1:1, delta q99"
    assert found["held_out"]["value"] == pytest.approx(10, abs=2)
    assert found["held_out"]["sign"] == 1
    assert found["held_out"]["num_seeds"] == 5
    assert compare_cells(rows, ("3:1", "q99")) == []
    unknown = [{**row, "held_out": None} for row in rows]
    assert compare_cells(unknown, ("1:1", "q99"))[0]["held_out"] is None


def test_every_picture_is_drawn_from_what_was_measured() -> None:
    pictures = draw(study(scaled=True))
    assert list(pictures) == ["scaling", "recovery", "copying", "errors"]
    for svg in pictures.values():
        ET.fromstring(svg)
    assert "weighted" in pictures["scaling"]
    assert "q99.9" in pictures["copying"]
    assert "gradient steps" in pictures["errors"]
    assert "held-out part" in draw(study())["errors"]
    bare = study()
    reason = {"skipped": "no bridge"}
    bare |= {"copying": reason, "coverage": reason, "policies": reason}
    assert draw(bare) == {}
    assert any("no bridge" in line for line in facts(bare))


def test_a_page_has_the_section_where_a_run_was_studied(tmp_path: Path) -> None:
    run = without_pictures(write_run(tmp_path / "run"))
    assert "Generalise, explore or overfit?" not in build_report(run).read_text()
    found = study(scaled=True, gain=10)
    write_json(run / "generalise.json", found)
    text = build_report(run).read_text()
    assert "Generalise, explore or overfit?" in text
    assert "TD3+BC: generalises" in text
    assert "5 % joined: too few windows" in text
    assert verdict_lines(found)[0].startswith("TD3+BC: generalises (recovery from held-out poor states improves")
    (run / "generalise.json").write_text("{")
    assert "Generalise, explore or overfit?" not in build_report(run).read_text()
