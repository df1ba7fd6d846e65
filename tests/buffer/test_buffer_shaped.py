"""Rewards that are shaped as a buffer is read: in exports and in chain rounds; the buffer stays as it is."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raystitch.buffer.episodes import rebuild
from raystitch.buffer.export import export
from raystitch.buffer.reader import Buffer
from raystitch.buffer.shaped import ShapedBridges, data_facts, shape_bridges, stored_steps
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.load import load_dataset
from raystitch.errors import UserError
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


def test_a_penalty_goes_by_the_buffers_own_calibration(dataset: EpisodeDataset, buffer: Buffer) -> None:
    bridges = buffer.mapped()
    config = RewardConfig(name="penalty", strength=2.0)
    shaped = shape_bridges(bridges, config, dataset)
    some = np.arange(min(5, len(bridges)))
    raw, found = bridges.take_positions(some), shaped.take_positions(some)
    limit = buffer.calibration.threshold("q99", np.repeat(raw.gap, raw.gap + 1))
    assert raw.residual is not None
    sigma = dataset.rewards.astype(np.float64).std()
    np.testing.assert_allclose(found.rewards, raw.rewards - 2 * sigma * raw.residual / limit, rtol=1e-4, atol=1e-5)
    whole = np.concatenate([chunk.rewards for chunk in shaped.chunks()])
    portions = np.concatenate([chunk.rewards for chunk in shaped.chunks(10)])
    np.testing.assert_array_equal(whole, portions)
    other = shape_bridges(bridges, RewardConfig(name="penalty", strength=1.0), dataset)
    assert len({of.content for of in (bridges, shaped, other)}) == 3


def test_cut_goes_by_the_sums_on_real_windows_and_an_export_has_none(
    dataset: EpisodeDataset, buffer: Buffer, tmp_path: Path
) -> None:
    config = RewardConfig(name="cut")
    shaped = shape_bridges(buffer.mapped(), config, dataset)
    assert isinstance(shaped, ShapedBridges)
    with pytest.raises(UserError, match="the residual_sum on real data, which the calibration of an earlier version"):
        shaped.ends()
    bridges = buffer.bridges()
    residual = np.random.default_rng(0).uniform(0, 1, bridges.num_transitions).astype(np.float32)
    so_far = np.concatenate([np.cumsum(steps) for steps in np.split(residual, bridges.offsets[1:-1])])
    limit = np.float32(np.median(so_far) + 1e-4)
    facts = data_facts(dataset, buffer.mapped())
    limits = {**facts.limits, "residual_sum": np.full(3, limit)}
    summed = ShapedBridges(
        bridges=replace(bridges, residual=residual), config=config, facts=replace(facts, limits=limits)
    )
    ends = summed.ends()
    np.testing.assert_array_equal(ends, np.flatnonzero(so_far > limit))
    assert 0 < len(ends) < bridges.num_transitions
    with pytest.raises(UserError, match="an export keeps them whole"):
        export(buffer, dataset, "d4rl", tmp_path / "cut.hdf5", rewards=config)
    assert not (tmp_path / "cut.hdf5").exists()
