"""The report's section on a study: does generated data generalise, explore or overfit? From generalise.json."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from raystitch.report import generalise_figures as figures
from raystitch.report.html import html_table, section
from raystitch.report.summary import cell_label
from raystitch.report.table import algorithm_name, short_name

TITLE = "Generalise, explore or overfit?"
NOTE = (
    "Episodes that no model was fitted on are compared with the others; only bridges between fitted episodes count. "
    "Nothing here chooses anything."
)
EXPLAINED = {
    "generalises": "recovery from held-out poor states improves, and generated states are new",
    "resampling": "what is seen already is used better, nothing more",
    "memorises": "generated states are copies",
    "undecided": "the numbers do not say",
}

Found = Mapping[str, Any]


def verdict_lines(found: Found) -> list[str]:
    """Return the verdicts as sentences, one per algorithm."""
    lines: list[str] = []
    for one in found["verdicts"]:
        who = "" if one["algo"] is None else f"{algorithm_name(one['algo'])}: "
        lines.append(f"{who}{one['word']} ({EXPLAINED[one['word']]}). {one['reason'][0].upper()}{one['reason'][1:]}.")
    return lines


def facts(found: Found) -> list[str]:
    """Return what was measured, a sentence per measure."""
    return [
        *_split(found["split"]),
        *_copying(found["copying"], found["coverage"]),
        *_generator(found["generator"]),
        *_policies(found["policies"]),
        *_alone(found["alone"]),
        *_scaling(found["scaling"]),
    ]


def generalise_section(found: Found | None) -> str:
    """Return the section; empty where nothing was studied."""
    if found is None:
        return ""
    body = "".join(f"<p><b>{escape(line)}</b></p>" for line in verdict_lines(found))
    body += "".join(f"<p>{escape(line)}</p>" for line in facts(found))
    body += _policy_table(found["policies"])
    pictures = draw(found)
    wide = [picture for name, picture in pictures.items() if name == "scaling"]
    others = [picture for name, picture in pictures.items() if name != "scaling"]
    body += "".join(f"<figure>{picture}</figure>" for picture in wide)
    if others:
        body += f'<div class="pair">{"".join(f"<figure>{picture}</figure>" for picture in others)}</div>'
    return section(TITLE, body, NOTE)


def draw(found: Found) -> dict[str, str]:
    """Return the pictures that the numbers allow, by name: SVG."""
    pictures: dict[str, str] = {}
    scaling, policies, copying = found["scaling"], found["policies"], found["copying"]
    if scaling.get("rows"):
        pictures["scaling"] = figures.scaling_curves(scaling["rows"], scaling["measure"])
    cells = _cells(policies.get("rows", ()))
    known = [cell for cell in cells if cell["held_out"] and cell["usual"]]
    if known:
        pictures["recovery"] = figures.recovery(known, policies["measure"])
    if copying.get("by_delta"):
        pictures["copying"] = figures.copying_against_coverage(copying["by_delta"], copying["reference"])
    curves = _curves(scaling.get("rows", ()))
    with_error = [cell for cell in cells if cell["train_error"]]
    if curves:
        pictures["errors"] = figures.error_curves(curves, "Action error, all training episodes")
    elif with_error:
        pictures["errors"] = figures.action_errors(with_error)
    return pictures


def _cells(rows: Sequence[Found]) -> list[dict[str, Any]]:
    """Collect the policies of each cell: values over seeds."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("algo", "data", "ratio", "delta", "shaping"))
        empty = {name: [] for name in ("usual", "held_out", "train", "train_error", "held_out_error")}
        cell = found.setdefault(key, {"algo": row["algo"], "data": row["data"], "label": cell_label(row), **empty})
        for name in ("usual", "held_out", "train"):
            cell[name] += [row[name]] if row[name] is not None else []
        if row["action_error"] is not None:
            cell["train_error"].append(row["action_error"]["train"])
            cell["held_out_error"].append(row["action_error"]["held_out"])
    return list(found.values())


def _curves(rows: Sequence[Found]) -> dict[str, list[Found]]:
    """Return the action errors by step at the largest share of the episodes, by arm."""
    if not rows:
        return {}
    largest = max(row["fraction"] for row in rows)
    curves: dict[str, list[Found]] = {}
    for row in rows:
        if row["fraction"] == largest:
            curves.setdefault(row["arm"], []).extend(row["curve"])
    return curves


