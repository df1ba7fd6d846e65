"""Fragments A, B and C in a line of which only C ends at the goal: value travels back over them round by round."""

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from raystitch.buffer.config import AugmentConfig
from raystitch.buffer.episodes import ChainedJoins, joined
from raystitch.buffer.maintain import verify
from raystitch.buffer.opening import open_buffer
from raystitch.buffer.reach_file import REACH_FILE, read_reach
from raystitch.buffer.reader import Buffer
from raystitch.buffer.ways import WAYS_FILE
from raystitch.data.episodes import Episode, EpisodeDataset, from_episodes
from raystitch.envs.spec import EnvSpec
from raystitch.errors import RunError, UserError
from raystitch.models.bundle import Bundle
from raystitch.models.fit import fit_bundle
from raystitch.pipeline.generate.augment import augment_local, shard_seeds
from raystitch.pipeline.generate.knowledge import Knowledge, recorded_values
from raystitch.pipeline.generate.ledger import Ledger
from raystitch.pipeline.generate.progress import AugmentProgress
from raystitch.stitching.config import PairConfig, QualifyConfig, StitchConfig
from raystitch.stitching.joining import chained_joins
from raystitch.stitching.pairs import SourceIndex
from raystitch.stitching.values import StateValues
from tests.conftest import small_fit

KINDS, PER_KIND = "ABC", 10
STITCH = StitchConfig(
    pairs=PairConfig(split="value", terminal_margin=2, max_target_reuse=0),
    qualify=QualifyConfig(delta=0.01, termination_max=None),
)
BY_RETURN = replace(STITCH, pairs=replace(STITCH.pairs, split="return"))
CONFIG = AugmentConfig(num_bridges=60, pairs_per_shard=10, bridges_per_round=15)
LONG = AugmentConfig(num_bridges=120, pairs_per_shard=20, chain_rounds=6)


class Line(gym.Env[np.ndarray, np.ndarray]):
    """The task starts where the fragments of kind A do."""

    observation_space = gym.spaces.Box(-10, 10, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=options.get("seed"))
        return self.np_random.normal(0, 0.05, 1).astype(np.float32), {}


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    gym.register("test/ValueLine-v0", lambda **_: Line())
    yield
    del gym.registry["test/ValueLine-v0"]


@pytest.fixture(scope="module")
def line() -> EpisodeDataset:
    """Points that drift right by 0.1 a step: A from 0 to 2, B from 1.8 to 4, C from 3.8 to 6, where the goal is.

    Every step costs 1 and the last one, to the goal, nothing; so all fragments return about as much.
    """
    rng = np.random.default_rng(0)
    episodes: list[Episode] = []
    for kind in range(len(KINDS)):
        for _ in range(PER_KIND):
            length, is_last = int(rng.integers(20, 26)), kind == len(KINDS) - 1
            actions = np.clip(rng.normal(0.8, 0.2, (length, 1)), -1, 1).astype(np.float32)
            start = 2.0 * kind - 0.2 * (kind > 0) + rng.normal(0, 0.05, (1, 1))
            observations = np.concatenate([start, start + 0.1 * np.cumsum(actions, 0)]).astype(np.float32)
            rewards = np.full(length, -1, np.float32)
            rewards[-1] += is_last
            episodes.append(Episode(observations, actions, rewards, terminated=is_last, truncated=not is_last))
    bound = np.ones(1, np.float32)
    env = EnvSpec(env_id="test/ValueLine-v0", max_episode_steps=200)
    return from_episodes(episodes, name="line", action_low=-bound, action_high=bound, env=env)


@pytest.fixture(scope="module")
def bundle(line: EpisodeDataset) -> Bundle:
    return fit_bundle(line, small_fit(), None, device="cpu")


