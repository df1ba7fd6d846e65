"""Small Minari datasets, written by Minari itself."""

import os
import warnings
from pathlib import Path
from typing import Any

import minari
import numpy as np
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer

SECRET = 1234.5


def box(*shape: int) -> spaces.Box:
    return spaces.Box(-np.inf if shape == (3,) else -1.0, np.inf if shape == (3,) else 1.0, shape, np.float32)


def walks(num_episodes: int, steps: int, seed: int = 0) -> list[EpisodeBuffer]:
    """Episodes of ``steps`` steps: O = 3, A = 2."""
    rng = np.random.default_rng(seed)
    return [
        episode(
            np.cumsum(rng.normal(0, 0.1, (steps + 1, 3)), 0).astype(np.float32),
            rng.uniform(-1, 1, (steps, 2)).astype(np.float32),
            rewards=rng.normal(size=steps),
        )
        for _ in range(num_episodes)
    ]


def episode(observations: Any, actions: Any, rewards: Any = None, **columns: Any) -> EpisodeBuffer:
    """One episode that is cut at its end."""
    steps = len(actions)
    columns = {
        "rewards": np.full(steps, 0.5) if rewards is None else rewards,
        "terminations": np.zeros(steps, bool),
        "truncations": np.arange(steps) == steps - 1,
        **columns,
    }
    return EpisodeBuffer(observations=observations, actions=actions, **columns)


def store(dataset_id: str, buffers: list[EpisodeBuffer], **options: Any) -> Any:
    with warnings.catch_warnings(action="ignore"):
        return minari.create_dataset_from_buffers(dataset_id, buffers, **options)


def data_path(dataset_id: str) -> Path:
    return Path(os.environ["MINARI_DATASETS_PATH"]) / dataset_id / "data"
