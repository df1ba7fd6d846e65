"""The time of each stage of the engine, measured from outside: its functions are wrapped while a clock runs.

The engine does not know about this, so it costs nothing otherwise.
"""

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from raystitch.bench.machine import wait
from raystitch.data.episodes import Ints
from raystitch.models.denoise import Denoiser
from raystitch.models.samplers import Sampler
from raystitch.stitching import stitcher
from raystitch.stitching.candidates import Candidates
from raystitch.stitching.guidance import DynamicsGuide
from raystitch.stitching.pairs import SourceIndex
from raystitch.stitching.stitcher import Stitcher

STAGES = ("select", "gap", "denoise", "guidance", "repair", "wrap-up", "the rest of propose", "qualify")

T = TypeVar("T")
Replacement = tuple[Any, str, Any]


class StageClock:
    """Counts seconds per stage. The outermost of nested stages gets the time: denoising within repair is repair."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._busy = False

    def time(self, stage: str, work: Callable[[], T]) -> T:
        """Do the work, count its time for the stage and return its result."""
        if self._busy:
            return work()
        self._busy = True
        wait()
        started = time.perf_counter()
        try:
            result = work()
            wait()
            return result
        finally:
            self.seconds[stage] += time.perf_counter() - started
            self._busy = False

    def timed(self, stage: str, function: Callable[..., T]) -> Callable[..., T]:
        """Wrap a function so that its time counts for the stage."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> T:
            return self.time(stage, lambda: function(*args, **kwargs))

        return call

    def inside_propose(self) -> list[Replacement]:
        """Return replacements that time the stages of ``Stitcher.propose``: gap, denoise, guidance, repair, wrap-up.

        Noise, the layout of windows and copies belong to none of them.
        """
        gaps = {mode: self.timed("gap", function) for mode, function in stitcher.GAPS.items()}
        wrap_up = ("infer_actions", "infer_rewards", "stitched_return")
        return [
            (stitcher, "GAPS", gaps),
            (stitcher, "repairs", self.timed("repair", _all_of(stitcher.repairs))),
            (Denoiser, "__call__", self.timed("denoise", Denoiser.__call__)),
            (DynamicsGuide, "__call__", self.timed("guidance", DynamicsGuide.__call__)),
            *((stitcher, name, self.timed("wrap-up", getattr(stitcher, name))) for name in wrap_up),
        ]

    def sampling(self) -> list[Replacement]:
        """Return replacements that time ``sampling``: all work that grows with the number of denoising steps."""
        return [(Sampler, "__call__", self.timed("sampling", Sampler.__call__))]


def _all_of(generate: Callable[..., Iterator[T]]) -> Callable[..., list[T]]:
    """Turn a generator into a function that returns a list: a generator would work only after it was timed."""
    return lambda *args: list(generate(*args))


@contextmanager
def replaced(replacements: Sequence[Replacement]) -> Iterator[None]:
    """Replace attributes, given as (owner, name, value), inside the block."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in replacements]
    try:
        for owner, name, value in replacements:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def stage_seconds(stitcher: Stitcher, index: SourceIndex, seeds: Ints) -> tuple[Candidates, dict[str, float]]:
    """Select, propose and qualify once; return the candidates, and the seconds of every stage and of the ``whole``."""
    clock = StageClock()
    started = time.perf_counter()
    pairs = clock.time("select", partial(index.select, seeds))
    selected = time.perf_counter()
    with replaced(clock.inside_propose()):
        proposed = stitcher.propose(pairs, seeds)
    wait()
    rest = time.perf_counter() - selected - (sum(clock.seconds.values()) - clock.seconds["select"])
    candidates = clock.time("qualify", partial(stitcher.qualify, proposed))
    clock.seconds["the rest of propose"] = rest
    whole = time.perf_counter() - started
    return candidates, {**{stage: clock.seconds[stage] for stage in STAGES}, "whole": whole}
