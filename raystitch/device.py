"""The machine: what ``device: auto`` and ``precision: auto`` are for torch, its threads, memory that is given back."""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal

import torch

from raystitch.errors import UserError


def resolve_device(device: str = "auto") -> torch.device:
    """Return the torch device; ``auto`` is the first CUDA device when there is one, else the CPU.

    Raises:
        UserError: for a device this machine does not have or torch does not know.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device={device!r} is not a torch device; use auto, cpu or cuda[:N]") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={device!r} was asked for, but torch sees no CUDA device here; use --device cpu")
    return resolved


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use so many threads in the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def give_memory_back() -> None:
    """Give what this process has freed back to the system: after work on millions of steps the C library keeps about
    as much for itself as the process still uses."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl does not
        if trim is not None:
            trim(0)


Precision = Literal["auto", "float32", "bf16"]


def uses_bf16(precision: Precision, device: torch.device) -> bool:
    """Return True if matrix products run in bf16: ``auto`` takes it where the hardware multiplies it (about twice)
    faster.

    Without such hardware bf16 is emulated and slower than float32, so only ``bf16`` forces it there.
    """
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and _cpu_multiplies_bf16()


@cache
def _cpu_multiplies_bf16() -> bool:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            flags = next((line for line in lines if line.startswith("flags")), "")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
