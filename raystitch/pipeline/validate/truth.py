"""Simulator truth: are the bridges of a buffer what the simulator would do? Also the calibration curve, the criteria
table and novelty, which show the effect of delta, the criteria and the generator. Nothing here chooses a bridge.

Legend: W windows (bridges or pieces of real episodes), T their transitions, N candidates.

``validate`` returns these keys. Errors and residuals are squared L2 in standardised units; statistics are ``count,
median, p90, p99, mean``. None stands for a number that cannot be known.

``schema_version, buffer, dataset, env``
``unavailable``: why there is no simulator truth, or None. Where there is none, ``sets`` is empty, ``points``,
``below_noise`` and the simulator's part elsewhere are None.
``num_accepted, num_candidates, reasons`` at the generation settings, ``delta`` as set, ``noise``

``attempts``: ``num_pairs``, ``first_accepted`` and ``first_accepted_share`` of their first attempts, ``num_repairs``
(further attempts), ``rescued``: pairs that count only thanks to a repair.

``sets``: ``accepted, rejected`` (attempts, whatever their pair), ``first_attempts, repaired`` (the accepted ones by
attempt; only with repairs), ``real, real_noise, real_inverse``, as far as there are such windows. Each has
``num_windows, num_steps``, ``usable_share`` (steps that the simulator knows: MuJoCo clips velocities in observations,
and at the clip the state is unknown), ``step_error``, ``largest_error`` (per bridge), ``largest_below`` (``limit,
share``), ``cdf`` (``level, step_error``), ``by_gap`` and ``by_step`` (lists of ``gap`` or ``step`` with the statistics
of the step error), ``reward_error``, ``terminated_share``.
``below_noise``: is the median step error of accepted bridges below that of noise-perturbed real data?

``rank_correlation``: Spearman's correlation of the judges' largest residual with the simulator's largest error, over
the first attempts of randomly drawn pairs, accepted or not: ``count, value, low, high`` (95 % bootstrap interval) and
``by_gap``, the same with ``gap_min, gap_max``. Both maxima are over the steps that the simulator knows.
``points``: up to 400 of these bridges as the lists ``residual, error, gap, accepted``.

``real_accepted_share``: the share of real held-out windows that the generation delta accepts. They have
inverse-dynamics actions and the first attempts' gaps, and come from the episodes that delta was calibrated on: no
model saw them, but the calibration did.
``criteria``: per criterion, in the order they are asked, over all candidates: ``name, on, threshold`` (as set; where it
is off, the value it was tried with), ``alone`` (candidates that fail it), ``first`` (that no earlier one removes),
``only`` (that no other one removes); only criteria that are on count as earlier or other. ``removed`` and ``kept``: of
a random sample, ``count, step_median, largest_median`` of the simulator's error.
``calibration``: for delta = q50 .. q99.9: ``level``, ``nominal`` (0.5 .. 0.999), ``delta`` (median over first
attempts), ``real_accepted`` (share of those real windows; should be nominal), ``residual_accepted`` (share of first
attempts whose residual is below it), ``first_accepted`` (share of first attempts that pass all criteria with it),
``num_bridges`` (bridges when the buffer is read at it), ``simulator``: ``num_windows, step_error, largest_error,
largest_below`` of a random sample of these bridges.

``auto``: the same for ``delta: auto``, or ``level`` and ``unavailable``, why it has no answer. ``nominal``: the share
of bridges that it promises to be true; ``reference``: the median of the simulator's largest error of ``real_noise``;
``below_reference``: the share of a random sample of these bridges whose largest error is below it.

``novelty``: mean over the states inside a window of the squared L2 distance to the nearest real window of the same
length: ``bridges`` (accepted, to any window), ``bridges_other_episodes`` (to one of another episode than the bridge
leaves), ``real`` (held-out windows of the same gaps to the episodes fitted on), each ``count, p10, median, p90``;
``ratio`` of the last two medians; ``copied_share``: accepted bridges nearer to real data than ``copied_limit``, below
which 5 % of the real windows are (0.05 is like real data, 1 is copying); ``coverage``: ``share`` of ``num_windows``
held-out windows to which the sampled bridges come as near as equally many windows of the episodes fitted on (0.5 is
like real data), ``bridge_median, real_median`` of both distances.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raystitch.buffer.reader import Buffer
from raystitch.data.episodes import Bools, EpisodeDataset, Ints
from raystitch.data.normalise import Normalizer
from raystitch.data.select import holdout_split
from raystitch.envs.simulator import Simulator, Unavailable
from raystitch.errors import UserError
from raystitch.models.bundle import Bundle
from raystitch.models.calibration import NOISE
from raystitch.pipeline.validate.criteria import auto_entry, calibration_curve, criteria_table
from raystitch.pipeline.validate.novelty import novelty
from raystitch.pipeline.validate.rank import rank_correlation
from raystitch.pipeline.validate.simulated import Simulated, describe, open_for, share, simulate
from raystitch.pipeline.validate.windows import (
    TransitionWindows,
    bridge_windows,
    inverse_actions,
    judged_residuals,
    perturbed,
    real_windows,
)
from raystitch.seeding import derive_seed, numpy_rng
from raystitch.stitching.candidates import REASONS

SCHEMA_VERSION = 2
NUM_JUDGED = 4000
"""Number of real windows to check the calibration with; only the judges see them, so they are cheap."""
MAX_POINTS = 400
BRIDGE_SETS = ("accepted", "rejected", "first_attempts", "repaired")
SETS = (*BRIDGE_SETS, "real", "real_noise", "real_inverse")


def _attempts(buffer: Buffer) -> dict[str, Any]:
    """Count the pairs that first attempts settle and the pairs that repair rescues, at the generation settings."""
    passing, _ = buffer.passing()
    attempt = buffer.column("attempt")
    counted = attempt[buffer.accepted_rows()]
    first = passing[attempt == 0]
    return {
        "num_pairs": len(first),
        "first_accepted": int(first.sum()),
        "first_accepted_share": share(first),
        "num_repairs": int((attempt > 0).sum()),
        "rescued": int((counted > 0).sum()),
    }


def _draw(buffer: Buffer, count: int, rng: np.random.Generator) -> dict[str, Ints]:
    """Draw rows of at most ``count`` bridges per set, and in ``natural`` all attempts of as many pairs; int64,
    ascending.

    One random order of the pairs serves every draw, so the sets overlap and fewer bridges have to be simulated.
    """
    pairs, attempt = buffer.pairs, buffer.column("attempt")
    order = rng.permutation(int(pairs.max(initial=-1)) + 1)[pairs]

    def lowest(rows: Ints) -> Ints:
        return np.sort(rows[np.lexsort((attempt[rows], order[rows]))[:count]])

    passing, reason = buffer.passing()
    counted, there = buffer.accepted_rows(), buffer.has_episodes
    rows = {
        "accepted": lowest(counted),
        "rejected": lowest(np.flatnonzero(there & ~passing & (reason != REASONS.index("non_finite")))),
        "natural": np.flatnonzero(there & (order < count)),
    }
    if (attempt > 0).any():
        rows["first_attempts"] = lowest(counted[attempt[counted] == 0])
        rows["repaired"] = lowest(counted[attempt[counted] > 0])
    return rows


def _real_sets(
    real: TransitionWindows, bundle: Bundle | None, normalizer: Normalizer, rng: np.random.Generator
) -> list[TransitionWindows]:
    """Return ``real``, ``real_noise`` and, with a bundle, ``real_inverse``."""
    treated = [real, perturbed(real, normalizer, NOISE, rng)]
    return treated if bundle is None else [*treated, inverse_actions(real, bundle)]


def _simulate_sets(
    simulator: Simulator,
    bridges: TransitionWindows,
    places: dict[str, Ints],
    reals: list[TransitionWindows],
    normalizer: Normalizer,
) -> dict[str, Simulated]:
    """Compare every set with the simulator; ``places``: set -> windows of ``bridges``."""
    asked = simulate(simulator, bridges, normalizer)
    found = {name: asked.take(rows) for name, rows in places.items()}
    known: Bools | None = None
    for name, windows in zip(("real", "real_noise", "real_inverse"), reals, strict=False):
        # Noise moves a clipped velocity off the clip, but its true value stays unknown.
        found[name] = simulate(simulator, windows, normalizer, known if name == "real_noise" else None)
        if name == "real":
            known = found[name].answer.usable
    return found


def _judged_on_known_steps(
    simulated: Simulated, residual_max: NDArray[np.float64], bundle: Bundle | None
) -> NDArray[np.float64]:
    """The judges' largest residual over the steps that the simulator knows, float64 [W].

    The stored numbers are of whole bridges, so without a bundle bridges with an unknown step are left out (NaN).
    """
    usable = simulated.answer.usable
    if bundle is None:
        complete = simulated.windows.largest((~usable).astype(np.float64)) == 0
        return np.where(complete, residual_max, np.nan)
    residual = judged_residuals(simulated.windows, bundle)
    return simulated.windows.largest(np.where(usable, residual, np.nan))


def _points(
    judged: NDArray[np.float64], largest: NDArray[np.float64], gap: Ints, accepted: Bools
) -> dict[str, list[Any]]:
    """At most ``MAX_POINTS`` bridges for a scatter plot: the first ones, because they are in random order of pairs."""
    rows = np.flatnonzero(np.isfinite(judged) & np.isfinite(largest))[:MAX_POINTS]
    columns = {"residual": judged, "error": largest, "gap": gap, "accepted": accepted}
    return {name: column[rows].tolist() for name, column in columns.items()}


def validate(
    buffer: Buffer, dataset: EpisodeDataset, bundle: Bundle | None = None, max_bridges: int = 500
) -> dict[str, Any]:
    """Compare bridges with the simulator and with real data, and report the effect of delta and of every criterion.

    Args:
        buffer: at most ``max_bridges`` bridges of every set are sampled, and all attempts of as many random pairs.
        dataset: the one the buffer was made from.
        bundle: the buffer's bundle. Its normaliser is used, real windows come from the episodes it was not fitted on,
            and real windows with inverse-dynamics actions are added. Without it: all episodes, no inverse actions.

    Returns:
        Plain data for JSON; the keys are at the top of this file.

    Raises:
        UserError: when the bundle or the environment does not belong to the dataset.
    """
    if bundle is not None:
        bundle.check_dataset(dataset)
    normalizer = bundle.normalizer if bundle is not None else Normalizer.fit(dataset.observations)
    train, held_out = _split(dataset, bundle)
    simulator, unavailable = _open(dataset)
    seed = buffer.meta.seed
    sample = _sample(buffer, max_bridges)
    rng = numpy_rng(seed, "validate", "real")
    real = real_windows(dataset, held_out, sample.gaps, rng)
    simulated: dict[str, Simulated] = {}
    if simulator is not None:
        reals = _real_sets(real, bundle, normalizer, rng)
        simulated = _simulate_sets(simulator, sample.bridges, sample.places, reals, normalizer)
        simulator.close()
    natural, natural_rows = simulated.get("natural"), sample.rows["natural"]
    judged = None if bundle is None else _judged_real(buffer, dataset, held_out, bundle)
    accepted = sample.bridges.take(sample.places["accepted"])
    return {
        **_header(buffer, dataset, unavailable),
        "attempts": _attempts(buffer),
        **_truth(buffer, simulated, natural_rows, bundle),
        "real_accepted_share": _real_accepted_share(buffer, judged),
        "criteria": criteria_table(buffer, natural_rows, natural),
        "calibration": calibration_curve(buffer, judged, natural_rows, natural),
        "auto": auto_entry(buffer, judged, natural_rows, natural, simulated.get("real_noise")),
        "novelty": novelty(accepted, real, dataset, train, normalizer, numpy_rng(seed, "validate", "novelty")),
    }


def _split(dataset: EpisodeDataset, bundle: Bundle | None) -> tuple[Ints, Ints]:
    """Episodes that the bundle was fitted on and episodes that it held out; all of them twice without a bundle.

    Raises:
        UserError: when the bundle was fitted on another selection, so that its split is another one.
    """
    if bundle is None:
        everything = np.arange(dataset.num_episodes)
        return everything, everything
    if bundle.dataset_fingerprint != dataset.fingerprint:
        raise UserError(
            f"the stitcher was fitted on another selection of the episodes of {dataset.name}, so it is not known which "
            "of these it held out; give that selection"
        )
    seed = derive_seed(bundle.config.seed, "holdout")
    return holdout_split(dataset.num_episodes, bundle.config.holdout_fraction, seed)


def _open(dataset: EpisodeDataset) -> tuple[Simulator | None, str | None]:
    """The dataset's simulator, or the reason why there is none."""
    try:
        return open_for(dataset), None
    except Unavailable as reason:
        return None, str(reason)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Sample:
    """Bridges drawn from a buffer.

    Attributes:
        rows: set -> rows of the buffer, int64, ascending; see ``_draw``.
        bridges: every bridge of any set, once.
        places: set -> its windows in ``bridges``, int64.
    """

    rows: dict[str, Ints]
    bridges: TransitionWindows
    places: dict[str, Ints]

    @property
    def gaps(self) -> Ints:
        """Gaps of the accepted bridges, or of the rejected ones where none was accepted, int64."""
        return self.bridges.gap[self.places["accepted" if len(self.rows["accepted"]) else "rejected"]]


