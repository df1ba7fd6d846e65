"""Cleaning and trimming by the judges: which steps of a dataset a bundle finds strange, and what is left without them.

Legend: E episodes, N transitions, O observation size, A action size.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raystitch.data.episodes import Bools, EpisodeDataset, Floats
from raystitch.data.inspect import jumps
from raystitch.data.pieces import connecting, without_steps
from raystitch.errors import UserError
from raystitch.models.bundle import Bundle
from raystitch.models.calibration import Delta

CHUNK = 1 << 14
JUMPS = "jumps"
"""As ``clean``: steps after an unrecorded reset alone, which need no judges."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CutDataset:
    """The rest of a dataset, and how it came about.

    Attributes:
        dataset: the pieces, as episodes.
        num_episodes, num_steps: of the dataset that was cut.
        removed: reason -> steps taken out for it.
        num_spared: steps that were to be taken out, and stay because states are reached over them alone.
    """

    dataset: EpisodeDataset
    num_episodes: int
    num_steps: int
    removed: dict[str, int]
    num_spared: int

    @property
    def lines(self) -> list[str]:
        """Lines for the user."""
        left = self.dataset
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in self.removed.items())
        said = [
            f"{left.name}: {left.num_transitions:,} of {self.num_steps:,} steps are kept, in {left.num_episodes:,} "
            f"pieces of {self.num_episodes:,} episodes (without {reasons or 'none'})"
        ]
        if self.num_spared:
            said.append(f"{self.num_spared:,} steps stay because other states are reached over them alone")
        return said

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "num_episodes": self.num_episodes,
            "num_transitions": self.num_steps,
            "pieces": self.dataset.num_episodes,
            "kept_transitions": self.dataset.num_transitions,
            "removed": self.removed,
            "spared": self.num_spared,
        }


def step_doubt(bundle: Bundle, dataset: EpisodeDataset) -> Floats:
    """Return the judges' residual of every recorded step (squared L2, standardised), float32 [N].

    0 where the next state is not recorded. Most of these steps are among those that the judges were fitted on.
    """
    doubt = np.zeros(dataset.num_transitions, np.float32)
    known = np.flatnonzero(dataset.next_observed)
    with torch.inference_mode():
        for first in range(0, len(known), CHUNK):
            steps = known[first : first + CHUNK]
            rows = dataset.obs_index[steps]
            columns = (dataset.observations[rows], dataset.actions[steps], dataset.observations[rows + 1])
            obs, act, next_obs = (torch.from_numpy(column).to(bundle.device) for column in columns)
            doubt[steps] = bundle.dynamics.residual_and_spread(obs, act, next_obs, "judges")[0].cpu().numpy()
    return np.where(np.isfinite(doubt), doubt, np.float32(np.inf))


def cut_steps(
    dataset: EpisodeDataset,
    bundle: Bundle | None,
    *,
    clean: Delta = None,
    trim: Delta = None,
    spare_connections: bool = True,
) -> CutDataset:
    """Take strange steps and doubtful tails out of episodes.

    Args:
        bundle: whose judges are asked; None where ``clean`` is ``jumps``.
        clean: steps with a larger residual go, and those that jump: a number, a quantile over all steps, or ``jumps``.
        trim: an episode ends where its residuals add up to more: a number, or a quantile over the sums of whole
            episodes. The tail after it goes.
        spare_connections: keep what ``connecting`` finds; jumps go all the same.

    Raises:
        UserError: when a bundle is needed, is another dataset's, or nothing is left.
    """
    needs_judges = trim is not None or (clean is not None and clean != JUMPS)
    if needs_judges and bundle is None:
        raise UserError("the judges are asked, so name their bundle with --stitcher; --clean-steps jumps needs none")
    reasons = dict[str, Bools]()
    if clean is not None:
        reasons["that jump"] = np.zeros(dataset.num_transitions, np.bool_)
        reasons["that jump"][jumps(dataset)[0]] = True
    if needs_judges:
        assert bundle is not None
        bundle.check_dataset(dataset)
        doubt = step_doubt(bundle, dataset).astype(np.float64)
        if clean is not None and clean != JUMPS:
            reasons["stranger than the limit"] = doubt > _limit(clean, doubt)
        if trim is not None:
            reasons["in tails after too much doubt"] = _tails(dataset, doubt, trim)
    return _cut(dataset, reasons, spare_connections)


def _cut(dataset: EpisodeDataset, reasons: dict[str, Bools], spare_connections: bool) -> CutDataset:
    removed = np.zeros(dataset.num_transitions, np.bool_)
    for steps in reasons.values():
        removed |= steps
    spared = np.zeros_like(removed)
    if spare_connections:
        spared = connecting(dataset, removed) & ~reasons.get("that jump", np.zeros_like(removed))
    left, counts = removed & ~spared, dict[str, int]()
    uncounted = left.copy()
    for reason, steps in reasons.items():
        counts[reason] = int((uncounted & steps).sum())
        uncounted &= ~steps
    return CutDataset(
        dataset=without_steps(dataset, left),
        num_episodes=dataset.num_episodes,
        num_steps=dataset.num_transitions,
        removed={reason: count for reason, count in counts.items() if count},
        num_spared=int(spared.sum()),
    )


def _limit(asked: float | str, values: Any) -> float:
    """A number as it is; a quantile of the values as large as one of them, so that the share above it is exact."""
    if not isinstance(asked, str):
        return float(asked)
    finite = values[np.isfinite(values)]
    return float(np.quantile(finite, float(asked[1:]) / 100, method="higher")) if len(finite) else np.inf


def _tails(dataset: EpisodeDataset, doubt: Any, trim: float | str) -> Bools:
    """The steps with which an episode's doubt passes the limit, and those after them, bool [N]."""
    endless = ~np.isfinite(doubt)

    def so_far(values: Any) -> Any:
        before = np.concatenate([[0.0], np.cumsum(values)])
        return before[1:] - before[dataset.offsets[:-1]][dataset.episode_of]

    total = so_far(np.where(endless, 0.0, doubt))
    last = dataset.offsets[1:][dataset.lengths > 0] - 1
    return (total > _limit(trim, total[last])) | (so_far(endless) > 0.5)
