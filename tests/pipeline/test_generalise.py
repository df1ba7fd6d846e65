"""Studies of buffers whose bridges are copies, new data of the same kind, or noise."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raystitch.buffer.bridges import References
from raystitch.buffer.opening import open_buffer
from raystitch.buffer.reader import Buffer
from raystitch.data.episodes import EpisodeDataset
from raystitch.envs.simulator import Unavailable
from raystitch.errors import UserError
from raystitch.models.config import FitConfig
from raystitch.models.fit import fit_bundle
from raystitch.pipeline.study.copying import StateTree
from raystitch.pipeline.study.generalise import study_buffer
from raystitch.pipeline.study.overfit import ActionWindows, action_error, generator_errors
from raystitch.pipeline.study.parts import StatePoints, StudyParts, inside
from raystitch.pipeline.study.recovery import PoorStarts, RecoveryConfig, low_return, recovery
from raystitch.stitching.config import QualifyConfig
from raystitch.trainers.config import BCConfig, DataSpec, DTConfig
from raystitch.trainers.data import build_data
from raystitch.trainers.loop import train_policy
from raystitch.trainers.policy import Policy
from tests.conftest import make_drift
from tests.pipeline.conftest import random_places, write_buffer

NUM = 120
Write = Callable[..., Buffer]


@pytest.fixture(scope="module")
def many() -> EpisodeDataset:
    return make_drift(num_episodes=100)


@pytest.fixture(scope="module")
def parts(many: EpisodeDataset) -> StudyParts:
    return StudyParts.of(many, None, 0)


@pytest.fixture
def bridges_of(many: EpisodeDataset, parts: StudyParts, tmp_path: Path) -> Write:
    """Writes a buffer of pieces of training episodes, some of them moved or with the states of other data."""

    def write(
        moved: float = 0.0, states_from: EpisodeDataset | None = None, num: int = NUM, delta: Any = 1.0
    ) -> Buffer:
        rng = np.random.default_rng(0)
        lengths = many.lengths if states_from is None else np.minimum(many.lengths, states_from.lengths)
        train = parts.train[lengths[parts.train] > 10]
        episode, gap = rng.choice(train, num), rng.integers(2, 9, num)
        start = rng.integers(0, lengths[episode] - gap)
        return write_buffer(
            tmp_path,
            many,
            episode,
            start,
            gap,
            moved=np.full(num, moved),
            numbers={"residual_max": rng.uniform(0, 0.9, num)},
            qualify=QualifyConfig(delta=delta),
            attempt=np.zeros(num, np.int64),
            first_row=np.arange(num),
            states_from=states_from,
        )

    return write


def test_copies_are_found(many: EpisodeDataset, bridges_of: Write) -> None:
    found = study_buffer(bridges_of(), many)
    json.dumps(found, allow_nan=False)
    assert found["copying"]["value"] == found["copying"]["low"] == 1.0
    assert 0.3 < found["copying"]["reference"] < 0.7
    assert found["coverage"]["gain"] == 0.0  # every copied state was in reach before
    assert found["coverage"]["far_states"] == 0.0
    assert [one["word"] for one in found["verdicts"]] == ["memorises"]


def test_new_data_of_the_same_kind_are_neither_copies_nor_invention(many: EpisodeDataset, bridges_of: Write) -> None:
    found = study_buffer(bridges_of(states_from=make_drift(num_episodes=100, seed=9)), many)
    copying, coverage = found["copying"], found["coverage"]
    assert copying["low"] < 0.5 < copying["high"]
    assert copying["low"] < copying["value"] < copying["high"]
    assert coverage["gain"] > 0.02
    assert coverage["far_states"] < 0.1
    assert [one["word"] for one in found["verdicts"]] == ["undecided"]


def test_noise_is_invention(many: EpisodeDataset, bridges_of: Write) -> None:
    coverage = study_buffer(bridges_of(moved=20.0), many)["coverage"]
    assert coverage["far_bridges"] == 1.0
    assert coverage["far_states"] > 0.95
    assert coverage["gain"] < 0.01


def test_a_study_is_repeatable_and_reads_the_buffer_at_every_delta(many: EpisodeDataset, bridges_of: Write) -> None:
    buffer = bridges_of()
    found = study_buffer(buffer, many)
    assert study_buffer(buffer, many) == found
    by_delta = {row["level"]: row for row in found["copying"]["by_delta"]}
    # Residuals are uniform in 0 .. 0.9, and quantile q of the calibration is q / 100.
    assert by_delta["q50"]["num_bridges"] < by_delta["q75"]["num_bridges"] < by_delta["off"]["num_bridges"] == NUM
    assert max(row["num_states"] for row in by_delta.values()) - by_delta["q50"]["num_states"] < 10


def test_only_bridges_between_training_episodes_count(many: EpisodeDataset, parts: StudyParts, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    episode, start, gap = random_places(many, 80, rng)
    buffer = write_buffer(
        tmp_path,
        many,
        episode,
        start,
        gap,
        moved=np.zeros(80),
        numbers={},
        qualify=QualifyConfig(delta="off"),
        attempt=np.zeros(80, np.int64),
        first_row=np.arange(80),
    )
    split = study_buffer(buffer, many)["split"]
    num_inside = int(np.isin(episode, parts.train).sum())
    assert (split["num_bridges"], split["num_inside"], split["known"]) == (80, num_inside, False)


def test_a_chained_bridge_counts_only_on_bridges_that_count() -> None:
    references = References(
        rows=np.array([10, 11, 12, 13]),
        source_episode=np.array([0, 1, 0, 0]),
        target_episode=np.array([1, 5, 0, 0]),
        source_step=np.zeros(4, np.int64),
        target_step=np.zeros(4, np.int64),
        gap=np.full(4, 2),
        offsets=np.arange(5) * 3,
        chain_round=np.array([0, 0, 1, 2]),
        source_parent=np.array([-1, -1, 11, 10]),
        target_parent=np.array([-1, -1, -1, 12]),
    )
    # Bridge 11 enters episode 5, which is held out; 12 is built on it, 13 on 12.
    assert inside(references, np.array([0, 1])).tolist() == [True, False, False, False]
    assert inside(references, np.array([0, 1, 5])).all()


def test_the_nearest_state_of_another_episode_is_the_nearest() -> None:
    rng = np.random.default_rng(0)
    points = StatePoints(rng.normal(size=(300, 3)).astype(np.float32), rng.integers(0, 4, 300))
    own = np.stack([rng.integers(0, 4, 40), np.zeros(40, np.int64)], axis=1)
    queries = StatePoints(rng.normal(size=(40, 3)).astype(np.float32), own)
    apart = np.linalg.norm(queries.points[:, None].astype(np.float64) - points.points, axis=2)
    foreign = (points.episode[None, :, None] != own[:, None]).all(2)
    tree = StateTree(points)
    np.testing.assert_allclose(tree.distance(queries), apart.min(1), rtol=1e-5)
    expected = np.where(foreign, apart, np.inf).min(1)
    np.testing.assert_allclose(tree.distance_to_others(queries), expected, rtol=1e-5)
    alone = StateTree(points.take(points.episode == 0))
    assert np.isinf(alone.distance_to_others(queries)).all()


@pytest.fixture(scope="module")
def cloned(many: EpisodeDataset, parts: StudyParts) -> Policy:
    """A policy that was trained on four training episodes, for long."""
    data = build_data(many.subset(parts.train[:4]), DataSpec(kind="transitions", device="cpu"))
    return train_policy(data, "bc", BCConfig(train_steps=120, hidden=32, batch_size=64, learning_rate=1e-2))


def test_a_policy_that_overfits_is_seen_to(many: EpisodeDataset, parts: StudyParts, cloned: Policy) -> None:
    fitted, held_out = (
        action_error(cloned, ActionWindows(dataset=many, episodes=episodes, seed=0))
        for episodes in (parts.train[:4], parts.held_out)
    )
    assert held_out > 1.3 * fitted


def test_a_policy_that_looks_back_sees_real_states(many: EpisodeDataset, parts: StudyParts) -> None:
    config = DTConfig(train_steps=3, width=8, num_layers=1, context=4, batch_size=8)
    policy = train_policy(build_data(many, DataSpec(kind="sequences", device="cpu")), "dt", config)
    windows = ActionWindows(dataset=many, episodes=parts.held_out, seed=0)
    steps = windows.draw(4)
    assert (many.episode_of[steps] == many.episode_of[steps[:, :1]]).all()
    assert np.isin(many.episode_of[steps], parts.held_out).all()
    assert 0 < action_error(policy, windows) == action_error(policy, windows) < 4


def test_the_models_errors_are_of_both_parts(drift: EpisodeDataset, tiny_fit: FitConfig) -> None:
    bundle = fit_bundle(drift, replace(tiny_fit, holdout_fraction=0.3), None)
    parts = StudyParts.of(drift, bundle, 0)
    assert parts.known
    assert (len(parts.train), len(parts.held_out)) == (28, 12)
    found = generator_errors(bundle, parts, 0.99, 0)
    assert found["action"]["ratio"] == pytest.approx(found["action"]["held_out"] / found["action"]["train"])
    assert 0.3 < found["dynamics"]["ratio"] < 3
    assert -1 <= found["ranks"]["held_out"]["low"] <= found["ranks"]["held_out"]["value"]
    with pytest.raises(UserError, match="another dataset or selection"):
        StudyParts.of(drift.subset(np.arange(20)), bundle, 0)


def test_policies_begin_in_states_of_poor_episodes(maze: EpisodeDataset) -> None:
    parts = StudyParts.of(maze, None, 0)
    config = RecoveryConfig(num_starts=3, num_envs=2, max_episode_steps=4)
    starts = PoorStarts.of(parts, config, 0)
    for states, episodes in ((starts.held_out, parts.held_out), (starts.train, parts.train)):
        poor = maze.subset(low_return(maze, episodes))
        assert all((poor.observations == state).all(1).any() for state in states)
    data = build_data(maze, DataSpec(kind="transitions", device="cpu"))
    policy = train_policy(data, "bc", BCConfig(train_steps=2, hidden=8, batch_size=8))
    found = recovery(policy, starts, config, 0, None)
    assert found == recovery(policy, starts, config, 0, None)
    assert {*found} == {"held_out", "train"}
    assert 0 <= found["held_out"]["success_rate"] <= 1


def test_what_cannot_be_compared_is_refused(many: EpisodeDataset, bridges_of: Write, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unfinished"):
        bridges_of(delta=0.0)
    with pytest.raises(UserError, match="no accepted bridge"):
        study_buffer(open_buffer(tmp_path / "buffer", allow_partial=True), many)
    with pytest.raises(UserError, match="has 2 episodes"):
        StudyParts.of(many.subset(np.arange(2)), None, 0)
    nowhere = StudyParts.of(replace(many, env=None), None, 0)
    with pytest.raises(Unavailable, match="does not say which environment"):
        PoorStarts.of(nowhere, RecoveryConfig(), 0)
