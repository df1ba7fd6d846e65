"""Makes the pictures of docs/concepts.md: python docs/pictures/make.py [RUN [GIANT_RUN]]

RUN is the run folder of `raystitch sweep demo-full` (runs/demo-full), whose data bridge.svg and residuals.svg show;
giant.svg shows those of GIANT_RUN, a run on OGBench's giant maze; the others are schemes.
"""

import sys
from collections.abc import Iterable, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from raystitch.buffer.reader import Buffer
    from raystitch.data.episodes import EpisodeDataset

HERE = Path(__file__).parent
SOURCE, TARGET, MADE, BAD, MUTED = "source", "target", "made", "bad", "muted"
# Each picture has a ground of its own, so that it can be read on a page of either kind.
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f } .small { font-size: 11px } .big { font-weight: 600 }
.ground { fill: #ffffff } .wall { fill: #d0d7de } .ink { stroke: #24292f; fill: none }
.source { --c: #bc5a00 } .target { --c: #1f6fc0 } .made { --c: #14804a } .bad { --c: #b8321f } .muted { --c: #6e7781 }
.line { stroke: var(--c); fill: none } .fill { fill: var(--c) } text.source, text.target, text.made, text.bad,
text.muted { fill: var(--c) }
@media (prefers-color-scheme: dark) { text { fill: #d7dde3 } .ground { fill: #161b22 } .wall { fill: #30363d }
.ink { stroke: #d7dde3 } .source { --c: #f0953f } .target { --c: #6cb2f7 } .made { --c: #4ac27f }
.bad { --c: #f2705f } .muted { --c: #8b949e } }
"""
Point = tuple[float, float]


class Picture:
    """An SVG in the making."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
            f' role="img"><title>{escape(title)}</title><style>{STYLE}</style>'
            f'<defs><marker id="tip" markerWidth="7" markerHeight="7" refX="6" refY="3.5" orient="auto">'
            f'<path d="M0.5 0.5L6.5 3.5L0.5 6.5" class="ink"/></marker></defs>'
            f'<rect width="{width}" height="{height}" rx="8" class="ground"/>'
        ]

    def text(self, at: Point, text: str, kind: str = "", anchor: str = "start") -> None:
        self.parts.append(
            f'<text x="{at[0]:g}" y="{at[1]:g}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'
        )

    def line(self, points: Iterable[Sequence[float]], kind: str, width: float = 2, extra: str = "") -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        look = "ink" if kind == "ink" else f"line {kind}"
        self.parts.append(f'<polyline points="{path}" class="{look}" stroke-width="{width:g}" {extra}/>')

    def arrow(self, start: Point, end: Point) -> None:
        self.line((start, end), "ink", 1.2, 'marker-end="url(#tip)"')

    def dot(self, at: Sequence[float], kind: str, radius: float = 4, hollow: bool = False) -> None:
        look = f'class="line {kind}" stroke-width="2"' if hollow else f'class="fill {kind}"'
        self.parts.append(f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="{radius:g}" {look}/>')

    def box(self, at: Point, width: float, height: float, look: str, radius: float = 0) -> None:
        self.parts.append(
            f'<rect x="{at[0]:.1f}" y="{at[1]:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{radius:g}" '
            f'class="{look}"/>'
        )

    def svg(self) -> str:
        return "".join(self.parts) + "</svg>\n"


def bridge(dataset: "EpisodeDataset", buffer: "Buffer") -> str:
    """The maze, some of its recorded fragments, and one accepted bridge of median residual from the start."""
    from raystitch.envs.pointmaze import MAZE_MAP

    scale, rows, columns = 62, len(MAZE_MAP), len(MAZE_MAP[0])

    def place(states: np.ndarray) -> np.ndarray:
        return np.stack([(states[:, 0] + columns / 2) * scale, (rows / 2 - states[:, 1]) * scale], 1)

    picture = Picture(columns * scale, rows * scale, "A bridge of the demo between two recorded fragments")
    for row, cells in enumerate(MAZE_MAP):
        for column, cell in enumerate(cells):
            if cell == 1:
                picture.box((column * scale, row * scale), scale + 0.5, scale + 0.5, "wall")
    for index in range(80):
        picture.line(place(dataset.episode(index).observations[::2]), MUTED, 1, 'stroke-opacity="0.45"')
    found = buffer.bridges(0.05)
    starts = dataset.observations[dataset.obs_offsets[found.source_episode], 0]
    near = np.flatnonzero(starts < -2)  # fragments that begin in the western corridor
    chosen = int(near[np.argsort(found.residual_max[near])[len(near) // 2]])
    first = int(found.offsets[chosen]) + chosen
    states = place(found.observations[first : first + int(found.gap[chosen]) + 2])
    source = dataset.episode(int(found.source_episode[chosen])).observations[: int(found.source_step[chosen]) + 1]
    target = dataset.episode(int(found.target_episode[chosen])).observations[int(found.target_step[chosen]) :]
    picture.line(place(source), SOURCE, 3)
    picture.line(place(target), TARGET, 3)
    picture.line(states, MADE, 2)
    for state in states[1:-1]:
        picture.dot(state, MADE, 3.5)
    picture.dot(states[0], SOURCE, 6)
    picture.dot(states[-1], TARGET, 6)
    picture.text((34, 226), "source: recorded, return 0", f"big {SOURCE}")
    picture.text((34, 244), "the dot is the state that is left", SOURCE)
    picture.text((392, 34), "target: recorded, ends at the goal, return 1", f"big {TARGET}", "middle")
    picture.text((392, 52), "the dot is the state that is entered", TARGET, "middle")
    picture.text((262, 404), f"bridge: gap {found.gap[chosen]}", f"big {MADE}")
    text = f"{found.gap[chosen]} generated states, largest residual {found.residual_max[chosen]:.2g}"
    picture.text((262, 422), text, MADE)
    picture.text((34, 422), "thin: other recorded fragments", "muted small")
    return picture.svg()


def gap() -> str:
    """What a bridge is made of: states, transitions, gap."""
    picture = Picture(620, 150, "A gap of 4: four generated states and five generated transitions")
    places = [(40 + 54 * index, 72.0) for index in range(11)]
    for start, end in pairwise(places):
        picture.arrow((start[0] + 9, start[1]), (end[0] - 9, end[1]))
    for index, at in enumerate(places):
        made = 4 <= index <= 7
        picture.dot(at, SOURCE if index < 4 else MADE if made else TARGET, 7, hollow=made)
    picture.text((121, 108), "source", f"big {SOURCE}", "middle")
    picture.text((337, 108), "gap = 4 generated states", f"big {MADE}", "middle")
    picture.text((337, 126), "5 transitions: actions and rewards inferred", f"small {MADE}", "middle")
    picture.text((526, 108), "target", f"big {TARGET}", "middle")
    picture.text((202, 44), "left", f"small {SOURCE}", "middle")
    picture.text((472, 44), "entered", f"small {TARGET}", "middle")
    picture.text((20, 22), "scheme", "muted small")
    return picture.svg()


def judges() -> str:
    """Two dynamics models propose, two others judge."""
    picture = Picture(620, 230, "Proposing and judging dynamics models")
    picture.text((20, 22), "scheme", "muted small")
    for y, kind, name, what in (
        (64, MADE, "2 proposers", "choose the gap, guide, repair"),
        (156, BAD, "2 judges", "see nothing but finished bridges"),
    ):
        for offset in (0, 8):
            picture.box((216 + offset, y - 22 + offset), 120, 44, f"line {kind}", 6)
        picture.text((280, y + 9), name, f"big {kind}", "middle")
        picture.text((360, y - 2), what, kind)
    picture.text((360, 172), "residual of each step =", "")
    picture.text((360, 190), "mean over judges of ‖s′ − f(s, a)‖²", "")
    picture.text((360, 208), "accepted while the largest < delta", f"big {BAD}")
    picture.box((24, 82), 120, 56, f"line {MUTED}", 6)
    picture.text((84, 106), "4 dynamics models,", "small", "middle")
    picture.text((84, 122), "one dataset", "small", "middle")
    picture.arrow((148, 98), (210, 70))
    picture.arrow((148, 122), (210, 156))
    return picture.svg()


def residuals(buffer: "Buffer") -> str:
    """Largest residuals of all candidates of the demo, with thresholds."""
    picture = Picture(620, 270, "Largest residual of every candidate of the demo's buffer")
    values = np.log10(np.maximum(buffer.column("residual_max").astype(np.float64), 1e-5))
    low, high, bins = -4.0, 2.0, 48
    counts, edges = np.histogram(np.clip(values, low, high - 1e-9), bins, (low, high))

    def x(at: float) -> float:
        return 40 + (at - low) / (high - low) * 550

    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        height = 125 * count / counts.max()
        kind = MADE if right <= -1 + 1e-9 else BAD
        picture.box((x(left) + 0.5, 220 - height), x(right) - x(left) - 1, height, f"fill {kind}")
    picture.line(((40, 220), (590, 220)), "ink", 1)
    for power in range(-4, 3):
        picture.text((x(power), 238), f"{10.0**power:g}", "small", "middle")
    picture.text((315, 260), "largest residual of a candidate (squared L2, standardised units)", "", "middle")
    q99 = float(buffer.calibration.threshold("q99", np.array([round(buffer.column("gap").mean())]))[0])
    for at, delta, y, anchor in ((q99, "q99", 82, "end"), (0.05, 0.05, 62, "end"), (0.1, 0.1, 42, "start")):
        place = x(np.log10(at))
        picture.line(((place, y - 10), (place, 220)), MUTED, 1.5, 'stroke-dasharray="4 3"')
        text = f"delta {delta}: {buffer.num_accepted(delta):,} bridges"
        picture.text((place + (5 if anchor == "start" else -5), y), text, "small", anchor)
    picture.text(
        (20, 22), f"{buffer.num_candidates:,} candidates; q99 depends on the gap, shown at the mean gap", "small"
    )
    return picture.svg()


def ratio() -> str:
    """What r means: rows of a batch."""
    picture = Picture(620, 150, "Ratios of original and augmented rows in a batch of 16")
    picture.text((20, 22), "scheme: a batch of 16 rows", "muted small")
    for line, (name, original) in enumerate((("1:0", 16), ("3:1", 12), ("1:1", 8))):
        y = 38 + 34 * line
        picture.text((70, y + 17), f"r = {name}", "big", "end")
        for row in range(16):
            picture.box((86 + 26 * row, y), 22, 22, f"fill {MUTED if row < original else MADE}", 3)
    picture.text((516, 55), "original", "muted")
    picture.text((516, 89), "augmented", MADE)
    return picture.svg()


def rounds() -> str:
    """Value comes one bridge further in every round: a state that is entered knows the way on."""
    picture = Picture(620, 190, "Chain rounds")
    picture.text((20, 22), "scheme; the goal is at the end of C", "muted small")
    for y, name in ((66, "round 0"), (140, "round 1")):
        picture.text((20, y + 4), name, "big")
        picture.line(((110, y), (220, y)), SOURCE, 4)
        picture.line(((290, y), (400, y)), TARGET, 4)
        picture.line(((400, y), (480, y)), MADE, 2, 'stroke-dasharray="2 5"')
        picture.line(((480, y), (590, y)), BAD, 4)
        picture.dot((590, y), BAD, 6)
    picture.line(((220, 140), (290, 140)), MADE, 2, 'stroke-dasharray="2 5"')
    for at, name, kind in ((165, "A", SOURCE), (345, "B", TARGET), (535, "C", BAD)):
        picture.text((at, 54), name, f"big {kind}", "middle")
    picture.text((440, 88), "bridge B-C: now B leads to the goal", f"small {MADE}", "middle")
    picture.text((255, 164), "bridge A-B: A goes on as B does", f"small {MADE}", "middle")
    return picture.svg()


def giant(run: str) -> str:
    """The most promising stitched episode of a run, as its report draws it."""
    from raystitch.report.figures import long_way
    from raystitch.report.files import read_figures
    from raystitch.report.page import STYLE_FILE
    from raystitch.report.reach import best_way

    way = best_way(read_figures(Path(run) / "figures", []))
    assert way is not None, f"{run}: reach.json names no stitched episode"
    svg, css = long_way(way), STYLE_FILE.read_text(encoding="utf-8")
    style = css[: css.index("* {")] + "text { font-family: system-ui, sans-serif } .ground { fill: var(--surface) }"
    head = f"<title>A stitched episode through the giant maze</title><style>{style}</style>"
    begin = svg.index(">") + 1
    return f'{svg[:begin]}{head}<rect width="100%" height="100%" rx="8" class="ground"/>{svg[begin:]}'


SCHEMES = {"gap": gap, "judges": judges, "ratio": ratio, "rounds": rounds}


def main(run: str = "runs/demo-full", giant_run: str | None = None) -> None:
    import raystitch as rs

    dataset, buffer = rs.load_dataset("demo:pointmaze"), rs.open_buffer(f"{run}/buffer")
    pictures = {name: make() for name, make in SCHEMES.items()}
    pictures |= {"bridge": bridge(dataset, buffer), "residuals": residuals(buffer)}
    if giant_run is not None:
        pictures["giant"] = giant(giant_run)
    for name, svg in pictures.items():
        (HERE / f"{name}.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
