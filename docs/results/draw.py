"""Draws the pictures of docs/results.md and prints its tables from the studies' rows: python docs/results/draw.py

The rows are docs/results/*.parquet, which collect.py beside this file keeps.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raystitch.plot.style import INK, STYLE
from raystitch.report.figures import to_svg
from raystitch.report.stats import Interval, compare, interval, mean
from raystitch.report.table import read_rows, short_name

HERE = Path(__file__).parent
PAGE_STYLE = HERE.parents[1] / "raystitch/report/page.css"
WIDTHS = {"0": 0.0, "025": 0.25, "05": 0.5, "1": 1.0, "15": 1.5}
"""End of a file's name -> width of the gap, cells of a metre."""
TRAINERS = ("dt", "iql", "td3bc")
ARMS = {
    "original": ("original", None, "", "original data", "-"),
    "original qdt": ("original", None, "returns qdt", "QDT", ":"),
    "weighted": ("weighted", None, "weights aw", "weighted by advantage (AW 0:1)", "-"),
    "joined": ("joined", None, "", "joined without a bridge", "-"),
    "stitched": ("stitched", "q99", "", "stitched, q99", "-"),
    "stitched auto": ("stitched", "auto", "", "stitched, auto", "--"),
    "stitched qdt": ("stitched", "q99", "returns qdt", "stitched, q99, and QDT", ":"),
}
"""Arm -> what it is trained on, its delta, beginning of its shaping, name, line."""
GAP_SIZE, GAP_TITLE = (10, 3.9), "Success against the width of the gap"
RATIO_DELTA_SIZE, RATIO_DELTA_TITLE = (10, 3.6), "Success at every r and delta"
BEST = {"capped-75": 795.9, "hopper-medium": 3588.0}
"""Return of the best episode: of hopper-mixed without its best quarter, and of hopper-medium."""
OGBENCH = {maze: [f"{maze}{task}" for task in range(1, 6)] for maze in ("medium", "giant")}
RATIOS = ("4:1", "2:1", "1:1", "1:2", "1:4", "0:1")
DELTAS = ("q50", "q90", "q99", "off")
Row = Mapping[str, Any]


def values(rows: Sequence[Row], algo: str, arm: str, column: str = "success_rate") -> dict[int, float]:
    """Return a column by seed for an arm, empty where it was not run."""
    data, delta, shaping, _, _ = ARMS[arm]
    return {
        row["seed"]: 100 * row[column]
        for row in rows
        if row["headline"] and row["status"] == "ok"
        if (row["algo"], row["data"], row["delta"]) == (algo, data, delta)
        if (row["shaping"] == "" if shaping == "" else row["shaping"].startswith(shaping))
    }


def gap_runs() -> dict[float, list[dict[str, Any]]]:
    """Return the rows of the study of the gap by its width, those of bridges made at auto with them."""
    return _by_width("gap-{}.parquet", "auto-gap-{}.parquet")


def confirmed_runs() -> dict[float, list[dict[str, Any]]]:
    """Return the rows of the same cells on seeds that nothing was chosen on."""
    return _by_width("confirm-gap-{}.parquet", "confirm-q99-gap-{}.parquet")


def _by_width(*names: str) -> dict[float, list[dict[str, Any]]]:
    found: dict[float, list[dict[str, Any]]] = {}
    for end, width in WIDTHS.items():
        files = [file for name in names if (file := HERE / name.format(end)).exists()]
        if files:
            found[width] = [row for file in files for row in read_rows(file)]
    return found


def gap(figure: Figure) -> None:
    """Draw success against the width of the gap, a panel per trainer: means over seeds with 95 % intervals."""
    runs = gap_runs()
    trainers = [algo for algo in TRAINERS if any(row["algo"] == algo for rows in runs.values() for row in rows)]
    panels: Sequence[Axes] = figure.subplots(1, len(trainers), sharey=True, squeeze=False)[0]
    for axis, algo in zip(panels, trainers, strict=True):
        for number, (arm, (data, _, _, name, line)) in enumerate(ARMS.items()):
            found = {
                w: interval(np.array(list(v.values())), mean) for w, r in runs.items() if (v := values(r, algo, arm))
            }
            if not found:
                continue
            shift = 0.012 * (number - 3)  # so that intervals of equal arms lie side by side
            x = np.array(list(found)) + shift
            low, middle, high = np.array([(at.low, at.value, at.high) for at in found.values()]).T
            axis.plot(x, middle, line, color=INK[data], marker="o", ms=4, label=name, zorder=3 + number)
            axis.vlines(x, low, high, color=INK[data], lw=1, alpha=0.6)
        axis.set_title(short_name(algo))
        axis.set_xlabel("width of the gap (cells)")
        axis.set_xticks(list(runs), [f"{width:g}" for width in runs])
        axis.set_xlim(min(runs) - 0.1, max(runs) + 0.1)
        axis.grid(axis="y")
    panels[0].set_ylabel("episodes that reach the goal (%)")
    panels[0].set_ylim(-4, 104)
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3)