def _sample(buffer: Buffer, max_bridges: int) -> _Sample:
    """Draw every set and read the bridges of all of them."""
    rows = _draw(buffer, max_bridges, numpy_rng(buffer.meta.seed, "validate"))
    drawn = np.unique(np.concatenate(list(rows.values())))
    places = {name: np.searchsorted(drawn, of_set) for name, of_set in rows.items()}
    return _Sample(rows=rows, bridges=bridge_windows(buffer.take(drawn)), places=places)


def _header(buffer: Buffer, dataset: EpisodeDataset, unavailable: str | None) -> dict[str, Any]:
    """The keys from ``schema_version`` to ``noise``."""
    return {
        "schema_version": SCHEMA_VERSION,
        "buffer": buffer.uri,
        "dataset": dataset.name,
        "env": None if dataset.env is None else dataset.env.env_id,
        "unavailable": unavailable,
        "num_accepted": buffer.num_accepted(),
        "num_candidates": buffer.num_candidates,
        "reasons": buffer.reasons(),
        "delta": buffer.meta.stitch.qualify.delta,
        "noise": NOISE,
    }


def _truth(buffer: Buffer, simulated: dict[str, Simulated], rows: Ints, bundle: Bundle | None) -> dict[str, Any]:
    """The keys from ``sets`` to ``points``; ``rows``: the buffer's rows of the set ``natural``."""
    sets = {name: describe(simulated[name]) for name in SETS if name in simulated}
    found: dict[str, Any] = {"sets": sets, "below_noise": None, "rank_correlation": None, "points": None}
    if simulated:
        ours, noise = (sets[name]["step_error"]["median"] for name in ("accepted", "real_noise"))
        found["below_noise"] = ours < noise if None not in (ours, noise) else None
        found |= _ranks(buffer, rows, simulated["natural"], bundle)
    return found


