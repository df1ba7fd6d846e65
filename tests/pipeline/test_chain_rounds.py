"""Three kinds of fragments in a line, A then B then C: no bridge is long enough to lead from A to C, a chain is."""

import dataclasses
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from raystitch.buffer.bridges import BridgeSet
from raystitch.buffer.config import AugmentConfig
from raystitch.buffer.episodes import rebuild
from raystitch.buffer.maintain import compact, verify
from raystitch.buffer.opening import open_buffer
from raystitch.buffer.reader import Buffer
from raystitch.buffer.shard_file import SHARDS
from raystitch.buffer.survey import list_shards
from raystitch.data.episodes import Episode, EpisodeDataset, from_episodes
from raystitch.envs.spec import EnvSpec
from raystitch.errors import RunError, UserError
from raystitch.models.bundle import Bundle
from raystitch.models.fit import fit_bundle
from raystitch.pipeline.generate.augment import augment_local
from raystitch.pipeline.generate.progress import AugmentProgress
from raystitch.stitching.config import PairConfig, QualifyConfig, StitchConfig
from raystitch.trainers.config import DataSpec
from raystitch.trainers.data import build_data
from tests.conftest import small_fit

KINDS = "ABC"
GAP_MAX = 8
STITCH = StitchConfig(
    pairs=PairConfig(
        split="return",
        source_fraction=0.67,
        target_fraction=0.67,
        target_cut="ends",
        terminal_margin=2,
        max_target_reuse=0,
    ),
    qualify=QualifyConfig(delta=0.002, termination_max=None, value_check=False),
)
CONFIG = AugmentConfig(num_bridges=90, pairs_per_shard=20, chain_rounds=1, chain_pool=60)


def make_line(per_kind: int = 12) -> EpisodeDataset:
    """Points that drift right by 0.1 a step: A from 0 to 2, B from 1.8 to 4, C from 3.8 to 6; C earns most."""
    rng = np.random.default_rng(0)
    episodes: list[Episode] = []
    for kind in range(len(KINDS)):
        for _ in range(per_kind):
            length = int(rng.integers(20, 26))
            actions = np.clip(rng.normal(0.8, 0.2, (length, 1)), -1, 1).astype(np.float32)
            start = 2.0 * kind - 0.2 * (kind > 0) + rng.normal(0, 0.05, (1, 1))
            observations = np.concatenate([start, start + 0.1 * np.cumsum(actions, 0)]).astype(np.float32)
            rewards = np.full(length, 0.5 * kind**2, np.float32)
            episodes.append(Episode(observations, actions, rewards, terminated=kind == 2, truncated=kind < 2))
    bound = np.ones(1, np.float32)
    env = EnvSpec(env_id="test/Line-v0", max_episode_steps=200)
    return from_episodes(episodes, name="line", action_low=-bound, action_high=bound, env=env)


