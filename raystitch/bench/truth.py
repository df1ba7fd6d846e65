"""The simulator's verdict on the accepted bridges of a benchmark's batch.

Legend: N candidates, T transitions of their bridges.
"""

import numpy as np

from raystitch.bench.machine import Row
from raystitch.data.normalise import Normalizer
from raystitch.envs.simulator import Simulator
from raystitch.pipeline.validate.simulated import TRUE_BRIDGE, error_summary, simulate
from raystitch.pipeline.validate.windows import TransitionWindows
from raystitch.stitching.candidates import Candidates
from raystitch.stitching.wrapup import steps_of


def candidate_windows(candidates: Candidates) -> TransitionWindows:
    """Return candidates as windows of transitions."""
    exists = steps_of(candidates.observations, candidates.gap)
    window, step = np.nonzero(exists)
    return TransitionWindows(
        observations=candidates.observations[:, :-1][exists],
        next_observations=candidates.observations[:, 1:][exists],
        actions=candidates.actions[exists],
        rewards=candidates.rewards[exists],
        window=window,
        step=step,
        gap=candidates.gap,
        episode=candidates.source_episode,
    )


def truth_rows(
    name: str, counted: Candidates, accepted_per_s: float, simulator: Simulator, normalizer: Normalizer
) -> list[Row]:
    """Rows with step errors and the share of true bridges, also for first attempts and repaired bridges apart.

    Args:
        counted: accepted bridges, one per pair.
    """
    if not len(counted):
        return []
    asked = simulate(simulator, candidate_windows(counted), normalizer)
    found: list[Row] = []
    sets = {"accepted": np.ones(len(counted), np.bool_), "first attempts": counted.attempt == 0}
    sets["repaired"] = ~sets["first attempts"]
    for which, rows in sets.items():
        summary = error_summary(asked.take(np.flatnonzero(rows)))
        true_share = summary["largest_below"]["share"]
        if true_share is None:
            continue
        what = f"  {name}, {which}: {int(rows.sum())} bridges,"
        for quantile in ("median", "p90"):
            value = summary["step_error"][quantile]
            found.append(Row(f"{what} {quantile} squared step error in the simulator", value, "std^2"))
        found.append(Row(f"{what} largest error below {TRUE_BRIDGE}", true_share, "share"))
        if which == "accepted":
            rate = accepted_per_s * true_share
            found.append(Row(f"{name}: true accepted bridges", rate, "bridges/s", f"{name}, accepted", true_share))
    return found
