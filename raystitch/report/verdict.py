"""The answer in words: does stitching help, how certain is that, is qualification needed, and which budget would be
better.

Every sentence comes from the numbers of the run; nothing is claimed that they do not show.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from raystitch.report.stats import MAX_SEEDS, rise
from raystitch.report.summary import SUCCESS, Line, Metric, Summary
from raystitch.report.table import BASELINE_WORDS, DATA_ORDER, UNQUALIFIED, UNSHAPED, listed

ORIGINAL = "original data"
NOT_CONTROLS = (ORIGINAL, UNQUALIFIED, UNSHAPED)
"""Baselines that do not tell what generated bridges bring over data that are made without them."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The verdict on one algorithm.

    Attributes:
        answer: in a few words; ``facts``: the sentences behind it; ``budget``: what a better budget would be.
    """

    algo: str
    answer: str
    facts: list[str]
    budget: list[str]


def verdicts(summary: Summary) -> list[Verdict]:
    """Return one verdict per algorithm, in the order of the grid."""
    return [_verdict(algo, summary) for algo in summary.algorithms]


def baseline_words(name: str, line: Line) -> str:
    """Return a baseline's name in sentences, with its ratio where that differs from the line's, and its shaping."""
    cell, _, shaping = name.partition(", ")
    kind, _, ratio = cell.partition(" ")
    words = BASELINE_WORDS[kind]
    told = "" if kind not in DATA_ORDER or kind == "original" or ratio == line.ratio else ratio
    more = ", ".join(part for part in (told, shaping) if part)
    return f"{words} ({more})" if more else words


def _verdict(algo: str, summary: Summary) -> Verdict:
    line = summary.chosen(algo)
    waits = _undecided(algo, line, summary)
    if waits is not None:
        return waits
    if line is None:
        ratio, delta, *shaping = summary.headline
        at = f"ratio {ratio} and delta {delta}" + "".join(f" with {text}" for text in shaping if text)
        answer = f"no finished trial at {at}, so no verdict"
        if not summary.find(algo, "stitched"):
            answer = "not trained on stitched data in this run"
        return Verdict(algo=algo, answer=answer, facts=_failures(algo, summary), budget=[])
    metric = summary.metric
    facts = [_numbers(line, metric), *_baselines(line, summary), _qualification(line, summary)]
    facts += [*_highest(line, summary), *_sureness(line, metric), *_failures(algo, summary)]
    return Verdict(algo=algo, answer=_answer(line), facts=facts, budget=_budget(line, summary))


def _undecided(algo: str, line: Line | None, summary: Summary) -> Verdict | None:
    """Return what is known where trials without a result would decide; None where they would not."""
    headline = line or next((one for one in summary.find(algo, "stitched") if summary.is_headline(one)), None)
    open_lines = [] if headline is None else summary.undecided(headline)
    if not open_lines:
        return None
    count = sum(one.num_unfinished for one in open_lines)
    facts = [_numbers(line, summary.metric)] if line is not None else []
    missing = [f"{one.label} ({len(one.values)} of {_planned(one)} seeds)" for one in open_lines]
    facts += [f"Not finished, and part of the answer: {listed(missing)}.", *_failures(algo, summary)]
    trials = "trial that decides it has" if count == 1 else "trials that decide it have"
    return Verdict(algo=algo, answer=f"no verdict yet: {count} {trials} no result", facts=facts, budget=[])


def _planned(line: Line) -> int:
    return len(line.values) + line.num_failed + line.num_unfinished


def _answer(line: Line) -> str:
    original = line.over_original
    controls = {name: at for name, at in line.over.items() if name not in NOT_CONTROLS}
    if original is None:
        return "not compared with the original data in this run"
    seeds = original.difference.num_seeds
    if seeds < 2:
        return "one seed decides nothing"
    sign = original.difference.sign
    if sign < 0:
        return f"stitching did harm ({seeds} seeds)"
    if sign == 0:
        return f"no clear gain ({seeds} seeds)"
    if not controls:
        return f"better than the original data; no other baseline was tried ({seeds} seeds)"
    if all(at.difference.sign > 0 for at in controls.values()):
        return f"stitching helped ({seeds} seeds)"
    return f"better than the original data, but generated bridges are not shown to be what helped ({seeds} seeds)"


def _numbers(line: Line, metric: Metric) -> str:
    assert line.iqm is not None
    shaping = f", {line.shaping}" if line.shaping else ""
    text = f"{metric.name.capitalize()} with stitched data ({line.ratio}, delta {line.delta}{shaping}): "
    text += metric.show(line.iqm.value)
    text += f" (IQM of {line.iqm.num_seeds} seeds)" if line.iqm.num_seeds > 1 else " (one seed)"
    at = line.over_original
    if at is None:
        return f"{text}."
    unit = " points" if metric.unit else ""
    over = f"{'+' if at.difference.value > 0 else ''}{metric.number(at.difference.value)}{unit}"
    if at.difference.num_seeds < 2:
        return f"{text}; {over} over the original data."
    low, high = metric.number(at.difference.low), metric.number(at.difference.high)
    return (
        f"{text}; {over} over the original data, 95 % interval [{low}, {high}]"
        f"{'' if at.paired else ' (seeds are not shared)'}, P(improvement) {100 * at.improvement.value:.0f} %."
    )


def _baselines(line: Line, summary: Summary) -> list[str]:
    names = [name for name in line.over if name not in NOT_CONTROLS]
    signs = {name: at.difference.sign for name, at in line.over.items()}
    facts: list[str] = []
    if names and all(line.over[name].difference.num_seeds > 1 for name in names):
        better = "It also beats" if signs.get(ORIGINAL, 0) > 0 else "It beats"
        for words, sign in ((better, 1), ("It is not clearly different from", 0), ("It is worse than", -1)):
            listed = [
                f"{baseline_words(name, line)} ({summary.metric.show_difference(line.over[name].difference)})"
                for name in names
                if signs[name] == sign
            ]
            facts += [f"{words} {_and(listed)}."] if listed else []
    tried = {name.split()[0].rstrip(",") for name in line.over}
    missing = [kind for kind in DATA_ORDER[:-1] if kind not in tried]
    if not missing and all(sign > 0 for sign in signs.values()):
        facts[-1] += " So it beats every baseline."
    return [*facts, f"Baselines not in this run: {', '.join(missing)}."] if missing else facts


def _qualification(line: Line, summary: Summary) -> str:
    if line.delta == "off":
        return "This cell takes every bridge, qualified or not."
    at = line.over.get(UNQUALIFIED)
    if at is None:
        return f"Whether qualification is needed is open: there is no result at ratio {line.ratio} with delta off."
    base = summary.baseline(line, UNQUALIFIED)
    assert base.iqm is not None
    shown = (
        f"without it {summary.metric.show(base.iqm.value)}, difference {summary.metric.show_difference(at.difference)}"
    )
    if at.difference.num_seeds < 2:
        return f"Qualification: one seed decides nothing ({shown})."
    words = {1: "is needed", 0: "makes no clear difference", -1: "does harm"}[at.difference.sign]
    return f"Qualification at delta {line.delta} {words} ({shown})."


def _highest(line: Line, summary: Summary) -> list[str]:
    """A sentence on the cell that looks best afterwards, which must not be reported as if it had been chosen before."""
    cells = [(other.iqm.value, other) for other in summary.find(line.algo, "stitched") if other.iqm]
    value, best = max(cells, key=lambda cell: cell[0])
    if line.iqm is None or value <= line.iqm.value:
        return []
    shown = f"{best.label} ({summary.metric.show(value)})"
    return [f"Highest of {len(cells)} stitched cells: {shown}; picking it afterwards flatters it."]


def _sureness(line: Line, metric: Metric) -> list[str]:
    at = line.over_original
    if at is None or not at.detectable:
        return []
    seen = f"With {at.difference.num_seeds} seeds and their spread,"
    if metric is SUCCESS and at.detectable > 1:
        return [f"{seen} even the largest possible difference would be missed more often than 1 time in 5."]
    return [f"{seen} a difference of {metric.show_size(at.detectable)} would be seen 4 times out of 5."]


def _failures(algo: str, summary: Summary) -> list[str]:
    failed = [
        f"{line.label}: {line.num_failed} of {line.num_failed + len(line.values)}"
        for line in summary.lines
        if line.algo == algo and line.num_failed
    ]
    return [f"Failed trials, missing above: {'; '.join(failed)}."] if failed else []


def _budget(line: Line, summary: Summary) -> list[str]:
    """Sentences about seeds, steps and episodes, from this run's data."""
    facts = _more_seeds(line, summary.metric)
    rising = [item for item in (line, *summary.find(line.algo, "original")) if _rises(item)]
    if rising:
        sizes = [f"{item.label} ({_rise_of(item, summary.metric)})" for item in rising]
        facts.append(f"Curves still rise in the last quarter of training: {_and(sizes)}. More steps may change this.")
    if line.noise is not None and line.noise > 0.5:
        facts.append(
            f"{100 * min(line.noise, 1.0):.0f} % of the variance over seeds is what so few evaluation episodes would "
            "give on their own: more episodes would narrow the interval."
        )
    return facts


def _more_seeds(line: Line, metric: Metric) -> list[str]:
    unclear = {name: at for name, at in line.over.items() if at.difference.num_seeds > 1 and not at.difference.sign}
    if any(at.difference.num_seeds < 3 for at in unclear.values()):
        return ["Two seeds cannot tell anything apart; 5 are usual."]
    few: list[str] = []
    many: list[str] = []
    for name, at in unclear.items():
        against = f"{baseline_words(name, line)} ({metric.show_difference(replace(at.difference, num_seeds=1))})"
        needed = at.seeds_needed
        if needed is None and at.difference.value != 0:
            many.append(against)
        elif needed is not None and needed > at.difference.num_seeds:
            few.append(f"about {needed} seeds against {against}")
    facts = [f"To see the observed differences 4 times out of 5 would take {_and(few)}."] if few else []
    return [*facts, f"{MAX_SEEDS} seeds would not show the difference to {_and(many)}."] if many else facts


def _rises(line: Line) -> bool:
    found = rise(line.curves)
    return found is not None and found.difference.sign > 0


def _rise_of(line: Line, metric: Metric) -> str:
    found = rise(line.curves)
    assert found is not None
    return f"+{metric.show_size(found.difference.value)}"


def _and(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""
