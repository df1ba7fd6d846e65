import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raystitch.io.files import write_json

CELLS = (
    ("dt", "original", "1:0", None, 0.07),
    ("dt", "joined", "1:1", None, 0.33),
    ("dt", "stitched", "1:1", "q90", 0.86),
    ("dt", "stitched", "1:1", "q99", 0.91),
    ("dt", "stitched", "1:3", "q90", 0.80),
    ("dt", "stitched", "1:3", "q99", 0.95),
    ("td3bc", "original", "1:0", None, 0.46),
    ("td3bc", "joined", "1:1", None, 0.45),
    ("td3bc", "stitched", "1:1", "q99", 0.52),
)
FULL_CELLS = (
    ("dt", "original", "1:0", None, 0.62),
    ("dt", "weighted", "1:1", None, 0.64),
    ("dt", "duplicated", "1:1", None, 0.61),
    ("dt", "joined", "1:1", None, 0.66),
    ("dt", "stitched", "1:1", "q90", 0.72),
    ("dt", "stitched", "1:1", "q99", 0.78),
    ("dt", "stitched", "1:1", "off", 0.59),
    ("dt", "stitched", "1:3", "q99", 0.70),
    ("td3bc", "original", "1:0", None, 0.40),
    ("td3bc", "weighted", "1:1", None, 0.43),
    ("td3bc", "duplicated", "1:1", None, 0.40),
    ("td3bc", "joined", "1:1", None, 0.41),
    ("td3bc", "stitched", "1:1", "q99", 0.44),
    ("td3bc", "stitched", "1:1", "off", 0.36),
)
"""A whole grid: every baseline, and stitched data with and without qualification."""
WALLS = [
    (x, y)
    for x in range(-3, 4)
    for y in range(-3, 4)
    if not (abs(y) == 1 and abs(x) < 3) and not (x == 2 and abs(y) < 3)
]
CONFIG = """\
name: synthetic
dataset: demo:pointmaze
seeds: [0, 1, 2]
headline: {ratio: '1:1', delta: q99}
"""


