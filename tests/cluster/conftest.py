"""A dataset with a bundle fitted on it for a moment; a run that is ready to train."""

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from raystitch.buffer.config import AugmentConfig
from raystitch.buffer.maintain import verify
from raystitch.buffer.opening import open_buffer
from raystitch.cluster.augment import augment
from raystitch.config import load_run_config
from raystitch.data.d4rl import write_d4rl
from raystitch.data.episodes import Episode, EpisodeDataset, from_episodes
from raystitch.data.load import load_dataset
from raystitch.envs.spec import EnvSpec
from raystitch.models.bundle import Bundle
from raystitch.models.fit import fit_bundle
from raystitch.pipeline.generate.augment import augment_local
from raystitch.pipeline.generate.ledger import AugmentSummary
from raystitch.stitching.config import PairConfig, QualifyConfig, StitchConfig
from tests.conftest import small_fit


def make_walks(num_episodes: int = 40) -> EpisodeDataset:
    """Drifting walks in the plane; later episodes drift, and earn, more."""
    rng = np.random.default_rng(0)
    episodes: list[Episode] = []
    for number in range(num_episodes):
        length = int(rng.integers(15, 40))
        actions = np.clip(rng.normal(number / num_episodes, 0.5, (length, 2)), -1, 1).astype(np.float32)
        steps = np.concatenate([rng.normal(0, 0.3, (1, 2)), 0.1 * actions])
        observations = np.cumsum(steps, axis=0).astype(np.float32)
        rewards = actions.mean(1)
        episodes.append(Episode(observations, actions, rewards, terminated=False, truncated=True))
    bound = np.ones(2, np.float32)
    return from_episodes(episodes, name="walks", action_low=-bound, action_high=bound)


def decisions(path: str | Path) -> list[tuple[object, ...]]:
    """What a buffer says about every candidate, numbers with rounding errors apart."""
    table = open_buffer(path).table
    names = ("bridge_id", "seed", "source_episode", "source_step", "target_episode", "target_step", "gap", "accepted")
    names += ("chain_round", "source_bridge", "target_bridge")
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))


@dataclass(frozen=True, kw_only=True)
class Walks:
    """A dataset, its file, and the folder of a bundle fitted on it for a moment; how it is augmented in these tests."""

    dataset: EpisodeDataset
    file: Path
    stitcher: Path
    stitch: StitchConfig = field(
        default_factory=lambda: StitchConfig(
            pairs=PairConfig(split="value", terminal_margin=2),
            qualify=QualifyConfig(delta="q90", termination_max=None, value_check=False),
        )
    )
    config: AugmentConfig = field(
        default_factory=lambda: AugmentConfig(num_bridges=60, pairs_per_shard=16, num_actors=1)
    )

    def augment(self, out: str | Path, **settings: Any) -> AugmentSummary:
        """On Ray; ``settings`` are those of the AugmentConfig, or ``progress`` or ``address``."""
        more = {name: settings.pop(name) for name in ("progress", "address", "device") if name in settings}
        config = replace(self.config, **settings)
        return augment(self.dataset, self.stitcher, out=out, stitch_config=self.stitch, config=config, seed=3, **more)

    def augment_local(self, out: str | Path, progress: Any = None, **settings: Any) -> AugmentSummary:
        """In this process."""
        bundle, config = Bundle.load(self.stitcher, "cpu"), replace(self.config, **settings)
        return augment_local(self.dataset, bundle, self.stitch, config, out=out, seed=3, progress=progress)

    @staticmethod
    def assert_same(path: str | Path, expected: str | Path) -> None:
        """Two buffers hold the same candidates, none twice, undamaged."""
        assert decisions(path) == decisions(expected)
        ids = open_buffer(path).table["bridge_id"].to_pylist()
        assert len(set(ids)) == len(ids)
        assert verify(path) == []
        np.testing.assert_allclose(
            open_buffer(path).bridges().observations, open_buffer(expected).bridges().observations, atol=1e-4
        )


@pytest.fixture(scope="session")
def walks(tmp_path_factory: pytest.TempPathFactory) -> Walks:
    folder = tmp_path_factory.mktemp("walks")
    dataset = make_walks()
    write_d4rl(dataset, folder / "walks.hdf5")
    fit_bundle(dataset, small_fit(diffusion_steps=150, head_steps=100, hidden=16), folder / "stitcher", device="cpu")
    return Walks(dataset=dataset, file=folder / "walks.hdf5", stitcher=folder / "stitcher")


@pytest.fixture(scope="session")
def undisturbed(walks: Walks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The buffer as one process makes it, without Ray."""
    path = tmp_path_factory.mktemp("undisturbed") / "buffer"
    walks.augment_local(path)
    return path


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run up to its trials: a folder with stitcher and buffer, and the settings over ``smoke`` that made them."""

    folder: Path
    settings: tuple[str, ...]

    def copy(self, run: Path) -> Path:
        """A run of one's own that has everything but trials."""
        shutil.copytree(self.folder, run)
        return run


def make_swings(num_episodes: int = 12) -> EpisodeDataset:
    """Gymnasium's pendulum, pushed at random: an environment whose returns differ from policy to policy."""
    made = gymnasium.make("Pendulum-v1")
    rng = np.random.default_rng(0)
    episodes: list[Episode] = []
    for number in range(num_episodes):
        observations, actions, rewards = [made.reset(seed=number)[0]], [], []
        for _ in range(100):
            actions.append(rng.uniform(-2, 2, 1).astype(np.float32))
            observation, reward, *_ = made.step(actions[-1])
            observations.append(observation)
            rewards.append(float(reward))
        columns = (np.array(observations), np.array(actions), np.array(rewards, np.float32))
        episodes.append(Episode(*columns, terminated=False, truncated=True))
    made.close()
    bound = np.full(1, 2, np.float32)
    env = EnvSpec(env_id="Pendulum-v1", max_episode_steps=200)
    return from_episodes(episodes, name="swings", action_low=-bound, action_high=bound, env=env)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("prepared")
    write_d4rl(make_swings(), folder / "swings.hdf5")
    parts = ("diffusion", "dynamics", "inverse", "reward", "termination", "value")
    settings = (
        f"dataset=d4rl:{folder / 'swings.hdf5'}",
        *(f"fit.{part}.train_steps=10" for part in parts),
        "augment={num_bridges: 20, pairs_per_shard: 32}",
        "algorithms.td3bc={train_steps: 1000, batch_size: 16, hidden: 8}",
        "algorithms.bc={train_steps: 300, batch_size: 16, hidden: 8}",
        "evaluation={num_episodes: 1, num_envs: 1}",
        "validation.enabled=false",
        "resources.max_concurrent_trials=1",  # a process takes longer to start than such trials
    )
    run = folder / "run"
    config = load_run_config("smoke", settings)
    dataset = load_dataset(config.dataset)
    bundle = fit_bundle(dataset, config.fit, run / "stitcher", device="cpu")
    augment_local(dataset, bundle, config.stitch, config.augment, out=run / "buffer", seed=config.seed)
    return Prepared(folder=run, settings=settings)
