"""What bridges promise where few steps are rewarded."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raystitch.buffer.reader import Buffer
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.returns import has_sparse_rewards, usual_reward
from raystitch.pipeline.potential import bridge_edges, potential_with
from raystitch.stitching.config import QualifyConfig
from tests.pipeline.conftest import random_places, write_buffer


def buffer_of(dataset: EpisodeDataset, folder: Path, wrong_by: float) -> Buffer:
    """200 pieces of episodes as accepted bridges, whose rewards are wrong by so much."""
    rng, count = np.random.default_rng(0), 200
    wrong = replace(dataset, rewards=dataset.rewards + np.float32(wrong_by))
    return write_buffer(
        folder,
        dataset,
        *random_places(dataset, count, rng),
        moved=np.zeros(count),
        numbers={},
        qualify=QualifyConfig(delta=0.5),
        attempt=np.zeros(count, np.int64),
        first_row=np.arange(count),
        states_from=wrong,
    )


def test_loops_collect_no_error_of_the_reward_model(maze: EpisodeDataset, tmp_path: Path) -> None:
    assert has_sparse_rewards(maze) and usual_reward(maze) == 0
    buffer = buffer_of(maze, tmp_path, 0.1)
    assert buffer.bridges().rewards.max() > 0.05
    assert (bridge_edges(buffer, maze, 0.99).reward == 0).all()
    found = potential_with(maze, buffer=buffer)
    assert found.task_starts
    assert found.both_any is not None and found.both_any <= maze.rewards.max()


def test_other_rewards_are_the_generated_ones(drift: EpisodeDataset, tmp_path: Path) -> None:
    assert not has_sparse_rewards(drift)
    (tmp_path / "right").mkdir()
    (tmp_path / "wrong").mkdir()
    right, wrong = (buffer_of(drift, tmp_path / name, by) for name, by in (("right", 0.0), ("wrong", 0.5)))
    lengths = right.bridges().gap + 1
    found = bridge_edges(wrong, drift, 0.9).reward - bridge_edges(right, drift, 0.9).reward
    assert found == pytest.approx(0.5 * (1 - 0.9**lengths) / (1 - 0.9), rel=1e-3)