def kinds_of(dataset: EpisodeDataset, episode: np.ndarray) -> np.ndarray:
    return np.array(list(KINDS))[np.asarray(episode) * len(KINDS) // dataset.num_episodes]


@pytest.fixture(scope="module")
def line() -> EpisodeDataset:
    return make_line()


@pytest.fixture(scope="module")
def bundle(line: EpisodeDataset) -> Bundle:
    return fit_bundle(line, small_fit(gap_max=GAP_MAX), None, device="cpu")


@pytest.fixture(scope="module")
def chained(line: EpisodeDataset, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chained") / "buffer"
    augment_local(line, bundle, STITCH, CONFIG, out=path, seed=1)
    return path


def decisions(buffer: Buffer) -> list[tuple[object, ...]]:
    names = ("bridge_id", "chain_round", "source_bridge", "target_bridge", "source_episode", "source_step")
    names += ("target_episode", "target_step", "gap", "accepted")
    return list(zip(*(buffer.table[name].to_pylist() for name in names), strict=True))


def parts(bridges: BridgeSet, number: int) -> list[int]:
    """The bridges of a stitched episode's parents and its own, in the order of their episode (-1 - e: real episode)."""
    sides = []
    for parent, episode in (
        (bridges.source_parent, bridges.source_episode),
        (bridges.target_parent, bridges.target_episode),
    ):
        row = int(parent[number])
        sides.append(
            parts(bridges, int(np.flatnonzero(bridges.rows == row)[0])) if row >= 0 else [-1 - int(episode[number])]
        )
    return [*sides[0], number, *sides[1]]


def test_three_fragments_are_joined(line: EpisodeDataset, chained: Path) -> None:
    buffer = open_buffer(chained)
    assert verify(chained) == []
    bridges = buffer.bridges()
    first, last = kinds_of(line, bridges.source_episode), kinds_of(line, bridges.target_episode)
    direct = (bridges.source_parent < 0) & (bridges.target_parent < 0)
    assert not ((first == "A") & (last == "C") & direct).any()
    assert (bridges.chain_round[~direct] == 1).all()
    stitched = rebuild(line, bridges, max_episode_steps=None)
    checked = 0
    joined = np.flatnonzero((first == "A") & (last == "C"))
    assert len(joined) >= 5
    for number in joined.tolist():
        # (A + B) + C or A + (B + C), or (A + B) + (B' + C); B's real part lies between two bridges.
        fragments = [part for part in parts(bridges, number) if part < 0]
        kinds = "".join(kinds_of(line, np.array([-1 - part for part in fragments])).tolist())
        assert re.fullmatch("AB+C", kinds)
        episode = stitched.episodes.episode(number)
        marks = stitched.is_synthetic[stitched.episodes.offsets[number] : stitched.episodes.offsets[number + 1]]
        edges = np.flatnonzero(np.diff(np.concatenate([[0], marks, [0]])))
        if len(edges) != 2 * (len(fragments) - 1):
            continue  # B was left where it was entered
        checked += 1
        at = [0, *edges.tolist(), len(marks)]
        for piece, fragment in zip(range(0, len(at), 2), fragments, strict=True):
            real = line.episode(-1 - fragment)
            states = episode.observations[at[piece] : at[piece + 1] + 1]
            place = np.flatnonzero((real.observations == states[0]).all(1))
            assert len(place) == 1
            run = slice(int(place[0]), int(place[0]) + len(states) - 1)
            np.testing.assert_array_equal(states[:-1], real.observations[run])
            np.testing.assert_array_equal(episode.actions[at[piece] : at[piece + 1]], real.actions[run])
            np.testing.assert_array_equal(episode.rewards[at[piece] : at[piece + 1]], real.rewards[run])
        assert episode.terminated
        assert episode.observations[0, 0] < 0.5
        assert episode.observations[-1, 0] > 5
    assert checked >= 5


def test_no_fragment_twice(line: EpisodeDataset, chained: Path) -> None:
    bridges = open_buffer(chained).bridges("off")
    seen = 0
    for number in np.flatnonzero((bridges.source_parent >= 0) | (bridges.target_parent >= 0)).tolist():
        fragments = [part for part in parts(bridges, number) if part < 0]
        seen += len(fragments) - 2
        assert len(set(fragments)) == len(fragments)
    assert seen > 20


@pytest.mark.parametrize("limit", [200, 30])
def test_trainers_see_the_rebuilt_episodes(line: EpisodeDataset, chained: Path, limit: int) -> None:
    assert line.env is not None
    dataset = dataclasses.replace(line, env=dataclasses.replace(line.env, max_episode_steps=limit))
    bridges = open_buffer(chained).bridges()
    data = build_data(dataset, DataSpec(kind="sequences", data="stitched", device="cpu"), bridges=bridges)
    reached = np.flatnonzero(bridges.source_step < limit)
    assert limit == 200 or len(reached) < len(bridges)
    rebuilt = rebuild(dataset, bridges, reached).episodes
    assert data.augmented.length.tolist() == rebuilt.lengths.tolist()
    for index, episode in enumerate(rebuilt):
        steps = torch.arange(len(episode.actions))
        windows = data.windows(
            torch.full_like(steps, data.augmented.first_episode + index), steps, torch.full_like(steps, len(steps)), 4
        )
        # The window from step t begins with t wherever four steps are left.
        whole = steps[: max(0, len(steps) - 3)]
        assert windows.time[whole, 0].tolist() == whole.tolist()
        returns = np.cumsum(episode.rewards[::-1].astype(np.float64))[::-1]
        np.testing.assert_allclose(windows.rtg[whole, 0] * data.rtg_scale, returns[whole], atol=1e-3)
        expected = data.normalizer.encode(episode.observations)
        np.testing.assert_array_equal(windows.obs[whole, 0].numpy(), expected[whole])
    alone = build_data(dataset, DataSpec(kind="transitions", data="stitched", device="cpu"), bridges=bridges)
    assert int(alone.augmented.length.sum()) == bridges.num_transitions


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [1, 3, 4, 5])
def test_interrupted_anywhere_and_run_again(
    line: EpisodeDataset, bundle: Bundle, chained: Path, tmp_path: Path, after: int
) -> None:
    """The progress is told when a shard is written and when a round is closed; stopping there is being killed there."""
    calls = 0

    def stop(_: AugmentProgress) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise Stop

    out = tmp_path / "buffer"
    with pytest.raises(Stop):
        augment_local(line, bundle, STITCH, CONFIG, out=out, seed=1, progress=stop)
    with pytest.raises(UserError, match="unfinished"):
        open_buffer(out)
    seen: list[int] = []
    augment_local(line, bundle, STITCH, CONFIG, out=out, seed=1, progress=lambda at: seen.append(at.accepted))
    assert decisions(open_buffer(out)) == decisions(open_buffer(chained))
    assert open_buffer(out).meta.rounds == open_buffer(chained).meta.rounds
    assert verify(out) == []
    assert seen == sorted(seen)
    assert seen[-1] == CONFIG.num_bridges


def test_lost_and_damaged_shards_come_back(line: EpisodeDataset, bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "buffer"
    augment_local(line, bundle, STITCH, CONFIG, out=out, seed=1)
    before = decisions(open_buffer(out))
    meta = open_buffer(out).meta
    (out / SHARDS / list_shards(out)[0]).unlink()
    (out / SHARDS / list_shards(out)[meta.rounds[0].end]).write_bytes(b"damaged")
    assert augment_local(line, bundle, STITCH, CONFIG, out=out, seed=1).new_shards == 2
    assert decisions(open_buffer(out)) == before
    assert open_buffer(out).meta.rounds == meta.rounds
    compact(out)
    assert augment_local(line, bundle, STITCH, CONFIG, out=out, seed=1).new_shards == 0
    assert verify(out) == []
    assert decisions(open_buffer(out)) == before
    with pytest.raises(UserError, match=r"augment.num_bridges \(there 90, asked 120\)"):
        augment_local(line, bundle, STITCH, replace(CONFIG, num_bridges=120), out=out, seed=1)


def test_rounds_share_the_bridges_asked_for(line: EpisodeDataset, bundle: Bundle, tmp_path: Path) -> None:
    config = replace(CONFIG, num_bridges=32, chain_rounds=2)
    assert [config.round_bridges(chain_round) for chain_round in range(3)] == [12, 10, 10]
    augment_local(line, bundle, STITCH, config, out=tmp_path / "b", seed=1)
    buffer = open_buffer(tmp_path / "b")
    for counts, wanted in zip(buffer.rounds(), (12, 10, 10), strict=True):
        assert counts.accepted >= wanted
    assert verify(tmp_path / "b") == []
    with pytest.raises(ValueError, match="chain_rounds=3"):
        AugmentConfig(num_bridges=3, chain_rounds=3)


def test_a_round_that_brings_nothing_says_so(line: EpisodeDataset, bundle: Bundle, tmp_path: Path) -> None:
    hopeless = replace(STITCH, qualify=QualifyConfig(delta=0.0))
    with pytest.raises(RunError, match=r"in chain round 0: none of the first \d+ .*smallest residual"):
        augment_local(line, bundle, hopeless, replace(CONFIG, patience=2), out=tmp_path / "b", seed=1)