@pytest.fixture(scope="module")
def made(line: EpisodeDataset, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "buffer"
    augment_local(line, bundle, STITCH, CONFIG, out=path, seed=1)
    return path


def decisions(buffer: Buffer) -> list[tuple[object, ...]]:
    names = ("bridge_id", "chain_round", "target_bridge", "source_episode", "source_step", "target_episode")
    names += ("target_step", "gap", "accepted", "return_source", "return_stitched")
    return list(zip(*(buffer.table[name].to_pylist() for name in names), strict=True))


def told(path: Path) -> tuple[bytes, bytes]:
    """The files that a finished buffer has beside its shards."""
    return (path / REACH_FILE).read_bytes(), (path / WAYS_FILE).read_bytes()


def number_of(path: Path, kinds: str) -> int:
    """Stitched episodes that begin in one kind of fragments and end in another."""
    bridges = open_buffer(path).bridges()
    ends = (bridges.source_episode // PER_KIND, bridges.target_episode // PER_KIND)
    first, last = (np.array(list(KINDS))[episode] for episode in ends)
    return int(((first == kinds[0]) & (last == kinds[1])).sum())


def test_value_reaches_the_start_where_a_split_by_return_does_not(
    line: EpisodeDataset, bundle: Bundle, tmp_path: Path
) -> None:
    augment_local(line, bundle, STITCH, LONG, out=tmp_path / "value", seed=2)
    augment_local(line, bundle, BY_RETURN, LONG, out=tmp_path / "return", seed=2)
    assert number_of(tmp_path / "value", "AC") > 0
    assert number_of(tmp_path / "return", "AC") == 0
    assert not (tmp_path / "return" / REACH_FILE).exists()
    found = read_reach(str(tmp_path / "value"))
    assert [entry.num_rounds for entry in found] == list(range(1, len(found) + 1))
    assert found[0].share == found[0].own_share == 0
    assert found[-1].share > 0
    assert found[-1].goal == "goal"
    assert found[-1].num_starts == 64
    assert found[-1].promised < found[-1].own < 0  # more steps than a fragment has, but they end at the goal
    assert found[-1].longest_chain >= 2


def test_more_bridges_go_on_where_fewer_end(line: EpisodeDataset, bundle: Bundle, made: Path, tmp_path: Path) -> None:
    out = tmp_path / "buffer"
    augment_local(line, bundle, STITCH, replace(CONFIG, num_bridges=40), out=out, seed=1)
    few, many = open_buffer(out), open_buffer(made)
    assert few.num_candidates < many.num_candidates
    assert decisions(few) == decisions(many)[: few.num_candidates]
    assert few.meta.rounds == many.meta.rounds[: len(few.meta.rounds)]
    assert len(few.meta.rounds) == 2
    before = told(out)
    augment_local(line, bundle, STITCH, CONFIG, out=out, seed=1)
    assert decisions(open_buffer(out)) == decisions(many)
    assert told(out) == told(made) != before
    assert verify(out) == []


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [1, 4, 7, 10])
def test_interrupted_anywhere_and_run_again(
    line: EpisodeDataset, bundle: Bundle, made: Path, tmp_path: Path, after: int
) -> None:
    calls = 0

    def stop(_: AugmentProgress) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise Stop

    out = tmp_path / "buffer"
    with pytest.raises(Stop):
        augment_local(line, bundle, STITCH, CONFIG, out=out, seed=1, progress=stop)
    augment_local(line, bundle, STITCH, CONFIG, out=out, seed=1)
    assert decisions(open_buffer(out)) == decisions(open_buffer(made))
    assert told(out) == told(made)
    assert open_buffer(out).hash == open_buffer(made).hash


@pytest.mark.parametrize("name", [REACH_FILE, WAYS_FILE])
@pytest.mark.parametrize("damage", ["missing", "damaged", "of fewer bridges"])
def test_what_is_told_beside_the_shards_is_written_again(
    line: EpisodeDataset, bundle: Bundle, tmp_path: Path, name: str, damage: str
) -> None:
    out = tmp_path / "buffer"
    augment_local(line, bundle, STITCH, replace(CONFIG, num_bridges=20), out=out, seed=1)
    fewer = (out / name).read_bytes()
    augment_local(line, bundle, STITCH, replace(CONFIG, num_bridges=50), out=out, seed=1)
    whole = told(out)
    if damage == "missing":
        (out / name).unlink()
    else:
        (out / name).write_bytes(b"damaged" if damage == "damaged" else fewer)
    again = augment_local(line, bundle, STITCH, replace(CONFIG, num_bridges=50), out=out, seed=1)
    assert again.new_shards == 0
    assert (out / WAYS_FILE).read_bytes() == whole[1]
    assert json.loads((out / REACH_FILE).read_bytes())[-1] == json.loads(whole[0])[-1]


def zeroed(bundle: Bundle, dataset: EpisodeDataset) -> Bundle:
    """The bundle for another dataset, with a value function that is constant."""
    value = copy.deepcopy(bundle.value)
    with torch.no_grad():
        for parameter in value.parameters():
            parameter.zero_()
    return replace(bundle, value=value, dataset_fingerprint=dataset.fingerprint)


def test_where_nothing_can_be_gained_it_says_so(line: EpisodeDataset, bundle: Bundle, tmp_path: Path) -> None:
    flat = replace(line, rewards=np.zeros_like(line.rewards))
    constant = zeroed(bundle, flat)
    message = (
        r"nothing can be stitched.*: none of the first 0 candidates was accepted \(no pair promises more than is known"
    )
    with pytest.raises(RunError, match=message):
        augment_local(flat, constant, STITCH, CONFIG, out=tmp_path / "b", seed=1)
    known = recorded_values(flat, constant, None)
    assert not known.value.any()
    assert not known.is_new.any()
    count = {"count": 20, "per_round": 5}
    links = chained_joins(flat, constant, STITCH, known, lambda shard: shard_seeds(0, shard, 8), **count)
    assert len(links) == 0


@pytest.mark.parametrize("ends", ["two episodes", "terminated", "gamma 1"])
def test_small_and_odd_data_give_finite_numbers(
    line: EpisodeDataset, bundle: Bundle, tmp_path: Path, ends: str
) -> None:
    dataset, fitted = line, bundle
    if ends == "two episodes":
        dataset = from_episodes(
            [line.episode(0), line.episode(1)],
            name="two",
            action_low=line.action_low,
            action_high=line.action_high,
        )
    if ends == "terminated":
        dataset = replace(line, terminated=~line.truncated | True, truncated=line.truncated & False)
    if ends == "gamma 1":
        fitted = replace(bundle, config=replace(bundle.config, gamma=1.0))
    fitted = replace(fitted, dataset_fingerprint=dataset.fingerprint)
    out = tmp_path / "buffer"
    augment_local(dataset, fitted, STITCH, replace(CONFIG, num_bridges=30), out=out, seed=1)
    buffer = open_buffer(out)
    assert len(buffer.bridges()) >= 30
    for name in ("return_source", "return_stitched"):
        assert np.isfinite(buffer.column(name)).all()
    found = read_reach(str(out))[-1].to_json()
    assert np.isfinite([value for value in found.values() if isinstance(value, int | float)]).all()
    known = recorded_values(dataset, fitted, None)
    assert np.isfinite(known.value).all()
    assert (known.value[dataset.obs_offsets[1:][dataset.terminated] - 1] == 0).all()


def test_a_settled_generation_ends_with_one_round_of_what_is_wanted(
    line: EpisodeDataset, bundle: Bundle, made: Path
) -> None:
    """Until then every round brings as many; afterwards sources have to gain over their own records alone."""
    known = recorded_values(line, bundle, None)
    later = replace(known, num_rounds=2, value=known.record + 1, best_news=(1.0,))
    for news, wanted, own in ((0.5, 15, later.value), (0.05, 60, later.record)):
        at = replace(later, news=(news,))
        knowledge = Knowledge(
            path=str(made), dataset=line, bundle=bundle, pairs=STITCH.pairs, augment=CONFIG, _known={"": at}
        )
        ledger = Ledger(path=str(made), config=CONFIG, knowledge=knowledge)
        assert (ledger.wanted, ledger.is_last_round) == (wanted, wanted == 60)
        pools = SourceIndex(line, bundle, STITCH, state_values=at).pools
        np.testing.assert_array_equal(pools.own_returns, own.astype(np.float32))


def test_the_starts_are_recorded_and_marked(line: EpisodeDataset, bundle: Bundle, made: Path) -> None:
    meta = open_buffer(made).meta
    starts = meta.starts_array
    assert starts is not None and starts.shape == (64, 1) and np.abs(starts).max() < 0.3
    known = recorded_values(line, bundle, starts)
    marked = line.observations[known.at_start][:, 0]
    assert 0 < len(marked) < 40
    assert (np.abs(marked) < 0.5).all()
    assert (np.unique(known.start) == np.arange(64)).all()
    elsewhere = recorded_values(line, bundle, starts + 50)
    farthest = line.observations[line.obs_index].max()
    assert line.observations[np.unique(elsewhere.start_row)].max() == farthest  # the nearest there is


def test_joins_are_chained_by_the_same_rules(line: EpisodeDataset, bundle: Bundle) -> None:
    known = recorded_values(line, bundle, None)

    def seeds_of(shard: int) -> np.ndarray:
        return shard_seeds(1, shard, 20)

    links = chained_joins(line, bundle, STITCH, known, seeds_of, count=200, per_round=40)
    assert len(links) == 200
    joins = ChainedJoins(
        source_episode=links.source_episode,
        source_step=links.source_step,
        target_episode=links.last_episode,
        target_step=links.target_step,
        parent=links.next,
    )
    episodes = joined(line, joins, None).episodes
    passed = links.fragments()
    for number, episode in enumerate(episodes):
        assert len(set(passed[number][passed[number] >= 0])) == links.depth[number] + 2
        rewards = episode.rewards[links.source_step[number] :].astype(np.float64)
        end = line.obs_offsets[links.last_episode[number] + 1] - 1
        worth = rewards @ bundle.gamma ** np.arange(len(rewards)) + bundle.gamma ** len(rewards) * known.record[end]
        assert worth == pytest.approx(links.value[number], abs=1e-3)
        assert links.value[number] > known.record[known.rows(links.source_episode, links.source_step)[number]]
    assert links.depth.max() > 0
    few = chained_joins(line, bundle, STITCH, known, seeds_of, count=50, per_round=40)
    assert len(few) == 50


def test_constant_data_are_refused_before_the_search_for_starts(
    line: EpisodeDataset, bundle: Bundle, tmp_path: Path
) -> None:
    still = replace(bundle, normalizer=replace(bundle.normalizer, active=np.zeros(1, np.bool_)))
    with pytest.raises(UserError, match="every observation dimension is constant"):
        augment_local(line, still, STITCH, CONFIG, out=tmp_path / "b", seed=1)


def test_values_of_a_shaped_dataset_count_the_shaped_rewards(line: EpisodeDataset, bundle: Bundle) -> None:
    plain = StateValues.recorded(line, bundle)
    assert plain.floor == plain.value.min()
    assert plain.value.max() <= 0
