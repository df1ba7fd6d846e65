"""The verdict of a study in words: generalises, resampling, memorises or undecided, with the reason.

Every sentence comes from the numbers of generalise.json; nothing is claimed that they do not show.
"""

from collections.abc import Mapping
from typing import Any

ALIKE, COPIED = 0.6, 0.8
"""G1 below the first is new data, above the second copies."""

Found = Mapping[str, Any]


def judge(found: Found) -> list[dict[str, Any]]:
    """Return ``algo, word, reason`` per algorithm; ``algo`` is None where the verdict needs no policy."""
    copying = found["copying"]
    if "skipped" in copying:
        return [_verdict(None, "undecided", f"copying (G1) was not measured: {copying['skipped']}")]
    if copying["value"] > COPIED:
        return [_verdict(None, "memorises", f"G1 is {copying['value']:.2f}: generated states are copies of real ones")]
    scaling, policies = found["scaling"], found["policies"]
    honest = {one["algo"]: _of_algorithm(one, copying["value"], True) for one in scaling.get("comparisons", ())}
    seen = [
        _of_algorithm(one, copying["value"], not policies["saw_held_out"])
        for one in policies.get("comparisons", ())
        if one["algo"] not in honest
    ]
    if not honest and not seen:
        why = policies.get("skipped", "the run has no stitched cell of the headline next to the original data")
        return [_verdict(None, "undecided", f"no policies are compared: {why}")]
    return [*honest.values(), *seen]


def _of_algorithm(one: Found, copying: float, honest: bool) -> dict[str, Any]:
    algo, recovery, usual = one["algo"], one["held_out"], one["usual"]
    if recovery is None:
        return _verdict(algo, "undecided", "recovery from low-return states (G3) was not measured")
    if recovery["num_seeds"] < 3:
        count = recovery["num_seeds"]
        return _verdict(
            algo, "undecided", f"{count} seed{'s' * (count > 1)} cannot tell a difference; 3 are the fewest"
        )
    gains = f"recovery {_interval(recovery)}"
    if usual is not None:
        gains += f", usual start {_interval(usual)}"
    if recovery["sign"] > 0:
        if copying >= ALIKE:
            return _verdict(
                algo, "undecided", f"recovery improves, but G1 is {copying:.2f}, not below {ALIKE} ({gains})"
            )
        if not honest:
            return _verdict(
                algo,
                "undecided",
                "recovery improves, but the policies were trained on the held-out episodes too; --scaling trains some "
                f"that were not ({gains})",
            )
        return _verdict(algo, "generalises", f"recovery from held-out low-return states improves ({gains})")
    if usual is not None and usual["sign"] > 0:
        return _verdict(algo, "resampling", f"only the usual start improves ({gains})")
    return _verdict(algo, "undecided", f"neither recovery nor the usual start is clearly better ({gains})")


def _interval(at: Found) -> str:
    return f"{at['value']:+.3g} [{at['low']:.3g}, {at['high']:.3g}] over {at['num_seeds']} seeds"


def _verdict(algo: str | None, word: str, reason: str) -> dict[str, Any]:
    return {"algo": algo, "word": word, "reason": reason}