def _policy_table(policies: Found) -> str:
    rows: list[list[str]] = []
    for cell in _cells(policies.get("rows", ())):
        scale = 100 if policies["measure"] == "success_rate" else 1
        numbers = [_mean(cell[name], scale) for name in ("usual", "train", "held_out")]
        errors = [_mean(cell[name]) for name in ("train_error", "held_out_error")]
        rows.append([f"{short_name(cell['algo'])}, {cell['label']}", *numbers, *errors])
    if not rows:
        return ""
    head = [f"{figures.measure_name(policies['measure'])} from ..", "the usual start", "fitted poor states"]
    head += ["held-out poor states", "action error: fitted part", "held-out part"]
    return html_table(head, rows, wide=True)


def _split(split: Found | None) -> list[str]:
    if split is None:
        return []
    known = "" if split["known"] else " No bundle says which episodes the models saw: this split is the study's own."
    return [
        f"{split['num_train']:,} fitted and {split['num_held_out']:,} held-out episodes; {split['num_inside']:,} of "
        f"{split['num_bridges']:,} accepted bridges lie between fitted ones.{known}"
    ]


def _copying(copying: Found, coverage: Found) -> list[str]:
    if "skipped" in copying:
        return [f"G1 copying and G2 coverage: {copying['skipped']}."]
    gained = 100 * coverage["gain"]
    return [
        f"G1 copying: {copying['value']:.2f} [{copying['low']:.2f}, {copying['high']:.2f}] (0.5 new but alike, 1 "
        f"copied; real states {copying['reference']:.2f}), over {copying['num_states']:,} generated states.",
        f"G2 coverage: {100 * coverage['without']:.1f} % of the held-out states lie as near to the fitted data as "
        f"episodes of these do to one another, with bridges {100 * coverage['with']:.1f} % ({gained:+.1f} points); "
        f"{100 * coverage['far_bridges']:.1f} % of the bridges pass farther from all real data than 99 % of real "
        f"states do. They leave {coverage['source_states']:,} states of {coverage['source_episodes']:,} episodes and "
        f"enter {coverage['target_states']:,} of {coverage['target_episodes']:,}.",
    ]


def _generator(generator: Found) -> list[str]:
    if "skipped" in generator:
        return [f"G4 overfit of the models: {generator['skipped']}."]
    action, dynamics, ranks = (generator[name] for name in ("action", "dynamics", "ranks"))
    return [
        f"G4 overfit of the models, held-out over fitted error: inverse dynamics {_ratio(action)}, judges "
        f"{_ratio(dynamics)}; rank correlation of Q with the return {_rank(ranks['held_out'])} held out, "
        f"{_rank(ranks['train'])} fitted."
    ]


def _policies(policies: Found) -> list[str]:
    if "skipped" in policies:
        return [f"G3 recovery and the policies' part of G4: {policies['skipped']}."]
    lines: list[str] = []
    recovery = policies["recovery"]
    if "skipped" in recovery:
        lines.append(f"G3 recovery: {recovery['skipped']}.")
    else:
        lines.append(
            f"G3 recovery: {recovery['settings']['num_starts']} episodes begin in states of the third of the held-out "
            f"episodes with the lowest returns (at most {recovery['return_below']:.4g}), as many in states of fitted "
            "episodes like these."
        )
    if policies["saw_held_out"]:
        lines.append("A sweep's policies train on all episodes: what the models did not see, they did.")
    return lines


def _alone(alone: Any) -> list[str]:
    if isinstance(alone, Mapping):
        return [f"G6 bridges alone: {alone['skipped']}."]
    scale = {"score": 1, "success_rate": 100, "return_mean": 1}
    lines: list[str] = []
    for row in alone:
        by = scale[row["metric"]]
        over = row["over_original"]
        text = f"G6 bridges alone: {short_name(row['algo'])}, {row['cell']}: {by * row['value']:.3g}"
        if over is not None:
            text += f", {by * over['value']:+.3g} [{by * over['low']:.3g}, {by * over['high']:.3g}] over the original"
        lines.append(f"{text}.")
    return lines


def _scaling(scaling: Found) -> list[str]:
    if "skipped" in scaling:
        return [f"G5 scaling: {scaling['skipped']}."]
    notes = "".join(f" {note}." for note in scaling["notes"])
    return [
        f"G5 scaling: {algorithm_name(scaling['algo'])}, {scaling['settings']['train_steps']:,} steps, "
        f"{len(scaling['settings']['seeds'])} seeds; the models are fitted and bridges made anew on each share of the "
        f"fitted episodes, and no policy sees a held-out one.{notes}"
    ]


def _mean(values: Sequence[float], scale: float = 1.0) -> str:
    if not values:
        return "–"
    found = scale * sum(values) / len(values)
    return f"{found:,.0f}" if abs(found) >= 100 else f"{found:.3g}"


def _ratio(pair: Found) -> str:
    return "–" if pair["ratio"] is None else f"{pair['ratio']:.2f}"


def _rank(found: Found) -> str:
    return "–" if found["value"] is None else f"{found['value']:.2f}"
