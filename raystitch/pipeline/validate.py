"""Simulator truth: are the bridges of a buffer what the simulator would do?

Every number is a squared L2 distance over active dimensions in the dataset's standardised units, between a stored next
state and the one the simulator reaches from the stored state with the stored action. It is never used to choose
anything. Legend: W windows (bridges or pieces of real episodes), T their transitions, O observation size.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from raystitch.buffer.bridges import BridgeSet
from raystitch.buffer.reader import Buffer
from raystitch.data.episodes import EpisodeDataset, Ints
from raystitch.data.normalise import Normalizer
from raystitch.data.select import holdout_split
from raystitch.envs.simulator import SimResult, Simulator, Unavailable, open_simulator
from raystitch.errors import UserError
from raystitch.models.bundle import Bundle
from raystitch.pipeline.windows import Windows, bridge_windows, perturbed, real_windows
from raystitch.seeding import derive_seed, numpy_rng
from raystitch.stitching.candidates import REASONS

SCHEMA_VERSION = 1
NOISE = 0.05
CDF_LEVELS = np.linspace(0.0, 1.0, 41)
TRUE_BRIDGE = 0.5
SETS = ("accepted", "rejected", "real", "real_noise", "real_inverse")


def _inverse_actions(windows: Windows, bundle: Bundle) -> Windows:
    import torch

    with torch.inference_mode():
        obs, next_obs = (
            torch.from_numpy(states).to(bundle.device) for states in (windows.observations, windows.next_observations)
        )
        return replace(windows, actions=bundle.inverse(obs, next_obs).cpu().numpy())


def _judged(windows: Windows, bundle: Bundle) -> NDArray[np.float64]:
    """The judges' largest residual per window, float64 [W]."""
    import torch

    with torch.inference_mode():
        columns = (windows.observations, windows.actions, windows.next_observations)
        obs, act, next_obs = (torch.from_numpy(column).to(bundle.device) for column in columns)
        residual = bundle.dynamics.residual(obs, act, next_obs, "judges")
    return windows.largest(residual.cpu().numpy().astype(np.float64))


def _statistics(values: NDArray[np.float64]) -> dict[str, float | int | None]:
    values = values[np.isfinite(values)]
    if not len(values):
        return {"count": 0, "median": None, "p90": None, "p99": None, "mean": None}
    median, p90, p99 = np.quantile(values, [0.5, 0.9, 0.99]).tolist()
    return {"count": len(values), "median": median, "p90": p90, "p99": p99, "mean": float(values.mean())}


def _per_group(error: NDArray[np.float64], group: Ints, name: str) -> list[dict[str, Any]]:
    return [{name: int(key), **_statistics(error[group == key])} for key in np.unique(group)]


def _share(flags: NDArray[np.bool_]) -> float | None:
    return float(flags.mean()) if len(flags) else None


def _errors(windows: Windows, answer: SimResult, normalizer: Normalizer) -> NDArray[np.float64]:
    """Squared L2 distance per transition, float64 [T]; NaN where the simulator could not be asked."""
    difference = (answer.next_observations.astype(np.float64) - windows.next_observations) / normalizer.std
    return (difference[:, normalizer.active] ** 2).sum(1)


def _only(answer: SimResult, rows: NDArray[np.bool_]) -> SimResult:
    """The answer with every other row marked as not usable."""
    return SimResult(
        next_observations=np.where(rows[:, None], answer.next_observations, np.float32(np.nan)),
        rewards=np.where(rows, answer.rewards, np.float32(np.nan)),
        terminated=answer.terminated & rows,
        usable=answer.usable & rows,
    )


def _describe(windows: Windows, answer: SimResult, error: NDArray[np.float64]) -> dict[str, Any]:
    """What the report says about one set of windows."""
    largest = windows.largest(error)
    measured = np.isfinite(largest)
    usable = error[answer.usable]
    ends = windows.largest(np.where(answer.usable, answer.terminated, np.nan).astype(np.float64))
    return {
        "num_windows": len(windows),
        "num_steps": len(windows.window),
        "usable_share": _share(answer.usable),
        "step_error": _statistics(error),
        "largest_error": _statistics(largest),
        "largest_below": {"limit": TRUE_BRIDGE, "share": _share(largest[measured] < TRUE_BRIDGE)},
        "cdf": {
            "level": CDF_LEVELS.tolist(),
            "step_error": np.quantile(usable, CDF_LEVELS).tolist() if len(usable) else [],
        },
        "by_gap": _per_group(error, windows.gap[windows.window], "gap"),
        "by_step": _per_group(error, windows.step, "step"),
        "reward_error": _statistics(np.abs(answer.rewards.astype(np.float64) - windows.rewards)),
        "terminated_share": _share(ends[np.isfinite(ends)] > 0),
    }


def _sample(rows: Ints, count: int, rng: np.random.Generator) -> Ints:
    return rows if len(rows) <= count else np.sort(rng.choice(rows, count, replace=False))


