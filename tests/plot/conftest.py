"""A small buffer of the drift data and candidates between two of its episodes; figures are closed after each test."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt

import raystitch as rs
from raystitch.buffer.config import AugmentConfig
from raystitch.buffer.reader import Buffer
from raystitch.pipeline.generate.augment import augment_local
from raystitch.stitching.candidates import Candidates
from raystitch.stitching.config import PairConfig, QualifyConfig
from raystitch.stitching.pairs import pairs_from_trajectories, select_pairs

STITCH = rs.StitchConfig(
    pairs=PairConfig(split="value", terminal_margin=2, value_check=False),
    qualify=QualifyConfig(delta="q50", termination_max=None, value_check=False),
)
SEEDS = np.arange(6)


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture(scope="session")
def bundle(drift: rs.EpisodeDataset, tiny_fit: rs.FitConfig) -> rs.Bundle:
    return rs.fit(drift, tiny_fit, device="cpu")


@pytest.fixture(scope="session")
def buffer(drift: rs.EpisodeDataset, bundle: rs.Bundle, tmp_path_factory: pytest.TempPathFactory) -> Buffer:
    """Bridges of several rounds: some are chained onto others."""
    path: Path = tmp_path_factory.mktemp("plot") / "buffer"
    augment_local(
        drift, bundle, STITCH, AugmentConfig(num_bridges=40, pairs_per_shard=20, bridges_per_round=10), out=path
    )
    return rs.open_buffer(path)


@pytest.fixture(scope="session")
def candidates(drift: rs.EpisodeDataset, bundle: rs.Bundle) -> Candidates:
    """Bridges between states of the dataset."""
    pairs = select_pairs(drift, bundle, STITCH, SEEDS)
    return rs.Stitcher(bundle, STITCH).stitch(pairs, SEEDS)


@pytest.fixture(scope="session")
def own(drift: rs.EpisodeDataset, bundle: rs.Bundle) -> Candidates:
    """Bridges from episode 1 to episode 2, given as trajectories of the caller's."""
    source, target = drift.episode(1), drift.episode(2)
    pairs = pairs_from_trajectories(bundle, source.observations, target.observations, SEEDS, gap=4)
    return rs.Stitcher(bundle, STITCH).stitch(pairs, SEEDS)