def _real_accepted_share(buffer: Buffer, judged: tuple[Ints, NDArray[np.float64]] | None) -> float | None:
    """The share of judged real windows (gaps and residuals, see ``_judged_real``) that the generation delta accepts."""
    if judged is None:
        return None
    gap, residual = judged
    return share(residual < buffer.calibration.threshold(buffer.meta.stitch.qualify.delta, gap))


def _ranks(buffer: Buffer, rows: Ints, natural: Simulated, bundle: Bundle | None) -> dict[str, Any]:
    """``rank_correlation`` and ``points`` of the first attempts among the sampled pairs' attempts."""
    rng = numpy_rng(buffer.meta.seed, "validate", "ranks")
    first = rng.permutation(np.flatnonzero(buffer.column("attempt")[rows] == 0))
    simulated, rows = natural.take(first), rows[first]
    judged = _judged_on_known_steps(simulated, buffer.column("residual_max")[rows].astype(np.float64), bundle)
    gap = simulated.windows.gap
    return {
        "rank_correlation": rank_correlation(judged, simulated.largest, gap, rng),
        "points": _points(judged, simulated.largest, gap, buffer.passing()[0][rows]),
    }


def _judged_real(
    buffer: Buffer, dataset: EpisodeDataset, held_out: Ints, bundle: Bundle
) -> tuple[Ints, NDArray[np.float64]]:
    """Real held-out windows with inverse-dynamics actions: gap int64 [W] and the judges' largest residual [W]."""
    rng = numpy_rng(buffer.meta.seed, "validate", "judged")
    gaps = rng.choice(buffer.column("gap")[buffer.column("attempt") == 0], NUM_JUDGED)
    windows = inverse_actions(real_windows(dataset, held_out, gaps, rng), bundle)
    return windows.gap, windows.largest(judged_residuals(windows, bundle))