def ratio_delta(figure: Figure) -> None:
    """Draw success at every r and delta, a map and two curves per trainer."""
    rows = read_rows(HERE / "ratio-delta-maze.parquet")
    trainers = [algo for algo in TRAINERS if any(row["algo"] == algo for row in rows)]
    grid = figure.subplots(len(trainers), 3, squeeze=False, width_ratios=(1.25, 1, 1))
    for (cells, by_ratio, by_delta), algo in zip(grid, trainers, strict=True):
        at, by_r, by_d = _by_ratio_and_delta(rows, algo)
        means = np.array([[mean(at[r, d]) for r in RATIOS] for d in DELTAS])
        cells.imshow(means, vmin=0, vmax=100, cmap=_shades(), aspect="auto")
        for (line, column), value in np.ndenumerate(means):
            cells.text(column, line, f"{value:.0f}", ha="center", va="center", color=INK["text"])
        cells.set_xticks(range(len(RATIOS)), RATIOS)
        cells.set_yticks(range(len(DELTAS)), DELTAS)
        cells.set_title(f"{short_name(algo)}: success (%)")
        cells.set_xlabel("r, original : stitched")
        cells.set_ylabel("delta")
        original = mean(np.array(list(values(rows, algo, "original").values())))
        _band(by_ratio, RATIOS, by_r, original)
        by_ratio.set_title("by r, over all delta")
        _band(by_delta, DELTAS, by_d, original)
        by_delta.set_title("by delta, over all r")


def _by_ratio_and_delta(rows: Sequence[Row], algo: str) -> tuple[dict[tuple[str, str], Any], list[Any], list[Any]]:
    """Return success by seed of every cell, and its mean over all deltas for each r and over all r for each delta."""
    at = {(r, d): _cell(rows, algo, r, d) for r in RATIOS for d in DELTAS}
    by_ratio = [np.mean([at[r, d] for d in DELTAS], axis=0) for r in RATIOS]
    return at, by_ratio, [np.mean([at[r, d] for r in RATIOS], axis=0) for d in DELTAS]


