"""The subject of a benchmark: the user's data and bundle, or random walks and a barely fitted bundle of realistic size.

Speed does not depend on what the networks have learnt.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from raystitch.data.episodes import EpisodeDataset
from raystitch.models.bundle import PARTS, Bundle
from raystitch.models.config import DiffusionConfig, EmbeddingConfig, FitConfig, HeadConfig
from raystitch.models.fit import fit_bundle

OBS_DIM, ACT_DIM = 11, 3
"""The sizes of Hopper."""
NUM_TRANSITIONS = 10_000
TRAIN_STEPS = 20


def make_walks(num_transitions: int, episode_length: int = 200, seed: int = 0) -> EpisodeDataset:
    """Make smooth random walks [O = 11] pushed by random actions [A = 3]; every second episode terminates."""
    rng = np.random.default_rng(seed)
    num_episodes = max(2, num_transitions // episode_length)
    shape = (num_episodes, episode_length)
    actions = np.clip(rng.normal(0, 0.7, (*shape, ACT_DIM)), -1, 1).astype(np.float32)
    pushes = np.concatenate([rng.normal(size=(num_episodes, 1, ACT_DIM)), actions], axis=1) @ rng.normal(
        size=(ACT_DIM, OBS_DIM)
    )
    observations = np.cumsum(0.05 * pushes, axis=1).astype(np.float32)
    terminated = np.arange(num_episodes) % 2 == 0
    return EpisodeDataset(
        name="synthetic",
        observations=observations.reshape(-1, OBS_DIM),
        actions=actions.reshape(-1, ACT_DIM),
        rewards=observations[:, 1:, 0].reshape(-1),
        terminated=terminated,
        truncated=~terminated,
        offsets=(np.arange(num_episodes + 1) * episode_length).astype(np.int64),
        action_low=-np.ones(ACT_DIM, np.float32),
        action_high=np.ones(ACT_DIM, np.float32),
    )


def make_bundle(dataset: EpisodeDataset) -> Bundle:
    """Fit the default networks for a few steps; takes some seconds."""
    fit = FitConfig()
    few: dict[str, Any] = {part: replace(getattr(fit, part), train_steps=TRAIN_STEPS) for part in PARTS}
    return fit_bundle(dataset, replace(fit, calibration_windows=400, **few))


def tiny_fit() -> FitConfig:
    """Return settings of small networks that are fitted for a moment, to measure something else."""
    head = HeadConfig(hidden=16, num_layers=1, num_members=1, train_steps=20, batch_size=64)
    few = replace(head, num_members=3)
    return FitConfig(
        diffusion=DiffusionConfig(
            horizon=16, width=16, multipliers=(1, 2), gap_min=2, gap_max=8, train_steps=20, batch_size=32
        ),
        dynamics=few,
        num_judges=2,
        inverse=head,
        reward=few,
        termination=head,
        value=head,
        embedding=EmbeddingConfig(size=4, hidden=16, num_layers=1, train_steps=20, batch_size=32),
        calibration_windows=100,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class BenchOptions:
    """Options of ``raystitch bench`` for the benchmarks in ``TAKE_OPTIONS``.

    Attributes:
        dataset: None for random walks.
        stitcher: folder of a bundle fitted on ``dataset``; None for one that is barely fitted.
        num_pairs: pairs stitched at once.
    """

    dataset: EpisodeDataset | None = None
    stitcher: Path | None = None
    num_pairs: int = 512


@dataclass(frozen=True, eq=False)
class Subject:
    """Data and models that are measured; ``about`` says what they are."""

    dataset: EpisodeDataset
    bundle: Bundle
    about: str


def find_subject(options: BenchOptions) -> Subject:
    """Load or make the subject that the options name.

    Raises:
        UserError: when the stitcher was fitted on another dataset.
    """
    dataset = options.dataset or make_walks(NUM_TRANSITIONS)
    if options.stitcher is None:
        return Subject(dataset, make_bundle(dataset), f"{dataset.name}, barely fitted")
    bundle = Bundle.load(options.stitcher)
    bundle.check_dataset(dataset)
    return Subject(dataset, bundle, f"{dataset.name}, {options.stitcher.name}")