def _windows(
    buffer: Buffer, dataset: EpisodeDataset, bundle: Bundle | None, normalizer: Normalizer, max_bridges: int
) -> tuple[dict[str, Windows], dict[str, BridgeSet]]:
    """The sets that are compared, and the bridges behind the first two."""
    rng = numpy_rng(buffer.meta.seed, "validate")
    passing, reason = buffer.passing()
    refused = np.flatnonzero(~passing & (reason != REASONS.index("non_finite")))
    bridges = {
        "accepted": buffer.take(_sample(buffer.accepted_rows(), max_bridges, rng)),
        "rejected": buffer.take(_sample(refused, max_bridges, rng)),
    }
    sets = {name: bridge_windows(found) for name, found in bridges.items()}
    gaps = bridges["accepted" if len(bridges["accepted"]) else "rejected"].gap
    episodes = np.arange(dataset.num_episodes)
    if bundle is not None:
        seed = derive_seed(bundle.config.seed, "holdout")  # the split that the bundle was fitted with
        _, episodes = holdout_split(dataset.num_episodes, bundle.config.holdout_fraction, seed)
    sets["real"] = real_windows(dataset, episodes, gaps, rng)
    sets["real_noise"] = perturbed(sets["real"], normalizer, NOISE, rng)
    if bundle is not None:
        sets["real_inverse"] = _inverse_actions(sets["real"], bundle)
    return sets, bridges


def _rank_correlation(bridges: Mapping[str, BridgeSet], largest: Mapping[str, NDArray[np.float64]]) -> float | None:
    """Spearman's, between the judges' and the simulator's largest error of all sampled bridges."""
    judged = np.concatenate([bridges[name].residual_max for name in bridges]).astype(np.float64)
    simulated = np.concatenate([largest[name] for name in bridges])
    known = np.isfinite(judged) & np.isfinite(simulated)
    if len(np.unique(judged[known])) < 2 or len(np.unique(simulated[known])) < 2:
        return None
    result: Any = spearmanr(judged[known], simulated[known])
    return float(result.statistic)


def _open(dataset: EpisodeDataset) -> Simulator:
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


def validate(
    buffer: Buffer, dataset: EpisodeDataset, bundle: Bundle | None = None, max_bridges: int = 500
) -> dict[str, Any]:
    """Compares accepted and rejected bridges with the simulator, next to real data treated in three ways.

    Args:
        buffer: at most ``max_bridges`` accepted and as many rejected candidates of it are sampled.
        dataset: the one the buffer was made from.
        bundle: the buffer's bundle. Its normaliser is used, real windows come from the episodes it was not fitted on,
            and real windows with inverse-dynamics actions are added. Without it: all episodes, no inverse actions.

    Returns:
        Plain data for JSON: ``schema_version, env, unavailable`` (why there is no simulator truth, or None),
        ``num_accepted, num_candidates, reasons, noise``; ``sets``: of ``accepted, rejected, real, real_noise,
        real_inverse`` those there are, each with ``num_windows, num_steps, usable_share, step_error, largest_error,
        largest_below, cdf, by_gap, by_step, reward_error, terminated_share``; ``below_noise`` (is the median step error
        of accepted bridges below that of noise-perturbed real data?), ``rank_correlation`` of the judges' with the
        simulator's largest error, ``real_accepted_share``: real windows with inverse-dynamics actions that the
        generation delta would accept.

    Raises:
        UserError: when the bundle or the environment does not belong to the dataset.
    """
    if bundle is not None:
        bundle.check_dataset(dataset)
    found: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "buffer": buffer.uri,
        "dataset": dataset.name,
        "env": None if dataset.env is None else dataset.env.env_id,
        "unavailable": None,
        "num_accepted": buffer.num_accepted(),
        "num_candidates": buffer.num_candidates,
        "reasons": buffer.reasons(),
        "noise": NOISE,
        "sets": {},
        "below_noise": None,
        "rank_correlation": None,
        "real_accepted_share": None,
    }
    normalizer = bundle.normalizer if bundle is not None else Normalizer.fit(dataset.observations)
    try:
        simulator = _open(dataset)
    except Unavailable as reason:
        return found | {"unavailable": str(reason)}
    sets, bridges = _windows(buffer, dataset, bundle, normalizer, max_bridges)
    largest: dict[str, NDArray[np.float64]] = {}
    known = np.ones(0, np.bool_)
    for name in (name for name in SETS if name in sets):
        answer = simulator.step_from(sets[name].observations, sets[name].actions)
        if name == "real":
            known = answer.usable
        elif name == "real_noise":
            # Noise moves a clipped velocity off the clip, but what it was before is as unknown as it was.
            answer = _only(answer, known)
        error = _errors(sets[name], answer, normalizer)
        largest[name] = sets[name].largest(error)
        found["sets"][name] = _describe(sets[name], answer, error)
    simulator.close()
    medians = [found["sets"][name]["step_error"]["median"] for name in ("accepted", "real_noise")]
    if None not in medians:
        found["below_noise"] = medians[0] < medians[1]
    found["rank_correlation"] = _rank_correlation(bridges, largest)
    if bundle is not None:
        windows = sets["real_inverse"]
        threshold = buffer.calibration.threshold(buffer.meta.stitch.qualify.delta, windows.gap)
        found["real_accepted_share"] = _share(_judged(windows, bundle) < threshold)
    return found
