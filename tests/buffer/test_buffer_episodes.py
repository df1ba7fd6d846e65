from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from raystitch.buffer.bridges import BridgeSet
from raystitch.buffer.episodes import bridge_episodes, joined, rebuild
from raystitch.buffer.export import export
from raystitch.buffer.reader import Buffer
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.load import load_dataset
from raystitch.errors import UserError


def loop_episode(dataset: EpisodeDataset, bridges: BridgeSet, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One stitched episode the plain way: observations, actions, rewards."""
    source = dataset.episode(int(bridges.source_episode[row]))
    target = dataset.episode(int(bridges.target_episode[row]))
    leave, enter = int(bridges.source_step[row]), int(bridges.target_step[row])
    states = bridges.observations[bridges.obs_offsets[row] : bridges.obs_offsets[row + 1]]
    steps = slice(bridges.offsets[row], bridges.offsets[row + 1])
    return (
        np.concatenate([source.observations[: leave + 1], states[1:-1], target.observations[enter:]]),
        np.concatenate([source.actions[:leave], bridges.actions[steps], target.actions[enter:]]),
        np.concatenate([source.rewards[:leave], bridges.rewards[steps], target.rewards[enter:]]),
    )


def test_rebuilt_episodes_are_bit_equal(dataset: EpisodeDataset, buffer: Buffer) -> None:
    bridges = buffer.bridges()
    stitched = rebuild(dataset, bridges, max_episode_steps=None)
    assert stitched.episodes.num_episodes == len(bridges)
    for row, episode in enumerate(stitched.episodes):
        observations, actions, rewards = loop_episode(dataset, bridges, row)
        np.testing.assert_array_equal(episode.observations, observations)
        np.testing.assert_array_equal(episode.actions, actions)
        np.testing.assert_array_equal(episode.rewards, rewards)
        target = dataset.episode(int(bridges.target_episode[row]))
        assert (episode.terminated, episode.truncated) == (target.terminated, target.truncated)
        marks = stitched.is_synthetic[stitched.episodes.offsets[row] : stitched.episodes.offsets[row + 1]]
        leave = int(bridges.source_step[row])
        assert np.flatnonzero(marks).tolist() == list(range(leave, leave + int(bridges.gap[row]) + 1))


@pytest.mark.parametrize("limit", [3, 20, "env"])
def test_the_time_limit_cuts(dataset: EpisodeDataset, buffer: Buffer, limit: int) -> None:
    bridges = buffer.bridges()
    steps = 45 if limit == "env" else limit
    stitched = rebuild(dataset, bridges, max_episode_steps=limit)
    was_cut = 0
    for row, episode in enumerate(stitched.episodes):
        observations, actions, rewards = loop_episode(dataset, bridges, row)
        np.testing.assert_array_equal(episode.observations, observations[: steps + 1])
        np.testing.assert_array_equal(episode.actions, actions[:steps])
        np.testing.assert_array_equal(episode.rewards, rewards[:steps])
        if len(actions) > steps:
            was_cut += 1
            assert episode.truncated
            assert not episode.terminated
    assert was_cut > 0
    assert len(stitched.is_synthetic) == stitched.episodes.num_transitions


def test_a_lone_bridge_is_a_time_out_with_its_real_end(dataset: EpisodeDataset, buffer: Buffer) -> None:
    bridges = buffer.bridges()
    lone = bridge_episodes(dataset, bridges).episodes
    assert lone.truncated.all()
    assert not lone.terminated.any()
    for row, episode in enumerate(lone):
        target = dataset.episode(int(bridges.target_episode[row]))
        np.testing.assert_array_equal(episode.observations[-1], target.observations[bridges.target_step[row]])


def test_joined_invents_no_seam_transition(dataset: EpisodeDataset, buffer: Buffer) -> None:
    bridges = buffer.bridges()
    episodes = joined(dataset, bridges, max_episode_steps=None)
    assert not episodes.is_synthetic.any()
    real = {
        (*dataset.observations[dataset.obs_index[row]], *dataset.actions[row], dataset.rewards[row])
        for row in range(dataset.num_transitions)
    }
    for row, episode in enumerate(episodes.episodes):
        source = dataset.episode(int(bridges.source_episode[row]))
        target = dataset.episode(int(bridges.target_episode[row]))
        leave, enter = int(bridges.source_step[row]), int(bridges.target_step[row])
        assert len(episode.actions) == leave + len(target.actions) - enter
        np.testing.assert_array_equal(episode.observations[:leave], source.observations[:leave])
        np.testing.assert_array_equal(episode.observations[leave:], target.observations[enter:])
        for step in range(len(episode.actions)):
            assert (*episode.observations[step], *episode.actions[step], episode.rewards[step]) in real


@pytest.fixture
def minari_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


@pytest.mark.parametrize("what", ["bridges", "episodes"])
def test_a_minari_export_loads_and_iterates(
    dataset: EpisodeDataset, buffer: Buffer, minari_root: Path, what: str
) -> None:
    import minari

    written = export(buffer, dataset, "minari", "local/stitched-v0", what=what)  # pyright: ignore[reportArgumentType]
    loaded = minari.load_dataset("local/stitched-v0")
    bridges = buffer.bridges()
    made_of = rebuild(dataset, bridges) if what == "episodes" else bridge_episodes(dataset, bridges)
    expected, offsets = made_of.episodes, made_of.episodes.offsets
    assert loaded.total_episodes == written.num_episodes == len(bridges)
    for index, (made, episode) in enumerate(zip(expected, loaded.iterate_episodes(), strict=True)):
        marks = made_of.is_synthetic[offsets[index] : offsets[index + 1]]
        np.testing.assert_array_equal(episode.infos["is_synthetic"], [False, *marks])  # of the step before each state
        np.testing.assert_array_equal(made.observations, episode.observations)
        np.testing.assert_array_equal(made.actions, episode.actions)
        assert episode.terminations[-1] == made.terminated
        assert episode.truncations[-1] == made.truncated
    with pytest.raises(UserError, match="exists already"):
        export(buffer, dataset, "minari", "local/stitched-v0")


def test_a_d4rl_export_comes_back(dataset: EpisodeDataset, buffer: Buffer, tmp_path: Path) -> None:
    import h5py

    written = export(buffer, dataset, "d4rl", tmp_path / "out.hdf5")
    back = load_dataset(f"d4rl:{tmp_path}/out.hdf5")
    stitched = rebuild(dataset, buffer.bridges())
    assert back.fingerprint == stitched.episodes.fingerprint
    with h5py.File(tmp_path / "out.hdf5") as file:
        np.testing.assert_array_equal(np.asarray(file["is_synthetic"]), stitched.is_synthetic)
    assert written.num_synthetic == stitched.is_synthetic.sum()
    with pytest.raises(UserError, match="exists already"):
        export(buffer, dataset, "d4rl", tmp_path / "out.hdf5")


def test_a_parquet_export_of_a_mix(dataset: EpisodeDataset, buffer: Buffer, tmp_path: Path) -> None:
    written = export(buffer, dataset, "parquet", tmp_path / "mix.parquet", what="mixed", ratio=(4, 1), delta="off")
    table = pq.read_table(tmp_path / "mix.parquet")
    assert table.num_rows == written.num_episodes
    synthetic = np.concatenate([np.asarray(marks.as_py(), np.bool_) for marks in table["is_synthetic"]])
    assert abs(synthetic.sum() - dataset.num_transitions / 4) <= 7
    assert written.num_synthetic == synthetic.sum()
    first = table.slice(0, 1).to_pylist()[0]
    np.testing.assert_array_equal(np.asarray(first["observations"], np.float32), dataset.episode(0).observations)
    with pytest.raises(UserError, match="the most is 1:"):
        export(buffer, dataset, "parquet", tmp_path / "b.parquet", what="mixed", ratio=(1, 100))
    with pytest.raises(UserError, match="0:0"):
        export(buffer, dataset, "parquet", tmp_path / "b.parquet", what="mixed", ratio=(0, 0))


def test_export_refuses_what_makes_no_sense(dataset: EpisodeDataset, buffer: Buffer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no bridge that passes delta=0\.0"):
        export(buffer, dataset, "d4rl", tmp_path / "x.hdf5", delta=0.0)
    with pytest.raises(UserError, match="other trajectories"):
        export(buffer, dataset.subset(np.arange(3)), "d4rl", tmp_path / "x.hdf5")
    assert not (tmp_path / "x.hdf5").exists()
