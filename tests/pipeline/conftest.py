"""Buffers whose numbers and truth are known."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raystitch.buffer.config import AugmentConfig
from raystitch.buffer.meta import create_buffer
from raystitch.buffer.opening import open_buffer
from raystitch.buffer.reader import Buffer
from raystitch.buffer.rounds import finish
from raystitch.buffer.schema import BufferMeta, candidates_to_table
from raystitch.buffer.shard_file import write_shard
from raystitch.data.episodes import EpisodeDataset, Ints
from raystitch.models.calibration import Calibration
from raystitch.stitching.acceptance import passes
from raystitch.stitching.candidates import Candidates
from raystitch.stitching.config import QualifyConfig, StitchConfig

NUM_TRUE, NUM_FALSE, NUM_RESCUED, LARGEST_GAP = 20, 15, 5, 8
QUANTILES = np.linspace(0, 1, 101)


def linear_calibration() -> Calibration:
    """Quantile q is q / 100 for every criterion and gap."""
    table = np.tile(QUANTILES, (LARGEST_GAP - 1, 1))
    names = ("residual", "spread", "rollout", "proposers")
    return Calibration(np.arange(2, LARGEST_GAP + 1), QUANTILES, dict.fromkeys(names, table))


def write_buffer(
    folder: Path,
    dataset: EpisodeDataset,
    episode: Ints,
    start: Ints,
    gap: Ints,
    *,
    moved: np.ndarray[Any, Any],
    numbers: dict[str, np.ndarray[Any, Any]],
    qualify: QualifyConfig,
    attempt: Ints,
    first_row: Ints,
    states_from: EpisodeDataset | None = None,
) -> Buffer:
    """Pieces of real episodes as bridges; all states of row n are moved by N(0, moved[n]).

    ``states_from``: another dataset, whose episodes of the same numbers the pieces are cut from.
    """
    rng = np.random.default_rng(0)
    count = len(gap)
    observations = np.zeros((count, LARGEST_GAP + 2, dataset.obs_dim), np.float32)
    actions = np.zeros((count, LARGEST_GAP + 1, dataset.act_dim), np.float32)
    rewards = np.zeros((count, LARGEST_GAP + 1), np.float32)
    for row in range(count):
        piece = (states_from or dataset).episode(int(episode[row]))
        steps = slice(start[row], start[row] + gap[row] + 1)
        states = piece.observations[steps.start : steps.stop + 1]
        observations[row, : gap[row] + 2] = states + rng.normal(size=states.shape) * moved[row]
        actions[row, : gap[row] + 1] = piece.actions[steps]
        rewards[row, : gap[row] + 1] = piece.rewards[steps]
    floats = {name: values.astype(np.float32) for name, values in numbers.items()}
    zeros = np.zeros(count, np.float32)
    plain = dict.fromkeys(
        ("residual_max", "residual_mean", "spread_max", "rollout_deviation", "termination_max", "return_source"), zeros
    )
    columns: dict[str, Any] = plain | {"return_target": zeros, "return_stitched": zeros + 1} | floats
    candidates = Candidates(
        source_episode=episode,
        source_step=start,
        target_episode=episode,
        target_step=start + gap + 1,
        gap=gap,
        seed=np.arange(count),
        attempt=attempt,
        first_row=first_row,
        observations=observations,
        actions=actions,
        rewards=rewards,
        **columns,
    )
    calibration = linear_calibration()
    accepted, reason = passes(lambda name: getattr(candidates, name), qualify.delta, calibration, qualify)
    candidates = replace(candidates, accepted=accepted, reason=reason)
    meta = BufferMeta(
        gamma=0.99,
        bundle_hash="sha256:0",
        dataset_name=dataset.name,
        dataset_fingerprint=dataset.fingerprint,
        obs_dim=dataset.obs_dim,
        act_dim=dataset.act_dim,
        action_low=(-1.0, -1.0),
        action_high=(1.0, 1.0),
        env=dataset.env,
        calibration=calibration.to_json(),
        stitch=StitchConfig(qualify=qualify),
        augment=AugmentConfig(num_bridges=1, pairs_per_shard=count),
        seed=0,
    )
    path = str(folder / "buffer")
    create_buffer(path, meta)
    write_shard(path, 0, candidates_to_table(candidates, 0))
    finish(path, 1)
    return open_buffer(path)


def random_places(dataset: EpisodeDataset, count: int, rng: np.random.Generator) -> tuple[Ints, Ints, Ints]:
    """Episode, first step and gap of pieces that lie inside their episodes, int64 [count] each."""
    gap = rng.integers(2, LARGEST_GAP + 1, count)
    episode = rng.choice(np.flatnonzero(dataset.lengths > LARGEST_GAP + 1), count)
    return episode, rng.integers(0, dataset.lengths[episode] - gap - 1), gap


@pytest.fixture(scope="session")
def truth_buffer(maze: EpisodeDataset, tmp_path_factory: pytest.TempPathFactory) -> Buffer:
    """Accepted: pieces of real episodes. Rejected: the same with every state moved, the further the larger residual.

    The first ``NUM_RESCUED`` true ones are repairs of the first false ones.
    """
    rng = np.random.default_rng(0)
    count = NUM_TRUE + NUM_FALSE
    is_true, repairs = np.arange(count) < NUM_TRUE, np.arange(NUM_RESCUED)
    residual = np.where(is_true, rng.uniform(0, 0.4, count), rng.uniform(0.6, 2, count))
    first_row, attempt = np.arange(count), np.zeros(count, np.int64)
    first_row[repairs], attempt[repairs] = NUM_TRUE + repairs, 1
    return write_buffer(
        tmp_path_factory.mktemp("truth"),
        maze,
        *random_places(maze, count, rng),
        moved=np.where(is_true, 1e-3, 1.0) * residual,
        numbers={"residual_max": residual},
        qualify=QualifyConfig(delta=0.5),
        attempt=attempt,
        first_row=first_row,
    )


@pytest.fixture(scope="session")
def varied_buffer(drift: EpisodeDataset, tmp_path_factory: pytest.TempPathFactory) -> Buffer:
    """300 candidates with random numbers behind every criterion; spread and return are switched off."""
    rng = np.random.default_rng(1)
    count, repairs = 300, np.arange(200, 300)
    first_row, attempt = np.arange(count), np.zeros(count, np.int64)
    first_row[repairs], attempt[repairs] = repairs - 200, 1
    numbers = {
        "residual_max": rng.uniform(0, 1.2, count),
        "spread_max": rng.uniform(0, 1.2, count),
        "rollout_deviation": rng.uniform(0, 1.2, count),
        "termination_max": rng.uniform(0, 0.6, count),
        "return_source": rng.normal(size=count),
    }
    numbers["residual_max"][::40] = np.nan
    return write_buffer(
        tmp_path_factory.mktemp("varied"),
        drift,
        *random_places(drift, count, rng),
        moved=np.zeros(count),
        numbers=numbers,
        qualify=QualifyConfig(delta="q80", rollout=0.9, value_check=False),
        attempt=attempt,
        first_row=first_row,
    )
