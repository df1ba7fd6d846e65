"""From a request's candidates to its answer: the best one, and the trajectory that it makes.

Legend: T states of the source, M states of the stitched trajectory, O observation size, A action size.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from raystitch.data.episodes import Bools, Episode, Floats, Ints
from raystitch.data.returns import discounted_before
from raystitch.models.bundle import Bundle
from raystitch.models.calibration import Delta
from raystitch.stitching.acceptance import failed_criteria
from raystitch.stitching.candidates import Candidates
from raystitch.stitching.config import QualifyConfig


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """observations: float32 [M, O]; actions: float32 [M - 1, A]; rewards: float32 [M - 1]; is_synthetic: bool [M - 1].

    ``summary`` is everything else, as JSON with numpy arrays for lists; ``reasons`` says of every candidate why it was
    rejected, or ``ok``.
    """

    observations: Floats
    actions: Floats
    rewards: Floats
    is_synthetic: Bools
    summary: dict[str, Any]
    reasons: list[str]

    def to_json(self) -> dict[str, Any]:
        trajectory = {
            "observations": self.observations,
            "actions": self.actions,
            "rewards": self.rewards,
            "is_synthetic": self.is_synthetic,
        }
        return {**self.summary, "trajectory": trajectory}


def make_answer(
    bundle: Bundle,
    config: QualifyConfig,
    source: Episode,
    target: Episode,
    candidates: Candidates,
    *,
    delta: Delta,
    return_all: bool,
    about: dict[str, Any],
) -> Answer:
    """Choose the best of the candidates; ``delta`` decides anew which are accepted.

    Args:
        about: the rest of the answer: request id, model, seed and so on.
    """
    failed = failed_criteria(lambda name: getattr(candidates, name), bundle.calibration, replace(config, delta=delta))
    accepted = ~np.any(list(failed.values()), axis=0)
    thresholds = bundle.calibration.threshold(delta, candidates.gap)
    order = rank(candidates, accepted, source, bundle.gamma)
    rows = order if return_all else order[:1]
    described = [_describe(candidates, int(row), failed, thresholds) for row in rows]
    best = described[0]
    row = int(order[0])
    gap, leave, enter = int(candidates.gap[row]), int(candidates.source_step[row]), int(candidates.target_step[row])
    # The bridge's first and last states are the state left and the state entered.
    bridge = candidates.observations[row, 1 : gap + 1]
    synthetic = np.zeros(leave + gap + 1 + len(target.actions) - enter, np.bool_)
    synthetic[leave : leave + gap + 1] = True
    shown = ("accepted", "reason", "gap", "source_step", "target_step", "residuals", "delta")
    shown += ("return_source", "return_stitched")
    return Answer(
        observations=np.concatenate([source.observations[: leave + 1], bridge, target.observations[enter:]]),
        actions=np.concatenate([source.actions[:leave], candidates.actions[row, : gap + 1], target.actions[enter:]]),
        rewards=np.concatenate([source.rewards[:leave], candidates.rewards[row, : gap + 1], target.rewards[enter:]]),
        is_synthetic=synthetic,
        reasons=_reasons(failed),
        summary={
            **about,
            **{name: best[name] for name in shown},
            "num_candidates": len(candidates),
            "num_accepted": int(accepted.sum()),
            "candidates": described if return_all else None,
        },
    )


def _reasons(failed: dict[str, Bools]) -> list[str]:
    """The first criterion that each candidate fails, or ``ok``."""
    names, columns = [*failed, "ok"], list(failed.values())
    first = np.argmax([*columns, np.ones_like(columns[0])], axis=0)
    return [names[index] for index in first]


def rank(candidates: Candidates, accepted: Bools, source: Episode, gamma: float) -> Ints:
    """Return the rows, best first: accepted ones by the discounted return of the whole stitched trajectory
    (pessimistic, as the candidates have it), ties by their largest residual; then the others by their largest residual
    alone."""
    collected, discounts = discounted_before(source.rewards, gamma)
    steps = candidates.source_step
    total = collected[steps] + discounts[steps] * candidates.return_stitched
    residual = np.nan_to_num(candidates.residual_max, nan=np.inf)
    # Rounded, so that rounding errors, which depend on the machine, do not change the order.
    score = _significant(np.where(accepted, -total, residual))
    return np.lexsort((np.arange(len(score)), _significant(residual), score, ~accepted))


def _significant(values: np.ndarray[Any, Any], digits: int = 4) -> np.ndarray[Any, Any]:
    return np.array([float(f"{value:.{digits}g}") for value in values])


def _describe(candidates: Candidates, row: int, failed: dict[str, Bools], thresholds: Floats) -> dict[str, Any]:
    """One candidate as the answer shows it."""
    gap = int(candidates.gap[row])
    fails = [name for name, column in failed.items() if column[row]]
    return {
        "attempt": int(candidates.attempt[row]),
        "pair": int(candidates.first_row[row]),
        "accepted": not fails,
        "reason": fails[0] if fails else "ok",
        "failed": fails,
        "gap": gap,
        "source_step": int(candidates.source_step[row]),
        "target_step": int(candidates.target_step[row]),
        "residuals": candidates.residuals[row, : gap + 1],
        "residual_max": _float(candidates.residual_max[row]),
        "delta": _float(thresholds[row]),
        "spread_max": _float(candidates.spread_max[row]),
        "rollout_deviation": _float(candidates.rollout_deviation[row]),
        "termination_max": _float(candidates.termination_max[row]),
        "return_source": _float(candidates.return_source[row]),
        "return_stitched": _float(candidates.return_stitched[row]),
        "observations": candidates.observations[row, : gap + 2],
        "actions": candidates.actions[row, : gap + 1],
        "rewards": candidates.rewards[row, : gap + 1],
    }


def _float(value: Any) -> Any:
    """Replace a number that is not finite by None, as in JSON."""
    return value if np.isfinite(value) else None
