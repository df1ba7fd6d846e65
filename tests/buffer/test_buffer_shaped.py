"""Rewards that are shaped as a buffer is read: in exports and in chain rounds; the buffer stays as it is."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raystitch.buffer.bridges import shape_bridges, stored_steps
from raystitch.buffer.episodes import rebuild
from raystitch.buffer.export import export
from raystitch.buffer.reader import Buffer
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.load import load_dataset
from raystitch.shaping.config import RECORDED, RewardConfig
from raystitch.shaping.rewards import REWARDS, StoredSteps

TOY: Any = "toy"


def marked(config: RewardConfig, steps: StoredSteps) -> np.ndarray[Any, Any]:
    """Generated steps are worth their place in the bridge, real ones what they were."""
    return np.where(steps.generated, steps.position, steps.rewards).astype(np.float32)


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    entries: Any = REWARDS
    monkeypatch.setitem(entries, "toy", marked)


@pytest.mark.parametrize("what", ["episodes", "bridges"])
def test_an_export_holds_the_shaped_rewards(dataset: EpisodeDataset, buffer: Buffer, tmp_path: Path, what: Any) -> None:
    for name, rewards in (("as-recorded", RECORDED), ("shaped", RewardConfig(name=TOY))):
        export(buffer, dataset, "d4rl", tmp_path / f"{name}.hdf5", what=what, rewards=rewards)
    recorded, shaped = (load_dataset(f"d4rl:{tmp_path}/{name}.hdf5") for name in ("as-recorded", "shaped"))
    bridges = buffer.bridges()
    synthetic = np.ones(bridges.num_transitions, np.bool_)
    if what == "episodes":
        stitched = rebuild(dataset, bridges)
        synthetic = stitched.is_synthetic
        np.testing.assert_array_equal(recorded.rewards, stitched.episodes.rewards)
    np.testing.assert_array_equal(shaped.rewards[~synthetic], recorded.rewards[~synthetic])
    first = synthetic & ~np.concatenate([[False], synthetic[:-1]])
    assert (shaped.rewards[first] == 0).all()
    assert shaped.rewards[synthetic].max() == bridges.gap.max()
    np.testing.assert_array_equal(shaped.observations, recorded.observations)


def test_recorded_rewards_are_the_buffers_own_bridges(buffer: Buffer) -> None:
    bridges = buffer.mapped()
    assert shape_bridges(bridges, RECORDED) is bridges
    shaped = shape_bridges(bridges, RewardConfig(name=TOY))
    assert len(shaped) == len(bridges)
    assert shaped.content != bridges.content
    some = np.array([0, 2])
    gap = bridges.take_positions(some).gap
    expected = [place for steps in gap for place in range(steps + 1)]
    assert shaped.take_positions(some).rewards.tolist() == expected
    pieces = [chunk.rewards for chunk in shaped.chunks(7)]
    assert np.concatenate(pieces).tolist() == [place for steps in buffer.bridges().gap for place in range(steps + 1)]


def test_the_rule_gets_what_the_buffer_keeps_of_each_step(buffer: Buffer) -> None:
    bridges = buffer.bridges()
    assert bridges.residual is not None
    assert bridges.spread is not None
    steps = stored_steps(bridges)
    np.testing.assert_array_equal(steps.residual, bridges.residual)
    np.testing.assert_array_equal(steps.spread, bridges.spread)
    older = stored_steps(replace(bridges, residual=None, spread=None))
    assert np.isnan(older.residual).all()
    assert np.isnan(older.spread).all()
    np.testing.assert_array_equal(older.rewards, steps.rewards)
