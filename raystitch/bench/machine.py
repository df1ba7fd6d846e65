"""The machine and its measured limits, the clocks of all benchmarks, and the ``Row`` that they return."""

import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Row:
    """One measured number; ``ratio`` is its ratio to what ``ratio_to`` names, None where nothing is compared."""

    what: str
    value: float
    unit: str
    ratio_to: str | None = None
    ratio: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Limits:
    """Measured limits: matrix multiplication with all threads of torch, copying memory with one."""

    matmul_gflops: float
    matmul_bf16_gflops: float
    memcpy_gbytes_per_s: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def best_seconds(work: Callable[[], object], *, repeats: int = 5, warmups: int = 1) -> float:
    """Return the shortest wall-clock time of ``work``, which other load on the machine disturbs least."""
    return min(_times(work, repeats, warmups))


def median_seconds(work: Callable[[], object], *, repeats: int = 5, warmups: int = 1) -> float:
    """Return the median wall-clock time of ``work``, which is what a user sees."""
    return statistics.median(_times(work, repeats, warmups))


def _times(work: Callable[[], object], repeats: int, warmups: int = 0) -> list[float]:
    for _ in range(warmups):
        work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - started)
    return times


def interleaved_seconds(works: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, float]:
    """Return the median wall-clock time of each work, after one warm-up.

    They take turns, ``rounds`` times, so that other load on the machine affects all of them alike.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            seconds = _times(work, 1)
            times[name] += seconds if number else []
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def peak_memory_mib() -> float:
    """Return the largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def wait() -> None:
    """Wait until the accelerator, if there is one, has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


SLOW_SECONDS = 0.5
_MATMUL_SIZE = 1024
MATMUL_FLOPS = 2 * _MATMUL_SIZE**3


def matmul(dtype: torch.dtype, device: str) -> Callable[[], object]:
    """Return work that multiplies two square matrices once, ``MATMUL_FLOPS`` operations."""
    left, right, result = torch.randn(3, _MATMUL_SIZE, _MATMUL_SIZE, device=device).to(dtype)
    return lambda: torch.mm(left, right, out=result)


def measure_limits(device: str = "cpu") -> Limits:
    """Measure matrix products on ``device`` and a 256 MB copy in main memory; takes some seconds."""
    float32, bf16 = (
        MATMUL_FLOPS / _shortest_product(matmul(dtype, device)) / 1e9 for dtype in (torch.float32, torch.bfloat16)
    )
    source = np.ones(32 * 2**20, np.float64)
    target = np.empty_like(source)
    copy = best_seconds(lambda: np.copyto(target, source), repeats=5)
    return Limits(float32, bf16, source.nbytes / copy / 1e9)


def _shortest_product(product: Callable[[], object]) -> float:
    """Return the shortest time of a product; of one that takes long, as bf16 without such instructions, the first."""
    first = best_seconds(product, repeats=1, warmups=0)
    return first if first > SLOW_SECONDS else best_seconds(product, repeats=15, warmups=3)


def describe_machine() -> dict[str, Any]:
    """Describe the machine for a reader of the numbers, without naming it or its user."""
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
