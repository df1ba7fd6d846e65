"""Where the time of the engine goes, seen from outside: its functions are wrapped while a clock watches them.

Nothing in the engine knows about this, so nothing there costs time when nobody looks.
"""

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from raystitch.bench.machine import wait
from raystitch.models.denoise import Denoiser
from raystitch.models.samplers import Sampler
from raystitch.stitching import stitcher
from raystitch.stitching.guidance import DynamicsGuide

T = TypeVar("T")
Replacement = tuple[Any, str, Any]


class StageClock:
    """Seconds per stage. Of nested stages the outermost gets the time, so that no second counts twice: what repair
    denoises is repair."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._busy = False

    def time(self, stage: str, work: Callable[[], T]) -> T:
        """The result of ``work``, whose time goes to the stage."""
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
        """The function with its time going to the stage."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> T:
            return self.time(stage, lambda: function(*args, **kwargs))

        return call

    def inside_propose(self) -> list[Replacement]:
        """``gap, denoise, guidance, repair, wrap-up``: what ``Stitcher.propose`` consists of, but for the noise, the
        layout of windows and copies."""
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
        """``sampling``: everything that grows with the number of denoising steps, for whatever it is done."""
        return [(Sampler, "__call__", self.timed("sampling", Sampler.__call__))]


def _all_of(generate: Callable[..., Iterator[T]]) -> Callable[..., list[T]]:
    """A generator does its work when it is asked for its items, which is not when it is called."""
    return lambda *args: list(generate(*args))


@contextmanager
def replaced(replacements: Sequence[Replacement]) -> Iterator[None]:
    """(owner, name, value): the owners' attributes while this lasts."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in replacements]
    try:
        for owner, name, value in replacements:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