def ratio_delta_tables() -> str:
    """Return a table per trainer: the means over all deltas for each r, and over all r for each delta."""
    rows, lines = read_rows(HERE / "ratio-delta-maze.parquet"), list[str]()
    for algo in (algo for algo in TRAINERS if any(row["algo"] == algo for row in rows)):
        _, by_ratio, by_delta = _by_ratio_and_delta(rows, algo)
        for names, columns in ((RATIOS, by_ratio), (DELTAS, by_delta)):
            shown = [_text(interval(column, mean)) for column in columns]
            lines += ["", f"| {short_name(algo)} | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
            lines.append("| success, % | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def ogbench_table(maze: str) -> str:
    """Return a table of an OGBench maze: an arm per line, a task per column, success in % of every seed, once where all
    seeds agree."""
    runs = [read_rows(file) if (file := HERE / f"ogbench-{task}.parquet").exists() else [] for task in OGBENCH[maze]]
    lines = ["| trained on | " + " | ".join(f"{maze} {n}" for n in range(1, 6)) + " |", "|---" * 6 + "|"]
    for algo in TRAINERS:
        for arm, (data, _, _, name, _) in ARMS.items():
            cells = [values(rows, algo, arm) for rows in runs]
            if any(cells):
                ratio = " 0:1" if data in ("joined", "stitched") else ""
                lines.append(f"| {short_name(algo)}, {name}{ratio} | " + " | ".join(map(_each_seed, cells)) + " |")
    return "\n".join(lines)


def _each_seed(cell: Mapping[int, float]) -> str:
    shown = [f"{cell[seed]:.0f}" for seed in sorted(cell)]
    return shown[0] if len(set(shown)) == 1 else ", ".join(shown)


def returns_table(name: str) -> str:
    """Return a table of a locomotion study: returns, as shares of the best episode in the data, and differences to AW
    at 0:1 with the same trainer."""
    rows, best = read_rows(HERE / f"{name}.parquet"), BEST[name]
    cells: dict[str, dict[int, float]] = {}
    for row in rows:
        what = [row["data"], row["ratio"], row["delta"] and f"delta {row['delta']}", row["shaping"]]
        cells.setdefault(f"{short_name(row['algo'])}, {' '.join(filter(None, what))}", {})[row["seed"]] = row[
            "return_mean"
        ]
    lines = ["| trained on | return [95 %] | of the best episode | over AW 0:1 |", "|---" * 4 + "|"]
    for name, found in cells.items():
        weighted = next(other for key, other in cells.items() if "weighted" in key and key[:2] == name[:2])
        at, over = interval(np.array(list(found.values())), mean), _text(compare(found, weighted, mean).difference)
        share = f"{at.value / best:.2f} [{at.low / best:.2f}, {at.high / best:.2f}]"
        lines.append(f"| {name} | {_text(at)} | {share} | {'' if found is weighted else over} |")
    return "\n".join(lines)


def _cell(rows: Sequence[Row], algo: str, ratio: str, delta: str) -> Any:
    found = {
        row["seed"]: 100 * row["success_rate"]
        for row in rows
        if row["headline"]
        and (row["algo"], row["data"], row["ratio"], row["delta"]) == (algo, "stitched", ratio, delta)
    }
    return np.array([found[seed] for seed in sorted(found)])


def _band(axis: Axes, names: Sequence[str], columns: Sequence[Any], original: float) -> None:
    at = [interval(column, mean) for column in columns]
    axis.fill_between(
        range(len(names)), [a.low for a in at], [a.high for a in at], color=INK["stitched"], alpha=0.2, lw=0
    )
    axis.plot(range(len(names)), [a.value for a in at], color=INK["stitched"], marker="o", ms=4)
    axis.axhline(original, color=INK["original"], ls=":")
    axis.set_xticks(range(len(names)), names)
    axis.set_ylim(-4, 104)
    axis.grid(axis="y")


def _shades() -> Any:
    return mpl.colors.LinearSegmentedColormap.from_list("shades", [INK["surface"], INK["stitched"]])


def picture(draw: Callable[[Figure], None], size: tuple[float, float], title: str) -> str:
    """Return an SVG file in the colours of the report, with a ground of its own, for light and dark."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
    light, dark = re.findall(r":root \{(.*?)\}", PAGE_STYLE.read_text(encoding="utf-8"), flags=re.S)
    style = f"svg {{{light}}} @media (prefers-color-scheme: dark) {{ svg {{{dark}}} }}"
    style += " text { font-family: system-ui, sans-serif }"
    svg = to_svg(figure, title)
    head = svg.index(">") + 1
    ground = '<rect width="100%" height="100%" rx="6" fill="var(--surface)"/>'
    return f"{svg[:head]}<style>{style}</style>{ground}{svg[head:]}"


def gap_tables() -> str:
    """Return a table per trainer: arms by widths, and stitched data over the strongest other arm; then what bridges
    and joins do at the gaps, and the table of the confirmation."""
    runs = gap_runs()
    lines = _arms_tables(runs)
    seams = {
        w: json.loads((HERE / f"gap-{e}.json").read_text())
        for e, w in WIDTHS.items()
        if (HERE / f"gap-{e}.json").exists()
    }
    lines += ["", "| | " + " | ".join(f"{width:g}" for width in seams) + " |", "|---" * (len(seams) + 1) + "|"]
    for key in next(iter(seams.values()), {}):
        lines.append(f"| {key} | " + " | ".join(str(found[key]) for found in seams.values()) + " |")
    at_auto = [_crossings(HERE / f"auto-gap-{end}.json") for end, width in WIDTHS.items() if width in seams]
    lines.append("| the same of as many bridges made at auto | " + " | ".join(at_auto) + " |")
    return "\n".join([*lines, *_arms_tables(confirmed_runs())])


def _crossings(file: Path) -> str:
    return ", ".join(map(str, json.loads(file.read_text())["bridge_crossings"])) if file.exists() else ""


def _arms_tables(runs: Mapping[float, Sequence[Row]]) -> list[str]:
    lines: list[str] = []
    for algo in TRAINERS:
        if not any(row["algo"] == algo for rows in runs.values() for row in rows):
            continue
        lines += [
            "",
            f"| {short_name(algo)} | " + " | ".join(f"{width:g}" for width in runs) + " |",
            "|---" * (len(runs) + 1) + "|",
        ]
        for arm, (_, _, _, name, _) in ARMS.items():
            cells = [values(rows, algo, arm) for rows in runs.values()]
            if any(cells):
                lines.append(f"| {name} | " + " | ".join(_shown(cell) for cell in cells) + " |")
        for arm in ("stitched", "stitched auto"):
            differences = [_over_best(rows, algo, arm) for rows in runs.values()]
            lines.append(f"| {ARMS[arm][3]}, over the best arm without bridges | " + " | ".join(differences) + " |")
    return lines


def _shown(cell: Mapping[int, float]) -> str:
    return _text(interval(np.array(list(cell.values())), mean)) if cell else "–"


def _text(at: Interval) -> str:
    return f"{at.value:.0f} [{at.low:.0f}, {at.high:.0f}]"


def _over_best(rows: Sequence[Row], algo: str, arm: str) -> str:
    ours = values(rows, algo, arm)
    others = {
        arm: found for arm in ("original", "original qdt", "weighted", "joined") if (found := values(rows, algo, arm))
    }
    if not ours or not others:
        return "–"
    best = max(others, key=lambda arm: float(np.mean(list(others[arm].values()))))
    return f"{_text(compare(ours, others[best], mean).difference)} ({ARMS[best][3]})"


def main() -> None:
    """Write the pictures whose rows are there; print the tables."""
    if gap_runs():
        (HERE / "gap.svg").write_text(picture(gap, GAP_SIZE, GAP_TITLE), encoding="utf-8")
        print(gap_tables())
    if (HERE / "ratio-delta-maze.parquet").exists():
        (HERE / "ratio-delta-maze.svg").write_text(
            picture(ratio_delta, RATIO_DELTA_SIZE, RATIO_DELTA_TITLE), encoding="utf-8"
        )
        print(ratio_delta_tables())
    for name in BEST:
        print(returns_table(name))
    for maze in OGBENCH:
        print(ogbench_table(maze))


if __name__ == "__main__":
    main()
