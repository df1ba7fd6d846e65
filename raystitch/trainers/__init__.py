"""Offline RL algorithms, one per file, the batch sampler with its fixed ratio r, and evaluation.

A new algorithm is a file and a line in registry.py; tests/contract/test_trainers.py checks every line.

``ALGORITHMS`` is loaded on first use, so that reading a configuration does not import torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raystitch.trainers.registry import ALGORITHMS

__all__ = ["ALGORITHMS"]


def __getattr__(name: str) -> Any:
    if name == "ALGORITHMS":
        from raystitch.trainers.registry import ALGORITHMS

        return ALGORITHMS
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
