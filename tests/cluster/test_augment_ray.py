import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from raystitch.buffer.config import AugmentConfig
from raystitch.buffer.maintain import verify
from raystitch.buffer.reader import open_buffer
from raystitch.buffer.writer import SHARDS
from raystitch.cluster.actors import pack, unpack
from raystitch.cluster.augment import augment
from raystitch.data.d4rl import write_d4rl
from raystitch.data.episodes import Episode, EpisodeDataset, from_episodes
from raystitch.errors import RunError, UserError
from raystitch.models.bundle import Bundle
from raystitch.models.config import DiffusionConfig, EmbeddingConfig, FitConfig, HeadConfig
from raystitch.models.fit import fit_bundle
from raystitch.pipeline.augment import augment_local, make_shard
from raystitch.stitching.config import PairConfig, QualifyConfig, StitchConfig
from raystitch.stitching.pairs import SourceIndex
from raystitch.stitching.stitcher import Stitcher

STITCH = StitchConfig(
    pairs=PairConfig(terminal_margin=2),
    qualify=QualifyConfig(delta="q90", termination_max=None, value_check=False),
)
CONFIG = AugmentConfig(num_bridges=60, pairs_per_shard=16)


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


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> tuple[EpisodeDataset, Path, Path]:
    """The dataset, its file and the folder of a bundle fitted on it for a moment."""
    folder = tmp_path_factory.mktemp("walks")
    dataset = make_walks()
    write_d4rl(dataset, folder / "walks.hdf5")
    head = HeadConfig(hidden=16, num_layers=1, train_steps=100, batch_size=64)
    config = FitConfig(
        diffusion=DiffusionConfig(
            horizon=16, width=8, multipliers=(1, 2), gap_min=2, gap_max=8, train_steps=150, batch_size=32
        ),
        dynamics=replace(head, num_members=3),
        num_judges=2,
        inverse=head,
        reward=head,
        termination=replace(head, num_members=1),
        value=replace(head, num_members=1),
        embedding=EmbeddingConfig(size=4, hidden=16, num_layers=1, train_steps=20, batch_size=32),
        calibration_windows=100,
    )
    fit_bundle(dataset, config, folder / "stitcher", device="cpu")
    return dataset, folder / "walks.hdf5", folder / "stitcher"