def write_run(folder: Path, *, full: bool = False) -> Path:
    """A run's files with made-up numbers; ``full``: a locomotion task with scores, 5 seeds and every baseline."""
    targets = (3600.0, 1800.0) if full else (1.0, 0.5)
    seeds, success = range(5 if full else 3), not full
    rng = np.random.default_rng(0)
    (folder / "figures").mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG.replace("0, 1, 2", ", ".join(map(str, seeds))))
    rows: list[dict[str, Any]] = []
    for algo, data, ratio, delta, level in FULL_CELLS if full else CELLS:
        for seed in seeds:
            trial_id = f"{algo}{data}{ratio}{delta}{seed}".replace(":", "")
            trial = folder / "trials" / trial_id
            trial.mkdir(parents=True)
            lines: list[dict[str, Any]] = []
            final = float(np.clip(level + rng.normal(0, 0.04), 0, 1))
            for step in range(150, 1501, 150):
                value = final * (1 - np.exp(-step / 500)) + rng.normal(0, 0.05) if step < 1500 else final
                lines.append({"kind": "train", "step": step, "loss": 1 / step})
                lines.append({"kind": "eval", "step": step, "target_return": None, **_measured(value, success)})
            (trial / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "ev')
            shared = {
                "trial_id": trial_id,
                "algo": algo,
                "data": data,
                "ratio": ratio,
                "delta": delta,
                "delta_value": None if delta is None else 0.2,
                "seed": seed,
                "status": "ok",
                "error": None,
                "train_steps": 1500,
                "train_seconds": 30.0,
                "return_std": 380.0 if full else 0.1,
                "num_eval_episodes": 50,
            }
            asked = targets if algo == "dt" else (None,)
            rows += [
                shared
                | {"target_return": target, "headline": target == asked[0]}
                | _measured(final * (0.8 if target == asked[-1] and len(asked) > 1 else 1.0), success)
                for target in asked
            ]
    blank = dict.fromkeys(rows[0])
    rows.append(
        blank
        | {"trial_id": "bad", "algo": "td3bc", "data": "stitched", "ratio": "1:1", "delta": "q99", "seed": 3}
        | {"headline": True, "status": "failed", "error": "RunError: the loss became nan at step 7 <of td3bc>"}
    )
    if full:
        rows += [
            blank
            | {"trial_id": f"stopped{seed}", "algo": "td3bc", "data": "stitched", "ratio": "4:1", "delta": "q90"}
            | {"seed": seed, "headline": True, "status": "stopped", "train_steps": 450, "train_seconds": 9.0}
            | {"num_eval_episodes": 10, "return_std": 300.0}
            | _measured(0.2, success)
            for seed in (100, 101)
        ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "results.parquet")
    versions = {"raystitch": "0.1.0", "torch": "2.13.0", "ray": "2.60.0"}
    write_json(folder / "environment.json", {"python": "3.11", "cpus": 2, "packages": versions, "finished_at": "today"})
    _write_figures(folder / "figures", rng)
    write_json(folder / "validate.json", _validation(rng))
    return folder


def _measured(value: float, success: bool) -> dict[str, float | None]:
    """Of a maze where there is success, else of a hopper."""
    if success:
        return {"success_rate": value, "score": None, "return_mean": value}
    return {"success_rate": None, "score": 100 * value, "return_mean": 3254.6 * value - 20.3}


def _validation(rng: np.random.Generator) -> dict[str, Any]:
    def described(scale: float, spread: float) -> dict[str, Any]:
        errors = np.sort(scale * np.exp(rng.normal(0, spread, 400)))
        numbers = {"count": 400, "median": scale, "p90": scale * 4, "p99": scale * 9, "mean": scale * 2}
        by_gap = [{"gap": gap, **numbers, "median": scale * (0.7 + gap / 25)} for gap in range(4, 25)]
        return {
            "num_windows": 500,
            "num_steps": 6000,
            "usable_share": 1.0,
            "step_error": numbers,
            "largest_error": {**numbers, "median": scale * 5},
            "largest_below": {"limit": 0.5, "share": 0.8},
            "cdf": {
                "level": np.linspace(0, 1, 41).tolist(),
                "step_error": np.quantile(errors, np.linspace(0, 1, 41)).tolist(),
            },
            "by_gap": by_gap,
            "by_step": [{"step": step, **numbers} for step in range(25)],
            "reward_error": numbers,
            "terminated_share": 0.0,
        }

    residual = np.exp(rng.normal(-2, 1, 300))
    return {
        "unavailable": None,
        "noise": 0.05,
        "sets": {
            "accepted": described(0.012, 1.0),
            "first_attempts": described(0.012, 1.0),
            "repaired": described(0.02, 1.1),
            "rejected": described(0.09, 1.4),
            "real": described(1e-12, 0.5),
            "real_noise": described(0.031, 0.7),
            "real_inverse": described(0.002, 0.9),
        },
        "below_noise": True,
        "attempts": {
            "num_pairs": 7550,
            "first_accepted": 5100,
            "first_accepted_share": 0.675,
            "num_repairs": 900,
            "rescued": 260,
        },
        "rank_correlation": {"count": 300, "value": 0.88, "low": 0.85, "high": 0.91, "by_gap": []},
        "points": {
            "residual": residual.tolist(),
            "error": (residual * np.exp(rng.normal(0, 0.6, 300))).tolist(),
            "gap": rng.integers(4, 25, 300).tolist(),
            "accepted": (residual < 0.4).tolist(),
        },
        "real_accepted_share": 0.99,
        "calibration": [
            {
                "level": level,
                "nominal": float(level[1:]) / 100,
                "delta": float(level[1:]) / 200,
                "real_accepted": float(level[1:]) / 100 + 0.001,
                "residual_accepted": float(level[1:]) / 125,
                "first_accepted": float(level[1:]) / 130,
                "num_bridges": 1000,
                "simulator": {
                    name: described(float(level[1:]) / 8000, 1.0)[name]
                    for name in ("num_windows", "step_error", "largest_error", "largest_below")
                },
            }
            for level in ("q50", "q75", "q90", "q95", "q99", "q99.5", "q99.9")
        ],
        "auto": {
            "level": "auto",
            "unavailable": None,
            "nominal": 0.95,
            "delta": 0.0423,
            "num_bridges": 6350,
            "reference": 0.05,
            "below_reference": 0.968,
        },
        "criteria": [
            {
                "name": name,
                "on": is_on,
                "threshold": threshold,
                "alone": 100,
                "first": 90,
                "only": 80,
                "removed": {"count": 12, "step_median": 0.1, "largest_median": 0.9},
                "kept": {"count": 488, "step_median": 0.01, "largest_median": 0.06},
            }
            for name, is_on, threshold in (
                ("non_finite", True, None),
                ("residual", True, "q99"),
                ("spread", False, "q99"),
                ("termination", True, 0.5),
                ("return", False, True),
            )
        ],
        "novelty": {
            "bridges": {"count": 500, "p10": 0.05, "median": 0.2, "p90": 0.7},
            "bridges_other_episodes": {"count": 500, "p10": 0.06, "median": 0.25, "p90": 0.7},
            "real": {"count": 500, "p10": 0.07, "median": 0.22, "p90": 0.6},
            "ratio": 1.14,
            "copied_limit": 0.04,
            "copied_share": 0.062,
            "coverage": {"num_windows": 500, "share": 0.41, "bridge_median": 2.1, "real_median": 1.9},
        },
    }


def _write_figures(folder: Path, rng: np.random.Generator) -> None:
    def write(name: str, metadata: dict[str, str] | None = None, **columns: Any) -> None:
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata or {}), folder / f"{name}.parquet")

    write(
        "acceptance",
        reason=["ok", "residual", "termination", "return", "ok"],
        repaired=[False, False, False, False, True],
        count=[5100, 2900, 40, 310, 260],
    )
    count = 4000
    residual = np.exp(rng.normal(-3, 1.2, count)).astype(np.float32)
    residual[0] = np.nan
    write(
        "candidates",
        gap=rng.integers(4, 25, count),
        residual_max=residual,
        accepted=residual < 0.12,
        return_source=np.zeros(count, np.float32),
        return_stitched=rng.uniform(0.2, 0.9, count).astype(np.float32),
    )
    parts: list[tuple[str, int, np.ndarray[Any, Any]]] = []
    for episode in range(80):
        x = np.linspace(-2.9, rng.uniform(-0.9, -0.4), 40) if episode % 2 else np.linspace(0.6, 2.8, 40)
        y = (-1.0 if episode % 2 else 1.0) + np.cumsum(rng.normal(0, 0.03, 40)) + rng.normal(0, 0.1)
        parts.append(("real", episode, np.stack([x, y], 1)))
    for bridge in range(12):
        leave, enter = np.array([-0.6, -1 + rng.normal(0, 0.1)]), np.array([0.7, 1 + rng.normal(0, 0.1)])
        mix = np.linspace(0, 1, 18)[:, None]
        bulge = np.stack([2.6 * np.sin(np.pi * mix[:, 0]), 0 * mix[:, 0]], 1)
        parts.append(("prefix", bridge, np.linspace(leave - np.array([1.5, 0.0]), leave, 20)))
        parts.append(("bridge", bridge, leave * (1 - mix) + enter * mix + bulge))
        parts.append(("suffix", bridge, np.linspace(enter, enter + np.array([2.0, 0.0]), 20)))
    lengths = [len(points) for _, _, points in parts]
    points = np.concatenate([points for _, _, points in parts]).astype(np.float32)
    write(
        "lines",
        {"x": "x", "y": "y"},
        part=np.repeat([part for part, _, _ in parts], lengths),
        line=np.repeat([line for _, line, _ in parts], lengths),
        x=points[:, 0],
        y=points[:, 1],
    )
    walls = np.array(WALLS, np.float64) - 0.5
    ones = np.ones(len(walls))
    write("walls", x=walls[:, 0], y=walls[:, 1], width=ones, height=ones)
    write("marks", text=["start", "goal"], x=[-2.0, -2.0], y=[-1.0, 1.0])


def without_pictures(run: Path) -> Path:
    """Take away what pictures are made of, which take most of a page's time, for tests of words."""
    shutil.rmtree(run / "figures")
    (run / "validate.json").unlink()
    for path in run.glob("trials/*/metrics.jsonl"):
        path.write_text("")
    return run


@pytest.fixture
def full_run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "full", full=True)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")
