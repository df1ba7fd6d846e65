"""The machine, what it can do at most, and the clock that every benchmark uses."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Row:
    """One number. ``ratio`` is ``value`` divided by what ``ratio_to`` names (None: nothing to compare with)."""

    what: str
    value: float
    unit: str
    ratio_to: str | None = None
    ratio: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Limits:
    """Measured ceilings: float32 matrix multiplication and copying memory, with all threads of torch and of one."""

    matmul_gflops: float
    memcpy_gbytes_per_s: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def best_seconds(work: Callable[[], object], *, repeats: int = 5, warmups: int = 1) -> float:
    """Shortest wall-clock time of ``work``: what the machine can do when nothing else disturbs it."""
    return min(_times(work, repeats, warmups))


def median_seconds(work: Callable[[], object], *, repeats: int = 5, warmups: int = 1) -> float:
    """Median wall-clock time of ``work``: what a user sees."""
    return statistics.median(_times(work, repeats, warmups))


def _times(work: Callable[[], object], repeats: int, warmups: int) -> list[float]:
    for _ in range(warmups):
        work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        _wait()
        times.append(time.perf_counter() - started)
    return times


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure_limits(device: str = "cpu") -> Limits:
    """Peak of a 1024 x 1024 float32 product on ``device`` and of a 256 MB copy in main memory; about two seconds."""
    size = 1024
    left = torch.randn(size, size, device=device)
    right = torch.randn(size, size, device=device)
    result = torch.empty_like(left)
    seconds = best_seconds(lambda: torch.mm(left, right, out=result), repeats=15, warmups=3)
    source = np.ones(32 * 2**20, np.float64)
    target = np.empty_like(source)
    copy = best_seconds(lambda: np.copyto(target, source), repeats=5)
    return Limits(2 * size**3 / seconds / 1e9, source.nbytes / copy / 1e9)


def describe_machine() -> dict[str, Any]:
    """What a reader needs to judge the numbers; nothing that names the machine or its user."""
    return {
        "cpu": _cpu_name(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
