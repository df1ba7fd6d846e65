"""One self-contained HTML page about a run, from the run's files alone."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raystitch.io.files import atomic_path
from raystitch.plot.drawing import FIRST, REPAIRED, BridgeLines
from raystitch.report import figures
from raystitch.report.cost import cost_section
from raystitch.report.files import RunFiles, read_costs, read_run
from raystitch.report.generalise import generalise_section
from raystitch.report.html import html_table, section
from raystitch.report.reach import ground, polylines, reach
from raystitch.report.results import comparisons, heat_maps, results
from raystitch.report.sections import before_training, best_checkpoints, curves, pilot, target_returns, verdict
from raystitch.report.summary import Summary, summarise
from raystitch.report.table import PartialResults, algorithm_name
from raystitch.report.trials import every_seed, failures, other_trials, search, stopped, unfinished, unreadable
from raystitch.report.truth import simulator_truth, truth_tile
from raystitch.report.verdict import verdicts
from raystitch.stitching.candidates import REASONS

STYLE_FILE = Path(__file__).parent / "page.css"


def build_report(run_dir: str | Path, partial: PartialResults | None = None) -> Path:
    """Write ``report.html`` into the run's folder and return its path.

    Args:
        partial: what is there of a run that is not finished; the page says at its top what is missing.

    Raises:
        UserError: when the folder is not a run with results.
    """
    run = read_run(run_dir, partial)
    summary = summarise(run.final_rows, run.headline, run.metrics)
    parts = [
        _header(run),
        unfinished(run.missing),
        before_training(run.potential),
        verdict(verdicts(summary)),
        _tiles(run, summary),
        unreadable(run),
        failures(run),
        reach(run),
        results(summary),
        comparisons(summary, chosen_before=run.search is None),
        heat_maps(summary),
        target_returns(run.final_rows, summary.metric),
        search(run, summary.metric),
        curves(summary),
        best_checkpoints(summary),
        every_seed(run),
        stopped(run),
        other_trials(run),
        _picture(run.figures),
        pilot(run.pilot),
        _bridges(run.figures),
        simulator_truth(run.validation),
        generalise_section(run.generalise),
        cost_section(run.rows, read_costs(run), run.progress, _trial_gpus(run)),
        _configuration(run),
    ]
    title = escape(f"raystitch: {run.config.get('name', run.folder.name)}")
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE_FILE.read_text(encoding='utf-8')}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )
    path = run.folder / "report.html"
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _header(run: RunFiles) -> str:
    trials = {row["trial_id"] for row in run.rows}
    finished = None if run.missing else (run.environment or {}).get("finished_at")
    part = run.config.get("select")
    facts = [
        f"dataset {run.config.get('dataset')}{f', select {part}' if part else ''}",
        f"{len(trials)} trials",
        f"{len(run.config.get('seeds', []))} seeds",
    ]
    facts += [str(finished)] if finished else []
    name = escape(str(run.config.get("name") or run.folder.name))
    return f"<header><h1>{name}</h1><p>{escape('  ·  '.join(facts))}</p></header>"


def _trial_gpus(run: RunFiles) -> float:
    resources = run.config.get("resources")
    gpus = resources.get("trial_gpus", 0.0) if isinstance(resources, Mapping) else 0.0
    return float(gpus) if isinstance(gpus, int | float) else 0.0


def _tiles(run: RunFiles, summary: Summary) -> str:
    tiles: list[tuple[str, str]] = []
    for algo in summary.algorithms:
        line = summary.chosen(algo)
        if line is None or line.iqm is None:
            continue
        metric, before = summary.metric, ""
        original = next((base.iqm for base in summary.find(algo, "original") if base.iqm), None)
        if original is not None:
            before = f" (original: {metric.show(original.value)})"
        so_far = " so far" if summary.undecided(line) else ""
        text = f"{algorithm_name(algo)}, {metric.name} with stitching{so_far}{before}"
        tiles.append((metric.show(line.iqm.value), text))
    table = run.figures.get("acceptance")
    if table is not None:
        counts = table.to_pylist()
        total = sum(row["count"] for row in counts)
        accepted = sum(row["count"] for row in counts if row["reason"] == "ok")
        tiles.append(
            (f"{accepted:,}", f"of {total:,} candidates pass ({100 * accepted / max(total, 1):.0f} %), repairs counted")
        )
    tile = truth_tile(run.validation)
    tiles += [tile] if tile else []
    body = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(text)}</span></div>' for value, text in tiles
    )
    return f'<div class="tiles">{body}</div>' if tiles else ""


def _column(table: pa.Table, name: str) -> NDArray[Any]:
    return table[name].to_numpy()


def _picture(tables: Mapping[str, pa.Table]) -> str:
    lines = tables.get("lines")
    if lines is None:
        return ""
    parts = polylines(lines)
    if not parts.get("real"):
        return ""
    sides = (parts.get(name, []) for name in ("prefix", "bridge", "suffix"))
    drawn = [BridgeLines(before=a, bridge=b, after=c) for a, b, c in zip(*sides, strict=False)]
    note = (
        f"{len(parts['real'])} episodes of the dataset, and {len(drawn)} accepted bridges drawn at random "
        "with the real steps around them."
    )
    picture = figures.trajectories(ground(lines, tables), parts["real"], drawn)
    return section("Real and bridged trajectories", f"<figure>{picture}</figure>", note)


def _bridges(tables: Mapping[str, pa.Table]) -> str:
    table, candidates = tables.get("acceptance"), tables.get("candidates")
    if table is None or candidates is None:
        return ""
    rows = table.to_pylist()
    reasons = [reason for reason in REASONS if any(row["reason"] == reason for row in rows)]
    counts = {
        kind: [
            sum(r["count"] for r in rows if r["reason"] == reason and r["repaired"] == repaired) for reason in reasons
        ]
        for kind, repaired in ((FIRST, False), (REPAIRED, True))
    }
    if not any(counts[REPAIRED]):
        del counts[REPAIRED]
    accepted = _column(candidates, "accepted").astype(np.bool_)
    residual, gap = _column(candidates, "residual_max"), _column(candidates, "gap")
    gain = (_column(candidates, "return_stitched") - _column(candidates, "return_source"))[accepted]
    gain = gain[np.isfinite(gain)]
    facts = [
        ["gap (generated states)", *_quantiles(gap[accepted], "{:.0f}")],
        ["largest residual", *_quantiles(residual[accepted], "{:.3g}")],
        ["gain in discounted return", *_quantiles(gain, "{:.3g}")],
    ]
    body = (
        f'<div class="pair"><figure>{figures.acceptance(reasons, counts)}</figure>'
        f"<div><h3>Accepted bridges</h3>{html_table(['', '10 %', 'median', '90 %'], facts)}</div>"
        f"<figure>{figures.residual_histogram(residual.astype(np.float64), accepted)}</figure>"
        f"<figure>{figures.gap_histogram(gap.astype(np.float64), accepted)}</figure></div>"
    )
    note = (
        "Every candidate is kept with the numbers behind its acceptance; shown at the settings of generation. "
        "Residuals are the judges': dynamics models that the proposal never sees."
    )
    return section("Bridges", body, note)


def _quantiles(values: NDArray[Any], form: str) -> list[str]:
    usable = values[np.isfinite(values)]
    return [form.format(value) for value in np.percentile(usable, [10, 50, 90])] if usable.size else ["–"] * 3


def _configuration(run: RunFiles) -> str:
    environment = run.environment or {}
    facts: list[list[str]] = []
    for name, value in environment.items():
        if isinstance(value, dict):
            facts += [[f"{name}: {key}", str(item)] for key, item in value.items()]
        else:
            facts.append([name, str(value)])
    machine = html_table(["", "value"], facts) if facts else ""
    config = f"<details><summary>Resolved configuration</summary><pre>{escape(run.config_text)}</pre></details>"
    return section("Configuration and versions", f"{machine}{config}")
