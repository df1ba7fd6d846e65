"""Small datasets, candidates and buffers made from arrays."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from raystitch.buffer.config import AugmentConfig
from raystitch.buffer.meta import create_buffer
from raystitch.buffer.opening import open_buffer
from raystitch.buffer.reader import Buffer
from raystitch.buffer.rounds import finish
from raystitch.buffer.schema import BufferMeta, candidates_to_table
from raystitch.buffer.shard_file import write_shard
from raystitch.data.episodes import Episode, EpisodeDataset, from_episodes
from raystitch.envs.spec import EnvSpec
from raystitch.models.calibration import Calibration
from raystitch.stitching.candidates import Candidates
from raystitch.stitching.config import PairConfig, QualifyConfig, StitchConfig

OBS, ACT, LARGEST_GAP = 3, 2, 6


@pytest.fixture
def dataset() -> EpisodeDataset:
    """8 episodes of 5 to 40 steps; some terminate, the rest are cut."""
    rng = np.random.default_rng(0)
    lengths = [12, 5, 40, 33, 20, 9, 28, 17]
    episodes = [
        Episode(
            observations=rng.normal(size=(length + 1, OBS)).astype(np.float32),
            actions=rng.uniform(-1, 1, (length, ACT)).astype(np.float32),
            rewards=rng.normal(size=length).astype(np.float32),
            terminated=number % 3 == 0,
            truncated=number % 3 != 0,
        )
        for number, length in enumerate(lengths)
    ]
    bound = np.ones(ACT, np.float32)
    env = EnvSpec(env_id="test/None-v0", max_episode_steps=45)
    return from_episodes(episodes, name="made", action_low=-bound, action_high=bound, env=env)


@pytest.fixture
def calibration() -> Calibration:
    quantiles = np.linspace(0, 1, 11)
    return Calibration(np.arange(1, LARGEST_GAP + 1), quantiles, {"residual": np.tile(quantiles, (LARGEST_GAP, 1))})


@pytest.fixture
def make_meta(dataset: EpisodeDataset, calibration: Calibration) -> Callable[..., BufferMeta]:
    def make(
        num_bridges: int = 20,
        pairs_per_shard: int = 16,
        delta: float | str = 0.5,
        seed: int = 0,
        chain_rounds: int = 0,
        split: Literal["value", "return"] = "return",
    ) -> BufferMeta:
        return BufferMeta(
            gamma=0.99,
            bundle_hash="sha256:0",
            dataset_name=dataset.name,
            dataset_fingerprint=dataset.fingerprint,
            obs_dim=OBS,
            act_dim=ACT,
            action_low=(-1.0,) * ACT,
            action_high=(1.0,) * ACT,
            env=dataset.env,
            calibration=calibration.to_json(),
            stitch=StitchConfig(pairs=PairConfig(split=split), qualify=QualifyConfig(delta=delta)),
            augment=AugmentConfig(num_bridges=num_bridges, pairs_per_shard=pairs_per_shard, chain_rounds=chain_rounds),
            seed=seed,
        )

    return make


@pytest.fixture
def make_candidates(dataset: EpisodeDataset) -> Callable[..., Candidates]:
    """``num_pairs`` first attempts, then second attempts of the pairs in ``repaired``; residuals uniform in 0..1."""

    def make(shard: int, num_pairs: int = 16, repaired: tuple[int, ...] = ()) -> Candidates:
        rng = np.random.default_rng([7, shard])
        source = rng.integers(0, 4, num_pairs)
        target = rng.integers(4, dataset.num_episodes, num_pairs)
        source_step = rng.integers(1, dataset.lengths[source] - 1)
        target_step = rng.integers(0, dataset.lengths[target] - 1)
        first = np.concatenate([np.arange(num_pairs), np.array(repaired, np.int64)])
        count = len(first)
        gap = rng.integers(1, LARGEST_GAP + 1, count)
        states = np.arange(LARGEST_GAP + 2) < (gap + 2)[:, None]
        observations = rng.normal(size=(count, LARGEST_GAP + 2, OBS)).astype(np.float32) * states[..., None]
        observations[:, 0] = dataset.observations[dataset.obs_offsets[source[first]] + source_step[first]]
        entered = dataset.observations[dataset.obs_offsets[target[first]] + target_step[first]]
        observations[np.arange(count), gap + 1] = entered
        steps = states[:, 1:]
        residual = rng.uniform(0, 1, count).astype(np.float32)
        return Candidates(
            source_episode=source[first],
            source_step=source_step[first],
            target_episode=target[first],
            target_step=target_step[first],
            gap=gap,
            seed=rng.integers(0, 2**62, num_pairs)[first],
            attempt=np.concatenate([np.zeros(num_pairs, np.int64), np.ones(len(repaired), np.int64)]),
            first_row=first,
            observations=observations,
            actions=rng.uniform(-1, 1, (count, LARGEST_GAP + 1, ACT)).astype(np.float32) * steps[..., None],
            rewards=rng.normal(size=(count, LARGEST_GAP + 1)).astype(np.float32) * steps,
            return_source=np.zeros(count, np.float32),
            return_target=np.ones(count, np.float32),
            return_stitched=np.ones(count, np.float32),
            residual_max=residual,
            residual_mean=residual,
            residuals=np.zeros((count, LARGEST_GAP + 1), np.float32),
            spreads=np.zeros((count, LARGEST_GAP + 1), np.float32),
            spread_max=np.zeros(count, np.float32),
            rollout_deviation=np.zeros(count, np.float32),
            termination_max=np.zeros(count, np.float32),
            accepted=residual < 0.5,
            reason=np.where(residual < 0.5, 0, 1),
        )

    return make


@pytest.fixture
def buffer(tmp_path: Path, make_meta: Callable[..., BufferMeta], make_candidates: Callable[..., Candidates]) -> Buffer:
    """A finished buffer of several shards at delta = 0.5."""
    path = tmp_path / "buffer"
    create_buffer(path, make_meta())
    for shard in range(5):
        write_shard(path, shard, candidates_to_table(make_candidates(shard), shard))
    finish(path, 20)
    return open_buffer(path)
