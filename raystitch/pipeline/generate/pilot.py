"""The pilot of a generation: a few hundred pairs by each way of choosing them, where ``stitch.pairs`` says ``auto``.

The judges say which bridges are true; a simulator is never asked. Legend: N pairs.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from raystitch.buffer.schema import PilotResult
from raystitch.data.episodes import EpisodeDataset
from raystitch.errors import UserError
from raystitch.models.bundle import Bundle
from raystitch.models.calibration import AUTO, SEAM, delta_text
from raystitch.seeding import numpy_rng
from raystitch.stitching.candidates import Candidates
from raystitch.stitching.config import PairConfig, StitchConfig
from raystitch.stitching.pairs import SourceIndex
from raystitch.stitching.stitcher import Stitcher
from raystitch.stitching.values import StateValues

PILOT_PAIRS = 256
Mode = Literal["successor", "distance", "imagine", "random", "auto"]
MODES: tuple[Mode, ...] = ("successor", "distance", "imagine", "random")
SEAMS = (None, "q95", "q50")
"""The ways that are tried; of several that bring as much, the first."""
LESS_TRUE = 0.05
"""A way may have so much smaller a share of bridges that the judges hold true than the way with the largest."""
FEW = 0.1
"""Where fewer pairs than this share of those tried are accepted, their share that is held true says little: such a way
sets no measure for others, if there is a better one."""


def run_pilot(
    dataset: EpisodeDataset,
    bundle: Bundle,
    config: StitchConfig,
    values: StateValues | None,
    seed: int,
    note: Callable[[str], None],
) -> tuple[PilotResult, ...]:
    """Try every way of choosing pairs that ``config.pairs`` leaves open, and return the results, the best first.

    Truth comes first: only ways count whose share of accepted bridges that the judges hold true is within
    ``LESS_TRUE`` of the largest. They hold a bridge true if its largest residual is at most the median of real windows
    with noise (``Calibration.believed``). Of these ways the best is the one whose true bridges add most to the
    discounted return, per pair tried.

    A mode that finds nothing to leave is left out; so is every limit where the fit found no neighbours to measure it
    by.

    Args:
        values: what states are worth where pairs are split by value. seed: of the generation.
        note: gets lines before and after.

    Raises:
        UserError: when no mode finds a state to leave, or an earlier version fitted the stitcher.
    """
    bundle.calibration.believed()
    note(
        f"pilot: {PILOT_PAIRS} pairs in each of {num_pilot_pairs(config.pairs) // PILOT_PAIRS} ways, because "
        f"pairs.mode={config.pairs.mode} and pairs.seam_max={delta_text(config.pairs.seam_max)} are to be chosen"
    )
    found = list[PilotResult]()
    for index in usable_modes(dataset, bundle, config, values):
        caps = _ways(config.pairs)[index.config.pairs.mode]
        if SEAM not in bundle.calibration.tables:
            caps = [cap for cap in caps if not isinstance(cap, str)]
        for cap in caps:
            index = index.with_seam_max(cap)
            found.append(_try(index, bundle, seed))
    try:
        bundle.calibration.truthful()
    except UserError:
        note("pilot: the judges err more on real data than noise does, so they know little; fit dynamics longer")
    enough = [result for result in found if result.accepted >= FEW * result.tried] or found
    least = max(result.truth for result in enough) - LESS_TRUE
    found.sort(key=lambda result: (result.truth < least, -result.worth))
    note(_said(found))
    return tuple(found)


def usable_modes(
    dataset: EpisodeDataset, bundle: Bundle, config: StitchConfig, values: StateValues | None = None
) -> Iterator[SourceIndex]:
    """Yield an index for each mode that ``config.pairs`` allows and that finds a state to leave.

    Raises:
        UserError: when none does, for the first one's reason.
    """
    refused, usable = list[UserError](), False
    for mode, caps in _ways(config.pairs).items():
        pairs = replace(config.pairs, mode=mode, seam_max=None if config.pairs.seam_max == AUTO else caps[0])
        try:
            index = SourceIndex(dataset, bundle, replace(config, pairs=pairs), state_values=values)
        except UserError as error:
            refused.append(error)
            continue
        usable = True
        yield index
    if not usable:
        raise refused[0]


def num_pilot_pairs(pairs: PairConfig) -> int:
    """Return how many pairs a pilot tries in all; 0 where the settings need none."""
    return PILOT_PAIRS * sum(len(caps) for caps in _ways(pairs).values()) if pairs.needs_pilot else 0


def _ways(pairs: PairConfig) -> dict[Mode, Sequence[float | str | None]]:
    """Return the limits to try with each mode."""
    caps: Sequence[float | str | None] = SEAMS if pairs.seam_max == AUTO else (pairs.seam_max,)
    modes: Sequence[Mode] = MODES if pairs.mode == AUTO else (pairs.mode,)
    found: dict[Mode, Sequence[float | str | None]] = dict.fromkeys(modes, caps)
    if "random" in found:
        found["random"] = (None,)  # it expects its sources nowhere
        if None not in caps:
            del found["random"]
    return found


def _try(index: SourceIndex, bundle: Bundle, seed: int) -> PilotResult:
    """Stitch the pilot's pairs in one way, the same seeds in every way."""
    began, config = time.perf_counter(), index.config
    seeds = numpy_rng(seed, "pilot").integers(0, 2**63 - 1, PILOT_PAIRS, np.int64)
    pairs = index.select(seeds)
    kept = np.flatnonzero(index.worthwhile(pairs))
    candidates = Stitcher(bundle, config).stitch(pairs.take(kept), seeds[kept])
    true = candidates.accepted & (candidates.residual_max <= bundle.calibration.believed(candidates.gap))
    gain = np.maximum(candidates.return_stitched - candidates.return_source, 0.0)
    best_N = _best_of_pair(candidates, np.where(true, gain, -1.0))
    believed_N = best_N >= 0
    return PilotResult(
        mode=config.pairs.mode,
        seam_max=config.pairs.seam_max,
        tried=PILOT_PAIRS,
        stitched=len(kept),
        accepted=int((_best_of_pair(candidates, candidates.accepted.astype(np.float64)) > 0).sum()),
        believed=int(believed_N.sum()),
        gain=float(np.median(best_N[believed_N])) if believed_N.any() else None,
        worth=float(best_N[believed_N].sum()) / PILOT_PAIRS,
        seconds=round(time.perf_counter() - began, 2),
    )


def _best_of_pair(candidates: Candidates, of_attempt: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the largest number of each pair's attempts, float64 [N]."""
    first = candidates.attempt == 0
    best = np.full(len(candidates), -np.inf)
    np.maximum.at(best, candidates.first_row, of_attempt.astype(np.float64))
    return best[first]


def _said(found: list[PilotResult]) -> str:
    best, usual = found[0], PairConfig()
    if not best.worth:
        return f"pilot: {best.name} is taken, though its bridges add nothing that the judges hold true"
    default = next((r for r in found if (r.mode, r.seam_max) == (usual.mode, usual.seam_max)), None)
    beside = "" if default is None or default is best else f" ({default.name}, the default: {_brought(default)})"
    return f"pilot: {best.name} is taken: {_brought(best)}{beside}"


def _brought(result: PilotResult) -> str:
    return f"a gain of {result.worth:.4g} per pair tried, {result.truth:.0%} of the accepted held true"
