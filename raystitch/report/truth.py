"""The report's section on simulator truth, from validate.json."""

from collections.abc import Mapping
from html import escape
from typing import Any

from raystitch.report.figures import error_by_gap, error_distributions
from raystitch.report.sections import html_table, section

SET_NAMES = {
    "accepted": "accepted bridges",
    "rejected": "rejected bridges",
    "real": "real data",
    "real_noise": "real data + noise",
    "real_inverse": "real data, inverse-dynamics actions",
}
TITLE = "Simulator truth"


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
    """What the simulator says about the bridges, or why it cannot be asked; empty when it was not asked."""
    if validation is None:
        return ""
    if validation.get("unavailable"):
        return section(TITLE, f"<p>Unavailable: {escape(str(validation['unavailable']))}.</p>")
    sets: dict[str, Any] = {name: validation["sets"][name] for name in SET_NAMES if name in validation["sets"]}
    if not sets:
        return section(TITLE, "<p>No bridge could be compared.</p>")
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
    facts: list[str] = []
    if validation.get("below_noise") is not None:
        word = "below" if validation["below_noise"] else "not below"
        facts.append(f"The median error of accepted bridges is {word} that of real data with noise.")
    if validation.get("rank_correlation") is not None:
        facts.append(
            f"Rank correlation of the judges' and the simulator's error: {validation['rank_correlation']:.2f}."
        )
    if validation.get("real_accepted_share") is not None:
        share = _percent(validation["real_accepted_share"])
        facts.append(f"Delta accepts {share} of real held-out windows with inverse-dynamics actions.")
    note = (
        "The simulator is put into every stored state, the stored action applied and the outcome compared with the "
        "stored next state: squared L2 distance in standardised units. Noise: N(0, "
        f"{validation.get('noise', 0.05):g}) per dimension. Never used to choose anything."
    )
    named = {name: (SET_NAMES[name], found) for name, found in sets.items()}
    pictures = (
        f'<div class="pair"><figure>{error_distributions(named)}</figure><figure>{error_by_gap(named)}</figure></div>'
    )
    summary = f"<p>{escape(' '.join(facts))}</p>" if facts else ""
    return section(TITLE, html_table(head, rows, wide=True) + summary + pictures, note)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"
