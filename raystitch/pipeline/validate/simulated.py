"""Windows against the simulator: the error of every step, and the description of a set of windows.

Every error is a squared L2 distance over active dimensions in the dataset's standardised units, between a stored next
state and the one the simulator reaches from the stored state with the stored action.
Legend: W windows (bridges or pieces of real episodes), T their transitions.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raystitch.data.episodes import Bools, EpisodeDataset, Ints
from raystitch.data.normalise import Normalizer
from raystitch.envs.simulator import SimResult, Simulator, Unavailable, open_simulator
from raystitch.errors import UserError
from raystitch.pipeline.validate.windows import TransitionWindows

CDF_LEVELS = np.linspace(0.0, 1.0, 41)
TRUE_BRIDGE = 0.5
"""A bridge whose largest step error is below this counts as true."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Simulated:
    """The simulator's answers for W windows.

    Attributes:
        error: float64 [T], NaN where the simulator could not be asked.
    """

    windows: TransitionWindows
    answer: SimResult
    error: NDArray[np.float64]

    @cached_property
    def largest(self) -> NDArray[np.float64]:
        """Largest step error of each window, float64 [W]; NaN where no step is known."""
        return self.windows.largest(self.error)

    def take(self, rows: Ints) -> "Simulated":
        """The given windows, in the given order."""
        steps = self.windows.steps_of(rows)
        answer = SimResult(
            next_observations=self.answer.next_observations[steps],
            rewards=self.answer.rewards[steps],
            terminated=self.answer.terminated[steps],
            usable=self.answer.usable[steps],
        )
        return Simulated(windows=self.windows.take(rows), answer=answer, error=self.error[steps])


def simulate(
    simulator: Simulator, windows: TransitionWindows, normalizer: Normalizer, known: Bools | None = None
) -> Simulated:
    """Step every transition of the windows in the simulator; rows outside ``known`` (bool [T]) count as not usable."""
    answer = simulator.step_from(windows.observations, windows.actions)
    if known is not None:
        answer = only(answer, known)
    difference = (answer.next_observations.astype(np.float64) - windows.next_observations) / normalizer.std
    return Simulated(windows=windows, answer=answer, error=(difference[:, normalizer.active] ** 2).sum(1))


def only(answer: SimResult, rows: Bools) -> SimResult:
    """Return the answer with every other row marked as not usable."""
    return SimResult(
        next_observations=np.where(rows[:, None], answer.next_observations, np.float32(np.nan)),
        rewards=np.where(rows, answer.rewards, np.float32(np.nan)),
        terminated=answer.terminated & rows,
        usable=answer.usable & rows,
    )


def statistics(values: NDArray[np.float64]) -> dict[str, float | int | None]:
    """``count, median, p90, p99, mean`` of the finite values; None where there are none."""
    values = values[np.isfinite(values)]
    if not len(values):
        return {"count": 0, "median": None, "p90": None, "p99": None, "mean": None}
    median, p90, p99 = np.quantile(values, [0.5, 0.9, 0.99]).tolist()
    return {"count": len(values), "median": median, "p90": p90, "p99": p99, "mean": float(values.mean())}


def share(flags: Bools) -> float | None:
    """Return the share of True; None for an empty array."""
    return float(flags.mean()) if len(flags) else None


def _per_group(error: NDArray[np.float64], group: Ints, name: str) -> list[dict[str, Any]]:
    return [{name: int(key), **statistics(error[group == key])} for key in np.unique(group)]


def error_summary(simulated: Simulated) -> dict[str, Any]:
    """``step_error, largest_error, largest_below``: how true the windows are."""
    largest = simulated.largest
    return {
        "step_error": statistics(simulated.error),
        "largest_error": statistics(largest),
        "largest_below": {"limit": TRUE_BRIDGE, "share": share(largest[np.isfinite(largest)] < TRUE_BRIDGE)},
    }


def describe(simulated: Simulated) -> dict[str, Any]:
    """Describe one set of windows; the keys are those of ``sets`` in truth.py."""
    windows, answer, error = simulated.windows, simulated.answer, simulated.error
    usable = error[answer.usable]
    ends = windows.largest(np.where(answer.usable, answer.terminated, np.nan).astype(np.float64))
    return {
        "num_windows": len(windows),
        "num_steps": len(windows.window),
        "usable_share": share(answer.usable),
        **error_summary(simulated),
        "cdf": {
            "level": CDF_LEVELS.tolist(),
            "step_error": np.quantile(usable, CDF_LEVELS).tolist() if len(usable) else [],
        },
        "by_gap": _per_group(error, windows.gap[windows.window], "gap"),
        "by_step": _per_group(error, windows.step, "step"),
        "reward_error": statistics(np.abs(answer.rewards.astype(np.float64) - windows.rewards)),
        "terminated_share": share(ends[np.isfinite(ends)] > 0),
    }


def open_for(dataset: EpisodeDataset) -> Simulator:
    """Return the simulator of a dataset's environment.

    Raises:
        Unavailable: when the simulator cannot be put into the dataset's states; the message says why.
        UserError: when the environment does not belong to the dataset.
    """
    if dataset.env is None:
        raise Unavailable("the dataset does not say which environment it comes from")
    simulator = open_simulator(dataset.env)
    space = simulator.env.observation_space
    assert space.shape is not None
    if space.shape[0] != dataset.obs_dim:
        simulator.close()
        raise UserError(
            f"{dataset.name} has {dataset.obs_dim} observation dimensions but {dataset.env.env_id} gives "
            f"{space.shape[0]}; name the environment it was recorded in"
        )
    return simulator
