"""The report's section on simulator truth, from validate.json."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from raystitch.report import truth_figures as figures
from raystitch.report.html import html_table, section
from raystitch.report.table import SET_NAMES, promise

CRITERIA = {
    "non_finite": "finite numbers",
    "residual": "largest residual (delta)",
    "spread": "judges' spread",
    "rollout": "judges' roll-out",
    "termination": "termination",
    "return": "gain in return",
}
TITLE = "Simulator truth"
NOTE = (
    "The simulator is put into every stored state, the stored action applied and the outcome compared with the stored "
    "next state: squared L2 distance in standardised units. Noise: N(0, {noise:g}) per dimension. Never used to choose "
    "anything."
)


def truth_tile(validation: Mapping[str, Any] | None) -> tuple[str, str] | None:
    """The median simulator error of accepted bridges, next to noise-perturbed real data."""
    sets = (validation or {}).get("sets") or {}
    if "accepted" not in sets or "real_noise" not in sets:
        return None
    ours, noise = (sets[name]["step_error"]["median"] for name in ("accepted", "real_noise"))
    if ours is None or noise is None:
        return None
    return f"{ours:.3g}", f"median simulator error per accepted bridge step (real data with noise: {noise:.3g})"


def simulator_truth(validation: Mapping[str, Any] | None) -> str:
    """Return the section: the simulator's errors (or why there are none), the effect of delta and the criteria, and
    how new the bridges are. Empty when the run was not validated."""
    if validation is None:
        return ""
    sets: dict[str, Any] = {name: validation["sets"][name] for name in SET_NAMES if name in validation["sets"]}
    body = "" if not sets else _sets_table(sets) + _paragraph(_facts(validation))
    if validation["unavailable"]:
        body = f"<p>Unavailable: {escape(str(validation['unavailable']))}.</p>"
    auto = validation.get("auto")  # earlier versions say nothing of it
    body += _paragraph([promise(auto)] if auto else []) + _pictures(validation, sets)
    body += f"<h3>What each criterion does</h3>{_criteria_table(validation['criteria'])}"
    body += _paragraph(_novelty(validation["novelty"]))
    return section(TITLE, body, NOTE.format(noise=validation["noise"]) if sets else "")


def _paragraph(sentences: Sequence[str]) -> str:
    return f"<p>{escape(' '.join(sentences))}</p>" if sentences else ""


def _sets_table(sets: Mapping[str, Any]) -> str:
    rows = [
        [
            SET_NAMES[name],
            f"{found['num_windows']:,}",
            *(_number(found["step_error"][key]) for key in ("median", "p90")),
            _number(found["largest_error"]["median"]),
            _percent(found["largest_below"]["share"]),
            _number(found["reward_error"]["median"]),
            _percent(found["terminated_share"]),
            _percent(found["usable_share"]),
        ]
        for name, found in sets.items()
    ]
    limit = next(iter(sets.values()))["largest_below"]["limit"]
    head = ["", "windows", "step: median", "p90", "largest: median", f"largest < {limit:g}"]
    head += ["reward error", "simulator ends", "usable steps"]
    return html_table(head, rows, wide=True)


def _facts(validation: Mapping[str, Any]) -> list[str]:
    facts: list[str] = []
    if validation["below_noise"] is not None:
        word = "below" if validation["below_noise"] else "not below"
        facts.append(f"The median error of accepted bridges is {word} that of real data with noise.")
    attempts = validation["attempts"]
    facts.append(
        f"{_percent(attempts['first_accepted_share'])} of {attempts['num_pairs']:,} first attempts are accepted; "
        f"repair rescues {attempts['rescued']:,} more pairs."
    )
    ranks = validation["rank_correlation"]
    if ranks is not None and ranks["value"] is not None:
        facts.append(
            f"Rank correlation of the judges' largest residual with the largest simulator error: {ranks['value']:.2f} "
            f"[{ranks['low']:.2f}, {ranks['high']:.2f}], over {ranks['count']:,} first attempts drawn at random."
        )
    if validation["real_accepted_share"] is not None:
        share = _percent(validation["real_accepted_share"])
        facts.append(f"Delta accepts {share} of real held-out windows with inverse-dynamics actions.")
    return facts


def _pictures(validation: Mapping[str, Any], sets: Mapping[str, Any]) -> str:
    named = {name: (SET_NAMES[name], found) for name, found in sets.items()}
    curve, points = validation["calibration"], validation["points"]
    pictures: list[str] = []
    if named:
        pictures += [
            figures.error_distributions(named),
            figures.error_along(named, "gap"),
            figures.error_along(named, "step"),
        ]
    if points is not None and points["residual"]:
        pictures.append(figures.residual_scatter(points))
    pictures.append(figures.accepted_by_level(curve))
    if named:
        noise = sets["real_noise"]["step_error"]["median"] if "real_noise" in sets else None
        pictures.append(figures.error_by_level(curve, noise))
    return f'<div class="pair">{"".join(f"<figure>{picture}</figure>" for picture in pictures)}</div>'


def _criteria_table(criteria: Sequence[Mapping[str, Any]]) -> str:
    head = ["criterion", "threshold", "fail it", "first to remove", "only it removes"]
    head += ["error of what it removes", "of what it keeps"]
    rows: list[list[str]] = []
    for found in criteria:
        threshold = "" if found["threshold"] in (None, True) else f"{found['threshold']}"
        state = threshold or "on"
        if not found["on"]:
            state = f"off; tried: {state}"
        errors = [None if found[part] is None else found[part]["largest_median"] for part in ("removed", "kept")]
        counts = [f"{found[key]:,}" for key in ("alone", "first", "only")]
        name = str(found["name"])
        rows.append([CRITERIA.get(name, name), state, *counts, *map(_number, errors)])
    return html_table(head, rows, wide=True)


def _novelty(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return []
    sentences = [
        "Novelty: the generated states of an accepted bridge lie "
        f"{_number(found['bridges']['median'])} (median; mean squared L2 per state) from the nearest real window of "
        f"the same length, {_number(found['bridges_other_episodes']['median'])} when the source's own episode is left "
        f"out; held-out real windows lie {_number(found['real']['median'])} from the data fitted on.",
        f"{_percent(found['copied_share'])} of the bridges are nearer to real data than 5 % of real windows are.",
    ]
    coverage = found["coverage"]
    if coverage["share"] is not None:
        sentences.append(
            f"Coverage: bridges come as near to {_percent(coverage['share'])} of the held-out windows as equally many "
            "real windows do (50 % would be as good as real data)."
        )
    return sentences


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"