@pytest.fixture(scope="module")
def undisturbed(walks: tuple[EpisodeDataset, Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The buffer as one process makes it, without Ray."""
    dataset, _, stitcher = walks
    path = tmp_path_factory.mktemp("undisturbed") / "buffer"
    augment_local(dataset, Bundle.load(stitcher, "cpu"), STITCH, CONFIG, out=path, seed=3)
    return path


def decisions(path: Path) -> list[tuple[object, ...]]:
    table = open_buffer(path).table
    names = ("bridge_id", "seed", "source_episode", "source_step", "target_episode", "target_step", "gap", "accepted")
    names += ("chain_round", "source_bridge", "target_bridge")
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))


def assert_same(path: Path, expected: Path) -> None:
    assert decisions(path) == decisions(expected)
    ids = open_buffer(path).table["bridge_id"].to_pylist()
    assert len(set(ids)) == len(ids)
    assert verify(path) == []
    np.testing.assert_allclose(
        open_buffer(path).bridges().observations, open_buffer(expected).bridges().observations, atol=1e-4
    )


def test_two_actors_make_the_same_buffer(
    walks: tuple[EpisodeDataset, Path, Path], undisturbed: Path, tmp_path: Path, ray_session: None
) -> None:
    dataset, _, stitcher = walks
    seen: list[int] = []
    summary = augment(
        dataset,
        stitcher,
        out=tmp_path / "buffer",
        stitch_config=STITCH,
        config=replace(CONFIG, num_actors=2),
        seed=3,
        progress=lambda at: seen.append(at.accepted),
    )
    assert_same(tmp_path / "buffer", undisturbed)
    assert summary.num_accepted >= 60
    assert seen[-1] == 60
    assert len(seen) == summary.new_shards + 1
    # A second call finds it finished; more bridges continue it.
    kwargs = {"out": tmp_path / "buffer", "stitch_config": STITCH, "seed": 3}
    assert augment(dataset, stitcher, config=CONFIG, **kwargs).new_shards == 0
    assert augment_local(dataset, Bundle.load(stitcher), config=replace(CONFIG, num_bridges=90), **kwargs).new_shards
    assert set(decisions(undisturbed)) < set(decisions(tmp_path / "buffer"))


def test_chain_rounds_are_the_same_with_any_number_of_actors(
    walks: tuple[EpisodeDataset, Path, Path], tmp_path: Path, ray_session: None
) -> None:
    dataset, _, stitcher = walks
    config = replace(CONFIG, num_bridges=50, chain_rounds=1, chain_pool=20)
    augment_local(dataset, Bundle.load(stitcher, "cpu"), STITCH, config, out=tmp_path / "alone", seed=3)
    for actors in (1, 2):
        out = tmp_path / str(actors)
        augment(dataset, stitcher, out=out, stitch_config=STITCH, config=replace(config, num_actors=actors), seed=3)
        assert_same(out, tmp_path / "alone")
        assert open_buffer(out).meta.rounds == open_buffer(tmp_path / "alone").meta.rounds
    rounds = open_buffer(tmp_path / "alone").rounds()
    assert [counts.accepted >= 25 for counts in rounds] == [True, True]
    assert rounds[1].chained > 0


def test_killed_and_run_again_with_one_actor(
    walks: tuple[EpisodeDataset, Path, Path], undisturbed: Path, tmp_path: Path, ray_session: None
) -> None:
    _dataset, file, stitcher = walks
    out = tmp_path / "buffer"
    script = f"""
from raystitch.cluster.augment import augment
from raystitch.buffer.config import ActorConfig, AugmentConfig
from raystitch.stitching.config import PairConfig, QualifyConfig, StitchConfig
stitch = {STITCH!r}
augment({f"d4rl:{file}"!r}, {str(stitcher)!r}, out={str(out)!r}, stitch_config=stitch, config={CONFIG!r}, seed=3)
"""
    script = "from raystitch.stitching.config import *\n" + script
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment)
    deadline = time.monotonic() + 90
    while len(list(out.glob(f"{SHARDS}/part-*.arrow"))) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(UserError, match="unfinished"):
        open_buffer(out)
    (out / SHARDS / ".part-000001.arrow.dead.tmp").write_text("half")
    summary = augment(f"d4rl:{file}", stitcher, out=out, stitch_config=STITCH, config=CONFIG, seed=3)
    assert summary.new_shards < summary.num_shards
    assert_same(out, undisturbed)
    assert not list(out.glob(f"{SHARDS}/.*"))


def test_nothing_to_stitch_is_one_line(walks: tuple[EpisodeDataset, Path, Path], tmp_path: Path) -> None:
    dataset, _, stitcher = walks
    hopeless = replace(STITCH, qualify=QualifyConfig(delta=0.0))
    few = replace(CONFIG, patience=2, pairs_per_shard=4)
    message = r"none of the first 8 candidates was accepted \(smallest residual .*residual 8"
    for _ in range(2):  # the second call finds the shards of the first
        with pytest.raises(RunError, match=message):
            augment_local(dataset, Bundle.load(stitcher), hopeless, few, out=tmp_path / "a")
    with pytest.raises(RunError, match=message):
        augment(dataset, stitcher, out=tmp_path / "a", stitch_config=hopeless, config=few)
    enough = AugmentConfig(num_bridges=5000, pairs_per_shard=16, max_shards=2)
    with pytest.raises(RunError, match=r"2 shards of 16 pairs hold .* not the 5000 asked for"):
        augment_local(dataset, Bundle.load(stitcher), STITCH, enough, out=tmp_path / "b")


def test_an_error_in_an_actor_reaches_the_user_as_it_is(
    walks: tuple[EpisodeDataset, Path, Path], tmp_path: Path, ray_session: None
) -> None:
    dataset, _, stitcher = walks
    with pytest.raises(UserError, match=r"^device='cuda:77'"):
        augment(dataset, stitcher, out=tmp_path / "a", stitch_config=STITCH, config=CONFIG, device="cuda:77")


def test_wrong_input_is_refused_before_anything_starts(
    walks: tuple[EpisodeDataset, Path, Path], tmp_path: Path
) -> None:
    dataset, _, stitcher = walks
    with pytest.raises(UserError, match="other trajectories"):
        augment(dataset.subset(np.arange(5)), stitcher, out=tmp_path / "a", config=CONFIG)
    assert not (tmp_path / "a").exists()


def test_a_shard_depends_on_its_number_and_the_root_seed_alone(walks: tuple[EpisodeDataset, Path, Path]) -> None:
    dataset, _, stitcher = walks
    bundle = Bundle.load(stitcher, "cpu")
    made = [
        make_shard(Stitcher(bundle, STITCH), SourceIndex(dataset, bundle, STITCH), seed, shard, 8)
        for seed, shard in ((0, 5), (0, 5), (0, 6), (1, 5))
    ]
    np.testing.assert_array_equal(made[0].observations, made[1].observations)
    assert all((made[0].seed != other.seed).all() for other in made[2:])
    made[0].source_bridge = np.array(["000001-0002-0", ""] * (len(made[0]) // 2))
    copy = unpack(pack(made[0]))
    for field in fields(made[0]):
        np.testing.assert_array_equal(getattr(copy, field.name), getattr(made[0], field.name))
